"""The validation loss: the same pictures, noise and timesteps at each step, and what it says of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdtune import bands, distributed
from sdtune.data.batch import Batch
from sdtune.events import Validated
from sdtune.model import Model
from sdtune.objective import Loss
from sdtune.stats import MIN_UNITS, Interval, bootstrap_mean


@torch.no_grad()
def losses(model: Model, objective: Loss, held_out: Batch, *, timesteps: int, chunk: int = 32) -> Tensor:
    """The loss of each held-out picture at `timesteps` fixed timesteps with fixed noise: (pictures, timesteps).

    No timestep weighs more than another; where pictures have masks, their places do.

    Always the same pictures, noise and timesteps, so that two models (or two steps) can be compared picture by picture.
    """
    N = len(held_out.latents_BCHW)
    rng = torch.Generator().manual_seed(20_240_229)
    noise_KNCHW = torch.randn((timesteps, *held_out.latents_BCHW.shape), generator=rng)
    losses_NK = torch.zeros(N, timesteps)
    chunks = torch.arange(N).split(chunk)
    for k, t in enumerate(fixed_timesteps(objective, timesteps)):
        # Every process runs the model equally often, since one that is split needs them all; some for nothing.
        for first in range(0, len(chunks), distributed.size()):
            mine = first + distributed.rank() < len(chunks)
            rows = chunks[first + distributed.rank()] if mine else chunks[-1][:1]
            x0 = held_out.latents_BCHW[rows].to(model.device)
            t_B = torch.full((len(rows),), t, device=x0.device)
            noise = noise_KNCHW[k, rows].to(x0)
            mask = None if held_out.mask_B1HW is None else held_out.mask_B1HW[rows].to(model.device)
            error_B = objective.error(
                model.denoise, x0, held_out.cond[rows].to(model.device), t_B, noise, mask_B1HW=mask
            )
            if mine:
                losses_NK[rows, k] = error_B.cpu()
    distributed.add_up(losses_NK)
    return losses_NK


def of_all(model: Model, objective: Loss, held_out: Sequence[Batch], *, timesteps: int) -> Tensor:
    """`losses` of the held-out pictures of all frames, a batch for each frame, in the order of the pictures."""
    parts = [losses(model, objective, batch, timesteps=timesteps) for batch in held_out]
    order_N = torch.cat([batch.indices_B for batch in held_out]).argsort()
    return torch.cat(parts)[order_N]


def fixed_timesteps(objective: Loss, count: int) -> tuple[int, ...]:
    """`count` timesteps spread over the schedule, clean first: the middles of `count` equal parts of it."""
    return tuple(int((k + 0.5) * len(objective.alphas_T) / count) for k in range(count))


def event(step: int, losses_NK: Tensor, timesteps: tuple[int, ...], raw: float | None = None) -> Validated:
    """What the log keeps of the losses: the mean, each picture, each timestep, and each picture in each band of timesteps."""
    N, K = losses_NK.shape
    per_picture: list[float] = sum((losses_NK / K).unbind(1)).tolist()  # type: ignore[union-attr]
    per_band = tuple(tuple(float(f"{v:.6g}") for v in losses_NK[:, band].mean(1).tolist()) for band in bands.split(K))
    mean = sum(per_picture) / N
    return Validated(step, mean, tuple(per_picture), tuple(losses_NK.mean(0).tolist()), raw, timesteps, per_band)


def change(now: Validated, then: Validated) -> Interval:
    """By how much the loss differs, paired picture by picture, with a 95% bootstrap interval."""
    return bootstrap_mean(np.asarray(now.per_picture, np.float64) - np.asarray(then.per_picture, np.float64))


def verdict(history: Sequence[Validated]) -> str:
    """Which step of a run has the lowest loss, and whether that can be told from the last step and from the base. "" if unknown.

    The lowest of many noisy figures looks better than it is; the interval does not mend that, so "not told apart" is said often.
    """
    trained = [e for e in history if e.step]
    if not trained or len(trained[-1].per_picture) < 2:
        return ""
    best, last = min(trained, key=lambda e: e.loss), trained[-1]
    base = next((e for e in history if e.step == 0), None)
    if (n := len(best.per_picture)) < MIN_UNITS:
        far = f" ({best.loss / base.loss - 1:+.1%} to step 0)" if base and base.loss else ""
        return (
            f"step {best.step} has the lowest validation loss, {best.loss:.4g}{far}; {n} held-out pictures are too few to tell "
            f"that from chance, {MIN_UNITS} would do"
        )
    if best.step == last.step:
        said = f"the last step has the lowest validation loss, {best.loss:.4g}"
    else:
        gap = change(last, best)
        apart = gap.low > 0
        said = f"step {best.step} has the lowest validation loss, {best.loss:.4g}; the last step's is higher by {_percent(gap, best)}"
        said += ": it has begun to learn by heart" if apart else ": no significant difference between the two"
    if base is None or len(base.per_picture) != len(best.per_picture):
        return said
    gain = change(base, best)
    better = "below" if gain.value >= 0 else "above"
    said += f". That is {_percent(gain, base)} {better} the base"
    return said + ("" if gain.low > 0 or gain.high < 0 else ", no significant difference")


def _percent(gap: Interval, to: Validated) -> str:
    if math.isnan(gap.low):
        return f"{abs(gap.value) / to.loss:.1%}"
    sign = 1 if gap.value >= 0 else -1
    low, high = sorted((sign * gap.low / to.loss, sign * gap.high / to.loss))
    return f"{abs(gap.value) / to.loss:.1%} (95% interval {low:.1%} to {high:.1%})"
