"""Features, taken once: of any pictures by any encoder, in batches, with what is known already read from disk.

A picture's key is the SHA-256 of its size and RGB pixels, so the same picture under another name or format is found. One
SQLite file an encoder; several processes may use one. It only saves time: what cannot be read, or is damaged, is computed again.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune.errors import EvaluationError

if TYPE_CHECKING:
    from sdtune.metrics.encoders import Encoder, Perceptual
    from sdtune.metrics.image_reward import Rewarding

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Pictures done, and of how many."""
T = TypeVar("T")

BATCH = 32
THREADS = 4
WAIT_S = 30.0
"""For another process that writes."""


class Store:
    """Vectors by key, of one encoder in `folder/NAME.sqlite`. `folder` None: nothing is kept."""

    def __init__(self, folder: Path | None, name: str, fingerprint: str) -> None:
        self._fingerprint, self._path = fingerprint, folder / f"{name}.sqlite" if folder else None
        self._db = self._open() if self._path else None

    def get(self, keys: Sequence[str]) -> dict[str, Array]:
        """The vectors that are there and sound."""
        found = {}
        for key in keys if self._db is not None else ():
            row = self._row(key)
            if row is not None and zlib.crc32(row[0]) == row[1] and len(row[0]) % 8 == 0:
                found[key] = np.frombuffer(row[0], np.float64)
        return found

    def put(self, found: dict[str, Array]) -> None:
        if self._db is None or not found:
            return
        rows = []
        for key, vector in found.items():
            data = np.ascontiguousarray(vector, np.float64).tobytes()
            rows.append((key, self._fingerprint, data, zlib.crc32(data)))
        with suppress(sqlite3.Error), self._db:
            self._db.executemany("insert or replace into features values (?, ?, ?, ?)", rows)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _row(self, key: str) -> tuple[bytes, int] | None:
        assert self._db
        try:
            row = self._db.execute(
                "select data, sum from features where key = ? and encoder = ?", (key, self._fingerprint)
            ).fetchone()
        except sqlite3.DatabaseError:
            return None
        return row if row and isinstance(row[0], bytes) else None

    def _open(self) -> sqlite3.Connection | None:
        assert self._path
        with suppress(OSError, sqlite3.Error):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _table(self._path)
            except sqlite3.OperationalError:  # locked for long, or a disk that is full or only read
                return None
            except sqlite3.DatabaseError:  # no database, or a damaged one: it holds nothing that cannot be made again
                self._path.unlink(missing_ok=True)
                return _table(self._path)
        return None


def _table(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=WAIT_S)
    try:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=normal")
        with db:
            db.execute(
                "create table if not exists features (key text, encoder text, data blob, sum integer, primary key (key, encoder))"
                " without rowid"
            )
    except BaseException:
        db.close()
        raise
    return db


def key_of(image: Image.Image) -> str:
    """SHA-256 of the size and the RGB pixels."""
    return hashlib.sha256(b"%dx%d:" % image.size + image.convert("RGB").tobytes()).hexdigest()


def features(
    encoder: Encoder,
    images: Iterable[Image.Image],
    *,
    total: int = 0,
    folder: Path | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Array:
    """Features of the pictures in order, (N, D). `images` may be a generator: a batch of them is in memory at a time.

    Where memory does not suffice the batch is halved, down to one picture. Raises EvaluationError below that.
    """
    store = Store(folder, encoder.name, encoder.fingerprint)

    def look(some: Sequence[Image.Image]) -> list[Array]:
        with ThreadPoolExecutor(THREADS) as pool:
            prepared = list(pool.map(encoder.prepare, some))
        return [row for rows in _halving(encoder.encode, prepared, encoder.name) for row in rows]

    try:
        rows = list(_known_or_new(images, key_of, look, store, total, batch, progress))
    finally:
        store.close()
    return np.stack(rows) if rows else np.zeros((0, encoder.spec.dimension))


def distances(
    measure: Perceptual,
    pairs: Iterable[tuple[Image.Image, Image.Image]],
    *,
    total: int = 0,
    folder: Path | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Array:
    """Distances of the pairs in order, (N,); kept, halved and reported like `features`."""
    store = Store(folder, measure.name, measure.fingerprint)

    def key(pair: tuple[Image.Image, Image.Image]) -> str:
        return hashlib.sha256("".join(map(key_of, pair)).encode()).hexdigest()

    def look(some: Sequence[tuple[Image.Image, Image.Image]]) -> list[Array]:
        prepared = [measure.prepare(*pair) for pair in some]
        found: list[Array] = [np.empty(0)] * len(some)
        for size in dict.fromkeys(p[0].shape for p in prepared):  # a batch is of one size
            places = [i for i, p in enumerate(prepared) if p[0].shape == size]
            own = [prepared[i] for i in places]
            values = np.concatenate(list(_halving(measure.distances, own, measure.name)))
            for i, value in zip(places, values, strict=True):
                found[i] = np.array([value])
        return found

    try:
        rows = list(_known_or_new(pairs, key, look, store, total, batch, progress))
    finally:
        store.close()
    return np.concatenate(rows) if rows else np.zeros(0)


def scores(
    judge: Rewarding,
    pairs: Iterable[tuple[Image.Image, str]],
    *,
    total: int = 0,
    folder: Path | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Array:
    """Scores of pictures for their prompts in order, (N,); kept, halved and reported like `features`."""
    store = Store(folder, judge.name, judge.fingerprint)

    def key(pair: tuple[Image.Image, str]) -> str:
        return hashlib.sha256(f"{key_of(pair[0])}:{pair[1]}".encode("utf-8", "surrogatepass")).hexdigest()

    def look(some: Sequence[tuple[Image.Image, str]]) -> list[Array]:
        with ThreadPoolExecutor(THREADS) as pool:
            prepared = list(pool.map(lambda pair: judge.prepare(*pair), some))
        return [np.array([value]) for values in _halving(judge.scores, prepared, judge.name) for value in values]

    try:
        rows = list(_known_or_new(pairs, key, look, store, total, batch, progress))
    finally:
        store.close()
    return np.concatenate(rows) if rows else np.zeros(0)


def _known_or_new(
    items: Iterable[T],
    key: Callable[[T], str],
    look: Callable[[Sequence[T]], list[Array]],
    store: Store,
    total: int,
    batch: int,
    progress: Progress | None,
) -> Iterator[Array]:
    done = 0
    left = iter(items)
    while some := list(islice(left, batch)):
        keys = [key(item) for item in some]
        found = store.get(keys)
        new = {k: item for k, item in zip(keys, some, strict=True) if k not in found}
        if new:
            made = dict(zip(new, look(list(new.values())), strict=True))
            store.put(made)
            found |= made
        yield from (found[k] for k in keys)
        done += len(some)
        if progress:
            progress(done, max(total, done))


def _halving(run: Callable[[list[T]], Array], items: list[T], name: str) -> Iterator[Array]:
    """`run` on all items at once, or on as many as memory allows."""
    from sdtune.shortage import is_out_of_memory

    size, start = len(items), 0
    while start < len(items):
        try:
            found = run(items[start : start + size])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise EvaluationError(
                    f"{name}: not enough memory for one picture; take the CPU (--device cpu) or a smaller encoder"
                ) from error
            size = max(1, size // 2)
            _forget()
            continue
        yield found
        start += size


def _forget() -> None:
    """Give back to the device what torch keeps for later."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
