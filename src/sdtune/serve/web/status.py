"""The page Status: what the server works with, what waits, what it has loaded."""

from __future__ import annotations

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.web.frame import alarm, facts, frame, section


def add(server: Server) -> None:
    @ui.page("/status")
    def page() -> None:
        with frame("Status", "/status"):

            @ui.refreshable
            def now() -> None:
                dispatcher, about = server.dispatcher, server.dispatcher.about
                if dispatcher.broken:
                    alarm(dispatcher.broken)
                with section("Worker"):
                    memory = about.get("memory", {})
                    facts(
                        [
                            ("State", "ready" if dispatcher.ready else "the model is being loaded"),
                            ("Device", str(about.get("device", "not known yet"))),
                            ("Precision", str(about.get("precision", "not known yet"))),
                            ("Memory", f"{memory.get('used', 0) / 1e6:,.0f} MB"),
                        ]
                    )

            now()
            ui.timer(2.0, now.refresh)
