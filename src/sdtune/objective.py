"""What the network is asked to predict, and how its error is weighed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sdtune.model import Cond, Model, Prediction
from sdtune.schema import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Denoise = Callable[["Tensor", "Tensor", Cond], "Tensor"]
"""(noisy latents (B, C, H, W), times (B,), cond) -> prediction (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Section):
    """The loss. Whether noise, v or flow is predicted follows from the model."""

    min_snr_gamma: Annotated[float, Field(gt=0)] | None = 5.0
    """Bound of the weight of nearly clean timesteps (Min-SNR, arXiv:2303.09556). Unset: every timestep counts
    the same, as always for models trained by flow matching (Stable Diffusion 3)."""

    def build(self, model: Model) -> Objective:
        return Objective(model.alphas_T, model.sigmas_T, model.prediction, self.min_snr_gamma)


@dataclass(frozen=True)
class Objective:
    """x_t = alpha_t x_0 + sigma_t noise; the loss is the weighted square error of the prediction."""

    alphas_T: Tensor
    sigmas_T: Tensor
    prediction: Prediction = "epsilon"
    min_snr_gamma: float | None = None

    def __call__(
        self, denoise: Denoise, x0_BCHW: Tensor, cond: Cond, rng: torch.Generator, rows: slice = slice(None)
    ) -> Tensor:
        """The weighted loss of each example at a random timestep, shape (B,). `rng` is a CPU generator.

        Of `rows` alone, if they are given: what is drawn for them is what they would get in the whole batch.
        """
        import torch

        t_B = torch.randint(len(self.alphas_T), (len(x0_BCHW),), generator=rng).to(x0_BCHW.device)
        noise_BCHW = torch.randn(x0_BCHW.shape, generator=rng).to(x0_BCHW)
        return self.error(denoise, x0_BCHW[rows], cond[rows], t_B[rows], noise_BCHW[rows]) * self.weight(t_B[rows])

    def error(self, denoise: Denoise, x0_BCHW: Tensor, cond: Cond, t_B: Tensor, noise_BCHW: Tensor) -> Tensor:
        """The mean square error of each example at the given timesteps and noise, unweighted, shape (B,)."""
        alpha, sigma = (s_T[t_B].view(-1, 1, 1, 1) for s_T in (self.alphas_T, self.sigmas_T))
        x_BCHW = alpha * x0_BCHW + sigma * noise_BCHW
        if self.prediction == "flow":  # a flow is told its sigma; this is diffusers' unit for it
            target_BCHW, time_B = noise_BCHW - x0_BCHW, self.sigmas_T[t_B] * len(self.sigmas_T)
        else:
            target_BCHW = noise_BCHW if self.prediction == "epsilon" else alpha * noise_BCHW - sigma * x0_BCHW
            time_B = t_B
        return (denoise(x_BCHW, time_B, cond).float() - target_BCHW.float()).square().mean((1, 2, 3))

    def weight(self, t_B: Tensor) -> Tensor:
        """Min-SNR weight, arXiv:2303.09556; v-prediction divides by snr + 1 (section 4.2)."""
        if self.min_snr_gamma is None or self.prediction == "flow":
            return self.alphas_T.new_ones(len(t_B))
        snr_B = (self.alphas_T[t_B] / self.sigmas_T[t_B]) ** 2
        return snr_B.clamp(max=self.min_snr_gamma) / (snr_B + (self.prediction == "v"))
