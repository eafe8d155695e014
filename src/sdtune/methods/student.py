"""A smaller network in the denoiser's place, begun from its weights: block removal, arXiv:2305.15798, section 3.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdtune.model import Teacher
from sdtune.schema import Section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from sdtune.methods.smaller import Replaced
    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Student(Section):
    """Train a smaller U-Net, made of the base's own blocks, to do what the base does: faster, and less memory. Wants many pictures."""

    type: Literal["student"] = "student"
    size: Literal["base", "small", "tiny"] = "small"
    """"base": one pair of layers less in each stage (of Stable Diffusion 1.5, 860 M parameters, 579 M are left); "small": without the
    middle, too (482 M); "tiny": without the innermost stages, too (323 M)."""

    lighter: ClassVar[str] = "method.size=tiny"
    trains_text: ClassVar[bool] = False
    trains_all: ClassVar[bool] = True

    def attach(self, model: Model, *, seed: int) -> dict[str, nn.Parameter]:
        """Put the student in the denoiser's place, all of it trainable; returns its parameters by name. Raises ConfigError."""
        from sdtune.methods.smaller import smaller

        for part in model.parts.values():
            part.requires_grad_(False)
        student = smaller(model.denoiser, self.size)
        model.original, model.denoiser = model.denoiser, student
        return {f"{model.denoiser_name}.{name}": p for name, p in student.requires_grad_(True).named_parameters()}

    def apply(self, model: Model, weights: Mapping[str, Tensor], *, seed: int) -> Replaced:
        """Put a trained student in the denoiser's place."""
        from sdtune.methods.smaller import Replaced, smaller

        student, prefix = smaller(model.denoiser, self.size), f"{model.denoiser_name}."
        student.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
        return Replaced(model, student)

    def teacher(self, model: Model) -> Teacher:
        """The model with the denoiser that it had."""
        import copy

        from sdtune.methods.full import frozen_teacher

        whole = copy.copy(model)
        assert model.original is not None, "attach first"
        whole.denoiser = model.original
        return frozen_teacher(whole)

    def detach(self, model: Model) -> None:
        """Put the denoiser back that was there before."""
        if model.original is not None:
            model.denoiser, model.original = model.original, None

    def export(
        self, model: Model, weights: Mapping[str, Tensor], folder: Path, name: str, about: Mapping[str, Any]
    ) -> Path:
        """Write the student as `folder/unet` in diffusers' layout, as it is on the model now."""
        model.save_denoiser(folder / model.denoiser_name)
        return folder
