"""The validation loss: the same pictures, noise and timesteps at each step, and what it says of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdtune import distributed
from sdtune.data.batch import Batch
from sdtune.events import Validated
from sdtune.model import Model
from sdtune.objective import Objective
from sdtune.stats import Interval, bootstrap_mean


@torch.no_grad()
def losses(model: Model, objective: Objective, held_out: Batch, *, timesteps: int, chunk: int = 32) -> Tensor:
    """The unweighted loss of each held-out picture at `timesteps` fixed timesteps with fixed noise: (pictures, timesteps).

    Always the same pictures, noise and timesteps, so that two models (or two steps) can be compared picture by picture.
    """
    N, T = len(held_out.latents_BCHW), len(objective.alphas_T)
    t_K = ((torch.arange(timesteps) + 0.5) * T / timesteps).long()
    rng = torch.Generator().manual_seed(20_240_229)
    noise_KNCHW = torch.randn((timesteps, *held_out.latents_BCHW.shape), generator=rng)
    losses_NK = torch.zeros(N, timesteps)
    chunks = torch.arange(N).split(chunk)
    for k, t in enumerate(t_K.tolist()):
        # Every process runs the model equally often, since a model that is split needs them all; some for nothing.
        for first in range(0, len(chunks), distributed.size()):
            mine = first + distributed.rank() < len(chunks)
            rows = chunks[first + distributed.rank()] if mine else chunks[-1][:1]
            x0 = held_out.latents_BCHW[rows].to(model.device)
            t_B = torch.full((len(rows),), t, device=x0.device)
            noise = noise_KNCHW[k, rows].to(x0)
            error_B = objective.error(model.denoise, x0, held_out.cond[rows].to(model.device), t_B, noise)
            if mine:
                losses_NK[rows, k] = error_B.cpu()
    distributed.add_up(losses_NK)
    return losses_NK


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
    if best.step == last.step:
        said = f"the last step has the lowest validation loss, {best.loss:.4g}"
    else:
        gap = change(last, best)
        apart = gap.low > 0
        said = f"step {best.step} has the lowest validation loss, {best.loss:.4g}; the last step's is higher by {_percent(gap, best)}"
        said += ": it has begun to learn by heart" if apart else ": no significant difference between the two"
    base = next((e for e in history if e.step == 0), None)
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
