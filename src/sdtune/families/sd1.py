"""Stable Diffusion 1.x and everything of its shape, the embedded base included. The model itself is in sd1_model.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdtune.families.places import UnetSource

if TYPE_CHECKING:
    import torch

    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Sd1(UnetSource):
    """Stable Diffusion 1.x: a diffusers folder, a single file or a Hub id."""

    type: Literal["sd1"] = "sd1"
    path: str = "embedded"
    """A folder in diffusers layout, a single .safetensors file, a Hub id such as
    "stable-diffusion-v1-5/stable-diffusion-v1-5", or "embedded": the small 64-pixel model that comes with sdtune."""

    title: ClassVar[str] = "Stable Diffusion 1.x"
    linear: ClassVar[bool | None] = False
    mark: ClassVar[str] = "cond_stage_model.transformer."
    usual: ClassVar[str] = "stable-diffusion-v1-5/stable-diffusion-v1-5"

    def load(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Model:
        """The model, frozen, in evaluation mode; `dtype` is the denoiser's, fp32 if unset. Raises ModelError."""
        from sdtune.families.sd1_model import Sd1Model

        return Sd1Model.load(self, device=device, dtype=dtype)
