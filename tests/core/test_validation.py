"""What a run's validation losses say of it: no difference is claimed that the pictures do not show."""

import numpy as np
import pytest

from sdtune.events import Validated
from sdtune.validation import change, verdict


def at(step: int, mean: float, *, noise: float = 0.0, n: int = 30) -> Validated:
    shared = np.random.default_rng(0).normal(0, 0.1, n)  # some pictures are harder than others, at every step
    own = np.random.default_rng(step + 1).normal(0, 1, n)
    values = 1 + mean + shared + noise * (own - own.mean())
    return Validated(step, float(values.mean()), tuple(values.tolist()))


def test_pairs_take_the_pictures_difficulty_out() -> None:
    gap = change(at(2, 0.01, noise=0.002), at(1, 0.0, noise=0.002))
    assert gap.value == pytest.approx(0.01) and 0 < gap.low < 0.01 < gap.high
    assert gap.high - gap.low < 0.003, "unpaired it would be 0.07"


def test_a_clear_rise_is_told() -> None:
    said = verdict([at(0, 0.3), at(10, 0.0), at(20, 0.1)])
    assert said.startswith("step 10 has the lowest validation loss, ") and "it has begun to learn by heart" in said
    assert "below the base" in said and "no significant" not in said


def test_noise_is_called_noise() -> None:
    said = verdict([at(0, 0.0, noise=0.05), at(10, -0.003, noise=0.05), at(20, 0.0, noise=0.05)])
    assert "no significant difference between the two" in said and said.endswith("the base, no significant difference")
    assert "by heart" not in said


def test_the_last_step_can_be_the_best() -> None:
    assert verdict([at(0, 0.3), at(10, 0.1), at(20, 0.0)]).startswith("the last step has the lowest validation loss")


def test_a_worse_model_than_the_base_is_said_to_be() -> None:
    assert "above the base" in verdict([at(0, 0.0), at(10, 0.2)])


@pytest.mark.parametrize("history", [[], [at(0, 0.0)], [at(0, 0.0, n=1), at(5, 0.1, n=1)]])
def test_nothing_is_said_of_too_little(history: list[Validated]) -> None:
    assert verdict(history) == ""


def test_few_pictures_are_no_verdict() -> None:
    history = [at(0, 0.3, n=12), at(10, 0.0, n=12), at(20, 0.1, n=12)]
    share = history[1].loss / history[0].loss - 1
    assert verdict(history) == (
        f"step 10 has the lowest validation loss, {history[1].loss:.4g} ({share:+.1%} to step 0); "
        "12 held-out pictures are too few to tell that from chance, 20 would do"
    )
    assert "by heart" in verdict([at(0, 0.3, n=20), at(10, 0.0, n=20), at(20, 0.1, n=20)])
