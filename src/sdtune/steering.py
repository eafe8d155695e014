"""Drawing that is steered by a loss: in each step the picture that the model sees is moved a little down the loss's slope.

    x0, noise = what the model's output says of x = alpha x0 + sigma noise
    g  = gradient of loss(decode(x0)) by x0, of each picture apart
    d  = -min(strength sigma / alpha, loss rms(g) / |g|^2) * g / rms(g)
    output' = what says of the same x: x0 + d, noise - alpha / sigma * d

The last line is the backward guidance of arXiv:2302.07121 (section 3.3, equation 9), with one step of descent in the place of several;
that the slope is taken at x0, and not at x through the denoiser, costs no backward pass of the denoiser (arXiv:2311.16424). Whatever
the sampler, it gets an output of the model's own kind, and classifier-free guidance is in it already.

`strength` is the root mean square by which the noise is changed, which has a spread of 1 in every model, so that it grows with the noise
as a classifier's guidance does (arXiv:2105.05233, algorithm 2). It needs no scale for the number of steps: what the noise is changed by
adds up along the way as the noise itself does, however finely the way is cut. The bound is Polyak's step: no farther than to where
the loss, were it straight, is 0, so that what is reached is not jumped over. A loss times 2 does the same as the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from sdtune.errors import ConfigError
from sdtune.guides import GuideConfig
from sdtune.model import Model, PictureLoss
from sdtune.objective import parts, target

LEAST_ALPHA = 0.05
"""Where a way begins at pure noise, alpha is 0."""


@dataclass(frozen=True)
class Steering:
    """A guide and the model that it steers."""

    model: Model
    guide: GuideConfig
    loss: PictureLoss

    @classmethod
    def of(cls, model: Model, guide: GuideConfig | None) -> Self | None:
        """None where there is nothing to steer. Raises ConfigError and ModelError."""
        if guide is None or guide.strength == 0:
            return None
        return cls(model, guide, guide.build(model))

    def at_work(self, step: int, steps: int) -> bool:
        return self.guide.start <= step / steps < self.guide.end

    def steered(self, out_BCHW: Tensor, x_BCHW: Tensor, time: float) -> Tensor:
        """The model's output for `x_BCHW` (as the model was given it), moved."""
        alpha, sigma = self.model.noise_at(time)
        prediction = self.model.prediction
        x0_BCHW, noise_BCHW = parts(prediction, out_BCHW, x_BCHW, alpha, sigma)
        d_BCHW = self._step(x0_BCHW, self.guide.strength * sigma / max(alpha, LEAST_ALPHA))
        return target(prediction, x0_BCHW + d_BCHW, noise_BCHW - alpha / sigma * d_BCHW, alpha, sigma)

    def _step(self, x0_BCHW: Tensor, most: float) -> Tensor:
        """d, of a root mean square of `most` at most. None where the loss has no slope, or is no number."""
        loss_B, g_BCHW = self.model.judged(x0_BCHW, self._checked)
        rms_B = g_BCHW.square().mean((1, 2, 3)).sqrt()
        enough_B = loss_B.abs() / (rms_B * g_BCHW[0].numel())  # loss / |g|^2 * rms(g)
        far_B = enough_B.clamp(max=most) / rms_B
        return -(far_B.nan_to_num(0, 0, 0).view(-1, 1, 1, 1) * g_BCHW).nan_to_num(0, 0, 0)

    def _checked(self, pixels_BCHW: Tensor) -> Tensor:
        """The loss, if it is one number for each picture that follows from its pixels."""
        loss_B: object = self.loss(pixels_BCHW)  # of a stranger's function
        if not isinstance(loss_B, Tensor) or loss_B.shape != (len(pixels_BCHW),):
            got = f"shape {tuple(loss_B.shape)}" if isinstance(loss_B, Tensor) else f"{type(loss_B).__name__}"
            raise ConfigError(
                f"sample.guide.type: the loss of {self.guide.type!r} gave {got} for {len(pixels_BCHW)} pictures; "
                "it has to give one number for each, shape (B,)"
            )
        if not loss_B.requires_grad:
            raise ConfigError(
                f"sample.guide.type: the loss of {self.guide.type!r} does not follow from the pixels by torch's own operations, "
                "so it has no slope to go down"
            )
        return loss_B.float()
