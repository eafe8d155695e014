"""Verdicts: what must be yes, what must be no, and above all what must be "cannot tell"."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from sdtune import stats
from sdtune.errors import EvaluationError
from sdtune.evaluate import evaluate, judge, judge_without_scorer
from sdtune.judging.figures import paired_figure
from sdtune.judging.scores import Doubles, Evidence, Figure, Scores, Seen, Unrelated, Validation, Verdict
from sdtune.judging.verdicts import (
    COPY_LIMIT,
    content_verdict,
    copy_verdict,
    copying,
    helped_verdict,
    moved_verdict,
    overfit_verdict,
)
from sdtune.metrics import frechet
from sdtune.stats import Interval

Array = NDArray[np.float64]
D = 8


def seen(features: Array, asked: NDArray[np.int64], embeds: Array | None = None) -> Seen:
    return Seen(features, np.zeros((len(asked), 2)) if embeds is None else embeds, asked)


def made(
    seed: int,
    *,
    prompts: int = 30,
    seeds: int = 2,
    base: float = 2.0,
    tuned: float = 0.0,
    real: int = 60,
    content: float = 0.9,
    forgotten: float = 0.0,
) -> Evidence:
    """Features as normal variables whose mean is the distance to the target; a prompt shifts all its pictures alike."""
    rng = np.random.default_rng(seed)
    asked = np.repeat(np.arange(prompts), seeds)
    each = rng.normal(0, 0.7, (prompts, D))

    def drawn(shift: float) -> Array:
        return each[asked] + rng.normal(0, 0.7, (len(asked), D)) + shift

    texts = np.eye(prompts)
    own = np.concatenate([np.arange(prompts), np.full(real - prompts, -1)]) if real > prompts else np.arange(real)

    def shows(asked: NDArray[np.int64], share: float) -> Array:
        right = rng.random(len(asked)) < share
        return texts[np.where(right, asked, (asked + 1) % prompts)]

    reference = np.where((own >= 0)[:, None], each[own.clip(0)], rng.normal(0, 0.7, (real, D))) + rng.normal(
        0, 0.7, (real, D)
    )
    other = np.arange(prompts)
    unrelated = Unrelated(
        tuple(f"u{i}" for i in other), texts,
        Seen(drawn(base)[: len(other)], shows(other, 1.0), other),
        Seen(drawn(base)[: len(other)], shows(other, 1 - forgotten), other),
    )  # fmt: skip
    return Evidence(
        tuple(f"p{i}" for i in range(prompts)),
        texts,
        base=Seen(drawn(base), shows(asked, 0.95), asked),
        tuned=Seen(drawn(tuned), shows(asked, content), asked),
        reference=Seen(reference, shows(own.clip(0), 0.95), own),
        train=seen(rng.normal(0, 1, (60, D)), np.full(60, -1), np.zeros((60, prompts))),
        control=seen(rng.normal(2, 1, (60, D)), np.full(60, -1), np.zeros((60, prompts))),
        unrelated=unrelated,
    )


def answers(scores: Scores) -> dict[str, str]:
    return {v.key: v.answer for v in scores.verdicts}


def curve(*means: float, pictures: int = 30, noise: float = 0.001, seed: int = 0) -> Validation:
    rng = np.random.default_rng(seed)
    each = rng.uniform(0.05, 0.1, pictures)
    losses = np.array([each * m + rng.normal(0, noise, pictures) for m in means])
    return Validation(tuple(range(0, 50 * len(means), 50)), losses)


def test_a_real_effect_is_seen() -> None:
    scores = judge(made(0, prompts=48, real=96, content=0.97), curve(1, 0.8, 0.7, 0.7), primary="kid", draws=400)
    assert answers(scores) == {
        "helped": "yes", "moved": "yes", "content": "yes", "away": "yes", "overfit": "no", "forgot": "no", "copied": "no",
    }  # fmt: skip
    assert all(v.good for v in scores.verdicts)


@pytest.mark.parametrize("forgotten, answer", [(0.0, "no"), (0.1, "cannot tell"), (0.5, "yes")])
def test_forgotten(forgotten: float, answer: str) -> None:
    scores = judge(made(3, forgotten=forgotten), Validation(), primary="kid", draws=400)
    verdict = scores.verdict("forgot")
    assert verdict is not None
    assert verdict.answer == answer
    kept = scores.figure("unrelated")
    assert kept is not None
    assert kept.base is not None
    assert kept.base.value == pytest.approx(1, abs=0.02)  # each shows its own prompt, and none of the others
    drift = scores.figure("drift")
    assert drift is not None
    assert drift.tuned is not None
    assert drift.tuned.value == pytest.approx(0.7, abs=0.15)  # of pictures that share their prompt only


def test_nothing_is_said_of_forgetting_where_nothing_unrelated_was_drawn() -> None:
    scores = judge(dataclasses.replace(made(3), unrelated=None), Validation(), primary="kid", draws=200)
    assert answers(scores)["forgot"] == "cannot tell"
    assert scores.figure("unrelated") is None
    e = made(3)
    assert e.unrelated is not None
    blind = dataclasses.replace(
        e.unrelated, base=dataclasses.replace(e.unrelated.base, embeds_NE=np.ones((30, 30)) / 30)
    )
    scores = judge(dataclasses.replace(e, unrelated=blind), Validation(), primary="kid", draws=200)
    assert answers(scores)["forgot"] == "cannot tell"


@pytest.mark.parametrize(
    "changes, answer, words",
    [
        ({}, "yes", "still draws what is asked"),
        ({"moved": "no"}, "no", "did not move"),
        ({"moved": "cannot tell"}, "cannot tell", "cannot show"),
        ({"content": "no"}, "no", "fewer pictures"),
        ({"content": "no", "moved": "cannot tell"}, "no", "fewer pictures"),
        ({"content": "cannot tell"}, "cannot tell", "cannot be told"),
        ({"copied": "yes"}, "no", "copies"),
        ({"away": "no"}, "cannot tell", "nearer to everything"),
        ({"away": "cannot tell"}, "yes", "still draws"),
        ({"forgot": "yes"}, "yes", "but it forgot other things"),
        ({"forgot": "yes", "overfit": "yes"}, "yes", "but it forgot other things and it was trained for too long"),
        ({"forgot": "cannot tell", "overfit": "cannot tell", "copied": "cannot tell"}, "yes", "still draws"),
    ],
)
def test_helped_is_the_sum_of_the_others(changes: dict[str, str], answer: str, words: str) -> None:
    given = {"moved": "yes", "content": "yes", "away": "yes", "overfit": "no", "forgot": "no", "copied": "no"} | changes
    verdict = helped_verdict({k: Verdict(k, "", a, "yes", "") for k, a in given.items()}, "kid")  # type: ignore[arg-type]
    assert verdict.answer == answer
    assert words in verdict.because


def test_secondary_figures_are_corrected_for_their_number() -> None:
    scores = judge(made(5), curve(1, 0.9), primary="kid", draws=400)
    holm = {f.key: f.holm for f in scores.figures}
    assert holm["kid_target"] is None  # the primary one
    assert holm["fd_target"] is None  # no interval
    assert holm["diversity"] is None  # no better side
    secondary = [f for f in scores.figures if f.holm is not None]
    assert {f.key for f in secondary} == {
        "likeness",
        "found_first",
        "prompt_cosine",
        "kid_control",
        "unrelated",
        "validation_loss",
    }
    assert [f.holm for f in secondary] == stats.holm([f.difference.p for f in secondary if f.difference])


def test_the_way_gone_is_said() -> None:
    half = judge(made(0, tuned=1.0), Validation(), primary="kid", draws=200).verdict("moved")
    whole = judge(made(0), Validation(), primary="kid", draws=200).verdict("moved")
    assert half is not None
    assert whole is not None
    assert half.way is not None
    assert 0.5 < half.way < 0.98
    assert f"{half.way:.0%} of the way" in half.because
    assert whole.way == pytest.approx(1, abs=0.1)


def test_under_no_effect_yes_is_rare() -> None:
    """400 evaluations of a tuning that changed nothing: "moved" at most 5% of the time, give or take simulation error."""
    results = []
    for s in range(400):
        e = dataclasses.replace(made(s, base=1.0, tuned=1.0), train=None)
        results.append(answers(judge(e, Validation(), primary="kid", draws=200, seed=s))["moved"])
    assert results.count("yes") / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert results.count("cannot tell") > 100


def test_where_base_is_at_the_target_already_yes_is_rare() -> None:
    results = []
    for s in range(200):
        e = dataclasses.replace(made(s, base=0.0, tuned=0.0), train=None, control=None)
        results.append(answers(judge(e, Validation(), primary="kid", draws=200, seed=s))["moved"])
    assert results.count("yes") / 200 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)


def test_away_from_the_target_is_no() -> None:
    scores = judge(made(1, base=1.0, tuned=3.0), Validation(), primary="kid", draws=400)
    assert answers(scores)["moved"] == "no"


def test_an_unchanged_model_did_not_move() -> None:
    e = made(2)
    scores = judge(dataclasses.replace(e, tuned=e.base), Validation(), primary="kid", draws=400)
    assert answers(scores)["moved"] == "no"


def test_a_sure_but_tiny_step_is_not_called_moved() -> None:
    """Pictures of the same seeds differ so little that even a step of 1% towards the target is beyond chance."""
    e = made(2)
    features_ND = e.base.features_ND + 0.01 * (made(2, tuned=0.0).tuned.features_ND - e.base.features_ND)
    scores = judge(
        dataclasses.replace(e, tuned=dataclasses.replace(e.tuned, features_ND=features_ND)), Validation(), primary="kid"
    )
    row = scores.figure("kid_target")
    assert row is not None and row.difference is not None and row.difference.high < 0
    verdict = scores.verdict("moved")
    assert verdict is not None and verdict.answer == "no" and "less than 10% of the way" in verdict.because


@pytest.mark.parametrize("changes", [{"real": 49}, {"prompts": 24}, {"prompts": 19, "seeds": 4}])
def test_too_few_pictures_decide_nothing(changes: dict[str, int]) -> None:
    """Below 50 pictures on a side, or 20 prompts, even an obvious effect is not evidence."""
    scores = judge(made(0, **changes), Validation(), primary="kid", draws=200)
    moved = scores.figure("kid_target")
    assert moved is not None
    assert "not evidence" in moved.note
    assert answers(scores)["moved"] == "cannot tell"


def test_likeness_to_the_target_has_a_ceiling() -> None:
    scores = judge(made(1, tuned=0.0), Validation(), primary="kid", draws=200)
    row = scores.figure("likeness")
    assert row is not None
    assert row.base is not None
    assert row.tuned is not None
    assert row.real is not None
    assert row.base.value < 0 < row.tuned.value
    assert abs(row.tuned.value - row.real.value) < 0.3
    assert row.holm is not None


def test_a_frechet_distance_of_few_pictures_is_refused() -> None:
    scores = judge(made(0), Validation(), primary="kid", draws=200)
    row = scores.figure("fd_target")
    assert row is not None
    assert (row.base, row.tuned, row.real, row.evidence) == (None, None, None, False)
    assert "refused: 60 pictures, 2,048 are needed" in row.note
    assert any("refused: 60 pictures" in limit for limit in scores.limits)


def test_a_frechet_distance_of_many_pictures_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "MIN_PICTURES", 60)
    row = judge(made(0), Validation(), primary="kid", draws=200).figure("fd_target")
    assert row is not None
    assert row.base is not None
    assert row.tuned is not None
    assert row.evidence
    assert row.base.value > row.tuned.value


def test_the_primary_figure_decides_and_no_other() -> None:
    worse = curve(1, 1.2, 1.3)
    by_kid = judge(made(0), worse, primary="kid", draws=200)
    by_loss = judge(made(0), worse, primary="validation_loss", draws=200)
    assert (answers(by_kid)["moved"], answers(by_loss)["moved"]) == ("yes", "no")
    assert answers(judge(made(0), Validation(), primary="validation_loss", draws=200))["moved"] == "cannot tell"


# ---- content


def content_row(base: float, tuned: float, real: float | None, n: int = 100, spread: float = 0.02) -> Figure:
    d = tuned - base
    return Figure(
        "found_first", "Asked drawing found first", "higher",
        base=Interval(base, base - spread, base + spread, n, spread / 2),
        tuned=Interval(tuned, tuned - spread, tuned + spread, n, spread / 2),
        difference=Interval(d, d - spread, d + spread, n, spread / 2),
        real=None if real is None else Interval(real, real - spread, real + spread, n, spread / 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    "row, answer",
    [
        (content_row(0.9, 0.88, 0.9), "yes"),
        (content_row(0.9, 0.6, 0.9), "no"),
        (content_row(0.9, 0.85, 0.9, spread=0.08), "cannot tell"),
        (content_row(0.9, 0.88, 0.3), "cannot tell"),  # blind to the style
        (content_row(0.9, 0.3, 0.3), "cannot tell"),  # the same, and not "no"
        (content_row(0.2, 0.2, 0.9), "cannot tell"),  # nothing to lose
        (content_row(0.9, 0.88, None), "cannot tell"),  # nobody knows what it sees in this style
        (content_row(0.9, 0.7, 0.7), "yes"),  # as many as in real target pictures
        (content_row(0.9, 0.5, 0.7), "no"),
    ],
)
def test_content(row: Figure, answer: str) -> None:
    assert content_verdict(row).answer == answer


def test_lost_content_is_seen_beside_a_better_kid() -> None:
    scores = judge(made(0, content=0.3), Validation(), primary="kid", draws=400)
    assert answers(scores)["moved"] == "yes"
    assert answers(scores)["content"] == "no"


# ---- overfit, copied, validation loss


@pytest.mark.parametrize(
    "validation, answer",
    [
        (curve(1, 0.8, 0.7, 0.69), "no"),
        (curve(1, 0.7, 0.8, 0.95), "yes"),
        (curve(1, 1.1, 1.2, 1.3), "yes"),
        (curve(1, 0.7, 0.72, 0.73, noise=0.02), "cannot tell"),
        (curve(1, 0.7), "cannot tell"),
        (curve(1, 0.7, 0.8, 0.95, pictures=19), "cannot tell"),
        (Validation(), "cannot tell"),
    ],
)
def test_overfit(validation: Validation, answer: str) -> None:
    assert overfit_verdict(validation).answer == answer


def test_the_best_of_many_equal_steps_is_not_overfitting() -> None:
    """Forty steps that differ by chance alone: the best of them looks lower than the last, and must not count."""
    results = [overfit_verdict(curve(1, *[0.8] * 40, noise=0.02, seed=s), 200).answer for s in range(60)]
    assert results.count("yes") <= 5


@pytest.mark.parametrize(
    "flagged, n, answer",
    [(0, 48, "no"), (20, 48, "yes"), (4, 48, "no"), (5, 48, "cannot tell"), (0, 15, "cannot tell")],
)
def test_copied(flagged: int, n: int, answer: str) -> None:
    assert copy_verdict(flagged, n, 0.9, 0.5, 0.5, 60).answer == answer
    assert COPY_LIMIT == 0.2


def test_the_published_limit_of_an_encoder_for_copies_needs_no_held_out_pictures() -> None:
    """Near real pictures raise it: where they are nearer than that themselves, it says nothing of copies."""
    e = made(3, prompts=40, seeds=1)
    assert e.train is not None
    rng = np.random.default_rng(0)
    train = rng.normal(0, 1, (60, 64))
    tuned, real = rng.normal(0, 1, (40, 64)), rng.normal(0, 1, (5, 64))
    tuned[:20] = train[:20] + 0.5 * rng.normal(0, 1, (20, 64))  # a cosine of about 0.9
    few = dataclasses.replace(
        e, reference=dataclasses.replace(e.reference, features_ND=real, embeds_NE=real, asked_N=np.zeros(5, int))
    )
    rows, verdict = copying(dataclasses.replace(few, doubles=Doubles(tuned, train, real)))
    assert (
        verdict.answer == "yes"
        and "20 of 40 prompts nearer than SSCD's limit for copies (cosine 0.50)" in verdict.detail
    )
    assert sum(r.suspicious for r in rows) == 20 and all(r.picture == r.train for r in rows[:20])
    near = real.copy()
    near[0] = train[30] + 0.1 * rng.normal(0, 1, 64)
    rows, verdict = copying(dataclasses.replace(few, doubles=Doubles(tuned, train, near)))
    assert verdict.answer == "cannot tell" and not any(r.suspicious for r in rows)
    assert "nearest of 5 held-out real pictures by SSCD" in verdict.detail


def test_copies_are_found_and_shown_first() -> None:
    e = made(3)
    assert e.train is not None
    copied = e.tuned.features_ND.copy()
    copied[::2] = e.train.features_ND[:30]
    scores = judge(
        dataclasses.replace(e, tuned=dataclasses.replace(e.tuned, features_ND=copied)), Validation(), primary="kid"
    )
    assert answers(scores)["copied"] == "yes"
    first = scores.neighbours[0]
    assert first.picture == 2 * first.train
    assert first.cosine == pytest.approx(1)
    cosines = [n.cosine for n in scores.neighbours]
    assert cosines == sorted(cosines, reverse=True)


def test_validation_loss_is_paired_by_picture() -> None:
    """Pictures differ ten times more from each other than base from tuned: only the paired difference sees it."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 1.0, 40)
    row = paired_figure("validation_loss", "Validation loss", "lower", base, base - 0.01 - rng.normal(0, 0.005, 40))
    assert row.base is not None
    assert row.tuned is not None
    assert row.difference is not None
    assert row.difference.high < 0
    assert row.tuned.high > row.base.low
    assert row.wins is not None
    assert row.wins > 30
    assert moved_verdict(row).answer == "yes"


