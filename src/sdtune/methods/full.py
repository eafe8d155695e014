"""Full fine-tuning: every weight of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdtune.schema import Section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Full(Section):
    """Train every weight of the denoiser. Moves the model furthest, and needs the most memory."""

    type: Literal["full"] = "full"

    @property
    def trains_text(self) -> bool:
        """Whether text encoders are trained, so that captions have to be read anew in each step."""
        return False

    def attach(self, model: Model, *, seed: int) -> dict[str, nn.Parameter]:
        """Make the denoiser trainable; returns its parameters by name."""
        model.denoiser.requires_grad_(True)
        return dict(model.denoiser.named_parameters())

    def detach(self, model: Model) -> None:
        """Freeze the denoiser again. Its weights stay as trained."""
        model.denoiser.requires_grad_(False)

    def export(
        self, model: Model, weights: Mapping[str, Tensor], folder: Path, name: str, about: Mapping[str, Any]
    ) -> Path:
        """Write the denoiser as `folder/unet` (SD 3: `transformer`), fp32, in diffusers' layout. Weights: those of the model now."""
        model.save_denoiser(folder / model.denoiser_name)
        return folder
