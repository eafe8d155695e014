"""What a set of pictures is once it is encoded: a few numbers for each, in one file that is mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
        said = {"frames": self.frames, "tables": self.tables, "facts": self.facts}
        data = save(self.columns, {name: json.dumps(value) for name, value in said.items()})
        with atomic_write(path) as file:
            file.write(data)

    @classmethod
    def load(cls, path: Path) -> Index | None:
        """The index in a file; None if there is none, or it is no index."""
        try:
            with safe_open(path, framework="pt") as file:  # the columns stay in the file, mapped
                said = {name: json.loads(value) for name, value in file.metadata().items()}
                columns = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return cls(columns, [Frame(*f) for f in said["frames"]], said["tables"], said["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def strings(column: str, values: Sequence[str]) -> dict[str, Tensor]:
    """Texts as two columns: their bytes, and where each begins."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    at = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    data = np.frombuffer(b"".join(encoded) or b"\0", np.uint8).copy()
    return {column: torch.from_numpy(data), f"{column}_at": torch.from_numpy(at)}
