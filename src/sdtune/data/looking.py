"""Every picture read to its end: on all cores, and only once, as long as its file stays as it is. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from sdtune.data import archives, images
from sdtune.data.config import DataConfig
from sdtune.data.headers import header
from sdtune.data.images import Checked, Remark
from sdtune.data.layouts import reason
from sdtune.data.ledger import Ledger

WAITING = 64
"""So many pictures at most are read ahead of the one that is asked for."""


class Looked(NamedTuple):
    digest: str
    """sha256 of the file."""
    checked: Checked


def look(paths: Sequence[Path], config: DataConfig) -> Iterator[Looked | images.Unusable]:
    """For each picture what is to be known of it, or why it cannot be used; in their order."""
    asked = f"{config.background}/{config.max_pixels}"
    with (
        closing(Ledger(config.cache_folder() / "looked.sqlite", asked)) as ledger,
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
    ):
        waiting = deque[tuple[Path, Looked | Future[Looked | images.Unusable]]]()
        try:
            for path in paths:
                waiting.append((path, _known(ledger.get(path)) or pool.submit(_looked, path, config)))
                if len(waiting) > WAITING:
                    yield _next(waiting, ledger)
            while waiting:
                yield _next(waiting, ledger)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def glance(paths: Sequence[Path], config: DataConfig) -> Iterator[Looked | images.Unusable]:
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


def _next(
    waiting: deque[tuple[Path, Looked | Future[Looked | images.Unusable]]], ledger: Ledger
) -> Looked | images.Unusable:
    path, found = waiting.popleft()
    if isinstance(found, Looked):
        return found
    new = found.result()
    if isinstance(new, Looked):
        ledger.put(path, {"digest": new.digest, **asdict(new.checked), "colours": new.checked.colours.hex()})
    return new


def _known(facts: Any) -> Looked | None:
    try:
        said = dict(facts)
        digest, size = said.pop("digest"), tuple(said.pop("size"))
        remarks = tuple(Remark(*remark) for remark in said.pop("remarks"))
        return Looked(
            digest, Checked(size=size, remarks=remarks, **{**said, "colours": bytes.fromhex(said["colours"])})
        )
    except (TypeError, ValueError, KeyError):
        return None


def _looked(path: Path, config: DataConfig) -> Looked | images.Unusable:
    try:
        data = read(path, config)
        return Looked(
            hashlib.sha256(data).hexdigest(),
            images.check(data, background=config.background, max_pixels=config.max_pixels),
        )
    except images.Unusable as error:
        return error


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
