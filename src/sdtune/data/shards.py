"""Rows of tensors on disk, each found by a key of its content, and read where it lies."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdtune.errors import DataError
from sdtune.files import atomic_write, free_bytes

Row = dict[str, Tensor]
"""Named tensors of one entry, for example mean and logvar of a picture."""
MISSING = -1
CHECKED_BYTES = 2**28
"""A smaller table is checked to the last byte whenever it is opened; of a larger one each row when it is first read."""
SUMS = "crc32"
"""The tensor of the checksums, one of each row."""
HEADER_BYTES = 2**24
_DAMAGE = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


class Shards:
    """A table: a folder of safetensors files, each with the stacked rows of up to some hundred entries.

    One file per entry would need an open, a header and an inode for each of a million pictures. A shard is never changed after it
    was written, so that several processes and runs may fill one folder at the same time. Each row has a checksum: damage costs the
    row, not the file. A place is a number: which file, which row of it. Files are mapped into memory when they are first read.
    """

    ROW_BITS = 20

    def __init__(self, folder: Path, files: Sequence[str] = ()) -> None:
        """`files`: their names as the places that are known already count them."""
        self.folder, self.files = folder, list(files)
        self.checked = False
        """Whether `locate` checks a large table, too."""
        self._numbers = {name: n for n, name in enumerate(files)}
        self._open: dict[int, _Mapped] = {}

    def locate(self, keys: Sequence[str]) -> tuple[list[int], list[str]]:
        """The place of each key, `MISSING` if it is nowhere, and notes on what was damaged. Damaged rows and files are removed."""
        wanted, places, notes = {key: i for i, key in enumerate(keys)}, [MISSING] * len(keys), list[str]()
        _sweep(self.folder)
        paths = sorted(self.folder.glob("*.safetensors"))
        small = self.checked or _bytes(paths) <= CHECKED_BYTES
        while paths:
            path = paths.pop(0)
            try:
                with safe_open(path, framework="pt"):  # checks that all is where the header says
                    mapped = _Mapped(path)
                keys_here = mapped.keys
                if wanted.keys().isdisjoint(keys_here):
                    continue
                sound = [not small or mapped.is_sound(row) for row in range(len(mapped))]
            except FileNotFoundError:
                continue  # another run has just mended it
            except _DAMAGE as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                notes.append(f"cache: {path.name}: damaged ({reason:.80}); what was in it is encoded again")
                _remove(path)
                continue
            if not all(sound):
                notes.append(f"cache: {path.name}: {sound.count(False)} damaged, encoded again")
                paths += [mended] if (mended := self._mend(path, mapped, sound)) else []
                continue
            number = self._number(path.name, mapped)
            for row, key in enumerate(keys_here):
                if (i := wanted.get(key)) is not None and places[i] == MISSING:
                    places[i] = number << self.ROW_BITS | row
        return places, notes

    def write(self, rows: Mapping[str, Row]) -> list[int]:
        """Keep `rows`, all of one shape, as one more file; returns their places. Raises DataError where that is impossible."""
        if not rows:
            return []
        names = next(iter(rows.values()))
        path = self._write(list(rows), {name: torch.stack([row[name] for row in rows.values()]) for name in names})
        number = self._number(path.name)
        return [number << self.ROW_BITS | row for row in range(len(rows))]

    def read(self, places: Sequence[int]) -> Row:
        """The rows at `places`, stacked. Raises DataError for one that is damaged, after taking it away."""
        of_file: dict[int, tuple[list[int], list[int]]] = {}
        for i, place in enumerate(places):
            at, rows = of_file.setdefault(place >> self.ROW_BITS, ([], []))
            at.append(i)
            rows.append(place & (1 << self.ROW_BITS) - 1)
        parts = [self._rows(number, rows) for number, (_, rows) in of_file.items()]
        if len(parts) == 1:
            return parts[0]
        order_B = torch.tensor([i for at, _ in of_file.values() for i in at]).argsort()
        return {name: torch.cat([part[name] for part in parts])[order_B] for name in parts[0]}

    def is_whole(self) -> bool:
        """Whether all `files` are there, and sound as far as is checked at a start."""
        paths = [self.folder / name for name in self.files]
        if not all(path.is_file() for path in paths):
            return False
        try:
            mapped = [self._map(n) for n in range(len(paths))] if _bytes(paths) <= CHECKED_BYTES else []
            return all(m.is_sound(row) for m in mapped for row in range(len(m)))
        except _DAMAGE:
            return False

    def _rows(self, number: int, rows: Sequence[int]) -> Row:
        """Copies of some rows of a file, stacked."""
        path = self.folder / self.files[number]
        try:
            mapped = self._map(number)
            if all(map(mapped.is_sound, rows)):
                return mapped.rows(rows)
        except _DAMAGE:
            _remove(path)
        else:
            self._mend(path, mapped, [mapped.is_sound(row) for row in range(len(mapped))])
        raise DataError(f"{path}: a cached entry is damaged and has been taken away; the same command encodes it again")

    def _map(self, number: int) -> _Mapped:
        if number not in self._open:
            self._open[number] = _Mapped(self.folder / self.files[number])
        return self._open[number]

    def _number(self, name: str, mapped: _Mapped | None = None) -> int:
        if (number := self._numbers.setdefault(name, len(self.files))) == len(self.files):
            self.files.append(name)
        if mapped:
            self._open[number] = mapped
        return number

    def _write(self, keys: list[str], stacked: Row) -> Path:
        data = save({**stacked, SUMS: torch.tensor(_checksums(stacked))}, {"keys": json.dumps(keys)})
        # named by content: a damaged file of the same keys has another name than its replacement
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        try:
            with atomic_write(path) as file:
                file.write(data)
        except OSError as error:
            space = f"{len(data) / 1e6:.1f} MB needed, {free_bytes(self.folder) / 1e6:.1f} MB free"
            reason = f"{(error.strerror or 'error').lower()}; {space}"
            raise DataError(
                f"{self.folder}: the cache cannot be written ({reason}); set data.cache to another folder"
            ) from None
        return path

    def _mend(self, path: Path, mapped: _Mapped, sound: Sequence[bool]) -> Path | None:
        """Put the sound rows of a file into a new one, if there are any, and remove it."""
        stacked = mapped.rows([row for row in range(len(sound)) if sound[row]])
        keys = [key for key, is_sound in zip(mapped.keys, sound, strict=True) if is_sound]
        mended = self._write(keys, stacked) if keys else None
        _remove(path)
        return mended


class _Mapped:
    """A file mapped into memory: its rows are read where they lie, when they are looked at.

    Of a million entries nothing is held here but what has been looked at: keys are read from the file when they are asked for, and
    checksums are a tensor of their own. torch's mapping keeps no file open, so that their number is not limited by that of open files.
    """

    def __init__(self, path: Path) -> None:
        """Raises what `_DAMAGE` lists for a file that is none of ours."""
        self._path = path
        header, start = self._header()
        data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        tensors = {}
        for name in sorted(header.keys() - {"__metadata__"}):
            begin, end = (start + at for at in header[name]["data_offsets"])
            tensors[name] = data[begin:end].view(_DTYPES[header[name]["dtype"]]).view(header[name]["shape"])
        self._sums: Tensor = tensors.pop(SUMS)
        self._tensors, self._seen = tensors, bytearray(len(self._sums))
        if {len(tensor) for tensor in tensors.values()} != {len(self)}:
            raise ValueError("its header contradicts itself")

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def keys(self) -> list[str]:
        keys: list[str] = json.loads(self._header()[0]["__metadata__"]["keys"])
        if len(keys) != len(self):
            raise ValueError("its header contradicts itself")
        return keys

    def _header(self) -> tuple[dict[str, Any], int]:
        """What the file says of itself, and where its tensors begin."""
        with self._path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > HEADER_BYTES:
                raise ValueError("its header is too large")
            return json.loads(file.read(size)), 8 + size

    def rows(self, rows: Sequence[int]) -> Row:
        """Copies, stacked."""
        # by numpy, in this thread alone: torch spreads even a few kB over its threads, and waits for those that are at work elsewhere
        return {name: torch.from_numpy(tensor.numpy()[list(rows)]) for name, tensor in self._tensors.items()}

    def is_sound(self, row: int) -> bool:
        """Whether its bytes are what was written; looked at once."""
        if not self._seen[row]:
            now = _checksums({name: tensor[row : row + 1] for name, tensor in self._tensors.items()})
            self._seen[row] = now == [int(self._sums[row])]
        return bool(self._seen[row])


def _checksums(stacked: Row) -> list[int]:
    """One CRC-32 per row, over all of its tensors in the order of their names."""
    sums: Sequence[int] = ()
    for name in sorted(stacked):
        rows = stacked[name].contiguous().flatten(1).view(torch.uint8).numpy()
        sums = [zlib.crc32(row, before) for row, before in zip(rows, sums or [0] * len(rows), strict=True)]
    return list(sums)


def _bytes(paths: Collection[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):  # mended by another run
            total += path.stat().st_size
    return total


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind."""
    for part in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > 3600:
                _remove(part)


def _remove(path: Path) -> None:
    with suppress(OSError):  # a folder that may not be changed: the next write says so
        path.unlink()
