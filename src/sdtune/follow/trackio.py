"""Trackio: an SQLite file for each project in a folder that several runs share, or a Space or server of one's own."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from pathlib import Path

from sdtune.follow.records import Note, Picture, Scalars
from sdtune.follow.target import PROJECT, Outcome, Target, flat, missing
from sdtune.runs import Run


class Trackio(Target):
    """Writes `sdtune.db` and `media/` to `out`, unset: to `trackio` beside the run's folder.

    `server` is a Space (owner/name) or the address of a Trackio server, with its token; there, each time is another run.
    """

    def __init__(self, run: Run, out: Path | None = None, server: str | None = None) -> None:
        folder = (out or run.path.parent / "trackio").resolve()
        os.environ["TRACKIO_DIR"] = str(folder)  # read when it is imported
        try:
            import trackio
            from trackio.sqlite_storage import SQLiteStorage
        except ImportError:
            raise missing("trackio", UNFIT) from None
        self._trackio, name = trackio, run.path.name
        there = {"server_url" if "://" in server else "space_id": server} if server else {}
        with contextlib.redirect_stdout(io.StringIO()):  # it says hello there
            if server is None:
                SQLiteStorage.delete_run(PROJECT, name)
            self._run = trackio.init(
                project=PROJECT, name=name, config=flat(run.config()), embed=False, auto_log_gpu=False, auto_log_cpu=False,
                **there,
            )  # fmt: skip
        self.where = server.partition("?")[0] if server else str(folder)  # behind the mark is a token
        self.view = self.where if server else f"TRACKIO_DIR={shlex.quote(str(folder))} trackio show --project {PROJECT}"

    def scalars(self, record: Scalars) -> None:
        self._run.log(dict(record.values), step=record.step)

    def picture(self, record: Picture) -> None:
        self._run.log({record.name: self._trackio.Image(str(record.path), caption=record.caption)}, step=record.step)

    def note(self, record: Note) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.alert(title="sdtune", text=record.text, level=self._trackio.AlertLevel.WARN, step=record.step)

    def flush(self) -> None:
        """Trackio writes by itself."""

    def close(self, outcome: Outcome) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()  # of the run itself, it would be finished once more at the exit, aloud


UNFIT = (
    "its releases ask for Pillow below 13, which sdtune cannot use (SECURITY.md); pip install --no-deps trackio, "
    "then pip install brotli gradio-client orjson python-multipart starlette uvicorn"
)
