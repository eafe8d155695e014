"""OpenAI's Images API, for its clients: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL.Image import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from sdtune.data import images
from sdtune.serve.asked import needs_type, read_json, requested
from sdtune.serve.errors import ApiError, not_found
from sdtune.serve.queue import Job, Picture
from sdtune.serve.waiting import base64_of, drawn, encoded, ended, file_of, foreseen, left, mask_of, seeds, taken
from sdtune.serve.wish import refusal

if TYPE_CHECKING:
    from sdtune.serve.app import Server

NAMES = {"negative": "negative_prompt", "seeds": "seed", "adapters": "lora", "width": "size", "height": "size"}
"""Our fields, and theirs of the same meaning."""
_SIZE = re.compile(r"auto|[1-9][0-9]{1,4}x[1-9][0-9]{1,4}")
EXAMPLES: dict[str, dict[str, Any]] = {
    "a picture": {"prompt": "a red apple", "model": "lora", "n": 2, "size": "auto", "response_format": "b64_json"},
    "our own fields": {
        "prompt": "a red apple", "seed": 1, "steps": 20, "guidance": 5.0, "negative_prompt": "blurred",
        "lora": [{"id": "comic", "weight": 0.8}], "scheduler": "dpm++2m",
    },
    "as it comes": {"prompt": "a red apple", "stream": True, "partial_images": 2},
}  # fmt: skip


def _of_text(value: Any) -> Any:
    """A form has JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError('lora: is not JSON such as [{"id": "comic", "weight": 0.8}]') from None


class Lora(BaseModel):
    """An adapter on top of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    id: str = Field(max_length=100)
    weight: float = 1.0


class Generation(BaseModel):
    """OpenAI's fields, those without effect here among them, and ours."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    prompt: str = Field(min_length=1)
    model: str | None = Field(None, max_length=100, description="An id of GET /v1/models. Unset: the first of them.")
    n: int | None = Field(None, ge=1, description="Pictures: of seed, seed + 1, ...")
    size: str | None = Field(
        None, pattern=f"^(?:{_SIZE.pattern})$", description="WIDTHxHEIGHT, or auto: the model's own."
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="Unset: b64_json.")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of jpeg and webp. Unset: 100.")
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3, description="With stream: previews of each picture, at most.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Always opaque.")
    quality: str | None = Field(None, max_length=20, description="Without effect; see steps.")
    style: str | None = Field(None, max_length=20, description="Without effect.")
    moderation: str | None = Field(None, max_length=20, description="Without effect.")
    user: str | None = Field(None, max_length=1000, description="Without effect.")
    safety_identifier: str | None = Field(None, max_length=1000, description="Without effect.")
    seed: int | None = Field(None, description="Ours. Unset: by chance.")
    steps: int = Field(20, description="Ours.")
    guidance: float | None = Field(None, description="Ours. Unset: 5.")
    guidance_scale: float | None = Field(None, description="Ours: another name of guidance.")
    negative_prompt: str = Field("", description="Ours.")
    lora: Annotated[tuple[Lora, ...], BeforeValidator(_of_text)] = Field(
        (), description="Ours: adapters of GET /api/models."
    )
    strength: float = Field(1.0, description="Ours: of what was trained; 0 is the original.")
    scheduler: str = Field("dpm++2m", description="Ours: as in POST /api/jobs.")

    @property
    def format(self) -> str:
        return self.output_format or "png"


class Edit(Generation):
    """A picture that is changed, where the mask is transparent or as a whole."""

    input_fidelity: Literal["high", "low"] | None = Field(None, description="Without effect; see denoising_strength.")
    denoising_strength: float | None = Field(
        None, description="Ours: how far the result may go. Unset: 1 with a mask, 0.75 without."
    )


class EditForm(Edit):
    """As it is sent."""

    image: bytes = Field(json_schema_extra={"format": "binary"}, description="PNG, JPEG or WebP; one.")
    mask: bytes | None = Field(None, json_schema_extra={"format": "binary"}, description="Transparent: painted anew.")


