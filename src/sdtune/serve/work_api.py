"""The routes of trainings, runs and datasets. They call `Work`; nothing opens what a request names but by id."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from sdtune.serve.asked import needs_type
from sdtune.serve.errors import ApiError
from sdtune.serve.log import Log, Said
from sdtune.serve.pages_of_runs import STRANGER
from sdtune.serve.posted import parse
from sdtune.serve.work import Work, WorkJob

KINDS = ("train", "evaluate")
EXAMPLES: dict[str, Any] = {
    "a training": {
        "value": {
            "kind": "train",
            "config": {
                "name": "mine",
                "data": {"path": "embedded:comic"},
                "method": {"type": "lora", "rank": 8},
                "train": {"steps": 200},
            },
        }
    },
    "an evaluation": {"value": {"kind": "evaluate", "run": "mine"}},
}

BODIES: list[dict[str, Any]] = [
    {
        "title": "Training", "type": "object", "required": ["kind", "config"], "additionalProperties": False,
        "properties": {"kind": {"const": "train"}, "config": {"type": "object", "description": "As GET /api/schema says."}},
    },
    {
        "title": "Evaluation", "type": "object", "required": ["kind", "run"], "additionalProperties": False,
        "properties": {"kind": {"const": "evaluate"}, "run": {"type": "string", "description": "An id of GET /api/runs."}},
    },
]  # fmt: skip


def is_work(body: bytes) -> bool:
    """Whether a body of POST /api/jobs asks for a training or an evaluation."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("kind") in KINDS


def take(work: Work, body: bytes, client: str, key: str | None) -> JSONResponse:
    """The answer to such a body."""
    asked = parse(body)
    known = {"train": {"kind", "config"}, "evaluate": {"kind", "run"}}[asked["kind"]]
    if strange := sorted(asked.keys() - known):
        raise ApiError(422, "invalid", f"{strange[0][:100]}: no such field", field=strange[0][:100])
    if missing := sorted(known - asked.keys()):
        raise ApiError(422, "invalid", f"{missing[0]}: is missing", field=missing[0])
    if asked["kind"] == "train":
        job, new = work.train(asked["config"], client, key)
    else:
        if not isinstance(asked["run"], str):
            raise ApiError(422, "invalid", "run: is no id", field="run")
        job, new = work.evaluate(asked["run"], client, key)
    return JSONResponse(work.told(job), 202 if new else 200, headers={"location": f"/api/jobs/{job.id}"})


async def told_events(journal: Log, last_id: str) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    async for said in journal.listen(last_id):
        yield line(said) if said else ": still here\n\n"


def line(said: Said) -> str:
    return f"id: {said.id}\nevent: {said.event}\ndata: {json.dumps(said.data)}\n\n"


