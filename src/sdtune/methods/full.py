"""Full fine-tuning: every weight of the denoiser, and of text encoders where asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from sdtune.methods.targets import encoders, is_unread
from sdtune.model import Teacher
from sdtune.schema import Section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from sdtune.methods.blend import Blend
    from sdtune.model import Model


def frozen_teacher(model: Model) -> Teacher:
    """`model`, which nothing changes, in evaluation mode and without gradients."""
    import torch

    model.denoiser.eval()
    return Teacher(torch.no_grad()(model.denoise), model.denoiser)


@dataclass(frozen=True, kw_only=True)
class Full(Section):
    """Train every weight of the denoiser. Moves the model furthest, and needs the most memory."""

    type: Literal["full"] = "full"
    text_encoders: bool | tuple[Annotated[int, Field(ge=1)], ...] = False
    """Text encoders that are trained, too: false for none, true for all of CLIP's kind, or their numbers, such as [1] or [1, 2]."""

    lighter: ClassVar[str] = "method.type=lora"
    """What to set for less memory, for the message when there is too little."""
    trains_all: ClassVar[bool] = True
    """Whether every weight of the parts it trains is trained, so that processes can share them out (`train.shard`)."""

    @property
    def trains_text(self) -> bool:
        """Whether text encoders are trained, so that captions have to be read anew in each step."""
        return bool(self.text_encoders)

    def attach(self, model: Model, *, seed: int) -> dict[str, nn.Parameter]:
        """Make the denoiser and the text encoders asked for trainable; returns their parameters by name."""
        parts = (model.denoiser_name, *encoders(model, self.text_encoders))
        named = {f"{part}.{name}": p for part in parts for name, p in model.parts[part].named_parameters()}
        trained = {name: p for name, p in named.items() if not is_unread(model, name)}
        for p in trained.values():
            p.requires_grad_(True)
        return trained

    def apply(self, model: Model, weights: Mapping[str, Tensor], *, seed: int) -> Blend:
        """Put trained `weights` (by the names of `attach`) on a fresh base."""
        from sdtune.methods.blend import Blend

        return Blend(model.parts, weights)

    def teacher(self, model: Model) -> Teacher:
        """A frozen copy of `model` as it is now: it takes as much memory again."""
        import copy

        frozen = copy.copy(model)
        frozen.denoiser = copy.deepcopy(model.denoiser).requires_grad_(False)
        if self.trains_text:
            frozen.text_encoders = tuple(copy.deepcopy(e).requires_grad_(False) for e in model.text_encoders)
        return frozen_teacher(frozen)

    def detach(self, model: Model) -> None:
        """Freeze the model again. Its weights stay as trained."""
        for part in model.parts.values():
            part.requires_grad_(False)

    def export(
        self, model: Model, weights: Mapping[str, Tensor], folder: Path, name: str, about: Mapping[str, Any]
    ) -> Path:
        """Write the trained parts as `folder/unet`, `folder/text_encoder`, ... in diffusers' layout, as they are on the model now."""
        model.save_denoiser(folder / model.denoiser_name)
        for part in encoders(model, self.text_encoders):
            model.parts[part].save_pretrained(folder / part)  # type: ignore[operator]
        return folder
