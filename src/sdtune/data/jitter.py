"""Pictures in other colours. Imports no torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sdtune.data.chance import uniform
from sdtune.data.images import Pixels

HUE_SHARE = 0.1
"""Of the strength: what hues turn by at most, as a part of the colour circle. The eye minds a wrong hue more than a darker picture."""
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""RGB to brightness and the two directions of colour (NTSC)."""


def jittered(square: Pixels, strength: float, key: str, number: int) -> Pixels:
    """Version `number` of the picture `key`, (H, W, 3): other brightness, contrast, saturation and hue, drawn by a hash of both.

    The first three are multiplied by factors of 1 - `strength` to 1 + `strength`. Number 0 is the picture as it is.
    """
    if number == 0 or strength == 0:
        return square
    brightness, contrast, saturation, hue = (
        strength * (2 * uniform(f"{what}/{key}/{number}") - 1)
        for what in ("brightness", "contrast", "saturation", "hue")
    )
    pixels_HWC = square.astype(np.float64) * (1 + brightness)
    mean = float((pixels_HWC.mean((0, 1)) * _YIQ[0]).sum())
    pixels_HWC = mean + (pixels_HWC - mean) * (1 + contrast)
    pixels_HWC = pixels_HWC @ _colours(1 + saturation, math.tau * HUE_SHARE * hue).T
    return pixels_HWC.round().clip(0, 255).astype(np.uint8)


def _colours(saturation: float, angle: float) -> NDArray[np.float64]:
    """The matrix on RGB that keeps brightness, and stretches and turns what is colour."""
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    turned: NDArray[np.float64] = np.linalg.inv(_YIQ) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    return turned
