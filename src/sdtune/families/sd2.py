"""Stable Diffusion 2.x: another text encoder than 1.x, and v-prediction at 768 pixels. The model itself is in sd2_model.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdtune.families.places import UnetSource

if TYPE_CHECKING:
    import torch

    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Sd2(UnetSource):
    """Stable Diffusion 2.x: a diffusers folder, a single file or a Hub id."""

    type: Literal["sd2"] = "sd2"
    path: str = "stabilityai/stable-diffusion-2-1"
    """A folder in diffusers layout, a single .safetensors file, or a Hub id."""

    title: ClassVar[str] = "Stable Diffusion 2.x"
    linear: ClassVar[bool | None] = True
    mark: ClassVar[str] = "cond_stage_model.model."
    usual: ClassVar[str] = "stabilityai/stable-diffusion-2-1"

    def load(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Model:
        """The model, frozen, in evaluation mode; `dtype` is the denoiser's, fp32 if unset. Raises ModelError."""
        from sdtune.families.sd2_model import Sd2Model

        return Sd2Model.load(self, device=device, dtype=dtype)