def stream(journal: Log, last_id: str) -> StreamingResponse:
    return StreamingResponse(
        told_events(journal, last_id), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


def add_work(app: FastAPI, work: Work) -> None:
    """All routes but those of jobs, which drawings share."""
    _add_runs(app, work)
    _add_run_files(app, work)
    _add_configs(app, work)
    _add_sets(app, work)


# ---- runs


def _add_runs(app: FastAPI, work: Work) -> None:
    @app.get("/api/work", tags=["runs"], summary="The newest trainings and evaluations")
    async def works(state: str = "", limit: int = 50, before: int | None = None) -> JSONResponse:
        """`state` as in GET /api/jobs; `before` is the `number` of a job, to page."""
        most, until = max(1, min(limit, 200)), None if before is None else max(0, min(before, 2**62))
        return JSONResponse(
            {"jobs": [work.told(job) for job in work.jobs(states=(state,) if state else (), limit=most, before=until)]}
        )

    @app.get("/api/runs", tags=["runs"], summary="The runs, the newest first")
    async def runs() -> JSONResponse:
        return JSONResponse({"runs": [dataclasses.asdict(view) for view in await work.runs()]})

    @app.get("/api/runs/{run}", tags=["runs"], summary="One run")
    async def run(run: str) -> JSONResponse:
        return JSONResponse(dataclasses.asdict(await work.run(run)))

    @app.get("/api/runs/{run}/curves", tags=["runs"], summary="Losses, learning rate, validation")
    async def curves(run: str) -> JSONResponse:
        return JSONResponse(dataclasses.asdict(await work.curves(run)))

    @app.get("/api/runs/{run}/samples", tags=["runs"], summary="The previews")
    async def samples(run: str) -> JSONResponse:
        return JSONResponse({"samples": [dataclasses.asdict(p) for p in await work.samples(run)]})

    @app.get(
        "/api/runs/{run}/events", tags=["runs"], summary="What happens to a run",
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}, response_class=StreamingResponse,
    )  # fmt: skip
    async def events(run: str, request: Request) -> StreamingResponse:
        """Those of its newest job: GET /api/jobs/ID/events. 404 for a run that this server had no job of."""
        view = await work.run(run)
        job = work.job(view.job) if view.job else None
        if job is None:
            raise ApiError(404, "no_job", "this server had no job of this run")
        return stream(work.log_of(job), request.headers.get("last-event-id", ""))

    @app.post("/api/runs/{run}/stop", status_code=202, tags=["runs"], summary="End the step and save")
    async def stop(run: str) -> JSONResponse:
        return JSONResponse(work.told(work.stop_run(run)), 202)

    @app.post("/api/runs/{run}/go-on", status_code=202, tags=["runs"], summary="Go on with a stopped run")
    async def go_on(run: str, request: Request) -> JSONResponse:
        """The next sitting is a job of its own; the weights are those of a run that was never stopped."""
        return _taken(work, work.go_on(run, request.state.client))

    @app.post(
        "/api/runs/{run}/save", status_code=202, tags=["runs"], summary="Save a checkpoint after the step at hand"
    )
    async def save(run: str) -> JSONResponse:
        work.save_now(run)
        return JSONResponse({"asked": "save"}, 202)

    @app.post("/api/runs/{run}/sample", status_code=202, tags=["runs"], summary="Draw previews after the step at hand")
    async def sample(run: str) -> JSONResponse:
        work.sample_now(run)
        return JSONResponse({"asked": "sample"}, 202)


def _taken(work: Work, job: WorkJob) -> JSONResponse:
    return JSONResponse(work.told(job), 202, headers={"location": f"/api/jobs/{job.id}"})


def _add_run_files(app: FastAPI, work: Work) -> None:
    text: dict[str, Any] = {"tags": ["runs"], "response_class": PlainTextResponse}

    @app.get("/api/runs/{run}/config", summary="Its settings as TOML", **text)
    async def config(run: str) -> PlainTextResponse:
        return PlainTextResponse(await asyncio.to_thread(work.config_text, run), media_type="text/plain; charset=utf-8")

    @app.get("/api/runs/{run}/posted", tags=["runs"], summary="Its settings as POST /api/jobs takes them")
    async def posted(run: str) -> JSONResponse:
        return JSONResponse({"config": work.posted_config(run)})

    @app.get("/api/runs/{run}/log", summary="The last lines that its newest job has printed", **text)
    async def log(run: str, lines: int = 200) -> PlainTextResponse:
        return PlainTextResponse(work.log_text(run, lines), media_type="text/plain; charset=utf-8")

    @app.get(
        "/api/runs/{run}/samples/{picture}", tags=["runs"], summary="A preview",
        responses={200: {"content": {"image/png": {}}}}, response_class=FileResponse,
    )  # fmt: skip
    async def picture(run: str, picture: str) -> FileResponse:
        return FileResponse(
            work.sample_file(run, picture), media_type="image/png", headers={"cache-control": "no-cache"}
        )

    @app.get(
        "/api/runs/{run}/timeline", tags=["runs"], summary="All previews on one sheet",
        responses={200: {"content": {"image/png": {}}}}, response_class=FileResponse,
    )  # fmt: skip
    async def timeline(run: str) -> FileResponse:
        return FileResponse(await work.timeline(run), media_type="image/png", headers={"cache-control": "no-cache"})

    @app.get("/api/runs/{run}/report", tags=["runs"], summary="The report, a web page", response_class=FileResponse)
    async def report(run: str) -> FileResponse:
        return FileResponse(work.page(run, "report"), media_type="text/html; charset=utf-8", headers=STRANGER)

    @app.get("/api/runs/{run}/vote", tags=["runs"], summary="The page for blind votes", response_class=FileResponse)
    async def vote(run: str) -> FileResponse:
        return FileResponse(work.page(run, "vote"), media_type="text/html; charset=utf-8", headers=STRANGER)


