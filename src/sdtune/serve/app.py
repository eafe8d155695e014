"""The routes of the native API. They read and write the queue; nothing here draws, and nothing opens what a request names but by id."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from PIL.Image import Image
from starlette.exceptions import HTTPException

from sdtune import emphasis
from sdtune.data import images
from sdtune.errors import DataError
from sdtune.runs import Run
from sdtune.serve import generate, metrics, openai, pages_of_runs, registry, sdapi, work_api
from sdtune.serve.asked import flat, needs_type
from sdtune.serve.dispatch import Dispatcher, told_picture
from sdtune.serve.errors import SCHEMA, ApiError, not_found
from sdtune.serve.guard import Guard, Rules
from sdtune.serve.queue import Job, Picture, Queue
from sdtune.serve.registry import Registry
from sdtune.serve.setup import Setup
from sdtune.serve.shelf import Shelf
from sdtune.serve.store import Store, is_id
from sdtune.serve.thumbs import thumb
from sdtune.serve.wish import Wish, limited, read, with_seeds
from sdtune.serve.work import Shop, Work, WorkJob

UPLOADS = ("image/png", "image/jpeg", "image/webp")
FOREVER = {"cache-control": "private, max-age=31536000, immutable"}
"""Of a picture: its file never changes."""
EXAMPLES: dict[str, Any] = {
    "a picture": {"value": {"prompt": "a red apple", "seeds": [1], "steps": 20}},
    "original and tuned": {"value": {"kind": "compare", "model": "demo-lora", "prompt": "a red apple", "seeds": [1, 2]}},
    "from a picture": {
        "value": {"kind": "img2img", "image": "0b52ab0cf1c7418dae6ebd0e6b3c6f0e", "prompt": "a green apple", "denoising_strength": 0.6}
    },
    "painted anew": {
        "value": {
            "kind": "inpaint", "image": "0b52ab0cf1c7418dae6ebd0e6b3c6f0e", "mask": "5b6f2f3a5e1d4c39a6f5f3b1f3a7c2de",
            "prompt": "a green apple",
        }
    },
    **work_api.EXAMPLES,
}  # fmt: skip


@dataclass
class Server:
    """What the routes share."""

    registry: Registry
    queue: Queue
    store: Store
    dispatcher: Dispatcher
    work: Work
    rules: Rules
    wish: type[Wish]
    answers: Counter[int] = field(default_factory=Counter)
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    began: float = field(default_factory=time.time)
    paths: tuple[str, ...] = ()
    """Of the routes of the APIs."""

    def __post_init__(self) -> None:
        self.shelf = Shelf(self.registry)

    # ---- by id

    def job(self, name: str) -> Job:
        if not is_id(name) or (job := self.queue.get(name)) is None:
            raise not_found("job")
        return job

    def drawing_or_work(self, name: str) -> Job | WorkJob:
        """They share the ids."""
        return (self.work.job(name) if is_id(name) else None) or self.job(name)

    def picture(self, name: str) -> Picture:
        if not is_id(name) or (picture := self.queue.picture(name)) is None:
            raise not_found("picture")
        return picture

    def file(self, name: str) -> Path:
        """That of a picture. Raises ApiError."""
        found = self.picture(name)
        path = self.store.path(found.id, found.kind)
        if not path.is_file():
            raise not_found("picture")
        return path

    # ---- taking a job

    def take(self, wish: Wish, client: str, key: str | None = None) -> tuple[Job, bool]:
        """The job of a wish, and whether it is new. Raises ApiError."""
        self.check(wish)
        if key is not None and (known := self.queue.by_key(client, key)):
            return self._same(known, wish), False
        self.check_room(client)
        try:
            job = self.queue.add(
                {**with_seeds(wish).dumped(), "model": wish.model or self.registry.first.id}, client, key
            )
        except sqlite3.OperationalError:
            raise ApiError(507, "disk_full", "the job cannot be kept: the disk is full") from None
        self.dispatcher.counts["taken"] += 1
        self.dispatcher.log_of(job)
        self.dispatcher.wake()
        return job, True

    def check(self, wish: Wish) -> None:
        """What only this server can know: its models and their sizes, its pictures."""
        entry = self.registry.get(wish.model) if wish.model is not None else self.registry.first
        if entry is None:
            raise ApiError(404, "not_found", "no such model; GET /api/models lists them", field="model")
        for key in ("width", "height"):
            if (value := getattr(wish, key)) is not None and value % entry.grid:
                raise ApiError(422, "invalid", f"{key}: {value} is not a multiple of {entry.grid}", field=key)
        if wish.kind == "compare" and entry.kind == "original":
            raise ApiError(422, "invalid", "model: is an original; compare needs a tuned one", field="model")
        for row in wish.adapters:
            on = self.registry.get(row.id)
            if on is None or not on.stackable:
                raise ApiError(404, "not_found", "no such adapter; GET /api/models lists them", field="adapters")
            if on.base != entry.base or on.id == entry.id:
                raise ApiError(422, "invalid", f"adapters: {row.id} does not lie on {entry.id}", field="adapters")
        for key in ("image", "mask"):
            name = getattr(wish, key)
            if name is not None and (not is_id(name) or self.queue.picture(name) is None):
                raise ApiError(404, "not_found", "no such picture", field=key)
        self._check_mask(wish)
        self._check_weights(wish)

    @staticmethod
    def _check_weights(wish: Wish) -> None:
        for key in ("prompt", "negative") if wish.prompt_weights else ():
            if what := emphasis.unsupported(getattr(wish, key)):
                raise ApiError(422, "invalid", f"{key}: {what}", field=key)

    def _check_mask(self, wish: Wish) -> None:
        sizes = [_size(self.picture(name)) for name in (wish.image, wish.mask) if name]
        if len(sizes) == 2 and sizes[0] != sizes[1]:
            raise ApiError(422, "invalid", "mask: is not as large as the picture", field="mask")

    def check_room(self, client: str) -> None:
        limits, retry = self.rules.limits, {"retry-after": str(self.dispatcher.retry_after())}
        if self.dispatcher.draining:
            raise ApiError(503, "stopping", "the server is stopping", headers={"retry-after": "30"})
        if self.queue.count("queued") >= limits.queue:
            raise ApiError(429, "queue_full", f"{limits.queue} jobs wait already", headers=retry)
        if self.queue.count("queued", client) >= limits.client:
            raise ApiError(429, "client_full", f"{limits.client} jobs of this client wait already", headers=retry)
        if shutil.disk_usage(self.store.folder).free < limits.room:
            raise ApiError(507, "disk_full", "too little room on the server's disk for more pictures")

    @staticmethod
    def _same(known: Job, wish: Wish) -> Job:
        """The job that the key stands for, if it was of the same wish."""
        asked = wish.dumped()
        chosen = [key for key in ("seeds", "model") if asked[key] is None]
        if {k: v for k, v in known.wish.items() if k not in chosen} != {
            k: v for k, v in asked.items() if k not in chosen
        }:
            raise ApiError(409, "key_reused", "this Idempotency-Key was used for another job")
        return known

    # ---- pictures

    async def keep_upload(self, data: bytes) -> Picture:
        """A picture that a client sent, made anew. Raises ApiError."""
        return await self.keep(lambda: images.decode(data, max_pixels=self.rules.limits.upload_pixels))

    async def keep(self, decode: Callable[[], Image], field: str = "") -> Picture:
        """What `decode` gives of a picture that a client sent, made anew. Raises ApiError that names `field`."""
        async with self.decoding:
            try:
                image = await asyncio.to_thread(decode)
                name = await asyncio.to_thread(self.store.keep, image)
            except DataError as error:
                raise ApiError(422, "picture", f"the picture cannot be used: {error}"[:200], field=field) from None
        self.queue.add_picture(name, None, 0, "upload", {"width": image.width, "height": image.height})
        self._drop_old_uploads()
        return self.picture(name)

    def _drop_old_uploads(self) -> None:
        needed, found = self.queue.needed(), self.queue.uploads()
        for old in found[: max(0, len(found) - self.rules.limits.uploads)]:
            if old.id not in needed:
                self.queue.drop_pictures([old.id])
                self.store.remove(old.id, old.kind)

    def delete(self, picture: Picture) -> None:
        """Raises ApiError while an open job begins with it."""
        if picture.id in self.queue.needed():
            raise ApiError(409, "in_use", "an open job begins with this picture")
        self.queue.drop_pictures([picture.id])
        self.store.remove(picture.id, picture.kind)

    # ---- for clients

    def told(self, job: Job) -> dict[str, Any]:
        pictures = [told_picture(p.id, p.number, p.kind, p.record) for p in self.queue.pictures_of(job.id)]
        told: dict[str, Any] = {
            "id": job.id, "state": job.state, "request": job.wish, "pictures": pictures, "created": job.created,
            "started": job.started, "finished": job.finished, "error": job.error, "progress": self.dispatcher.progress(job),
            "events": f"/api/jobs/{job.id}/events",
        }  # fmt: skip
        return told | ({"ahead": self.queue.ahead(job)} if job.state == "queued" else {})


def _size(picture: Picture) -> tuple[int, int]:
    return picture.record["width"], picture.record["height"]


def create_app(known: Registry, setup: Setup, rules: Rules, store: Store, shop: Shop | None = None) -> FastAPI:
    """The app; its lifespan starts and ends the worker. `app.state.server` is the `Server`."""
    queue = Queue(store.folder / "queue.sqlite")
    dispatcher = Dispatcher(queue, store, known, setup, rules.limits)

    def trained(run: Run) -> str:
        entries = registry.trained(known, run)
        dispatcher.grow(entries)
        return entries[-1].id

    work = Work(shop or Shop(), store.folder, known, rules.limits, trained)
    server = Server(known, queue, store, dispatcher, work, rules, limited(rules.limits))

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        dispatcher.start()
        await work.start()
        try:
            yield
        finally:
            await dispatcher.stop()
            await work.stop()
            queue.close()

    app = FastAPI(
        title="sdtune", version="1", lifespan=life, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        responses={code: {"description": text, "content": {"application/json": {"schema": SCHEMA}}} for code, text in _REFUSALS.items()},
    )  # fmt: skip
    app.state.server = server
    app.add_middleware(Guard, rules=rules, answers=server.answers)
    _handle_errors(app)
    _add_jobs(app, server)
    _add_events(app, server)
    _add_pictures(app, server)
    _add_models(app, server)
    _add_health(app, server)
    work_api.add_work(app, work)
    generate.add(app, server)
    openai.add(app, server)
    sdapi.add(app, server)
    pages_of_runs.add(app, server)
    server.paths = tuple(str(getattr(route, "path", "")) for route in app.routes)
    return app


_REFUSALS: dict[int | str, str] = {
    401: "No token, or not this server's.",
    403: "A foreign Host or Origin.",
    404: "No such id.",
    422: "A field is wrong or too large; `field` names it.",
    429: "The queue is full; Retry-After says when to come again.",
}


def _handle_errors(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(request.state.request_id), error.status, headers=error.headers)

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer(request, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"][1:]))
        return answer(request, ApiError(422, "invalid", f"{field}: {fault['msg'].lower()}", field=field))

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {404: ("not_found", "no such page"), 405: ("method", "this page does not take that method")}
        code, message = known.get(error.status_code, ("refused", "the request cannot be answered"))
        return answer(request, ApiError(error.status_code, code, message, headers=error.headers))

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)


# ---- jobs


def _add_jobs(app: FastAPI, server: Server) -> None:
    schema = server.wish.model_json_schema()
    kinds = {"anyOf": [flat(schema), *work_api.BODIES]}
    body = {"required": True, "content": {"application/json": {"schema": kinds, "examples": EXAMPLES}}}
    key_parameter = {
        "name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string", "maxLength": 200},
        "description": "The same key and body again are the same job, not another one.",
    }  # fmt: skip

    @app.post(
        "/api/jobs",
        status_code=202,
        tags=["jobs"],
        summary="Draw, train or evaluate",
        openapi_extra={"requestBody": body, "parameters": [key_parameter]},
    )
    async def take(request: Request) -> JSONResponse:
        needs_type(request, ("application/json",))
        key, body = request.headers.get("idempotency-key"), await request.body()
        if key is not None and not 0 < len(key) <= 200:
            raise ApiError(422, "invalid", "Idempotency-Key: 1 to 200 characters", field="Idempotency-Key")
        if work_api.is_work(body):
            return work_api.take(server.work, body, request.state.client, key)
        wish = read(body, server.wish, server.rules.limits)
        job, new = server.take(wish, request.state.client, key)
        return JSONResponse(server.told(job), 202 if new else 200, headers={"location": f"/api/jobs/{job.id}"})

    @app.get("/api/jobs", tags=["jobs"], summary="The newest jobs")
    async def jobs(state: str = "", limit: int = 50, before: int | None = None) -> JSONResponse:
        """`state` is one of queued, running, done, failed, cancelled; `before` the `number` of a job, to page."""
        found = server.queue.jobs((state,) if state else (), limit=max(1, min(limit, 200)), before=_bounded(before))
        return JSONResponse({"jobs": [{**server.told(job), "number": job.number} for job in found]})

    @app.get("/api/jobs/{job}", tags=["jobs"], summary="One job")
    async def job(job: str) -> JSONResponse:
        return JSONResponse(_any_told(server, server.drawing_or_work(job)))

    @app.delete("/api/jobs/{job}", tags=["jobs"], summary="Cancel")
    async def cancel(job: str) -> JSONResponse:
        """A waiting job is cancelled at once, a running one at its next step. What is drawn stays, and what is trained is saved."""
        found = server.drawing_or_work(job)
        if isinstance(found, WorkJob):
            server.work.cancel(found)
        else:
            server.dispatcher.cancel(found)
        return JSONResponse(_any_told(server, server.drawing_or_work(job)))


def _add_events(app: FastAPI, server: Server) -> None:
    @app.get(
        "/api/jobs/{job}/events", tags=["jobs"], summary="What happens to a job",
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}, response_class=StreamingResponse,
    )  # fmt: skip
    async def events(job: str, request: Request, attached: bool = False) -> StreamingResponse:
        """Server-sent events: state, step, preview, picture, and one of done, error, cancelled, restart at the end.

        Last-Event-ID goes on behind that event. `attached`: the job is cancelled when this connection ends, unless another such one
        comes within five seconds.
        """
        found, last_id = server.drawing_or_work(job), request.headers.get("last-event-id", "")
        if isinstance(found, WorkJob):
            return work_api.stream(server.work.log_of(found), last_id)
        stream = _events(server, found, last_id, attached=attached)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def _events(server: Server, job: Job, last_id: str, *, attached: bool) -> AsyncIterator[str]:
    dispatcher = server.dispatcher
    journal = dispatcher.watched(job) if attached else dispatcher.log_of(job)
    try:
        yield "retry: 1000\n\n"
        async for said in journal.listen(last_id):
            yield work_api.line(said) if said else ": still here\n\n"
    finally:
        if attached:
            dispatcher.left(job)


def _any_told(server: Server, job: Job | WorkJob) -> dict[str, Any]:
    return server.work.told(job) if isinstance(job, WorkJob) else server.told(job)


def _bounded(number: int | None) -> int | None:
    """What SQLite can hold."""
    return None if number is None else max(-(2**62), min(number, 2**62))


# ---- pictures


def _add_pictures(app: FastAPI, server: Server) -> None:
    body = {"required": True, "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in UPLOADS}}

    @app.post(
        "/api/uploads",
        status_code=201,
        tags=["pictures"],
        summary="Send a picture",
        openapi_extra={"requestBody": body},
    )
    async def upload(request: Request) -> JSONResponse:
        """The body is the file: PNG, JPEG or WebP. It is written anew: upright, without EXIF, place, profile and texts."""
        needs_type(request, UPLOADS)
        kept = await server.keep_upload(await request.body())
        return JSONResponse({"id": kept.id, **kept.record}, 201)

    @app.get("/api/pictures", tags=["pictures"], summary="The newest pictures")
    async def pictures(limit: int = 50, before: float | None = None) -> JSONResponse:
        """`before` is the `created` of a picture, to page."""
        found = server.queue.pictures(limit=max(1, min(limit, 200)), before=before)
        return JSONResponse({"pictures": [_told(p) for p in found]})

    @app.get("/api/pictures/{picture}", tags=["pictures"], summary="How a picture was drawn")
    async def picture(picture: str) -> JSONResponse:
        return JSONResponse(_told(server.picture(picture)))

    @app.get(
        "/api/pictures/{picture}/file", tags=["pictures"], summary="The picture itself",
        responses={200: {"content": {"image/png": {}}}}, response_class=FileResponse,
    )  # fmt: skip
    async def file(picture: str) -> FileResponse:
        """PNG; what was drawn has its settings inside."""
        return FileResponse(server.file(picture), media_type="image/png", headers=FOREVER)

    @app.get(
        "/api/pictures/{picture}/thumb", tags=["pictures"], summary="The picture, small",
        responses={200: {"content": {"image/jpeg": {}, "image/png": {}}}}, response_class=Response,
    )  # fmt: skip
    async def small(picture: str) -> Response:
        """A JPEG or PNG of at most 256 pixels a side."""
        data, kind = await asyncio.to_thread(thumb, server.file(picture))
        return Response(data, media_type=kind, headers=FOREVER)

    @app.delete("/api/pictures/{picture}", status_code=204, tags=["pictures"], summary="Delete a picture")
    async def delete(picture: str) -> Response:
        server.delete(server.picture(picture))
        return Response(status_code=204)


def _told(picture: Picture) -> dict[str, Any]:
    told = told_picture(picture.id, picture.number, picture.kind, picture.record)
    return {**told, "job": picture.job, "created": picture.created, "record": picture.record}


# ---- models and health


def _add_models(app: FastAPI, server: Server) -> None:
    @app.get("/api/models", tags=["models"], summary="The models that can be named")
    async def models() -> JSONResponse:
        return JSONResponse({"models": [entry.told() for entry in server.registry.entries.values()]})

    @app.get("/api/models/{model}", tags=["models"], summary="One model")
    async def model(model: str) -> JSONResponse:
        if (entry := server.registry.get(model)) is None:
            raise not_found("model")
        return JSONResponse(entry.told())


def _add_health(app: FastAPI, server: Server) -> None:
    dispatcher = server.dispatcher

    @app.get("/livez", tags=["health"], summary="Whether the server answers")
    async def livez() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.get(
        "/readyz", tags=["health"], summary="Whether it can draw now", responses={503: {"description": "Not yet."}}
    )
    async def readyz() -> JSONResponse:
        ready = dispatcher.ready and not dispatcher.draining
        why = "" if ready else dispatcher.broken or ("stopping" if dispatcher.draining else "the model is being loaded")
        return JSONResponse({"ready": ready, **({"why": why} if why else {})}, 200 if ready else 503)

    @app.get("/metrics", tags=["health"], summary="Figures for Prometheus", response_class=PlainTextResponse)
    async def figures() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(dispatcher, server.answers), media_type="text/plain; version=0.0.4")
