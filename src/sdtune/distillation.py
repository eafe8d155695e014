"""Distillation into a smaller network: BK-SDM, arXiv:2305.15798, section 3.2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sdtune.errors import ConfigError
from sdtune.model import Cond, Denoise, Model, Teacher
from sdtune.objective import Objective, ObjectiveConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(ObjectiveConfig):
    """The usual loss, and to say and to see what the larger network says and sees. For method.type = "student"."""

    needs_teacher: ClassVar[bool] = True

    type: Literal["distillation"] = "distillation"  # type: ignore[assignment]
    task: Weight = 1.0
    """Factor on the usual loss, which learns from the pictures."""
    output: Weight = 1.0
    """Factor on the mean square between the student's prediction and the teacher's."""
    features: Weight = 1.0
    """Factor on the mean squares between what the two have after each stage of the U-Net. Its size differs from model to model: it is
    large at first, and falls fastest."""

    def build(self, model: Model, teacher: Teacher | None = None) -> Distillation:
        assert teacher
        pairs = stages(teacher.module, model.denoiser)
        if self.features and not pairs:
            raise ConfigError("objective.features: teacher and student have no stages in common; set it to 0")
        return Distillation(
            model.alphas_T, model.sigmas_T, model.prediction, self, teacher, tuple(pairs) if self.features else ()
        )


@dataclass(frozen=True)
class Distillation(Objective):
    """task * loss + output * |student - teacher|^2 + features * sum over the stages of |student's - teacher's|^2."""

    options: DistillationConfig = DistillationConfig(weighting="none")
    teacher: Teacher | None = None
    pairs: tuple[tuple[nn.Module, nn.Module], ...] = ()
    """Stages of teacher and student that are to have the same output."""

    def __call__(
        self,
        denoise: Denoise,
        x0_BCHW: Tensor,
        cond: Cond,
        rng: torch.Generator,
        rows: slice = slice(None),
        mask_B1HW: Tensor | None = None,
    ) -> Tensor:
        """See `Objective`. Teacher and student see the same noisy latents. What the teacher teaches has no mask: it knows the whole."""
        assert self.teacher
        told: list[Tensor] = []
        ask, (teachers, students) = self.teacher.denoise, ([pair[i] for pair in self.pairs] for i in (0, 1))

        def both(x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
            with outputs(teachers) as expected:
                wanted_BCHW = ask(x_BCHW, t_B, cond)
            with outputs(students) as found:
                out_BCHW = denoise(x_BCHW, t_B, cond)
            told.append(self.options.output * _apart(out_BCHW, wanted_BCHW))
            told.extend(self.options.features * _apart(a, b) for a, b in zip(found, expected, strict=True))
            return out_BCHW

        loss_B = self.options.task * super().__call__(both, x0_BCHW, cond, rng, rows, mask_B1HW)
        return sum(told, loss_B)


def _apart(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    return (a_BCHW.float() - b_BCHW.float()).square().mean((1, 2, 3))


@contextmanager
def outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The list fills with what each of `modules` gives inside, in the order in which they run."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)  # down blocks also give what the up blocks take

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def stages(teacher: nn.Module, student: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The stages of two U-Nets that correspond: down from the first on, the middle, up from the last back."""

    def lists(name: str) -> list[list[nn.Module]]:
        return [list(getattr(m, name, ())) for m in (teacher, student)]

    (down_t, down_s), (up_t, up_s) = lists("down_blocks"), lists("up_blocks")
    shorter = len(down_s) < len(
        down_t
    )  # then the student's last stage does not halve the sides, and the teacher's does
    pairs = list(zip(down_t, down_s[:-1] if shorter else down_s, strict=False))
    middle = [getattr(m, "mid_block", None) for m in (teacher, student)]
    if None not in middle:
        pairs.append((middle[0], middle[1]))  # type: ignore[arg-type]
    return pairs + list(zip(up_t[len(up_t) - len(up_s) :], up_s, strict=True))
