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
                dispatcher = server.dispatcher
                if dispatcher.broken:
                    alarm(dispatcher.broken)
                for row in dispatcher.status():
                    with section("Worker" if len(dispatcher.workers) == 1 else f"Worker {row['worker'] + 1}"):
                        memory, drawing = row["memory"] or {}, row["drawing"]
                        state = (
                            f"draws {len(drawing)}"
                            if drawing
                            else "ready"
                            if row["ready"]
                            else "the model is being loaded"
                        )
                        facts(
                            [
                                ("State", row["broken"] or state),
                                ("Device", str(row["device"] or "not known yet")),
                                ("Precision", str(row["precision"] or "not known yet")),
                                ("Memory", f"{memory.get('used', 0) / 1e6:,.0f} MB"),
                                ("Models", ", ".join(row["models"] or ()) or "none yet"),
                                ("Restarts", str(row["restarts"])),
                            ]
                        )

            now()
            ui.timer(2.0, now.refresh)
