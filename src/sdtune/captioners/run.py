"""Captions for the pictures of a folder, as an iterator of records: read, load, caption batch by batch, write as they come."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from sdtune.captioners import store
from sdtune.captioners.base import Captioned, Captioner, Event, Finished, LeftOut, Loaded, Opened, Pixels
from sdtune.captioners.config import CaptionConfig
from sdtune.captioners.store import Captions, Folder, Picture
from sdtune.captioners.text import finish
from sdtune.data.images import load_image
from sdtune.data.layouts import plural
from sdtune.errors import DataError, ModelError

THREADS = 4
"""That decode pictures while the model works."""
NOTHING_LEFT = "nothing is left of its caption; lower the threshold, or shorten the blacklist"


def caption(folder: str | Path, config: CaptionConfig | None = None) -> Generator[Event, None, None]:
    """Caption the pictures of `folder`, yielding `Opened`, `Loaded`, `Captioned`, `LeftOut` and `Finished`.

    Nothing happens until the iterator is read. Closing it stops after the batch, whose captions are written; the same call
    goes on. Captions by people are left alone unless `config` says otherwise. Raises DataError, ModelError or ConfigError;
    DataError, too, if not one of the pictures can be read.
    """
    config = config or CaptionConfig()
    began = time.perf_counter()
    found = store.read(folder, config)
    if not found.pictures and not found.left:
        raise DataError(f"{folder}: no pictures there")
    since = _since(found, config)
    wanted = store.wanted(found, config, since)
    todo = wanted[: config.dry_run]
    yield _opened(found, len(todo), wanted)
    yield from (LeftOut(where, what) for where, what in found.left)
    if not found.pictures:
        raise DataError(
            f"{folder}: not one of {plural(len(found.left), 'picture')} can be captioned: {_first(found.left)}"
        )
    captioned, left = 0, len(found.left)
    if todo:
        if not config.dry_run:
            store.check_writable(found.path)
        model = config.model.load(config.device, config.precision)
        yield Loaded(model.source, model.device, model.precision)
        if not config.dry_run:
            _mark(found, config, since)
        with closing(_caption(found, todo, model, config)) as events:  # so that a fault in the last writing is heard
            for event in events:
                captioned += isinstance(event, Captioned)
                left += isinstance(event, LeftOut)
                yield event
        if not config.dry_run:
            _unmark(found)
    yield Finished(captioned, left, time.perf_counter() - began)


def _opened(found: Folder, todo: int, wanted: Sequence[Picture]) -> Opened:
    names = {picture.name for picture in wanted}
    stay = [picture.by for picture in found.pictures if picture.name not in names]
    return Opened(
        str(found.path),
        found.write,
        len(found.pictures),
        todo,
        stay.count("human"),
        stay.count("sdtune"),
        tuple(found.notes),
    )


def _first(left: Sequence[tuple[str, str]]) -> str:
    where, what = left[0]
    return f"{where}: {what}" + ("" if len(left) == 1 else ", ...")


# ---- a run with --again that was stopped goes on where it was


def _identity(config: CaptionConfig) -> dict[str, Any]:
    return config.record() | {"path": config.model.path, "revision": config.model.revision or ""}


def _since(found: Folder, config: CaptionConfig) -> float:
    """When the run with --again and these very settings began that was stopped; 0 if there is none."""
    same = config.again and found.unfinished.get("settings") == store.plain(_identity(config))
    return float(found.unfinished.get("since", 0.0)) if same else 0.0


def _mark(found: Folder, config: CaptionConfig, since: float) -> None:
    """Remember that a run with --again has begun; or, with another run, that none is to be gone on with."""
    if config.again or found.unfinished:
        found.unfinished = {"since": since or time.time(), "settings": _identity(config)} if config.again else {}
        store.write_records(found.path, store.read_records(found.path)[0], found.unfinished)


def _unmark(found: Folder) -> None:
    if found.unfinished:
        found.unfinished = {}
        store.write_records(found.path, store.read_records(found.path)[0], {})


# ---- batches


class _Clock:
    """Pictures that are done, and how many a second over the last batches."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._seen = deque([(time.perf_counter(), 0)], maxlen=12)

    def batch(self, size: int) -> None:
        """So many more have gone through the model."""
        self._seen.append((time.perf_counter(), self._seen[-1][1] + size))

    def rate(self) -> float:
        """Pictures a second."""
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / max(now - began, 1e-9)


