"""What people would choose, by models of their choices: PickScore (arXiv:2305.01569) and HPS v2 (arXiv:2306.09341).

Both are CLIPs: a score is the cosine of picture and prompt, and only differences at the same prompt mean something. Two
models that agree say more than one. They know a general taste, and are unfit for a style that is meant to be rough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics.vectors import paired_cosine
from sdtune.stats import Interval, share, sign_test

Array = NDArray[np.float64]

TIE = 1e-6
"""Scores that differ by less are equal."""


def pick_score(pictures_NE: Array, prompts_NE: Array, logit_scale: float) -> Array:
    """The scale that the model has learnt (exp of its logit_scale) times the cosine, (N,)."""
    return logit_scale * paired_cosine(pictures_NE, prompts_NE)


def hps_score(pictures_NE: Array, prompts_NE: Array) -> Array:
    """The cosine, (N,), as HPS v2's own code returns it; tables often show it times 100."""
    return paired_cosine(pictures_NE, prompts_NE)


def chosen(tuned_N: Array, base_N: Array, logit_scale: float) -> Array:
    """The probability that the model gives the tuned picture against the base's of the same prompt, (N,): eq. 2 of PickScore."""
    return np.asarray(1 / (1 + np.exp(-logit_scale * (tuned_N - base_N))))


@dataclass(frozen=True)
class WinRate:
    """How often the tuned model is preferred, prompt by prompt."""

    wins: int
    losses: int
    ties: int
    rate: Interval
    """Of wins among the prompts without a tie, with its exact interval."""
    p: float
    """Of the two-sided sign test."""

    @property
    def n(self) -> int:
        return self.wins + self.losses + self.ties


def win_rate(tuned_P: Array, base_P: Array, tie: float = TIE) -> WinRate:
    """Of one value a prompt, the mean of its seeds. Prompts without a value (nan) are left out, ties decide nothing."""
    difference = (tuned_P - base_P)[np.isfinite(tuned_P) & np.isfinite(base_P)]
    wins, losses = int((difference > tie).sum()), int((difference < -tie).sum())
    return WinRate(wins, losses, len(difference) - wins - losses, share(wins, wins + losses), sign_test(wins, losses))
