"""The routes of reports, votes, sweeps, timelines and leaderboards: files that others wrote, sent so that they can do nothing here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from sdtune.serve.errors import not_found
from sdtune.serve.shelf import PAGES

if TYPE_CHECKING:
    from sdtune.serve.app import Server

STRANGER = {
    "content-security-policy": (
        "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "x-frame-options": "SAMEORIGIN",
}
"""Of a page that a run has made: its own origin, which is nobody's. Its script, which the page's own policy names by its hash, sees
neither this server nor another one."""
KINDS = {".html": "text/html; charset=utf-8", ".png": "image/png", ".json": "application/json"}


def add(app: FastAPI, server: Server) -> None:
    shelf, scratch = server.shelf, server.store.folder / "timelines"

    @app.get(
        "/api/results/{name}/{page}", tags=["results"], summary="A page of a run or an experiment",
        responses={200: {"content": {"text/html": {}, "image/png": {}, "application/json": {}}}}, response_class=FileResponse,
    )  # fmt: skip
    async def page(name: str, page: str, download: bool = False) -> FileResponse:
        """`page`: report, vote, sweep, timeline or scores of a run; board or sheet of an experiment."""
        if (kind := next((p for p in PAGES if p == page), None)) is None:
            raise not_found("page")
        path = await asyncio.to_thread(shelf.file, name, kind, scratch)
        headers = {"cache-control": "private, no-cache"}
        if path.suffix == ".html":
            headers |= STRANGER
        filename = f"{name}-{kind}{path.suffix}" if download else None
        return FileResponse(path, media_type=KINDS[path.suffix], headers=headers, filename=filename)

    @app.get(
        "/api/results/{name}/pictures/{number}/{side}", tags=["results"], summary="A picture of a comparison",
        responses={200: {"content": {"image/png": {}, "image/jpeg": {}}}}, response_class=Response,
    )  # fmt: skip
    async def picture(name: str, number: int, side: str) -> Response:
        """`side`: base or tuned. At most 384 pixels wide."""
        made, kind = await asyncio.to_thread(shelf.picture, name, number, side)
        return Response(made, media_type=kind, headers={"cache-control": "private, no-cache"})
