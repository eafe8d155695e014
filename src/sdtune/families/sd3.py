"""Stable Diffusion 3.x: a transformer trained by flow matching. The model itself is in sd3_model.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdtune.families.places import Source

if TYPE_CHECKING:
    import torch

    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Sd3(Source):
    """Stable Diffusion 3.x: a diffusers folder, a single file or a Hub id."""

    type: Literal["sd3"] = "sd3"
    path: str = "stabilityai/stable-diffusion-3-medium-diffusers"
    """A folder in diffusers layout, a single .safetensors file, or a Hub id."""
    t5: bool = True
    """Read captions with the large T5 encoder, too, where the model has it. Off: zeros take its place, as in diffusers."""

    title: ClassVar[str] = "Stable Diffusion 3.x"
    classes: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline", "SD3Transformer2DModel")
    mark: ClassVar[str] = "model.diffusion_model.joint_blocks."
    usual: ClassVar[str] = "stabilityai/stable-diffusion-3-medium-diffusers"

    def load(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Model:
        """The model, frozen, in evaluation mode; `dtype` is the denoiser's, fp32 if unset. Raises ModelError."""
        from sdtune.families.sd3_model import Sd3Model

        return Sd3Model.load(self, device=device, dtype=dtype)
