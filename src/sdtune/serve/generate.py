"""`POST /generate/`: one prompt, the original and the fine-tuned picture of it in one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from sdtune.serve.asked import read_json, requested
from sdtune.serve.errors import ApiError
from sdtune.serve.queue import Picture
from sdtune.serve.registry import Entry, Registry
from sdtune.serve.waiting import base64_of, drawn, file_of, seeds, taken

if TYPE_CHECKING:
    from sdtune.serve.app import Server

NAMES = {"seeds": "seed", "model": "run"}
"""Our fields, and theirs of the same meaning."""
EXAMPLES: dict[str, dict[str, Any]] = {
    "both": {"prompt": "a red apple", "model": "both", "steps": 20, "guidance": 5.0, "seed": 1},
    "one of them": {"prompt": "a red apple", "model": "finetuned", "run": "lora"},
}


class Generate(BaseModel):
    """What is to be drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    prompt: str = Field(min_length=1)
    model: Literal["original", "finetuned", "both"] = Field("both", description="Both: from the same noise.")
    steps: int = 20
    guidance: float = 5.0
    seed: int | None = Field(None, description="Unset: by chance; the answer says which.")
    negative: str = ""
    run: str | None = Field(None, max_length=100, description="The id of a tuned model. Unset: the first of them.")


def add(app: FastAPI, server: Server) -> None:
    @app.post(
        "/generate/", tags=["generate"], summary="Original and fine-tuned", openapi_extra=requested(Generate, EXAMPLES)
    )
    async def generate(request: Request) -> JSONResponse:
        """Answers when it is drawn: {"seed", "images": {"original"?: {"id", "href", "png"}, "finetuned"?: ...}}, `png` as base64."""
        asked = await read_json(request, Generate)
        job = taken(server, request, NAMES, wish_of(asked, server.registry))
        pictures = await drawn(server, job, request)
        names = {"tuned": "finetuned", "original": "original"}
        told = {names[picture.kind]: await _told(server, picture) for picture in pictures}
        return JSONResponse({"seed": job.wish["seeds"][0], "images": told})


async def _told(server: Server, picture: Picture) -> dict[str, Any]:
    href = f"/api/pictures/{picture.id}/file"
    return {"id": picture.id, "href": href, "png": base64_of(await file_of(server, picture))}


def wish_of(asked: Generate, registry: Registry) -> dict[str, Any]:
    """Raises ApiError."""
    run = _run(asked, registry)
    same = asked.model_dump(include={"prompt", "steps", "guidance", "negative"})
    kind = "compare" if asked.model == "both" else "txt2img"
    return {
        **same, "kind": kind, "model": run.base if asked.model == "original" else run.id, "seeds": seeds(asked.seed, 1, 1, "seed"),
        "previews": False,
    }  # fmt: skip


def _run(asked: Generate, registry: Registry) -> Entry:
    run = registry.first if asked.run is None else registry.get(asked.run)
    if run is None:
        raise ApiError(404, "not_found", "run: no such model; GET /api/models lists them", field="run")
    if run.kind == "original" and asked.model != "original":
        field = "model" if asked.run is None else "run"
        raise ApiError(422, "invalid", f"{field}: there is no fine-tuned model of that; GET /api/models", field=field)
    return run
