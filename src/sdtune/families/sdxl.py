"""SDXL: two text encoders, and each picture's size and cut. The model itself is in sdxl_model.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdtune.families.places import UnetSource

if TYPE_CHECKING:
    import torch

    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Sdxl(UnetSource):
    """SDXL: a diffusers folder, a single file or a Hub id."""

    type: Literal["sdxl"] = "sdxl"
    path: str = "stabilityai/stable-diffusion-xl-base-1.0"
    """A folder in diffusers layout, a single .safetensors file, or a Hub id."""

    title: ClassVar[str] = "SDXL"
    two_encoders: ClassVar[bool] = True
    mark: ClassVar[str] = "conditioner.embedders.1.model."
    usual: ClassVar[str] = "stabilityai/stable-diffusion-xl-base-1.0"

    def load(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Model:
        """The model, frozen, in evaluation mode; `dtype` is the denoiser's, fp32 if unset. Raises ModelError."""
        from sdtune.families.sdxl_model import SdxlModel

        return SdxlModel.load(self, device=device, dtype=dtype)
