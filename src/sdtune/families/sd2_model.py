"""Stable Diffusion 2.x as a `Model`."""

from __future__ import annotations

from typing import ClassVar

from sdtune.families import single_file
from sdtune.families.sd1_model import Sd1Model
from sdtune.families.single_file import Place


class Sd2Model(Sd1Model):
    """As 1.x. OpenCLIP's text encoder is read at its last layer but one, which is the last that diffusers' folders keep."""

    family = "sd2"
    PLACES: ClassVar = {
        **Sd1Model.PLACES,
        "text_encoder": Place("cond_stage_model.model.", single_file.open_clip),
    }
