"""Every picture read to its end: on all cores, and only once, as long as its file stays as it is. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sdtune.data import archives, images, masks
from sdtune.data.config import DataConfig
from sdtune.data.headers import header
from sdtune.data.images import Checked, Remark
from sdtune.data.layouts import reason
from sdtune.data.ledger import Ledger, state_of
from sdtune.data.masks import Measured
from sdtune.errors import DataError

T = TypeVar("T")
WAITING = 64
"""So many pictures at most are read ahead of the one that is asked for."""


class Looked(NamedTuple):
    digest: str
    """sha256 of the file."""
    checked: Checked


class MaskLooked(NamedTuple):
    digest: str
    measured: Measured


def look(paths: Sequence[Path], config: DataConfig) -> Generator[Looked | images.Unusable]:
    """For each picture what is to be known of it, or why it cannot be used; in their order."""

    def seen(path: Path) -> Looked:
        data = read(path, config)
        checked = images.check(data, background=config.background, max_pixels=config.max_pixels)
        return Looked(hashlib.sha256(data).hexdigest(), checked)

    yield from _each(paths, config, f"{config.background}/{config.max_pixels}", seen, _told, _known)


def look_at_masks(paths: Sequence[Path], config: DataConfig) -> Generator[MaskLooked | images.Unusable]:
    """The same of masks."""

    def seen(path: Path) -> MaskLooked:
        data = read(path, config)
        return MaskLooked(
            hashlib.sha256(data).hexdigest(), masks.measure(images.read_mask(data, max_pixels=config.max_pixels))
        )

    def known(facts: Any) -> MaskLooked:
        digest, size, brightest, mean = facts
        return MaskLooked(digest, Measured((size[0], size[1]), brightest, mean))

    yield from _each(
        paths, config, f"mask/{config.max_pixels}", seen, lambda mask: (mask.digest, *mask.measured), known
    )


def _each(
    paths: Sequence[Path],
    config: DataConfig,
    asked: str,
    seen: Callable[[Path], T],
    told: Callable[[T], object],
    known: Callable[[Any], T],
) -> Generator[T | images.Unusable]:
    """What `seen` gives for each file, in several threads; or what it gave before, as `told` to the ledger and `known` from there."""

    def fresh(path: Path) -> tuple[T | images.Unusable, str | None]:
        was = state_of(path)  # from before it is read: a change in the meantime is another state
        try:
            return seen(path), was
        except images.Unusable as error:
            return error, None
        except DataError as error:
            return images.Unusable(str(error)), None

    def remembered(path: Path) -> T | None:
        try:
            return known(ledger.get(path))
        except (TypeError, ValueError, KeyError, IndexError):
            return None

    def next_one() -> T | images.Unusable:
        path, found = waiting.popleft()
        if not isinstance(found, Future):
            return found
        new, was = found.result()
        if not isinstance(new, images.Unusable):
            ledger.put(path, told(new), was)
        return new

    with (
        closing(Ledger(config.cache_folder() / "looked.sqlite", asked)) as ledger,
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
    ):
        waiting = deque[tuple[Path, T | Future[tuple[T | images.Unusable, str | None]]]]()
        try:
            for path in paths:
                old = remembered(path)
                waiting.append((path, pool.submit(fresh, path) if old is None else old))
                if len(waiting) > WAITING:
                    yield next_one()
            while waiting:
                yield next_one()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def glance(paths: Sequence[Path], config: DataConfig) -> Generator[Looked | images.Unusable]:
    """What the headers alone tell of each picture: size and format. In place of the digest, which no copy shares, its path."""
    for path in paths:
        try:
            if (found := header(path)) is None:
                raise images.Unusable("no picture in a known format, or its header is damaged; copy or export it again")
            images.bounded(found.size, config.max_pixels)
        except OSError as error:
            yield images.Unusable(reason(error))
            continue
        except images.Unusable as error:
            yield error
            continue
        yield Looked(str(path), Checked(found.size, (), format=found.format))


def _told(looked: Looked) -> object:
    return {"digest": looked.digest, **asdict(looked.checked), "colours": looked.checked.colours.hex()}


def _known(facts: Any) -> Looked:
    said = dict(facts)
    digest, size = said.pop("digest"), tuple(said.pop("size"))
    remarks = tuple(Remark(*remark) for remark in said.pop("remarks"))
    return Looked(digest, Checked(size=size, remarks=remarks, **{**said, "colours": bytes.fromhex(said["colours"])}))


def read(path: Path, config: DataConfig) -> bytes:
    """The bytes of a picture file. Raises Unusable without a name."""
    if path.exists() and not path.is_file():
        raise images.Unusable("not a regular file; remove it")
    try:
        if archives.size(path) > 16 * config.max_pixels + 2**24:  # no format in use needs more
            raise images.Unusable("larger than any picture of data.max_pixels can be; make it smaller", "too_large")
        return archives.read_bytes(path)
    except OSError as error:
        raise images.Unusable(reason(error)) from None
