"""What encoders are shown of a picture, against the filters written down a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from sdtune.metrics.looks import Fit, Look, resized, tf1_bilinear
from sdtune.metrics.registry import ENCODERS

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_tf1_bilinear_is_its_formula() -> None:
    """y_out = y * in / out, floor and the one after it, no half pixel: TensorFlow 1's kernel, place by place."""
    values = np.random.default_rng(0).uniform(0, 255, (7, 11, 2))
    found = tf1_bilinear(values, (5, 16))
    for y in range(5):
        for x in range(16):
            v, u = y * 7 / 5, x * 11 / 16
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, 6), min(x0 + 1, 10)
            top = values[y0, x0] + (values[y0, x1] - values[y0, x0]) * (u - x0)
            low = values[y1, x0] + (values[y1, x1] - values[y1, x0]) * (u - x0)
            assert found[y, x] == pytest.approx(top + (low - top) * (v - y0), rel=1e-12)


def test_tf1_bilinear_is_not_what_torch_does() -> None:
    """The half pixel is what tells the tools apart."""
    ramp = np.repeat(np.arange(4.0)[None, :, None], 4, 0)
    ours = tf1_bilinear(ramp, (8, 8))[0, :, 0]
    torchs = F.interpolate(torch.from_numpy(ramp).permute(2, 0, 1)[None], (8, 8), mode="bilinear")[0, 0, 0]
    assert ours.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert torchs.tolist() != ours.tolist()


def test_float_bicubic_smooths_and_does_not_round() -> None:
    image = picture(40, 30)
    found = resized(image, (8, 6), "float-bicubic")
    rounded = resized(image, (8, 6), "bicubic")
    assert np.abs(found.clip(0, 255) - rounded).max() <= 1
    assert (found != np.round(found)).any() and (rounded == np.round(rounded)).all()


@pytest.mark.parametrize(
    ("size", "fit"), [((80, 50), "crop"), ((50, 80), "crop"), ((80, 50), "square"), ((80, 50), "squash")]
)
def test_the_middle_is_kept(size: tuple[int, int], fit: Fit) -> None:
    """A picture with one bright column in its middle: it stays in the middle, whatever the fit."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, size[0] // 2 - 5 : size[0] // 2 + 5] = 255
    look = Look(32, fit, "bicubic", ZERO, ONE, scale=1.0)
    row = look(Image.fromarray(pixels))[0, 16]
    assert row.shape == (32,) and row[15] > 128 and row[16] > 128 and row[0] < 10 and row[-1] < 10


def test_crop_keeps_proportions_and_squash_does_not() -> None:
    image = picture(100, 50)
    crop = Look(20, "crop", "bicubic", ZERO, ONE, scale=1.0, shorter=25)(image)
    wide = np.asarray(image.resize((50, 25), Image.Resampling.BICUBIC), np.float32)
    assert np.array_equal(crop, wide[2:22, 15:35].transpose(2, 0, 1))
    squash = Look(20, "squash", "bicubic", ZERO, ONE, scale=1.0)(image)
    assert np.array_equal(
        squash, np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1)
    )


def test_pad_is_black_before_the_scaling() -> None:
    look = Look(16, "pad", "float-bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    found = look(Image.new("RGB", (40, 20), (255, 255, 255)))
    assert np.allclose(found[:, :4], -2) and np.allclose(found[:, 12:], -2) and np.allclose(found[:, 5:11], 2)


@pytest.mark.parametrize("name", [name for name, spec in ENCODERS.items() if spec.look])
@pytest.mark.parametrize("size", [(33, 57), (400, 300)])
def test_every_look_gives_its_side(name: str, size: tuple[int, int]) -> None:
    look = ENCODERS[name].look
    assert look is not None
    found: NDArray[np.float32] = look(picture(*size))
    assert found.shape == (3, look.side, look.side) and found.dtype == np.float32 and np.isfinite(found).all()
    assert str(look.side) in look.words


def test_inception_is_scaled_as_in_tensorflow() -> None:
    look = ENCODERS["inception"].look
    assert look is not None
    assert look(Image.new("RGB", (9, 9), (0, 128, 255)))[:, 0, 0].tolist() == [-1, 0, 127 / 128]


def test_a_grey_picture_is_made_rgb() -> None:
    look = Look(8, "squash", "bicubic", ZERO, ONE)
    assert look(Image.new("L", (8, 8), 100)).shape == (3, 8, 8)
