"""What a set of pictures is once it is encoded: a few numbers for each, in one file that is mapped into memory."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdtune.data.frames import Frame
from sdtune.files import atomic_write


@dataclass(frozen=True)
class Index:
    """Columns, and a few things about all.

    `weight_N`, `repeats_N`, `frame_N`, `group_N`, `example_N`: of each item (a picture in a frame). `views_NV`: the places of its
    latents in its frame's table. `first_E1` and `caption_K`: example e has the captions `caption_K[first_E1[e]:first_E1[e + 1]]`,
    places in `texts_T`, which holds places of text states. Where there are such: `sizes_NV6`, `masks_NV` and `mask_mean_N`,
    `left_NVH`. Texts and names are bytes laid end to end: `text`, `text_at`, `name`, `name_at`.
    """

    columns: dict[str, Tensor]
    frames: list[Frame]
    tables: dict[str, list[str]]
    """The files of each table, as places count them."""
    facts: dict[str, Any]
    """Crops, flips, notes, ..."""

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def text(self, row: int) -> str:
        return self._string("text", row)

    def name(self, example: int) -> str:
        """The file of an example."""
        return self._string("name", example)

    def _string(self, column: str, row: int) -> str:
        start, end = self.columns[f"{column}_at"][row : row + 2].tolist()
        return bytes(self.columns[column][start:end].numpy()).decode("utf-8", "surrogateescape")

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises OSError."""
        parts = {"frames": self.frames, "tables": self.tables, "facts": self.facts}
        said = {name: json.dumps(value) for name, value in parts.items()}
        data = save(self.columns, {**said, SUM: str(_checksum(self.columns, said))})
        with atomic_write(path) as file:
            file.write(data)

    @classmethod
    def load(cls, path: Path) -> Index | None:
        """The index in a file; None if there is none, or it is no index, or damaged."""
        try:
            with safe_open(path, framework="pt") as file:  # the columns stay in the file, mapped
                texts = dict(file.metadata())
                columns = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if int(texts.pop(SUM)) != _checksum(columns, texts):
                return None
            said = {name: json.loads(text) for name, text in texts.items()}
            return cls(columns, [Frame(*f) for f in said["frames"]], said["tables"], said["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


SUM = "crc32"
"""The checksum of all else, among what the file says of itself."""


def _checksum(columns: Mapping[str, Tensor], said: Mapping[str, str]) -> int:
    """Of all columns and texts, by their names: some 0.3 s a gigabyte, where a million pictures take a fifth of one."""
    total = zlib.crc32(json.dumps(dict(said), sort_keys=True).encode())
    for name in sorted(columns):
        data = columns[name].flatten().view(torch.uint8).numpy().data
        total = zlib.crc32(data, zlib.crc32(name.encode(), total))
    return total


def strings(column: str, values: Sequence[str]) -> dict[str, Tensor]:
    """Texts as two columns: their bytes, and where each begins."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    at = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    data = np.frombuffer(b"".join(encoded) or b"\0", np.uint8).copy()
    return {column: torch.from_numpy(data), f"{column}_at": torch.from_numpy(at)}
