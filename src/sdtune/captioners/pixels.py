"""What a model sees of a picture, by the numbers in its preprocessor_config.json. Needs neither torch nor torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdtune.captioners.base import Pixels
from sdtune.errors import ModelError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3


@dataclass(frozen=True)
class Preprocessor:
    """Resize, cut, scale, normalise: in this order, each only if the model's file says so."""

    size: tuple[int, int] | None
    """(width, height) to resize to."""
    shortest: int | None
    """Or the length of the shorter side, proportions being kept."""
    crop: tuple[int, int] | None
    """(width, height) of the centre that is cut out, black beyond the picture."""
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Pixels:
        """(3, H, W) in float32."""
        if self.size or self.shortest:
            image = image.resize(self.size or self._by_shortest(image.size), Image.Resampling(self.resample))
        if self.crop:
            image = _centre(image, self.crop)
        scaled_HWC = np.asarray(image, np.float32) * np.float32(self.scale)
        values_HWC = (scaled_HWC - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values_HWC.transpose(2, 0, 1), np.float32)

    def _by_shortest(self, size: tuple[int, int]) -> tuple[int, int]:
        assert self.shortest
        long = int(self.shortest * max(size) / min(size))
        return (self.shortest, long) if size[0] <= size[1] else (long, self.shortest)


def read(folder: Path, name: str, side: int) -> Preprocessor:
    """The preprocessor of a model's folder; `side` pixels where its file does not say. Raises ModelError."""
    file = next((f for f in ("preprocessor_config.json", "processor_config.json") if (folder / f).is_file()), None)
    if file is None:
        raise ModelError(f"{name}: no preprocessor_config.json there, which says how pictures are to be shown to it")
    try:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
        return _from(found.get("image_processor", found), side)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{name}: {file} cannot be used: {error}") from None


def _from(found: Mapping[str, Any], side: int) -> Preprocessor:
    size, shortest = _size(found.get("size"), side) if found.get("do_resize", True) else (None, None)
    crop = _size(found.get("crop_size"), side)[0] if found.get("do_center_crop", False) else None
    normal = found.get("do_normalize", True)
    return Preprocessor(
        size=size,
        shortest=shortest,
        crop=crop,
        resample=int(found.get("resample", BICUBIC)),
        scale=float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0,
        mean=tuple(map(float, found.get("image_mean") or CLIP_MEAN)) if normal else (0.0, 0.0, 0.0),
        std=tuple(map(float, found.get("image_std") or CLIP_STD)) if normal else (1.0, 1.0, 1.0),
    )


def _size(value: Any, side: int) -> tuple[tuple[int, int] | None, int | None]:
    """(width, height), or the shorter side."""
    if value is None:
        return (side, side), None
    if isinstance(value, int):
        return (value, value), None
    if "shortest_edge" in value:
        return None, int(value["shortest_edge"])
    return (int(value["width"]), int(value["height"])), None


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of the picture; PIL fills what lies outside with black."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
