"""What the network is asked to predict, and how its error is weighed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from sdtune.errors import ConfigError
from sdtune.model import Cond, Denoise, Model, Prediction, Teacher
from sdtune.schema import Section, refuse_idle

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Loss(Protocol):
    """What an objective's `build` gives, and the training step calls. `mask_B1HW` says what each place counts; without it, 1."""

    @property
    def alphas_T(self) -> Tensor:
        """One for each timestep that `error` knows."""

    def __call__(
        self,
        denoise: Denoise,
        x0_BCHW: Tensor,
        cond: Cond,
        rng: torch.Generator,
        rows: slice = slice(None),
        mask_B1HW: Tensor | None = None,
    ) -> Tensor:
        """The loss of each of `rows` to be learned from, shape (B,). All chance comes from `rng`, and is drawn for the whole batch."""

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
        """The validation loss of each example at given timesteps and noise, shape (B,)."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Section):
    """Noise is to be found in noisy pictures: the usual loss. Whether noise, v or flow is predicted follows from the model."""

    needs_teacher: ClassVar[bool] = False
    """Whether it learns from the model as it was before, too."""

    type: Literal["denoising"] = "denoising"
    weighting: Literal["min-snr", "soft-min-snr", "debiased", "p2", "none"] = "min-snr"
    """How much a timestep counts: "min-snr" (arXiv:2303.09556) bounds the weight of nearly clean ones, "soft-min-snr" bends where
    that has a corner (arXiv:2401.11605), "debiased" is 1 / sqrt(SNR) (arXiv:2310.08442), "p2" 1 / (k + SNR)^gamma
    (arXiv:2204.00227), "none": every timestep the same, as always for flow matching (Stable Diffusion 3). Where the last timestep
    is pure noise (model.zero_snr), all but "none" give that timestep the weight 0."""
    min_snr_gamma: Positive | None = 5.0
    """Bound of the weight in "min-snr" and "soft-min-snr". Unset: every timestep counts the same."""
    p2_k: Positive = 1.0
    """k of "p2"."""
    p2_gamma: NotNegative = 1.0
    """Exponent of "p2"."""
    loss: Literal["l2", "huber", "smooth-l1"] = "l2"
    """Square error, or one that grows like the absolute error beyond `huber_c`, so that odd pictures pull less: "huber" is
    2 c (sqrt(e^2 + c^2) - c), "smooth-l1" the same without the factor c. Validation losses stay l2."""
    huber_c: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Where the error turns from square to absolute."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """`huber_c` at every timestep; or falling from 1 to it, as a power of it (arXiv:2403.16728), or with the noise: robust where
    the noise hides details, l2 where they show."""
    offset_noise: NotNegative = 0.0
    """Noise that is one number per channel, added times this (0.05 to 0.1): lets pictures become darker or brighter as a whole."""
    pyramid_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Noise of ever coarser grids, added times this to the power of the grid's number (0.3 is usual); 0 turns it off."""
    input_perturbation: NotNegative = 0.0
    """The network sees noise that is off by this much from what it is asked for (arXiv:2301.11706; 0.1 there): it learns to mend
    its own mistakes."""
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    """How timesteps are drawn. logit-normal (arXiv:2403.03206): mostly from the middle."""
    logit_mean: float = 0.0
    """Of "logit-normal": below 0 prefers clean pictures, above 0 noisy ones."""
    logit_std: Positive = 1.0
    """Of "logit-normal": the spread."""
    timestep_range: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None
    """First and last timestep that are trained, of 0 (clean) to 999 (noise). Unset: all."""

    def __post_init__(self) -> None:
        robust = ("huber", "smooth-l1")
        uses = {
            "min_snr_gamma": ("weighting", ("min-snr", "soft-min-snr")), "p2_k": ("weighting", ("p2",)),
            "p2_gamma": ("weighting", ("p2",)), "huber_c": ("loss", robust), "huber_schedule": ("loss", robust),
            "logit_mean": ("timesteps", ("logit-normal",)), "logit_std": ("timesteps", ("logit-normal",)),
        }  # fmt: skip
        refuse_idle(self, "objective", uses)
        if self.timestep_range and self.timestep_range[0] > self.timestep_range[1]:
            raise ConfigError(f"objective.timestep_range: {list(self.timestep_range)} begins after its end")

    def build(self, model: Model, teacher: Teacher | None = None) -> Objective:
        """The loss for `model`'s noise schedule. Raises ConfigError if the two do not go together."""
        T = len(model.alphas_T)
        if self.timestep_range and self.timestep_range[1] >= T:
            raise ConfigError(
                f"objective.timestep_range: {list(self.timestep_range)}, but the last timestep is {T - 1}"
            )
        return Objective(model.alphas_T, model.sigmas_T, model.prediction, self)