def add(app: FastAPI, server: Server) -> None:
    began = int(time.time())

    @app.get("/v1/models", tags=["openai"], summary="The models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_model(name, began) for name in server.registry.entries]})

    @app.get("/v1/models/{model}", tags=["openai"], summary="One model")
    async def model(model: str) -> JSONResponse:
        if server.registry.get(model) is None:
            raise not_found("model")
        return JSONResponse(_model(model, began))

    answers: dict[int | str, Any] = {
        200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}}
    }

    @app.post(
        "/v1/images/generations", tags=["openai"], summary="Draw, as OpenAI's API does", responses=answers, response_class=Response,
        openapi_extra=requested(Generation, EXAMPLES),
    )  # fmt: skip
    async def generations(request: Request) -> Response:
        """Answers when all is drawn, or with stream=true as it comes."""
        asked = await read_json(request, Generation)
        job = taken(server, request, NAMES, _wish(server, asked))
        return await _Answer(server, request, asked, job, "image_generation").made()

    @app.post(
        "/v1/images/edits", tags=["openai"], summary="Change a picture, as OpenAI's API does", responses=answers,
        response_class=Response, openapi_extra=requested(EditForm, {}, "multipart/form-data"),
    )  # fmt: skip
    async def edits(request: Request) -> Response:
        """What is transparent in `mask` is painted anew; without a mask, what is transparent in `image`, else all of it may change."""
        asked, wish = await _edited(server, request)
        job = taken(server, request, NAMES, wish)
        return await _Answer(server, request, asked, job, "image_edit").made()


