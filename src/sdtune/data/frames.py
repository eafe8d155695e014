"""Sizes that pictures are trained at: one square, or a family of frames of about the same area. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from sdtune.data.config import DataConfig
from sdtune.errors import DataError

LEAST_AREA = 0.9
"""Of resolution x resolution. With steps of 64 at 1024 this gives the 41 sizes of SDXL (arXiv:2307.01952, appendix I)."""


class Frame(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        return self.width * self.height


def step_of(resolution: int, grid: int, asked: int | None = None) -> int:
    """What sides are multiples of: an eighth of the resolution and at most 64, in whole `grid`s, unless `asked` says it.

    The U-Nets of SD 1, 2 and SDXL halve their latents three times or twice: sides in steps of 64 are halved evenly. Raises DataError.
    """
    if asked is None:
        return max(grid, min(64, resolution // 8) // grid * grid)
    if asked % grid:
        raise DataError(f"data.bucket_step: {asked} is no multiple of {grid}, as this model's sides have to be")
    return asked


@lru_cache
def family(resolution: int, step: int) -> tuple[Frame, ...]:
    """All frames with sides from half to twice the resolution, in steps, whose area is 90 to 100 percent of the square's."""
    sides = range(math.ceil(resolution / 2 / step) * step, 2 * resolution + 1, step)
    area = resolution**2
    found = (Frame(w, h) for w in sides for h in sides if LEAST_AREA * area <= w * h <= area)
    return tuple(dict.fromkeys([Frame(resolution, resolution), *found]))


class Frames:
    """Which frame a picture is trained in, at one resolution: what `data.buckets`, `bucket_step` and `enlarge` say."""

    def __init__(self, resolution: int, config: DataConfig, *, grid: int) -> None:
        """`grid`: pixels per latent (and patch), which sides are multiples of. Raises DataError."""
        if resolution % grid:
            raise DataError(f"data.resolution: {resolution} is no multiple of {grid}, as this model's sides have to be")
        self.resolution, self.enlarge = resolution, config.enlarge
        self.step = step_of(resolution, grid, config.bucket_step) if config.buckets else resolution
        self.all = family(resolution, self.step) if config.buckets else (Frame(resolution, resolution),)
        self._log_ratios = [math.log(f.width / f.height) for f in self.all]

    def of(self, size: tuple[int, int]) -> Frame | None:
        """The frame for a picture of `size` (width, height): the one nearest in proportions.

        Where it would have to be enlarged and may not be: a frame of the picture's own size, cut to whole steps; None if that is
        less than a quarter of the area (or, without buckets, less than the square).
        """
        ratio = math.log(size[0] / size[1])
        nearest = min(range(len(self.all)), key=lambda i: (abs(self._log_ratios[i] - ratio), -self.all[i].pixels))
        frame = self.all[nearest]
        if self.enlarge or scale(size, frame) <= 1:
            return frame
        own = Frame(size[0] // self.step * self.step, size[1] // self.step * self.step)
        longest = 2 * self.resolution
        own = Frame(min(own.width, longest), min(own.height, longest))
        return own if 4 * own.pixels >= self.resolution**2 else None


def scale(size: tuple[int, int], frame: Frame) -> float:
    """By how much a picture of `size` is multiplied to fill the frame; above 1 it is enlarged."""
    return max(frame.width / size[0], frame.height / size[1])


def cropped(size: tuple[int, int], frame: Frame) -> float:
    """The share of a picture's area that is cut away where it fills the frame."""
    factor = scale(size, frame)
    return 1 - (frame.width / factor) * (frame.height / factor) / (size[0] * size[1])


def resolutions(config: DataConfig, usual: int) -> Sequence[int]:
    """The resolutions to train at, each once; `usual` is the model's."""
    asked = config.resolution
    return tuple(dict.fromkeys([usual] if asked is None else [asked] if isinstance(asked, int) else asked))
