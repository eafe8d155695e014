"""The run folder: the only file that knows a path inside it.

config.toml        resolved, written first        events.jsonl   the only log
environment.json   versions, device, commit       checkpoints/   step-000250/ ..., final/ the finished adapter or model
data.json          hashes of pictures, captions   comparison/    pictures, scores.json, report.html
samples/           previews                       timeline.png   all of them on one sheet
ask/               `save` and `sample`: files that let a training save, or draw its previews, after the step at hand
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.errors import RunError
from sdtune.events import Event, Sampled, Validated, from_line, to_line
from sdtune.files import write_text

Ask = Literal["save", "sample"]
ASKS: tuple[Ask, ...] = ("save", "sample")


@dataclass(frozen=True)
class Run:
    """A run folder. Nothing is created before it is written to."""

    path: Path
    muted: bool = False
    """Whether this process only reads: one of several that train together, and not the one that writes."""

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment.json"

    @property
    def data_file(self) -> Path:
        return self.path / "data.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def timeline_file(self) -> Path:
        return self.path / "timeline.png"

    @property
    def final(self) -> Path:
        """The finished adapter (`NAME.safetensors`) or model (`unet/`)."""
        return self.path / "final"

    @property
    def comparison(self) -> Path:
        return self.path / "comparison"

    @property
    def scores_file(self) -> Path:
        return self.comparison / "scores.json"

    @property
    def sweep(self) -> Path:
        """Where `sdtune sweep` writes."""
        return self.path / "sweep"

    @property
    def vote_file(self) -> Path:
        return self.comparison / "vote.html"

    @property
    def votes(self) -> Path:
        """The folder of the votes that came back."""
        return self.comparison / "votes"

    @property
    def report_file(self) -> Path:
        return self.comparison / "report.html"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock.json"

    def exists(self) -> bool:
        return self.config_file.exists()

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The run's resolved config, changed by `overrides`. Raises RunError if the folder holds no run."""
        if not self.exists():
            raise RunError(f"{self.path}: not a run folder (no config.toml); `sdtune train` makes one")
        return configs.load(self.config_file, overrides, from_run=True)

    def write_config(self, config: RunConfig) -> None:
        self.write(self.config_file, configs.to_toml(config))

    def write(self, file: Path, text: str) -> None:
        if not self.muted:
            write_text(file, text)

    def events(self) -> Iterator[Event]:
        """The log from its beginning; a last line cut off by a crash is left out."""
        if not self.events_file.exists():
            return
        with self.events_file.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield from_line(line)

    def log(self, event: Event) -> None:
        """Append one event."""
        if self.muted:
            return
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(to_line(event) + "\n")

    def logged(self, event: Event) -> Event:
        """`event`, after it was appended to the log: for the line that yields it."""
        self.log(event)
        return event

    def rewind_log(self, step: int, *, looked: bool) -> None:
        """Forget what a run resumed from `step` will do again, so that the log has no double rows.

        `looked` says whether the validation and the previews of `step` itself were complete.
        """
        if self.events_file.exists() and not self.muted:
            again = () if looked else (Validated, Sampled)
            kept = [
                e
                for e in self.events()
                if getattr(e, "step", 0) <= step and not (isinstance(e, again) and e.step == step)
            ]
            write_text(self.events_file, "".join(to_line(e) + "\n" for e in kept))

    @property
    def asks(self) -> Path:
        """Where other processes put what they ask of a training: an empty file for each of ASKS."""
        return self.path / "ask"

    def ask(self, what: Ask) -> None:
        """Let the process that trains save a checkpoint, or draw its previews, after the step at hand."""
        self.asks.mkdir(exist_ok=True)
        (self.asks / what).touch()

    def take_asks(self) -> tuple[Ask, ...]:
        """What was asked since the last time. Where nothing was, this costs one look for the folder."""
        if self.muted or not self.asks.is_dir():
            return ()
        found = tuple(what for what in ASKS if (self.asks / what).exists())
        for what in found:
            (self.asks / what).unlink(missing_ok=True)
        with suppress(OSError):  # something was asked meanwhile
            self.asks.rmdir()
        return found

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. Raises RunError if a living process holds it; a dead one's lock is taken over."""
        if self.muted:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
        for _ in range(2):
            try:
                with self.lock_file.open("x", encoding="utf-8") as file:
                    json.dump(me, file)
                break
            except FileExistsError:
                if (holder := self._living_holder()) is not None:
                    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["started"]))
                    raise RunError(
                        f"{self.path}: in use by process {holder['pid']} on {holder['host']} since {since}; "
                        "wait for it, stop it, or choose another name="
                    ) from None
                self.lock_file.unlink(missing_ok=True)
        try:
            yield
        finally:
            self.lock_file.unlink(missing_ok=True)

    def living(self) -> bool:
        """Whether a process holds the folder. One on another machine counts as living: nobody here can tell."""
        return self.lock_file.exists() and self._living_holder() is not None

    def _living_holder(self) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = json.loads(self.lock_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # half-written by a process that died
        if holder.get("host") != socket.gethostname():
            return holder
        try:
            process = psutil.Process(int(holder["pid"]))
            alive = abs(process.create_time() - holder["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        return holder if alive else None