def _model(name: str, began: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": began, "owned_by": "sdtune"}


def _wish(server: Server, asked: Generation) -> dict[str, Any]:
    """Raises ApiError for what one field does not say."""
    if asked.guidance is not None and asked.guidance_scale is not None:
        raise ApiError(422, "invalid", "guidance_scale: is another name of guidance; give one", field="guidance_scale")
    if asked.response_format == "url" and asked.format != "png":
        raise ApiError(422, "invalid", "output_format: of an url is png; take b64_json", field="output_format")
    if asked.response_format == "url" and asked.stream:
        raise ApiError(422, "invalid", "response_format: a stream has b64_json", field="response_format")
    if asked.partial_images and not asked.stream:
        raise ApiError(422, "invalid", "partial_images: needs stream", field="partial_images")
    size = asked.size if asked.size and asked.size != "auto" else None
    width, height = map(int, size.split("x")) if size else (None, None)
    guidance = asked.guidance if asked.guidance is not None else asked.guidance_scale
    return {
        "model": asked.model or None, "prompt": asked.prompt, "negative": asked.negative_prompt, "steps": asked.steps,
        "guidance": 5.0 if guidance is None else guidance, "scheduler": asked.scheduler, "width": width, "height": height,
        "seeds": seeds(asked.seed, asked.n or 1, server.rules.limits.seeds, "n"), "strength": asked.strength,
        "adapters": [{"id": row.id, "strength": row.weight} for row in asked.lora], "previews": bool(asked.partial_images),
    }  # fmt: skip


# ---- forms


async def _edited(server: Server, request: Request) -> tuple[Edit, dict[str, Any]]:
    """The fields and the wish, when the pictures are uploads and need not be held any more. Raises ApiError."""
    needs_type(request, ("multipart/form-data",))
    async with _Form(request) as form:
        files = {key: await _file(form, key) for key in ("image", "mask")}
        asked = _edit(form)
    wish = _wish(server, asked)
    foreseen(server, request, NAMES, wish)
    wish |= await _pictures(server, files)
    strength = asked.denoising_strength
    return asked, wish | {"denoising_strength": (1.0 if "mask" in wish else 0.75) if strength is None else strength}


@dataclass
class _Form:
    """A form, whose files are closed at the end."""

    request: Request
    form: FormData | None = None

    async def __aenter__(self) -> FormData:
        try:
            self.form = await self.request.form(max_files=8, max_fields=60)
        except HTTPException:
            raise ApiError(400, "invalid_form", "the body is not a valid multipart form") from None
        return self.form

    async def __aexit__(self, *_: object) -> None:
        if self.form:
            await self.form.close()


async def _file(form: FormData, key: str) -> bytes | None:
    found = [*form.getlist(key), *form.getlist(f"{key}[]")]
    if len(found) > 1:
        raise ApiError(422, "invalid", f"{key}: one picture; several are not put together here", field=key)
    if not found:
        return None
    if not isinstance(found[0], UploadFile):
        raise ApiError(422, "invalid", f"{key}: is no file; addresses and ids are not opened here", field=key)
    return await found[0].read()


def _edit(form: FormData) -> Edit:
    """The fields beside the pictures. Raises ApiError."""
    texts = {key: value for key, value in form.multi_items() if key.removesuffix("[]") not in ("image", "mask")}
    if wrong := next((key for key, value in texts.items() if not isinstance(value, str)), None):
        raise ApiError(422, "invalid", f"{wrong[:100]}: is no file", field=wrong[:100])
    try:
        return Edit.model_validate(texts)
    except ValidationError as error:
        raise refusal(error) from None


async def _pictures(server: Server, files: Mapping[str, bytes | None]) -> dict[str, Any]:
    """The part of a wish that names them, after they have become uploads. Raises ApiError."""
    image, mask = files["image"], files["mask"]
    if image is None:
        raise ApiError(422, "invalid", "image: is needed", field="image")
    most = server.rules.limits.upload_pixels
    for key, data in files.items():
        if data is not None and len(data) > server.rules.limits.upload:
            raise ApiError(413, "too_large", f"{key}: more than {server.rules.limits.upload} bytes", field=key)
    kept = await server.keep(lambda: images.decode(image, max_pixels=most), "image")
    if mask is None and not await _is_transparent(image, most):
        return {"kind": "img2img", "image": kept.id}
    data = image if mask is None else mask

    def anew() -> Image:
        values = 255 - images.read_mask(data, opacity=True, max_pixels=most)
        return mask_of(np.ascontiguousarray(values), (kept.record["width"], kept.record["height"]))

    return {"kind": "inpaint", "image": kept.id, "mask": (await server.keep(anew, "mask")).id}


async def _is_transparent(data: bytes, most: int) -> bool:
    opacity = await asyncio.to_thread(images.read_mask, data, opacity=True, max_pixels=most)
    return int(opacity.min()) < 128


# ---- answers


@dataclass
class _Answer:
    """What the client reads, at once or as it comes."""

    server: Server
    request: Request
    asked: Generation
    job: Job
    name: str
    """Of the stream's events: image_generation or image_edit."""

    async def made(self) -> Response:
        if self.asked.stream:
            stream = self._stream()
            await anext(stream)  # begun, so that it ends, too, if the client goes before the first byte
            return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        pictures = await drawn(self.server, self.job, self.request)
        data = [await self._told(picture) for picture in pictures]
        return JSONResponse({**self._common(pictures), "created": int(self.job.created), "data": data, "usage": None})

    def _common(self, pictures: list[Picture]) -> dict[str, Any]:
        record = pictures[0].record
        size = f"{record['width']}x{record['height']}"
        return {"size": size, "output_format": self.asked.format, "background": "opaque", "quality": "auto"}

    async def _told(self, picture: Picture) -> dict[str, Any]:
        """`seed` and `id` are ours."""
        more = {"seed": picture.record["seed"], "id": picture.id, "revised_prompt": None}
        if self.asked.response_format == "url":
            return {"url": f"{self.request.base_url}api/pictures/{picture.id}/file", **more}
        return {"b64_json": await self._base64(picture), **more}

    async def _base64(self, picture: Picture) -> str:
        quality = 100 if self.asked.output_compression is None else self.asked.output_compression
        png = await file_of(self.server, picture)
        return base64_of(await asyncio.to_thread(encoded, png, self.asked.format, quality))

    async def _stream(self) -> AsyncIterator[str]:
        """Previews, each picture when it is whole; at the end of a job that was not drawn, an error."""
        shown = dict[int, int]()
        journal = self.server.dispatcher.watched(self.job)
        try:
            yield ": queued\n\n"
            async for said in journal.listen():
                if said is None:
                    yield ": still here\n\n"
                elif said.event == "picture":
                    yield await self._completed(said.data["id"])
                elif said.event == "preview":
                    number = shown.get(said.data["picture"], 0)
                    if number < (self.asked.partial_images or 0):
                        shown[said.data["picture"]] = number + 1
                        yield self._partial(said.data["jpeg"], number)
            ended(self.server, self.job)
        except ApiError as error:
            yield _event("error", error.body(self.request.state.request_id))
        finally:
            left(self.server, self.job)

    async def _completed(self, name: str) -> str:
        picture = self.server.picture(name)
        told = {"b64_json": await self._base64(picture), "seed": picture.record["seed"], "id": name}
        common = {**self._common([picture]), "created_at": int(time.time()), "usage": None}
        return _event(f"{self.name}.completed", {**told, **common})

    def _partial(self, jpeg: str, number: int) -> str:
        told = {
            "b64_json": jpeg,
            "partial_image_index": number,
            "created_at": int(time.time()),
            "output_format": "jpeg",
        }
        return _event(f"{self.name}.partial_image", {**told, "size": "auto", "quality": "auto", "background": "opaque"})


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"
