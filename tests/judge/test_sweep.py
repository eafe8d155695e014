"""Checkpoint by strength: what is placed where, what is suggested, and what the page shows."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests import tiny
from tests.judge.test_compare import config_of, fitting, run, scorer, world
from tests.judge.test_report import Page

from sdtune import sweep_page
from sdtune.drawing import Progress, run_through
from sdtune.errors import ConfigError, EvaluationError
from sdtune.judging.scores import Seen
from sdtune.metrics.features import Scorer
from sdtune.runs import Run
from sdtune.stats import Interval
from sdtune.sweep import Point, choose, place, sweeping

__all__ = ["fitting", "run", "scorer", "world"]  # the fixtures
PROMPTS, D = 30, 6


def seen(rng: np.random.Generator, shift: float, shows: float) -> Seen:
    asked: NDArray[np.int64] = np.repeat(np.arange(PROMPTS), 2)
    texts = np.eye(PROMPTS)
    right = rng.random(len(asked)) < shows
    embeds = texts[np.where(right, asked, (asked + 1) % PROMPTS)]
    return Seen(rng.normal(0, 1, (len(asked), D)) + shift, embeds, asked)


def placed(*rows: tuple[float, float]) -> list[Point]:
    """The base at a distance of 2, then points at (distance, share that shows what was asked)."""
    rng = np.random.default_rng(0)
    real = Seen(rng.normal(0, 1, (60, D)), np.zeros((60, PROMPTS)), np.full(60, -1))
    points = [Point("base", 0.0, ()), *(Point(f"step-{i}", 1.0, ()) for i in range(len(rows)))]
    looked = [seen(rng, 2, 1), *(seen(rng, shift, shows) for shift, shows in rows)]
    return place(points, looked, np.eye(PROMPTS), real, 300, 0)


def test_points_are_placed_by_distance_and_content() -> None:
    base, near, far, lossy = placed((0.3, 1), (1.5, 1), (0, 0.5))
    assert base.kid is not None
    assert near.kid is not None
    assert far.kid is not None
    assert near.kid.value < far.kid.value < base.kid.value
    assert near.behind is not None
    assert near.behind.value == near.behind.error == 0, "the nearest that did not lose too much"
    assert far.behind is not None
    assert far.behind.low > 0
    assert lossy.lost is not None
    assert lossy.lost.value == pytest.approx(0.5, abs=0.15)
    assert base.lost is not None
    assert base.lost.value == 0


def test_what_the_scorer_cannot_see_in_real_pictures_is_not_lost() -> None:
    rng = np.random.default_rng(1)
    asked: NDArray[np.int64] = np.arange(PROMPTS)
    half = np.eye(PROMPTS)[np.where(asked % 2 == 0, asked, (asked + 1) % PROMPTS)]
    real = Seen(rng.normal(0, 1, (PROMPTS, D)), half, asked)
    points = [Point("base", 0.0, ()), Point("a", 1.0, ()), Point("b", 1.0, ())]
    looked = [seen(rng, 2, 1), Seen(rng.normal(0, 1, (PROMPTS, D)), half, asked), seen(rng, 0, 0.1)]
    _, a, b = place(points, looked, np.eye(PROMPTS), real, 300, 0)
    assert a.lost is not None
    assert b.lost is not None
    assert a.lost.value == pytest.approx(0, abs=1e-9)
    assert b.lost.low > 0.2


def test_what_lost_too_much_is_not_suggested() -> None:
    _, *points = placed((0, 0.4), (1.0, 1), (1.8, 1))
    chosen, rule = choose(points, PROMPTS)
    assert chosen is not None
    assert chosen.checkpoint == "step-1"
    assert "10%" in rule
    none, why = choose(points[:1], PROMPTS)
    assert none is None
    assert "each lost more than 10%" in why


def test_of_points_that_are_as_near_the_one_with_most_content_is_suggested() -> None:
    def point(name: str, behind: float, content: float) -> Point:
        return Point(
            name, 1.0, (), kid=Interval(0.1 + behind, 0, 1, 30), content=Interval(content, 0, 1, 30),
            lost=Interval(0.05, 0, 0.1, 30), behind=Interval(behind, 0, 1, 30, 0.02 if behind else 0.0),
        )  # fmt: skip

    chosen, rule = choose([point("a", 0.0, 0.5), point("b", 0.01, 0.8), point("c", 0.05, 0.9)], 12)
    assert chosen is not None
    assert chosen.checkpoint == "b"
    assert "With 12 prompts this is a guide" in rule


def test_the_whole_way(world: Path, run: Run, scorer: Scorer, fitting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("sdtune.sweep"), "scorer_gap", lambda config: "")
    told = list[Progress]()
    found = run_through(sweeping(run, config_of(world), strengths=(0.5, 1.0), scorer=scorer), told.append)
    assert found.prompts == ("red sun in ink", "blue sun in ink"), "those of the validation pictures"
    assert [(p.checkpoint, p.strength) for p in found.points] == [("final", 0.5), ("final", 1.0)]
    half, whole = (p.pictures[0].read_bytes() for p in found.points)
    assert half != whole
    assert found.base.pictures[0].read_bytes() not in (half, whole)
    assert ("final at 0.5", 4, 4) in told
    record = json.loads(json.dumps(sweep_page.as_json(found), allow_nan=True))
    assert [p["checkpoint"] for p in record["points"]] == ["base", "final", "final"]
    page = Page(sweep_page.html(found))
    alts = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert "red sun in ink, base" in alts
    assert "blue sun in ink, final at 0.5" in alts
    assert all(a["src"].startswith("data:") for tag, a in page.tags if tag == "img" and a["src"])
    before = {p: p.stat().st_mtime_ns for p in run.sweep.rglob("*.png")}
    run_through(sweeping(run, config_of(world), strengths=(0.5, 1.0), scorer=scorer))
    assert {p: p.stat().st_mtime_ns for p in run.sweep.rglob("*.png")} == before, "nothing is drawn twice"


def test_another_base_gets_its_grid_and_no_suggestion(world: Path, run: Run) -> None:
    found = run_through(sweeping(run, config_of(world), strengths=(1.0,)))
    assert found.chosen is None
    assert found.points[0].kid is None
    page = Page(sweep_page.html(found))
    assert "Checkpoint by strength" in page.texts
    assert "The trade-off" not in page.texts


@pytest.mark.parametrize("strengths", [(), (0.0,), (5.0,)])
def test_strengths_are_checked(world: Path, run: Run, strengths: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="--strength"):
        run_through(sweeping(run, config_of(world), strengths=strengths))


def test_one_caption_is_too_few_to_see_content(world: Path, run: Run, tmp_path: Path) -> None:
    tiny.imagefolder(tmp_path / "set" / "train", ["red dog", "blue dog"])
    tiny.imagefolder(tmp_path / "set" / "validation", ["sks dog", "sks dog"], seed=20)
    with pytest.raises(EvaluationError, match="have one caption"):
        run_through(sweeping(run, config_of(world, f"data.path={tmp_path / 'set'}")))


def test_without_validation_pictures_nothing_can_be_chosen(world: Path, run: Run) -> None:
    config = config_of(world, f"data.path={world / 'control'}", "data.validation_share=0")
    with pytest.raises(EvaluationError, match="validation_share"):
        run_through(sweeping(run, config))
