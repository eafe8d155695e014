"""LPIPS 0.1 (arXiv:1801.03924): how differently two pictures look to a network, weighed by what people said of such pairs.

The weights of its layers are not negative, so it is symmetric, 0 for equal pictures, and else above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Of the scaling layer: ImageNet's mean and deviation for pictures in [-1, 1]. Version 0.0 lacked it."""
TINY = 1e-10


def scaled(pixels_B3HW: Tensor) -> Tensor:
    """Pictures in [-1, 1] as the trunk was trained to see them."""
    shift, scale = (pixels_B3HW.new_tensor(v)[None, :, None, None] for v in (SHIFT, SCALE))
    return (pixels_B3HW - shift) / scale


def distance(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Eq. 1: over layers, the mean over places of the weighed squared difference of features of unit length; (B,).

    `a` and `b` hold a layer's features each, (B, C, H, W); `weights` its C weights, of any shape.
    """
    layers = zip(a, b, weights, strict=True)
    parts = [((_unit(x) - _unit(y)).square() * w.reshape(1, -1, 1, 1)).sum(1).mean((1, 2)) for x, y, w in layers]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _unit(x_BCHW: Tensor) -> Tensor:
    """Each place's channels to unit length."""
    return x_BCHW / (x_BCHW.square().sum(1, keepdim=True).sqrt() + TINY)
