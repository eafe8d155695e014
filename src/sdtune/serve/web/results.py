"""The page Results."""

from __future__ import annotations

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.web.frame import empty, frame


def add(server: Server) -> None:
    @ui.page("/results")
    def page() -> None:
        with frame("Results", "/results"):
            empty("Nothing here yet", "This page is being built.")
