"""The web app: pages of NiceGUI inside the server's FastAPI app, below /ui. Everything that a page loads comes from this server.

Pages ask the `Server` what the API asks it; nothing here draws or trains.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

PLACE = "/ui"


def mount(app: FastAPI) -> None:
    """Add the pages to the app of `create_app`; once in a process, since NiceGUI knows one app only."""
    server = app.state.server
    os.environ["NICEGUI_STORAGE_PATH"] = str(server.store.folder / "web")  # else it writes where the server was started
    from nicegui import app as pages
    from nicegui import ui

    from sdtune.serve.web import create, grid, results, status, train, vote
    from sdtune.serve.web.book import Book
    from sdtune.serve.web.frame import missing
    from sdtune.serve.web.policy import Policy

    assets = Path(str(resources.files("sdtune.serve.web") / "assets"))
    pages.add_static_files("/assets", assets, max_cache_age=600)
    slider = Path(str(resources.files("sdtune") / "report_assets" / "slider.css"))
    pages.add_static_file(local_file=slider, url_path="/slider.css", max_cache_age=600)
    for page in (create, train, results, status):
        page.add(server)
    book = Book(server.store.folder / "web.sqlite")
    for extra in (grid, vote):
        extra.add(server, book)
    pages.add_exception_handler(404, missing)
    pages.add_middleware(Policy)

    @app.get("/", include_in_schema=False)
    async def start() -> RedirectResponse:
        return RedirectResponse(f"{PLACE}/", 307)

    ui.run_with(
        app, mount_path=PLACE, title="sdtune", favicon=assets / "icon.svg", dark=None, tailwind=False, show_welcome_message=False,
        reconnect_timeout=10, language="en-GB", binding_refresh_interval=0.5,
    )  # fmt: skip
