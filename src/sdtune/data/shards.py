"""Rows of tensors on disk, each found by a key of its content."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdtune.errors import DataError
from sdtune.files import atomic_write

Row = dict[str, Tensor]
"""Named tensors of one entry, for example mean and logvar of a picture."""


class Shards:
    """A folder of safetensors files, each with the stacked rows of up to some hundred entries.

    One file per entry would need an open, a header and an inode for each of some ten thousand pictures; files of 256
    are read at disk speed. A shard is never changed after it was written, so that two runs may fill one folder at the
    same time. Each row has a checksum: damage costs the row, not the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, wanted: Iterable[str]) -> tuple[dict[str, Row], list[str]]:
        """The rows that are there, and notes on what was damaged. Damaged rows and files are removed."""
        missing, rows, notes = set(wanted), dict[str, Row](), list[str]()
        self._sweep()
        for path in sorted(self.folder.glob("*.safetensors")):
            if not missing:
                break
            try:
                found, bad = _load(path, missing)
            except FileNotFoundError:
                continue  # another run has just mended it
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                notes.append(f"cache: {path.name}: damaged ({reason:.80}); what was in it is encoded again")
                _remove(path)
                continue
            if bad:
                notes.append(f"cache: {path.name}: {len(bad)} damaged, encoded again")
                self.write(found)
                _remove(path)
            rows |= {key: row for key, row in found.items() if key in missing}
            missing -= found.keys()
        return rows, notes

    def write(self, rows: dict[str, Row]) -> None:
        """Keep `rows`, all of one shape, as one more file. Raises DataError where that is impossible."""
        if not rows:
            return
        stacked = {
            name: torch.stack([row[name] for row in rows.values()]).contiguous() for name in next(iter(rows.values()))
        }
        header = {"keys": json.dumps(list(rows)), "crc32": json.dumps(_checksums(stacked))}
        data = save(stacked, header)
        # named by content: a damaged file of the same keys has another name than its replacement
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        try:
            with atomic_write(path) as file:
                file.write(data)
        except OSError as error:
            reason = f"{(error.strerror or 'error').lower()}; {_space(self.folder, len(data))}"
            raise DataError(
                f"{self.folder}: the cache cannot be written ({reason}); set data.cache to another folder"
            ) from None

    def _sweep(self) -> None:
        """Remove what writers that were killed left behind."""
        for part in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > 3600:
                    _remove(part)


def _load(path: Path, wanted: set[str]) -> tuple[dict[str, Row], list[str]]:
    """The sound rows of one file, and the keys of the others. Nothing is read if no key is wanted."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        keys, checksums = json.loads(header["keys"]), json.loads(header["crc32"])
        if wanted.isdisjoint(keys):
            return {}, []
        stacked = {name: file.get_tensor(name) for name in sorted(file.keys())}
    sound = {key for key, was, now in zip(keys, checksums, _checksums(stacked), strict=True) if was == now}
    rows = {key: {name: t[i] for name, t in stacked.items()} for i, key in enumerate(keys) if key in sound}
    return rows, [key for key in keys if key not in sound]


def _remove(path: Path) -> None:
    with suppress(OSError):  # a folder that may not be changed: the next write says so
        path.unlink()


def _checksums(stacked: Row) -> list[int]:
    """One CRC-32 per row, over all of its tensors in the order of their names."""
    sums: Sequence[int] = ()
    for name in sorted(stacked):
        rows = stacked[name].contiguous().flatten(1).view(torch.uint8).numpy()
        sums = [zlib.crc32(row, before) for row, before in zip(rows, sums or [0] * len(rows), strict=True)]
    return list(sums)


def _space(folder: Path, needed: int) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return f"{needed / 1e6:.1f} MB needed, {shutil.disk_usage(folder).free / 1e6:.1f} MB free"
