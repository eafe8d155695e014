"""Distillation to few steps: latent consistency models, arXiv:2310.04378, and their adapters, arXiv:2311.05556.

The student learns to jump from any point of the teacher's way to its end. Two neighbouring points, one DDIM step of the guided
teacher apart, shall give the same end; the student's own jump from the later one, without gradient, is the target.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from sdtune.errors import ConfigError
from sdtune.model import Cond, Denoise, Model, Prediction, Teacher
from sdtune.objective import parts
from sdtune.schema import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SIGMA_DATA, TIME_SCALE = 0.5, 10.0
"""Of the boundary condition, as in the paper's code and diffusers' LCMScheduler."""

END_STEPS = 8
"""DDIM steps to the end of the teacher's way, for validation."""
MOST_REMEMBERED = 2**28
"""Bytes of such ends that are kept."""

Scale = Annotated[float, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(Section):
    """Learn to draw in 2 to 8 steps what the base draws in 20 or more (LCM). Sample with scheduler "lcm" and guidance 1."""

    needs_teacher: ClassVar[bool] = True

    type: Literal["consistency"] = "consistency"
    solver_steps: Annotated[int, Field(gt=1)] = 50
    """DDIM steps that the teacher's way is cut into; `sample.steps` may be at most so many."""
    guidance: tuple[Scale, Scale] = (4.0, 8.0)
    """The teacher is guided by a scale drawn from this range, so that sampling needs no guidance any more. Around what the base is
    usually sampled with; the paper draws from 4 to 16."""
    loss: Literal["huber", "l2"] = "huber"
    """Between the two jumps: pseudo-Huber sqrt(e^2 + c^2) - c, or the square."""
    huber_c: Annotated[float, Field(gt=0)] = 0.001
    """c of "huber"."""

    def __post_init__(self) -> None:
        if self.guidance[0] > self.guidance[1]:
            raise ConfigError(f"objective.guidance: {list(self.guidance)} begins after its end")

    def build(self, model: Model, teacher: Teacher | None = None) -> Consistency:
        """The loss on `model`'s noise schedule. Raises ConfigError for a flow model."""
        if model.prediction == "flow":
            raise ConfigError(
                f"objective.type: 'consistency' follows DDIM's way; {model.family} is a flow model, which has another"
            )
        if self.solver_steps > len(model.alphas_T):
            raise ConfigError(f"objective.solver_steps: {self.solver_steps}, of {len(model.alphas_T)} timesteps")
        assert teacher
        empty = model.encode_prompts([""])
        return Consistency(model.alphas_T, model.sigmas_T, model.prediction, self, teacher.denoise, empty)


@dataclass(frozen=True)
class Consistency:
    """f(x, t) = c_skip(t) x + c_out(t) x0(x, t), which is x itself at t = 0."""

    alphas_T: Tensor
    sigmas_T: Tensor
    prediction: Prediction
    options: ConsistencyConfig
    teacher: Denoise
    empty: Cond
    """The empty prompt, one row."""
    ends: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Ends of the teacher's way from the fixed points of the validation."""

    def __call__(
        self,
        denoise: Denoise,
        x0_BCHW: Tensor,
        cond: Cond,
        rng: torch.Generator,
        rows: slice = slice(None),
        mask_B1HW: Tensor | None = None,
    ) -> Tensor:
        """The loss of each of `rows` at a random point of the teacher's way, shape (B,). `rng` is a CPU generator."""
        import torch

        B, (low, high) = len(x0_BCHW), self.options.guidance
        n_B = torch.randint(0, self.options.solver_steps, (B,), generator=rng)
        noise_BCHW = torch.randn(x0_BCHW.shape, generator=rng).to(x0_BCHW)
        scale_B = (low + (high - low) * torch.rand(B, generator=rng)).to(x0_BCHW.device)
        t_B = self.timestep(n_B).to(x0_BCHW.device)
        gap_BCHW = self._gap(denoise, x0_BCHW[rows], cond[rows], t_B[rows], noise_BCHW[rows], scale_B[rows])
        return _mean(gap_BCHW, None if mask_B1HW is None else mask_B1HW[rows])

    def error(
        self,
        denoise: Denoise,
        x0_BCHW: Tensor,
        cond: Cond,
        t_B: Tensor,
        noise_BCHW: Tensor,
        *,
        mask_B1HW: Tensor | None = None,
    ) -> Tensor:
        """How far the student's jump lands from the end of the teacher's way, shape (B,): the mean square.

        From the points nearest to the given timesteps, guided by the middle of the range. The loss above compares the student
        with itself and may rise while its pictures get better; this falls as they do.
        """
        nearest_B = ((t_B + 1) / self.stride).round().long().clamp(1, self.options.solver_steps) - 1
        t_B, (alpha, sigma) = self.timestep(nearest_B), self._at(self.timestep(nearest_B))
        x_BCHW = alpha * x0_BCHW + sigma * noise_BCHW
        end_BCHW = self._end(x_BCHW, t_B, cond)
        return _mean((self.jump(denoise, x_BCHW, t_B, cond) - end_BCHW).square(), mask_B1HW)

    def _end(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        """Where the guided teacher gets from `x_BCHW` in END_STEPS of DDIM. It stays as it is, so it is walked once and remembered."""
        import torch

        key = zlib.crc32(x_BCHW.float().cpu().numpy().tobytes(), int(t_B.sum()))
        if (known := self.ends.get(key)) is not None:
            return known.to(x_BCHW)
        scale_B = x_BCHW.new_full((len(x_BCHW),), sum(self.options.guidance) / 2)
        end_BCHW = x_BCHW
        with torch.no_grad():
            for i in range(END_STEPS):
                here_B, next_B = ((t_B * (END_STEPS - k) / END_STEPS).long() for k in (i, i + 1))
                end_BCHW = self.solve(end_BCHW, here_B, next_B, cond, scale_B)
        if (len(self.ends) + 1) * end_BCHW.nbytes <= MOST_REMEMBERED:
            self.ends[key] = end_BCHW.cpu()
        return end_BCHW

    def _gap(
        self, denoise: Denoise, x0_BCHW: Tensor, cond: Cond, t_B: Tensor, noise_BCHW: Tensor, scale_B: Tensor
    ) -> Tensor:
        """How far the jumps from both ends of one teacher's step from `t_B` lie apart, place by place: (B, C, H, W)."""
        import torch

        alpha, sigma = self._at(t_B)
        x_BCHW = alpha * x0_BCHW + sigma * noise_BCHW
        jump_BCHW = self.jump(denoise, x_BCHW, t_B, cond)
        with torch.no_grad():
            earlier_B = (t_B - self.stride).clamp(min=0)
            earlier_BCHW = self.solve(x_BCHW, t_B, earlier_B, cond, scale_B)
            target_BCHW = self.jump(denoise, earlier_BCHW, earlier_B, cond)
        square_BCHW, c = (jump_BCHW - target_BCHW).square(), self.options.huber_c
        return (square_BCHW + c**2).sqrt() - c if self.options.loss == "huber" else square_BCHW

    @property
    def stride(self) -> int:
        """Timesteps in one step of the teacher."""
        return len(self.alphas_T) // self.options.solver_steps

    def timestep(self, n_B: Tensor) -> Tensor:
        """Where the teacher's step number `n_B` (from 0, the cleanest) begins."""
        return (n_B + 1) * self.stride - 1

    def jump(self, denoise: Denoise, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        """The end of the way from `x_BCHW`, as the student sees it."""
        scaled_B = t_B * TIME_SCALE
        below_B = scaled_B**2 + SIGMA_DATA**2
        skip, out = ((part / below).view(-1, 1, 1, 1) for part, below in (
            (SIGMA_DATA**2, below_B), (scaled_B, below_B.sqrt())
        ))  # fmt: skip
        x0_BCHW, _ = self.parts(denoise(x_BCHW, t_B, cond).float(), x_BCHW, t_B)
        return skip * x_BCHW + out * x0_BCHW

    def solve(self, x_BCHW: Tensor, t_B: Tensor, earlier_B: Tensor, cond: Cond, scale_B: Tensor) -> Tensor:
        """One DDIM step (arXiv:2010.02502, eq. 12, eta 0) of the teacher, guided (arXiv:2207.12598) by `scale_B`."""
        import torch

        B, scale = len(x_BCHW), scale_B.view(-1, 1, 1, 1)
        empty = self.empty[torch.zeros(B, dtype=torch.long, device=x_BCHW.device)]
        # with what else the picture's own cond says: its size and cut
        without = Cond(**{**{k: v for k, v in cond.tensors().items() if k != "tokens_BEL"}, **empty.tensors()})
        out, free = (self.teacher(x_BCHW, t_B, c).float() for c in (cond, without))
        x0_BCHW, noise_BCHW = self.parts(free + scale * (out - free), x_BCHW, t_B)
        alpha, sigma = self._at(earlier_B)
        return alpha * x0_BCHW + sigma * noise_BCHW

    def parts(self, out_BCHW: Tensor, x_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """The picture and the noise in `x_BCHW`, by what the network says."""
        return parts(self.prediction, out_BCHW, x_BCHW, *self._at(t_B))

    def _at(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (s_T[t_B].view(-1, 1, 1, 1) for s_T in (self.alphas_T, self.sigmas_T))
        return alpha, sigma


def _mean(loss_BCHW: Tensor, mask_B1HW: Tensor | None) -> Tensor:
    return (loss_BCHW if mask_B1HW is None else loss_BCHW * mask_B1HW).mean((1, 2, 3))