@dataclass(frozen=True)
class Objective:
    """x_t = alpha_t x_0 + sigma_t noise; the loss is the weighted error of the prediction."""

    alphas_T: Tensor
    sigmas_T: Tensor
    prediction: Prediction = "epsilon"
    options: ObjectiveConfig = ObjectiveConfig(weighting="none")

    def __call__(
        self,
        denoise: Denoise,
        x0_BCHW: Tensor,
        cond: Cond,
        rng: torch.Generator,
        rows: slice = slice(None),
        mask_B1HW: Tensor | None = None,
    ) -> Tensor:
        """The weighted loss of each example at a random timestep, shape (B,). `rng` is a CPU generator.

        Of `rows` alone, if they are given: what is drawn for them is what they would get in the whole batch.
        `mask_B1HW` says what each place counts; without it, 1.
        Options draw from generators of their own (`_aside`): none changes the timesteps and noise of a run without it.
        """
        import torch

        t_B = self.draw_timesteps(len(x0_BCHW), rng).to(x0_BCHW.device)
        noise_BCHW = torch.randn(x0_BCHW.shape, generator=rng)
        if self.options.offset_noise:
            shape = (*x0_BCHW.shape[:2], 1, 1)
            noise_BCHW += self.options.offset_noise * torch.randn(shape, generator=_aside(rng, "offset"))
        if self.options.pyramid_noise:
            noise_BCHW = pyramid(noise_BCHW, self.options.pyramid_noise, _aside(rng, "pyramid"))
        noise_BCHW = noise_BCHW.to(x0_BCHW)
        seen_BCHW = noise_BCHW
        if self.options.input_perturbation:
            extra_BCHW = torch.randn(x0_BCHW.shape, generator=_aside(rng, "perturbation")).to(x0_BCHW)
            seen_BCHW = noise_BCHW + self.options.input_perturbation * extra_BCHW
        x0_BCHW, cond, t_B = x0_BCHW[rows], cond[rows], t_B[rows]
        mask_B1HW = None if mask_B1HW is None else mask_B1HW[rows]
        error_B = self.error(
            denoise, x0_BCHW, cond, t_B, noise_BCHW[rows],
            seen_BCHW=seen_BCHW[rows], distance=self.distance, mask_B1HW=mask_B1HW,
        )  # fmt: skip
        return error_B * self.weight(t_B)

    def error(
        self,
        denoise: Denoise,
        x0_BCHW: Tensor,
        cond: Cond,
        t_B: Tensor,
        noise_BCHW: Tensor,
        *,
        seen_BCHW: Tensor | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        mask_B1HW: Tensor | None = None,
    ) -> Tensor:
        """The error of each example at the given timesteps and noise, unweighted, shape (B,): the mean square, or by `distance`.

        `seen_BCHW` is the noise in what the network sees, where that is not the noise that it is asked for.
        `mask_B1HW` says what the error of each place counts; without it, 1.
        """
        alpha, sigma = (s_T[t_B].view(-1, 1, 1, 1) for s_T in (self.alphas_T, self.sigmas_T))
        x_BCHW = alpha * x0_BCHW + sigma * (noise_BCHW if seen_BCHW is None else seen_BCHW)
        target_BCHW = target(self.prediction, x0_BCHW, noise_BCHW, alpha, sigma)
        # a flow is told its sigma; this is diffusers' unit for it
        time_B = self.sigmas_T[t_B] * len(self.sigmas_T) if self.prediction == "flow" else t_B
        difference_BCHW = denoise(x_BCHW, time_B, cond).float() - target_BCHW.float()
        error_BCHW = distance(difference_BCHW, t_B) if distance else difference_BCHW.square()
        return (error_BCHW if mask_B1HW is None else error_BCHW * mask_B1HW).mean((1, 2, 3))

    def distance(self, e_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """l2, or the pseudo-Huber losses of arXiv:2403.16728 (section 3.1) in the scale that kohya's scripts gave them."""
        if self.options.loss == "l2":
            return e_BCHW.square()
        c = self.huber_c(t_B).view(-1, 1, 1, 1)
        scale = 2 * c if self.options.loss == "huber" else 2
        return scale * ((e_BCHW.square() + c**2).sqrt() - c)

    def huber_c(self, t_B: Tensor) -> Tensor:
        """The threshold at each timestep: from 1 at the clean end down to the option's value at the noisy end."""
        c = self.options.huber_c
        match self.options.huber_schedule:
            case "exponential":
                return c ** (t_B / len(self.alphas_T))
            case "snr":
                return (1 - c) / (1 + self.sigmas_T[t_B] / self.alphas_T[t_B]) ** 2 + c
        return self.alphas_T.new_full((len(t_B),), c)

    def weight(self, t_B: Tensor) -> Tensor:
        """The weight of each timestep, in its paper's form for noise prediction.

        An error in v is snr / (snr + 1) of the error in noise that the same picture has (arXiv:2303.09556, section 4.2).
        """
        gamma, options = self.options.min_snr_gamma, self.options
        if (
            self.prediction == "flow"
            or options.weighting == "none"
            or (gamma is None and options.weighting in ("min-snr", "soft-min-snr"))
        ):
            return self.alphas_T.new_ones(len(t_B))
        snr_B = (self.alphas_T[t_B] / self.sigmas_T[t_B]) ** 2
        below_B = snr_B + (self.prediction == "v")  # times snr / (snr + 1), for v
        match options.weighting:
            case "min-snr":
                return snr_B.clamp(max=gamma) / below_B
            case "soft-min-snr":
                assert gamma is not None
                return gamma * snr_B / (snr_B + gamma) / below_B
            case "debiased":
                return snr_B.sqrt() / below_B
        return snr_B / below_B / (options.p2_k + snr_B) ** options.p2_gamma

    def draw_timesteps(self, count: int, rng: torch.Generator) -> Tensor:
        """Random timesteps, shape (count,). `rng` moves on by as much however they are drawn."""
        import torch

        first, last = self.options.timestep_range or (0, len(self.alphas_T) - 1)
        t_B = torch.randint(first, last + 1, (count,), generator=rng)
        if self.options.timesteps == "logit-normal":
            z_B = torch.randn(count, generator=_aside(rng, "timesteps"))
            u_B = (self.options.logit_mean + self.options.logit_std * z_B).sigmoid()
            t_B = (first + (u_B * (last - first + 1)).long()).clamp(max=last)
        return t_B


def target(
    prediction: Prediction, x0_BCHW: Tensor, noise_BCHW: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """What a network of this kind is to say of alpha x0 + sigma noise."""
    if prediction == "flow":
        return noise_BCHW - x0_BCHW
    return noise_BCHW if prediction == "epsilon" else alpha * noise_BCHW - sigma * x0_BCHW


def parts(
    prediction: Prediction, out_BCHW: Tensor, x_BCHW: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The picture x0 and the noise in x = alpha x0 + sigma noise, by what the network says: `target` the other way round."""
    if prediction == "flow":
        return x_BCHW - sigma * out_BCHW, x_BCHW + alpha * out_BCHW
    if prediction == "v":
        return alpha * x_BCHW - sigma * out_BCHW, alpha * out_BCHW + sigma * x_BCHW
    return (x_BCHW - sigma * out_BCHW) / alpha, out_BCHW


def _aside(rng: torch.Generator, name: str) -> torch.Generator:
    """A generator for the option `name` that follows from where `rng` stands, and leaves it there."""
    import torch

    return torch.Generator().manual_seed(zlib.crc32(name.encode(), zlib.crc32(rng.get_state().numpy().tobytes())))


def pyramid(noise_BCHW: Tensor, discount: float, rng: torch.Generator, levels: int = 6) -> Tensor:
    """Multi-resolution noise (Whitaker 2023): coarser grids, each 2 to 4 times smaller than the last, of `discount` to its number.

    Scaled back to unit variance, picture by picture, so that a picture's noise does not hang on the others of its batch.
    """
    import torch
    from torch.nn.functional import interpolate

    B, C, H, W = noise_BCHW.shape
    for level in range(levels):
        ratio = float(2 + 2 * torch.rand((), generator=rng)) ** level
        size = max(1, int(H / ratio)), max(1, int(W / ratio))
        coarse = torch.randn((B, C, *size), generator=rng)
        noise_BCHW = noise_BCHW + discount**level * interpolate(coarse, (H, W), mode="bilinear")
        if 1 in size:
            break
    return noise_BCHW / noise_BCHW.std((1, 2, 3), keepdim=True)
