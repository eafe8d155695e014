"""Stable Diffusion 2.x as a `Model`."""

from __future__ import annotations

from sdtune.families.sd1_model import Sd1Model


class Sd2Model(Sd1Model):
    """As 1.x. OpenCLIP's text encoder is read at its last layer but one, which is the last that diffusers' folders keep."""

    family = "sd2"
