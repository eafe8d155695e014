"""The validation loss by bands of timesteps: what is claimed of a band is what its pictures show."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdtune import bands, validation
from sdtune.events import Validated, from_line, to_line
from sdtune.objective import Objective
from sdtune.stats import MIN_UNITS, bootstrap_mean

TIMESTEPS = (62, 187, 312, 437, 562, 687, 812, 937)


def measured(step: int, shifts: tuple[float, float, float], *, n: int = 30, noise: float = 0.002) -> Validated:
    """Losses whose bands lie `shifts` above those of step 0, picture by picture, with some noise of their own."""
    shared_NK = np.random.default_rng(0).uniform(0.2, 1, (n, 8))  # pictures and timesteps differ far more than steps do
    own_NK = np.random.default_rng(step + 1).normal(0, noise, (n, 8))
    shift_K = np.repeat(shifts, (3, 2, 3))
    return validation.event(step, torch.tensor(shared_NK + own_NK + shift_K), TIMESTEPS)


@pytest.mark.parametrize(
    "timesteps, sizes",
    [(0, []), (1, []), (2, [1, 1]), (3, [1, 1, 1]), (4, [1, 2, 1]), (5, [2, 1, 2]), (8, [3, 2, 3]), (10, [3, 4, 3])],
)
def test_bands_hold_every_timestep_once_and_the_outer_ones_are_alike(timesteps: int, sizes: list[int]) -> None:
    found = bands.split(timesteps)
    assert [len(range(timesteps)[s]) for s in found] == sizes
    if found:
        assert [k for s in found for k in range(timesteps)[s]] == list(range(timesteps))


def test_each_band_is_judged_by_itself() -> None:
    rows = bands.changes(measured(0, (0, 0, 0)), measured(40, (-0.05, 0, 0.03)))
    assert [(r.name, r.timesteps) for r in rows] == [
        ("clean", "62 to 312"),
        ("middle", "437 to 562"),
        ("noisy", "687 to 937"),
    ]
    assert [r.verdict for r in rows] == ["lower", "cannot tell", "higher"]
    clean, middle, noisy = rows
    assert -0.052 < clean.change.low < clean.change.value < clean.change.high < -0.048 and clean.change.n == 30
    assert middle.change.low < 0 < middle.change.high
    assert clean.now - clean.base == pytest.approx(clean.change.value)
    assert clean.relative == pytest.approx([v / clean.base for v in (clean.change.value, clean.change.low, clean.change.high)])  # fmt: skip
    assert noisy.change.high - noisy.change.low < 0.003, "unpaired it would be 0.2"


def test_the_interval_is_the_paired_bootstrap_over_pictures() -> None:
    base, now = measured(0, (0, 0, 0)), measured(40, (-0.05, 0, 0.03))
    row = bands.changes(base, now)[2]
    assert row.change == bootstrap_mean(np.array(now.per_band[2]) - np.array(base.per_band[2]))


def test_few_pictures_tell_nothing_however_clear_they_are() -> None:
    def verdicts(n: int) -> set[str]:
        return {r.verdict for r in bands.changes(measured(0, (0, 0, 0), n=n), measured(9, (-0.5, -0.5, -0.5), n=n))}

    assert verdicts(MIN_UNITS) == {"lower"} and verdicts(MIN_UNITS - 1) == verdicts(1) == {"cannot tell"}
    (row, *_) = bands.changes(measured(0, (0, 0, 0), n=1), measured(9, (-0.5, 0, 0), n=1))
    assert math.isnan(row.change.low) and row.change.value == pytest.approx(-0.5, abs=0.01)


def test_other_pictures_or_timesteps_and_old_logs_are_not_compared() -> None:
    base, now = measured(0, (0, 0, 0)), measured(40, (-0.1, 0, 0))
    assert bands.changes(base, now)
    assert not bands.changes(base, measured(40, (0, 0, 0), n=29))
    assert not bands.changes(base, replace(now, timesteps=(*TIMESTEPS[:-1], 999)))
    assert not bands.changes(replace(base, per_band=()), now) and not bands.changes(base, replace(now, per_band=()))


def test_the_event_keeps_what_its_bands_are_made_of() -> None:
    losses_NK = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    event = validation.event(7, losses_NK, TIMESTEPS, 0.25)
    assert (event.step, event.raw, event.timesteps) == (7, 0.25, TIMESTEPS)
    assert event.loss == pytest.approx(float(losses_NK.mean())) and len(event.per_picture) == 4
    wanted = [losses_NK[:, cut].mean(1) for cut in (slice(0, 3), slice(3, 5), slice(5, 8))]
    for band, want in zip(event.per_band, wanted, strict=True):
        assert band == pytest.approx(want.tolist(), rel=1e-5)
    assert from_line(to_line(event)) == event
    assert max(len(repr(v)) for band in event.per_band for v in band) <= 9, "as short as it can be: it is logged often"


def test_a_log_without_bands_is_still_read() -> None:
    line = '{"event": "Validated", "time": 1.0, "step": 5, "loss": 0.5, "per_picture": [0.4, 0.6], "per_timestep": [0.5], "raw": null}'
    event = from_line(line)
    assert isinstance(event, Validated) and event.per_picture == (0.4, 0.6)
    assert event.per_band == () and event.timesteps == ()


@pytest.mark.parametrize("count, wanted", [(8, TIMESTEPS), (1, (500,)), (3, (166, 500, 833))])
def test_fixed_timesteps_are_the_middles_of_equal_parts(count: int, wanted: tuple[int, ...]) -> None:
    assert validation.fixed_timesteps(Objective(torch.ones(1000), torch.ones(1000)), count) == wanted