def _caption(
    found: Folder, todo: Sequence[Picture], model: Captioner, config: CaptionConfig
) -> Generator[Event, None, None]:
    """The pictures in order. A batch is written as a whole, also if the iterator is closed in it."""
    writer = store.Writer(found, config, f"{config.model.type} {model.source}", tags=model.tags)
    clock, read = _Clock(len(todo)), 0
    faults: list[tuple[str, str]] = []
    try:
        for batch in _batches(todo, model, config.batch_size):
            good = [(picture, values) for picture, values in batch if not isinstance(values, str)]
            read += len(good)
            made = iter(_made([values for _, values in good], model) if good else [])
            clock.batch(len(batch))
            told: list[Event] = []  # at last: whoever closes the iterator at one of them has the others written
            for picture, values in batch:
                if isinstance(values, str):
                    faults.append((picture.name, values))
                    told.append(_left(picture, values, clock))
                elif not (text := finish(next(made), config, tags=model.tags)):
                    told.append(_left(picture, NOTHING_LEFT, clock))
                elif config.dry_run:
                    captions = store.combined(picture, text, config, tags=model.tags)[0]
                    told.append(_told(picture, captions, clock))
                else:
                    told += [_told(*pair, clock) for pair in writer.put(picture, text)]
            yield from told
        yield from (_told(*pair, clock) for pair in writer.flush())
    finally:
        writer.flush()
    if not read and len(todo) == len(found.pictures):  # else the others have captions from before
        raise DataError(f"{found.path}: not one of {plural(len(todo), 'picture')} can be read: {_first(faults)}")


def _left(picture: Picture, what: str, clock: _Clock) -> LeftOut:
    clock.done += 1
    return LeftOut(store.shown_name(picture.name), what)


def _told(picture: Picture, outcome: Captions | str, clock: _Clock) -> Event:
    if isinstance(outcome, str):
        return _left(picture, outcome, clock)
    clock.done += 1
    return Captioned(store.shown_name(picture.name), outcome, clock.done, clock.total, clock.rate())


def _made(pictures: Sequence[Pixels], model: Captioner) -> list[str]:
    try:
        return model.caption(pictures)
    except (RuntimeError, MemoryError) as error:
        from sdtune.devices import is_out_of_memory  # with torch, which a tagger does without

        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"{model.source}: not enough memory for {len(pictures)} pictures at once; give a smaller --batch-size"
        ) from None


def _batches(todo: Sequence[Picture], model: Captioner, size: int) -> Iterator[list[tuple[Picture, Pixels | str]]]:
    """Each picture with what the model sees of it, or why it cannot be read. The next batch is decoded ahead."""

    def look(picture: Picture) -> Pixels | str:
        try:
            return model.prepare(load_image(picture.path))
        except DataError as error:
            return str(error).removeprefix(f"{picture.path}: ")

    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[list[Future[Pixels | str]]] = deque()
        parts = [todo[i : i + size] for i in range(0, len(todo), size)]
        try:
            for i, part in enumerate(parts):
                for coming in parts[i + len(ahead) : i + 2]:
                    ahead.append([pool.submit(look, picture) for picture in coming])
                yield [(picture, future.result()) for picture, future in zip(part, ahead.popleft(), strict=True)]
        finally:
            for future in (future for batch in ahead for future in batch):
                future.cancel()


def pairs(folder: str | Path, config: CaptionConfig) -> list[tuple[Path, Captions, str]]:
    """Each picture of the folder with its captions and who wrote them: nobody, human or sdtune. Raises DataError."""
    found = store.read(folder, dataclasses.replace(config, write=None))
    return [(picture.path, picture.captions, picture.by) for picture in found.pictures]


def name_of(picture: Path, folder: Path) -> str:
    """What the records call a picture of the folder."""
    return store.shown_name(picture.relative_to(folder).as_posix())
