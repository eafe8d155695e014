"""The picture that drawing begins with, instead of noise alone: image-to-image, and inpainting where a mask says what is painted anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdtune.config import SampleConfig
from sdtune.data import images
from sdtune.data.frames import family, step_of
from sdtune.data.images import Pixels, Size
from sdtune.errors import ConfigError, DataError
from sdtune.model import Latents, Model

T = TypeVar("T")
PAINTED = 128
"""A mask's pixel from this brightness on is painted anew."""


@dataclass(frozen=True)
class Original:
    """A picture, cut and resized to the size that is drawn, and what of it is painted anew."""

    pixels: Pixels
    """(height, width, 3), 0 to 255."""
    mask: Pixels | None
    """(height, width), 0 to 255: white is painted anew. None: all of it may change."""
    record: dict[str, Any]
    """The files' names, without the path to them, and their SHA-256."""

    @classmethod
    def read(cls, config: SampleConfig, size_of: Callable[[Size], Size]) -> Self | None:
        """What `sample.image` and `sample.mask` name, in the size that `size_of` gives for the picture's; None if there is none.

        Of a picture of other proportions the middle is kept. Raises ConfigError and DataError.
        """
        if config.image is None:
            if config.mask is not None:
                raise ConfigError("sample.mask: has no picture to lie on; name one with sample.image (--image)")
            return None
        picture, record = _read("image", config.image, images.decode)
        frame = size_of(picture.size)
        (box,) = images.crop_boxes(picture.size, "center", 1, "", frame)
        pixels = images.to_frame(picture, frame, box=box)
        if config.mask is None:
            return cls(pixels, None, record)
        grey, more = _read("mask", config.mask, images.read_mask)
        if (size := grey.shape[::-1]) != picture.size:
            raise DataError(
                f"{config.mask}: is {size[0]}x{size[1]}, the picture {config.image} is {picture.size[0]}x{picture.size[1]}; "
                "a mask is as large as its picture"
            )
        mask = images.to_frame(Image.fromarray(grey).convert("RGB"), frame, box=box)[..., 0]
        if mask.max() < PAINTED:
            raise DataError(f"{config.mask}: nothing of it is white, so nothing would be painted anew")
        return cls(pixels, mask, record | more)

    def keep(self, drawn: Image.Image) -> Image.Image:
        """`drawn` where the mask is white, this picture where it is black, byte for byte; greys blend the two."""
        if self.mask is None:
            return drawn
        return Image.composite(drawn, Image.fromarray(self.pixels), Image.fromarray(self.mask))


@dataclass(frozen=True)
class Start:
    """An `Original` as the denoiser sees it. One row, on the model's device."""

    latents: Latents
    mask_1HW: Tensor | None = None
    """1 where a latent is painted anew: where any of its pixels is."""
    left: Latents | None = None
    """For models that are told what is left of the picture: of the picture with grey where it is painted anew."""

    @classmethod
    def of(cls, model: Model, original: Original) -> Self:
        pixels_BCHW = images.pixels_from([original.pixels])
        latents = model.encode_images(pixels_BCHW)
        if original.mask is None:
            return cls(latents)
        painted_1HW = torch.from_numpy((original.mask >= PAINTED).astype(np.float32))[None]
        left = model.encode_images(pixels_BCHW * (1 - painted_1HW)) if model.inpaints else None
        return cls(latents, F.max_pool2d(painted_1HW, model.downscale).to(model.device), left)


def size_of(config: SampleConfig, model: Model, picture: Size | None = None) -> Size:
    """Width and height to draw: as asked, else the model's own, or for a `picture` one of its proportions. Raises ConfigError."""
    for name, value in (("width", config.width), ("height", config.height)):
        if value is not None and value % model.grid:
            unit = "latent" if model.patch == 1 else "patch"
            raise ConfigError(
                f"sample.{name}: {value} is not a multiple of {model.grid}, the model's pixels per {unit}"
            )
    side = model.resolution
    if picture is None or config.width or config.height:
        return config.width or side, config.height or side
    ratio = picture[0] / picture[1]
    frames = family(side, step_of(side, model.grid))
    return min(frames, key=lambda f: (max(ratio * f.height / f.width, f.width / (ratio * f.height)), -f.pixels))


def skipped(config: SampleConfig, *, flow: bool) -> int:
    """How many of the steps are left out from the noisy end, as diffusers counts them for this kind of model. Raises ConfigError."""
    share = config.steps * config.denoising_strength
    left_out = int(config.steps - share) if flow else config.steps - int(share)
    if left_out == config.steps:
        raise ConfigError(
            f"sample.denoising_strength: {config.denoising_strength:g} of sample.steps={config.steps} leaves no step to draw; "
            f"from {1 / config.steps:.2g} on there is one"
        )
    return left_out


def _read(key: str, name: str, decode: Callable[[bytes], T]) -> tuple[T, dict[str, str]]:
    try:
        data = Path(name).expanduser().read_bytes()
        return decode(data), {key: Path(name).name, f"{key}_sha256": hashlib.sha256(data).hexdigest()}
    except OSError as error:
        raise DataError(f"sample.{key}: {name}: {(error.strerror or 'cannot be read').lower()}") from None
    except DataError as error:
        raise DataError(f"sample.{key}: {name}: {error}") from None
