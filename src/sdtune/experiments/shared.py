"""Base pictures that the runs of a matrix share: drawn once for the same base, prompts, seeds and sampler, and linked into each run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sdtune.config import RunConfig
from sdtune.drawing import INDEX, Progress
from sdtune.errors import RunError
from sdtune.runs import Run

BASE = "base pictures"
"""What a comparison calls the drawing of them."""


def base_key(config: RunConfig) -> str:
    """What the base's pictures follow from, as sixteen hexadecimal digits."""
    told = [
        dataclasses.asdict(config.model), config.train.precision, config.train.device, config.data.caption_chunks,
        dataclasses.asdict(config.sample.from_prompts), dataclasses.asdict(config.evaluate),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def base_pictures(folder: Path, run: Run, stop: Callable[[], bool]) -> Iterator[Callable[[Progress], None]]:
    """Put what was drawn before into `run`, and keep what it draws anew. Tell what is given the comparison's progress.

    One process draws at a time; the others wait until all base pictures are there, or `stop` says so.
    """
    own = run.comparison / "base"
    with ExitStack() as held:
        held.enter_context(_alone(folder, stop))
        take(folder, own)

        def hear(progress: Progress) -> None:
            if progress.what != BASE:
                keep(own, folder)
                held.close()

        yield hear


@contextmanager
def _alone(folder: Path, stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the folder, waiting for another process that does."""
    with ExitStack() as held:
        while not stop():
            try:
                held.enter_context(Run(folder).lock())
                break
            except RunError:
                time.sleep(0.2)
        yield


def take(folder: Path, own: Path) -> None:
    """Link what was drawn before into `own`, in the place of another comparison's. Whether it fits, the comparison looks itself."""
    _as_in(folder, own)


def keep(own: Path, folder: Path) -> None:
    """The other way round: the folder holds what fitted last."""
    _as_in(own, folder)


def _as_in(source: Path, target: Path) -> None:
    index, there = source / INDEX, target / INDEX
    if not index.exists() or (there.exists() and there.read_bytes() == index.read_bytes()):
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in [*target.glob("*.png"), *target.glob(INDEX)]:
        path.unlink()
    for path in [*sorted(source.glob("*.png")), index]:
        _link(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    """Files here are replaced as a whole, never written into, so two names may share one file."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
