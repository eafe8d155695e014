"""Stable Diffusion 1.x and everything of its shape, the embedded base included. The model itself is in sd1_model.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdtune.schema import Section

if TYPE_CHECKING:
    import torch

    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Sd1(Section):
    """Stable Diffusion 1.x: a diffusers folder or a Hub id."""

    type: Literal["sd1"] = "sd1"
    path: str = "embedded"
    """A folder in diffusers layout, a Hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5", or "embedded": the
    small 64-pixel model that comes with sdtune."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id. The commit in use is written into the run."""
    variant: str | None = None
    """Weight files with this suffix, for example "fp16"."""
    download: bool = False
    """Fetch a Hub id that is not in the Hub's local cache. Off: no network is used."""

    def load(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Model:
        """The model, frozen, in evaluation mode; `dtype` is the denoiser's, fp32 if unset. Raises ModelError."""
        from sdtune.families.sd1_model import load_sd1

        return load_sd1(self, device=device, dtype=dtype)
