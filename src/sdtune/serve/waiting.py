"""A request that waits for its pictures: what the dialects of other programs have in common. Nothing here knows their words."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fastapi import Request
from PIL import Image
from pydantic import ValidationError

from sdtune.data import images
from sdtune.data.images import Size
from sdtune.errors import DataError
from sdtune.serve.errors import ApiError
from sdtune.serve.log import Log
from sdtune.serve.queue import Job, Picture
from sdtune.serve.wish import Wish, check_pixels, refusal

if TYPE_CHECKING:
    from sdtune.serve.app import Server

PAINTED = 128
"""A mask's pixel from this brightness on is painted anew, as in `sdtune.original`."""
FINAL = {"x-should-retry": "false"}
"""OpenAI's clients ask again by themselves after 409 and 500: not for what would end the same."""
STATUSES = {"invalid": 422, "gone": 404, "out_of_memory": 507}
"""Of the codes that a job may fail with; others are faults of ours."""


# ---- the wish


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name the dialect's field instead of ours: {ours: theirs}."""
    try:
        yield
    except ApiError as error:
        ours = error.field.partition(".")[0]
        if ours in names:
            error.message = error.message.replace(error.field, names[ours], 1)
            error.field = names[ours]
        raise


def taken(server: Server, request: Request, names: Mapping[str, str], wish: Mapping[str, Any]) -> Job:
    """A job for the wish, in the name of who asks; `names` as in `renamed`. Raises ApiError."""
    with renamed(names):
        return server.take(_checked(server, wish), request.state.client)[0]


def foreseen(server: Server, request: Request, names: Mapping[str, str], wish: Mapping[str, Any]) -> None:
    """Raises ApiError for a wish that would not be taken, before its pictures are decoded."""
    with renamed(names):
        server.check(_checked(server, {**wish, "kind": "txt2img"}))
        server.check_room(request.state.client)


def _checked(server: Server, wish: Mapping[str, Any]) -> Wish:
    try:
        checked: Wish = server.wish.model_validate(dict(wish))
    except ValidationError as error:
        raise refusal(error) from None
    check_pixels(checked, server.rules.limits)
    return checked


def seeds(first: int | None, count: int, most: int, field: str) -> list[int]:
    """`count` of them from `first` on; None: by chance. Raises ApiError before there are too many."""
    if not 1 <= count <= most:
        raise ApiError(422, "invalid", f"{field}: 1 to {most} pictures of one request", field=field)
    import secrets

    begin = secrets.randbelow(2**32) if first is None else first
    return [begin + i for i in range(count)]


# ---- the end of it


async def drawn(server: Server, job: Job, request: Request, *, partly: bool = False) -> list[Picture]:
    """The job's pictures when it is over. If whoever asked goes away, it is cancelled. Raises ApiError.

    `partly`: of a job that was cancelled by somebody, those that it has.
    """
    over = asyncio.create_task(_end(server.dispatcher.watched(job)))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((over, gone), return_when=asyncio.FIRST_COMPLETED)
        if not over.done():
            raise ApiError(499, "gone", "who asked has gone")
        return ended(server, job, partly=partly)
    finally:
        over.cancel()
        gone.cancel()
        left(server, job)


def left(server: Server, job: Job) -> None:
    """Nobody waits any more. If the job is not over it is cancelled, unless others have attached themselves to it."""
    server.dispatcher.left(job, grace=0)
    if server.dispatcher.draining:
        server.dispatcher.abandon(job)


def ended(server: Server, job: Job, *, partly: bool = False) -> list[Picture]:
    """The pictures of a job that is over. Raises ApiError if it has not been drawn."""
    now = server.queue.get(job.id)
    pictures = server.queue.pictures_of(job.id)
    if now is None or now.state in ("queued", "running"):
        raise ApiError(503, "stopping", "the server is stopping", headers={"retry-after": "30"})
    if now.state == "cancelled" and not (partly and pictures):
        raise ApiError(409, "cancelled", "the drawing was cancelled", headers=FINAL)
    if now.state == "failed":
        error = now.error or {"code": "internal", "message": "a fault of the server; its log says more"}
        raise ApiError(STATUSES.get(error["code"], 500), error["code"], error["message"], headers=FINAL)
    return pictures


async def _end(journal: Log) -> None:
    async for _ in journal.listen():
        pass


async def _gone(request: Request) -> None:
    """Until the connection ends; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ---- pictures, out and in


async def file_of(server: Server, picture: Picture) -> bytes:
    """The PNG. Raises ApiError if somebody has deleted it."""
    try:
        return await asyncio.to_thread(server.store.path(picture.id, picture.kind).read_bytes)
    except OSError:
        raise ApiError(410, "gone", "the picture was deleted", headers=FINAL) from None


def encoded(png: bytes, kind: str, quality: int) -> bytes:
    """The picture as `png` (untouched), `jpeg` or `webp`; these without the settings inside."""
    if kind == "png":
        return png
    out = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        image.convert("RGB").save(out, kind.upper(), quality=quality)
    return out.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str, field: str, most: int) -> bytes:
    """A picture's bytes, with `data:...;base64,` before them or without. An address is refused. Raises ApiError."""
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise ApiError(422, "invalid", f"{field}: a data: URL of base64", field=field)
    elif "://" in text[:20]:
        raise ApiError(422, "invalid", f"{field}: addresses are not opened; send the picture itself", field=field)
    if len(text) > most * 4 // 3 + 4:
        raise ApiError(413, "too_large", f"{field}: more than {most} bytes", field=field)
    with suppress(ValueError):
        return base64.b64decode("".join(text.split()) if "\n" in text else text, validate=True)
    raise ApiError(422, "invalid", f"{field}: is not base64", field=field)


def mask_of(values: images.Pixels, size: Size) -> Image.Image:
    """A mask as we want it, white where it is painted anew, as large as its picture. Raises DataError."""
    mask = Image.fromarray(values)
    if mask.size != size:
        raise DataError(f"the mask is {mask.width}x{mask.height}, its picture {size[0]}x{size[1]}")
    if int(values.max()) < PAINTED:
        raise DataError("nothing of the mask is to be painted anew")
    return mask
