"""AUTOMATIC1111's API, `/sdapi/v1/`, for its clients: what of it can be meant here."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image, ImageFilter
from pydantic import BaseModel, ConfigDict, Field

from sdtune import infotext
from sdtune.data import images
from sdtune.data.images import Size
from sdtune.errors import DataError
from sdtune.samplers import SAMPLERS
from sdtune.serve.asked import read_json, requested
from sdtune.serve.errors import ApiError
from sdtune.serve.queue import OPEN, Job, Picture
from sdtune.serve.registry import Entry
from sdtune.serve.sdapi_fields import NAMES, OPTIONS, Asked, Img2Img, Pictured, Txt2Img, networks, sampler, setting
from sdtune.serve.waiting import PAINTED, base64_of, drawn, file_of, foreseen, from_base64, mask_of, seeds, taken

if TYPE_CHECKING:
    from sdtune.serve.app import Server

MODEL = "sd_model_checkpoint"
ROOT = "/sdapi/v1"
EXAMPLES: dict[str, dict[str, Any]] = {
    "a picture": {"prompt": "a (red:1.2) apple", "steps": 20, "cfg_scale": 5, "seed": 1, "sampler_name": "DPM++ 2M"},
    "another model": {
        "prompt": "a red apple <lora:comic:0.8>", "scheduler": "Karras", "sampler_name": "DPM++ 2M", "batch_size": 2,
        "override_settings": {MODEL: "base"},
    },
}  # fmt: skip
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGM4IScHAAK2AQU0pnWqAAAAAElFTkSuQmCC"
PICTURE_EXAMPLES = {
    "a picture": {
        "prompt": "a green apple",
        "init_images": [_PIXEL],
        "denoising_strength": 0.6,
        "width": 64,
        "height": 64,
    }
}
_EMPTY = (
    "sd-vae", "prompt-styles", "hypernetworks", "face-restorers", "realesrgan-models", "latent-upscale-modes", "script-info", "extensions",
)  # fmt: skip
TRUE_LISTS: dict[str, Any] = {
    "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {},
    **{name: [] for name in _EMPTY},
}
"""What clients ask for at their start, and is not here."""


class Settings(BaseModel):
    """Of POST /options; each is checked by itself."""

    model_config = ConfigDict(extra="allow")
    sd_model_checkpoint: str | None = Field(None, max_length=100, description="The model of later calls.")


class Info(BaseModel):
    """A picture whose text is wanted."""

    model_config = ConfigDict(extra="forbid")
    image: str = Field(min_length=1, description="Base64, or a data: URL.")


@dataclass
class Dialect:
    """The one state that this API has: the model of later calls, and what is being asked for."""

    server: Server
    model: str = ""
    jobs: dict[str, Job] = field(default_factory=dict)
    """Those that a request waits for, the oldest first."""

    def current(self, client: str) -> Job | None:
        """The oldest open job of this client, as it stands."""
        mine = [job.id for job in self.jobs.values() if job.client == client]
        found = (self.server.queue.get(name) for name in mine)
        return next((job for job in found if job and job.state in OPEN), None)

    def entry(self, name: str) -> Entry:
        """Raises ApiError."""
        if (entry := self.server.registry.get(name)) is None:
            raise ApiError(404, "not_found", f"{MODEL}: no such model; GET {ROOT}/sd-models lists them", field=MODEL)
        return entry

    @property
    def chosen(self) -> str:
        return self.model or self.server.registry.first.id

    # ---- drawing

    async def answer(self, request: Request, asked: Asked) -> JSONResponse:
        wish = self.wish(asked)
        foreseen(self.server, request, NAMES, wish)
        if isinstance(asked, Pictured):
            wish |= await self._pictures(asked, wish["model"])
            asked = asked.model_copy(update={"init_images": [], "mask": None})  # no need to hold them while it waits
        job = taken(self.server, request, NAMES, wish)
        if asked.override_settings_restore_afterwards is False:
            self.model = wish["model"]
        self.jobs[job.id] = job
        try:
            pictures = await drawn(self.server, job, request, partly=True)
        finally:
            del self.jobs[job.id]
        files = [base64_of(await file_of(self.server, p)) for p in pictures] if asked.send_images is not False else []
        echo = asked.model_dump(mode="json", exclude={"init_images", "mask"})
        return JSONResponse({"images": files, "parameters": echo, "info": json.dumps(info(asked, job, pictures))})

    def wish(self, asked: Asked) -> dict[str, Any]:
        """Raises ApiError."""
        model = self._override(asked.override_settings or {})
        prompt, named = networks(asked.prompt)
        own = [weight for name, weight in named if name == model]
        count = asked.batch_size * asked.n_iter
        first = None if asked.seed in (None, -1) else asked.seed
        return {
            "model": model, "prompt": prompt, "negative": asked.negative_prompt or "", "prompt_weights": True,
            "steps": 50 if asked.steps is None else asked.steps, "guidance": 7.0 if asked.cfg_scale is None else asked.cfg_scale,
            "scheduler": sampler(asked), "width": asked.width, "height": asked.height,
            "seeds": seeds(first, count, self.server.rules.limits.seeds, "batch_size"),
            "strength": sum(own) if own else 1.0,
            "adapters": [{"id": name, "strength": weight} for name, weight in named if name != model],
        }  # fmt: skip

    def _override(self, settings: dict[str, Any]) -> str:
        """The model of one call. Raises ApiError."""
        for key, value in settings.items():
            if key != MODEL:
                setting(key, value, f"override_settings.{key[:80]}")
        name = settings.get(MODEL) or self.chosen
        return self.entry(name if isinstance(name, str) else "").id

    async def _pictures(self, asked: Pictured, model: str) -> dict[str, Any]:
        """Raises ApiError."""
        limits = self.server.rules.limits
        if len(asked.init_images) != 1:
            raise ApiError(422, "invalid", "init_images: one picture at a time", field="init_images")
        if asked.resize_mode > 1:
            raise ApiError(422, "invalid", "resize_mode: 0 (stretched) or 1 (its middle)", field="resize_mode")
        data = from_base64(asked.init_images[0], "init_images", limits.upload)
        own = self.entry(model).resolution
        frame = (asked.width or own, asked.height or own) if asked.width or asked.height else None
        whole: Size = (0, 0)

        def image() -> Image.Image:
            nonlocal whole
            picture = images.decode(data, max_pixels=limits.upload_pixels)
            whole = picture.size
            return stretched(picture, frame) if asked.resize_mode == 0 else picture

        kept = await self.server.keep(image, "init_images")
        strength = 0.75 if asked.denoising_strength is None else asked.denoising_strength
        told: dict[str, Any] = {"kind": "img2img", "image": kept.id, "denoising_strength": strength}
        if not asked.mask:
            return told
        mask_data = from_base64(asked.mask, "mask", limits.upload)

        def mask() -> Image.Image:
            values = images.read_mask(mask_data, max_pixels=limits.upload_pixels)
            values = np.ascontiguousarray(255 - values if asked.inpainting_mask_invert else values)
            made = mask_of(values, whole)
            blurred = made.filter(ImageFilter.GaussianBlur(asked.mask_blur)) if asked.mask_blur else made
            made = (
                blurred if int(np.asarray(blurred).max()) >= PAINTED else made
            )  # so small that nothing would be left of it
            return stretched(made, frame) if asked.resize_mode == 0 else made

        return {**told, "kind": "inpaint", "mask": (await self.server.keep(mask, "mask")).id}


def stretched(image: Image.Image, frame: tuple[int | None, int | None] | None) -> Image.Image:
    """In the size that is drawn, whatever its proportions."""
    if frame is None or frame[0] is None or frame[1] is None or image.size == frame:
        return image
    return image.resize((frame[0], frame[1]), Image.Resampling.LANCZOS)


def info(asked: Asked, job: Job, pictures: list[Picture]) -> dict[str, Any]:
    """What clients know as `info`; `ids` and `notes` are ours."""
    wish, used, count = job.wish, [p.record["seed"] for p in pictures], len(pictures)
    record: dict[str, Any] = pictures[0].record if pictures else {}
    notes = (
        ["inpaint_full_res: the whole picture was drawn"]
        if getattr(asked, "inpaint_full_res", False) and wish["mask"]
        else []
    )
    return {
        "prompt": asked.prompt, "all_prompts": [asked.prompt] * count, "negative_prompt": wish["negative"],
        "all_negative_prompts": [wish["negative"]] * count, "seed": wish["seeds"][0], "all_seeds": used, "subseed": -1,
        "all_subseeds": [-1] * count, "subseed_strength": 0, "width": record.get("width"), "height": record.get("height"),
        "sampler_name": SAMPLERS[wish["scheduler"]].title, "cfg_scale": wish["guidance"], "steps": wish["steps"],
        "batch_size": asked.batch_size, "restore_faces": False, "face_restoration_model": None, "sd_model_name": wish["model"],
        "sd_model_hash": "", "sd_vae_name": None, "sd_vae_hash": None, "seed_resize_from_w": -1, "seed_resize_from_h": -1,
        "denoising_strength": wish["denoising_strength"] if wish["image"] else None, "extra_generation_params": {},
        "index_of_first_image": 0, "infotexts": [infotext.a1111_parameters(p.record) for p in pictures], "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)), "clip_skip": 1,
        "is_using_inpainting_conditioning": False, "ids": [p.id for p in pictures], "notes": notes,
    }  # fmt: skip


# ---- progress


def progress(server: Server, job: Job | None, *, image: bool) -> dict[str, Any]:
    """How far it is, as clients poll it; all zero when nothing is asked for."""
    state = {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0, "job_timestamp": "0",
        "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
    }  # fmt: skip
    told: dict[str, Any] = {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": state,
        "current_image": None,
        "textinfo": None,
    }
    if job is None:
        return told
    total = len(job.wish["seeds"])
    state |= {"job": job.id, "job_count": total, "sampling_steps": job.wish["steps"]}
    if job.state == "queued":
        return told | {"textinfo": f"waiting, {server.queue.ahead(job)} before it"}
    if step := server.dispatcher.progress(job):
        done = min(0.999, (step["picture"] + step["step"] / step["steps"]) / total)
        spent = time.time() - (job.started or time.time())
        state |= {"job_no": step["picture"], "sampling_step": step["step"], "sampling_steps": step["steps"]}
        told |= {"progress": done, "eta_relative": spent * (1 - done) / done if done else 0.0}
    shown = [said for said in server.dispatcher.log_of(job).said if said.event == "preview"] if image else []
    return told | {"current_image": shown[-1].data["jpeg"] if shown else None}


# ---- routes


def add(app: FastAPI, server: Server) -> None:
    dialect = Dialect(server)
    _add_drawing(app, dialect)
    _add_settings(app, dialect)
    _add_lists(app, server)

    @app.post(
        f"{ROOT}/png-info",
        tags=["sdapi"],
        summary="A picture's text",
        openapi_extra=requested(Info, {"a picture": {"image": _PIXEL}}),
    )
    async def png_info(request: Request) -> JSONResponse:
        """Of a PNG, as text: nothing of it is run or taken over."""
        asked = await read_json(request, Info)
        return JSONResponse(read_text(from_base64(asked.image, "image", server.rules.limits.upload)))

    @app.get(f"{ROOT}/memory", tags=["sdapi"], summary="Memory")
    async def memory() -> JSONResponse:
        import psutil

        ram = psutil.virtual_memory()
        used = [memory["used"] for row in server.dispatcher.status() if (memory := row["memory"])]
        cuda = {"worker": {"used": sum(used)}} if used else {"error": "not told here; see /metrics"}
        return JSONResponse(
            {"ram": {"free": ram.available, "used": ram.total - ram.available, "total": ram.total}, "cuda": cuda}
        )


def _add_drawing(app: FastAPI, dialect: Dialect) -> None:
    @app.post(
        f"{ROOT}/txt2img", tags=["sdapi"], summary="Draw, as web UIs do", openapi_extra=requested(Txt2Img, EXAMPLES)
    )
    async def txt2img(request: Request) -> JSONResponse:
        """Answers when all is drawn, or with what there is if it is interrupted."""
        return await dialect.answer(request, await read_json(request, Txt2Img))

    @app.post(
        f"{ROOT}/img2img",
        tags=["sdapi"],
        summary="Change a picture",
        openapi_extra=requested(Img2Img, PICTURE_EXAMPLES),
    )
    async def img2img(request: Request) -> JSONResponse:
        """With a mask, what is white in it is painted anew."""
        return await dialect.answer(request, await read_json(request, Img2Img))

    @app.get(f"{ROOT}/progress", tags=["sdapi"], summary="How far it is")
    async def how_far(request: Request, skip_current_image: bool = False) -> JSONResponse:
        """Of the oldest request of this client that waits for an answer."""
        job = dialect.current(request.state.client)
        return JSONResponse(progress(dialect.server, job, image=not skip_current_image))

    async def interrupt(request: Request) -> JSONResponse:
        """End the oldest request of this client now, with the pictures that are whole."""
        if job := dialect.current(request.state.client):
            dialect.server.dispatcher.cancel(job)
        return JSONResponse({})

    app.post(f"{ROOT}/interrupt", tags=["sdapi"], summary="End what is being drawn")(interrupt)
    app.post(f"{ROOT}/skip", tags=["sdapi"], summary="The same")(interrupt)


def _add_settings(app: FastAPI, dialect: Dialect) -> None:
    @app.get(f"{ROOT}/options", tags=["sdapi"], summary="Settings")
    async def options() -> JSONResponse:
        return JSONResponse(
            {MODEL: dialect.chosen, **{key: values[0] for key, values in OPTIONS.items() if "forge" not in key}}
        )

    example = {"a model": {MODEL: "lora"}}

    @app.post(f"{ROOT}/options", tags=["sdapi"], summary="Choose the model", openapi_extra=requested(Settings, example))
    async def change(request: Request) -> JSONResponse:
        """`sd_model_checkpoint` is for all later calls of this API, of all clients, until the server ends."""
        asked = await read_json(request, Settings)
        for key, value in (asked.model_extra or {}).items():
            setting(key, value, key[:80])
        if asked.sd_model_checkpoint:
            dialect.model = dialect.entry(asked.sd_model_checkpoint).id
        return JSONResponse(None)


def _add_lists(app: FastAPI, server: Server) -> None:
    entries = server.registry.entries.values()

    def schedule(name: str, label: str) -> dict[str, Any]:
        return {"name": name, "label": label, "aliases": None, "default_rho": -1, "need_inner_model": False}

    lists = {
        **TRUE_LISTS,
        "sd-models": [
            {"title": e.id, "model_name": e.id, "hash": None, "sha256": None, "filename": e.id, "config": None} for e in entries
        ],
        "loras": [{"name": e.id, "alias": e.id, "path": e.id, "metadata": {}} for e in entries if e.stackable],
        "samplers": [{"name": s.title, "aliases": [name], "options": {}} for name, s in SAMPLERS.items()],
        "schedulers": [schedule("automatic", "Automatic"), schedule("uniform", "Uniform"), schedule("karras", "Karras")],
    }  # fmt: skip
    for name, value in lists.items():
        _add_list(app, name, value)

    @app.post(f"{ROOT}/refresh-checkpoints", tags=["sdapi"], summary="Nothing: models are named when the server starts")
    async def refresh() -> JSONResponse:
        return JSONResponse(None)


def _add_list(app: FastAPI, name: str, value: Any) -> None:
    @app.get(f"{ROOT}/{name}", tags=["sdapi"], summary=name, operation_id=f"sdapi_{name}")
    async def told() -> JSONResponse:
        return JSONResponse(value)


# ---- png-info


def read_text(data: bytes) -> dict[str, Any]:
    """What a PNG's text says, as `png-info` tells it. Raises ApiError."""
    kind = images.kind_of(data[:12])
    if not kind:
        raise ApiError(422, "picture", "image: is no picture that can be read", field="image")
    try:
        texts = infotext.texts_of(io.BytesIO(data), "image") if kind == "PNG" else {}
    except DataError as error:
        raise ApiError(422, "picture", str(error)[:200], field="image") from None
    text = texts.get("parameters", "")
    items = {key: value for key, value in texts.items() if key != "parameters"}
    return {"info": text, "items": items, "parameters": _pairs(text)}


def _pairs(text: str) -> dict[str, str]:
    try:
        prompts, pairs = infotext.parts_of(text)
    except ValueError:  # a text of another kind: shown as it is
        return {}
    told = {"Prompt": prompts["prompt"], "Negative prompt": prompts["negative"], **pairs}
    if "Size" in told:
        told["Size-1"], _, told["Size-2"] = told.pop("Size").partition("x")
    return told
