"""Learning rates equal those of diffusers and transformers, and the formula of REX."""

import itertools
from collections.abc import Callable
from typing import Any

import diffusers.optimization as theirs
import pytest
import torch
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from sdtune.optim.kinds import AdamW

STEPS, WARMUP = 60, 5


def reference(make: Callable[..., torch.optim.lr_scheduler.LambdaLR], **options: Any) -> list[float]:
    """The factors of a library's schedule after its warm-up, which begins at 0 where ours has taken a first step already."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule = make(optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS, **options)
    (factor,) = schedule.lr_lambdas
    return [2.0 * factor(k) for k in range(WARMUP, STEPS)]


CASES: dict[str, tuple[dict[str, Any], Callable[[], list[float]]]] = {
    "linear": ({}, lambda: reference(theirs.get_linear_schedule_with_warmup)),
    "cosine": ({}, lambda: reference(theirs.get_cosine_schedule_with_warmup)),
    "cosine to a share": (
        {"schedule": "cosine", "final": 0.1},
        lambda: reference(get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1),
    ),
    "cosine-restarts": (
        {"cycles": 3},
        lambda: reference(theirs.get_cosine_with_hard_restarts_schedule_with_warmup, num_cycles=3),
    ),
    "polynomial": (
        {"power": 2.5, "final": 0.2},
        lambda: reference(theirs.get_polynomial_decay_schedule_with_warmup, power=2.5, lr_end=0.4),
    ),
    "constant": ({}, lambda: [2.0] * (STEPS - WARMUP)),
    # arXiv:2107.04197, equation 1, z the share of the run that is done
    "rex": (
        {},
        lambda: [2 * (1 - z) / (0.5 + 0.5 * (1 - z)) for z in (k / (STEPS - WARMUP) for k in range(STEPS - WARMUP))],
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_equals_the_reference(name: str) -> None:
    options, expected = CASES[name]
    section = AdamW(**{"lr": 2.0, "schedule": name, "warmup": WARMUP, **options})
    got = [section.lr_at(k, STEPS) for k in range(STEPS)]
    assert got[:WARMUP] == pytest.approx([2 * (k + 1) / (WARMUP + 1) for k in range(WARMUP)])
    assert got[WARMUP:] == pytest.approx(expected())


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine-restarts", "polynomial", "rex"])
def test_it_falls_to_the_final_share(schedule: str) -> None:
    section = AdamW(lr=2.0, schedule=schedule, final=0.1)  # type: ignore[arg-type]
    lrs = [section.lr_at(k, 100) for k in range(101)]
    assert lrs[0] == 2.0 and lrs[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(lrs))
    assert section.lr_at(0, 0) == 2.0, "a run without steps divides by nothing"
