"""What an encoder is shown of a picture: size, filter, cut and scale, said exactly, since a score moves with each of them.

numpy and Pillow only. Which filter a published tool uses was read in that tool's source; `Look.words` repeats it in reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]
"""(3, H, W)."""
Fit = Literal["squash", "crop", "crop-torchvision", "square", "pad"]
Filter = Literal["bilinear", "bicubic", "tf1-bilinear", "float-bicubic"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FITS = {
    "squash": "to {side} x {side}, proportions changed",
    "crop": "shorter side to {shorter}, then the middle {side} x {side}",
    "crop-torchvision": "shorter side to {shorter}, then the middle {side} x {side} where torchvision finds it",
    "square": "the middle square, then to {side} x {side}",
    "pad": "longer side to {side}, then black around to {side} x {side}",
}
_FILTERS = {
    "bilinear": "Pillow bilinear (smooths when it shrinks)",
    "bicubic": "Pillow bicubic (smooths when it shrinks)",
    "float-bicubic": "Pillow bicubic on floats, not rounded (smooths when it shrinks)",
    "tf1-bilinear": "TensorFlow 1 bilinear (no smoothing, corners not aligned, no half-pixel centres)",
}


@dataclass(frozen=True)
class Look:
    """How an 8-bit RGB picture becomes what a network sees: (x / scale - mean) / std after the resizing."""

    side: int
    fit: Fit
    filter: Filter
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 255.0
    shorter: int | None = None
    """The shorter side before the middle is cut out; `side` if unset."""

    def __call__(self, image: Image.Image) -> Pixels:
        """(3, side, side), float32."""
        values_HWC = self._sized(image.convert("RGB"))
        values_HWC = (values_HWC / self.scale - np.array(self.mean)) / np.array(self.std)
        return np.ascontiguousarray(values_HWC.transpose(2, 0, 1), np.float32)

    @property
    def words(self) -> str:
        """In words, for reports and for the keys of caches."""
        fit = _FITS[self.fit].format(side=self.side, shorter=self.shorter or self.side)
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{fit}, {_FILTERS[self.filter]}; (x / {self.scale:g} - [{mean}]) / [{std}]"

    def _sized(self, image: Image.Image) -> NDArray[np.float64]:
        side = (self.side, self.side)
        match self.fit:
            case "squash":
                return resized(image, side, self.filter)
            case "square":
                return resized(_middle(image, (min(image.size),) * 2), side, self.filter)
            case "crop":
                wide = image.resize(_by_shorter(image.size, self.shorter or self.side), _pillow(self.filter))
                return np.asarray(_middle(wide, side), np.float64)
            case "crop-torchvision":
                wide = image.resize(_by_shorter(image.size, self.shorter or self.side), _pillow(self.filter))
                return np.asarray(_middle_rounded(wide, side), np.float64)
            case "pad":
                return _padded(image, self.side, self.filter)


def resized(image: Image.Image, size: tuple[int, int], how: Filter) -> NDArray[np.float64]:
    """The RGB picture in the size (width, height), as (H, W, 3) of 0 to 255."""
    if how == "tf1-bilinear":
        return tf1_bilinear(np.asarray(image, np.float64), size[::-1])
    if how == "float-bicubic":
        channels = [Image.fromarray(np.asarray(c, np.float32)) for c in image.split()]
        return np.stack([np.asarray(c.resize(size, Image.Resampling.BICUBIC), np.float64) for c in channels], -1)
    return np.asarray(image.resize(size, _pillow(how)), np.float64)


def tf1_bilinear(values_HWC: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """tf.image.resize_bilinear of TensorFlow 1 with align_corners=False, to (height, width): what FID was published with.

    Place y of the result lies at y * in / out of the source, without the half pixel of later versions, and only the two
    places around it count, however much is shrunk: this is the aliasing that arXiv:2104.11222 is about.
    """
    for axis, out in enumerate(size):
        length = values_HWC.shape[axis]
        at = np.arange(out) * (length / out)
        low = np.floor(at).astype(np.intp)
        high = np.minimum(low + 1, length - 1)
        share = (at - low).reshape(-1, *(1,) * (values_HWC.ndim - axis - 1))
        below, above = values_HWC.take(low, axis), values_HWC.take(high, axis)
        values_HWC = below + (above - below) * share
    return values_HWC


def _padded(image: Image.Image, side: int, how: Filter) -> NDArray[np.float64]:
    """Black around, the odd pixel below and to the right. A picture whose longer side fits already is as it is."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    canvas = np.zeros((side, side, 3))
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = resized(image, (width, height), how)
    return canvas


def _by_shorter(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    long = int(shorter * max(size) / min(size))
    return (shorter, long) if size[0] <= size[1] else (long, shorter)


def _middle(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _middle_rounded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As torchvision.transforms.CenterCrop: an odd pixel goes to where an even number of them is cut off."""
    left, top = round((image.width - size[0]) / 2), round((image.height - size[1]) / 2)
    return image.crop((left, top, left + size[0], top + size[1]))


def _pillow(how: Filter) -> Image.Resampling:
    return Image.Resampling.BILINEAR if how == "bilinear" else Image.Resampling.BICUBIC