def test_a_small_change_may_be_chance() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(0.1, 1.0, 40)
    verdict = moved_verdict(
        paired_figure("validation_loss", "Validation loss", "lower", base, base + rng.normal(0, 0.1, 40))
    )
    assert verdict.answer == "cannot tell"
    assert re.search(r"40 pictures; 0\.0\d+ or less would have gone unseen$", verdict.detail)


def test_without_a_fitting_scorer_only_the_loss_speaks() -> None:
    falling = curve(1, 0.8, 0.7, 0.7)
    scores = judge_without_scorer(falling, "other encoders are needed", primary="validation_loss")
    assert answers(scores) == {
        "helped": "cannot tell", "moved": "yes", "content": "cannot tell", "away": "cannot tell", "overfit": "no",
        "forgot": "cannot tell", "copied": "cannot tell",
    }  # fmt: skip
    assert answers(judge_without_scorer(falling, "other encoders are needed", primary="kid"))["moved"] == "cannot tell"
    assert [f.key for f in scores.figures] == ["validation_loss"]


def test_the_same_seed_gives_the_same_scores() -> None:
    one, two, other = (
        judge(made(0), curve(1, 0.8, 0.7), primary="kid", draws=200, seed=s).as_dict() for s in (1, 1, 2)
    )
    assert one == two
    assert one != other


def test_scores_are_plain_json() -> None:
    scores = judge(made(0, seeds=1, prompts=60), Validation(), primary="kid", draws=200)
    json.dumps(scores.as_dict(), allow_nan=False)
    diversity = scores.figure("diversity")
    assert diversity is not None
    assert not diversity.evidence  # one seed a prompt


def test_smallest_visible_effect_is_said() -> None:
    scores = judge(made(0), Validation(), primary="kid", draws=200)
    row = scores.figure("kid_target")
    assert row is not None
    assert row.difference is not None
    assert row.difference.detectable == pytest.approx(
        stats.detectable_effect(30) * row.difference.error * math.sqrt(30)
    )
    assert any("mostly have gone unseen" in text for text in scores.limits)


def test_evaluate_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(EvaluationError, match="1 pictures against 0"):
        evaluate([None], [])  # type: ignore[list-item]