# ---- configs


def _add_configs(app: FastAPI, work: Work) -> None:
    @app.get("/api/schema", tags=["configs"], summary="JSON schema of a training's config")
    async def schema() -> JSONResponse:
        return JSONResponse(work.schema())

    @app.get("/api/presets", tags=["configs"], summary="Recipes to start from")
    async def presets() -> JSONResponse:
        return JSONResponse({"presets": [dataclasses.asdict(p) for p in work.presets()]})

    @app.post("/api/estimate", tags=["configs"], summary="What a training will need", openapi_extra=_BODY)
    async def estimate(request: Request) -> JSONResponse:
        """Takes seconds: the model is read."""
        return JSONResponse(dataclasses.asdict(await work.estimate(await _config(request))))

    @app.post("/api/check", tags=["configs"], summary="Whether a config can be trained", openapi_extra=_BODY)
    async def check(request: Request) -> JSONResponse:
        """At once; 422 and 404 as POST /api/jobs answers."""
        work.read_config(await _config(request))
        return JSONResponse({"fits": True})


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["config"], "properties": {"config": {"type": "object"}}}
            }
        },
    }
}


async def _config(request: Request) -> dict[str, Any]:
    body = await _json(request)
    config = body.get("config")
    if body.keys() != {"config"} or not isinstance(config, dict):
        raise ApiError(422, "invalid", "config: one table of keys, and nothing else", field="config")
    return config


async def _json(request: Request) -> dict[str, Any]:
    needs_type(request, ("application/json",))
    return parse(await request.body())


# ---- datasets


def _add_sets(app: FastAPI, work: Work) -> None:
    @app.get("/api/datasets", tags=["datasets"], summary="The datasets that configs may name")
    async def sets() -> JSONResponse:
        return JSONResponse({"datasets": [dataclasses.asdict(view) for view in work.sets()]})

    @app.get("/api/datasets/{dataset}", tags=["datasets"], summary="A quick check of a dataset")
    async def one(dataset: str) -> JSONResponse:
        """What `sdtune data check --quick` says: headers, captions and names."""
        view = work.set(dataset)
        return JSONResponse({**dataclasses.asdict(view), **dataclasses.asdict(await work.set_report(dataset))})

    @app.get("/api/datasets/{dataset}/pictures", tags=["datasets"], summary="Its pictures and captions")
    async def pictures(dataset: str, offset: int = 0, limit: int = 50) -> JSONResponse:
        start, most = max(0, min(offset, 2**31)), max(1, min(limit, 500))
        found, total = await work.pictures(dataset, start, most)
        return JSONResponse({"pictures": [dataclasses.asdict(p) for p in found], "total": total, "offset": start})

    @app.get(
        "/api/datasets/{dataset}/pictures/{n}/thumbnail", tags=["datasets"], summary="A picture, small",
        responses={200: {"content": {"image/png": {}, "image/jpeg": {}}}}, response_class=Response,
    )  # fmt: skip
    async def thumbnail(dataset: str, n: int, side: int = 256) -> Response:
        data = await work.thumbnail(dataset, n, side)
        kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
        return Response(data, media_type=kind, headers={"cache-control": "private, max-age=60"})

    @app.put(
        "/api/datasets/{dataset}/pictures/{n}/caption",
        tags=["datasets"],
        summary="Write captions",
        openapi_extra=_CAPTIONS,
    )
    async def caption(dataset: str, n: int, request: Request) -> JSONResponse:
        """Where the set keeps them; they count as written by a person. `name`: of the picture that `n` is taken for."""
        body = await _json(request)
        captions, name = body.get("captions"), body.get("name")
        if not isinstance(captions, list) or not isinstance(name, str | None) or body.keys() - {"captions", "name"}:
            raise ApiError(422, "invalid", "captions: a list of texts; name: a text", field="captions")
        return JSONResponse(dataclasses.asdict(await work.write_captions(dataset, n, captions, name)))


_CAPTIONS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object", "required": ["captions"], "additionalProperties": False,
                    "properties": {"captions": {"type": "array", "items": {"type": "string"}}, "name": {"type": "string"}},
                }
            }
        },
    }
}  # fmt: skip
