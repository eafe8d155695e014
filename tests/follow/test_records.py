"""What other tools are told of a run: the same names in all of them, and nothing that did not happen."""

from pathlib import Path

import pytest
from PIL import Image

from sdtune import events
from sdtune.events import (
    Encoded,
    Encoding,
    Failed,
    Finished,
    Noted,
    Sampled,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
)
from sdtune.follow.records import Note, Picture, Scalars, records
from sdtune.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_step(run: Run) -> None:
    (row,) = records(Step(7, 0.5, 1.5, 1e-3, 0.25, time=9.0), run)
    assert row == Scalars(
        {"train/loss": 0.5, "train/grad_norm": 1.5, "train/lr": 1e-3, "speed/steps_per_second": 4.0}, 7, 9.0
    )
    (row,) = records(Step(7, 0.5, 1.5, 1e-3, 0.0), run)
    assert isinstance(row, Scalars) and "speed/steps_per_second" not in row.values, "a clock that stood still"


def test_a_validation(run: Run) -> None:
    event = Validated(
        5, 0.4, (0.3, 0.5), (0.1, 0.4, 0.7), 0.45, (166, 500, 833), ((0.0, 0.2), (0.3, 0.5), (0.6, 0.8)), time=9.0
    )
    (row,) = records(event, run)
    assert isinstance(row, Scalars) and (row.step, row.time) == (5, 9.0)
    assert row.values == pytest.approx(
        {"validation/loss": 0.4, "validation/raw": 0.45, "validation/clean": 0.1, "validation/middle": 0.4, "validation/noisy": 0.7}
    )  # fmt: skip
    (row,) = records(Validated(5, 0.4, (0.4,)), run)
    assert isinstance(row, Scalars) and row.values == {"validation/loss": 0.4}, "a log of before"


def test_the_end(run: Run) -> None:
    (row,) = records(Finished(9, 60.0, "final", peak_memory_mb=512.0, time=3.0), run)
    assert row == Scalars({"speed/seconds": 60.0, "memory/peak_mb": 512.0}, 9, 3.0)
    assert records(Failed(4, "out of memory", time=3.0), run) == [Note("out of memory", 4, 3.0)]


def test_a_warning(run: Run) -> None:
    assert records(Warned("a part is dead", 3, time=2.0), run) == [Note("a part is dead", 3, 2.0)]


def test_a_preview_that_is_there(run: Run) -> None:
    event = Sampled(20, "a dog " * 20, 3, "samples/step-000020/00.png", time=5.0)
    assert records(event, run) == [], "removed since"
    path = run.path / event.path
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path)
    (found,) = records(event, run)
    assert found == Picture(f"preview/{event.prompt[:60]}/seed 3", path, f"{event.prompt}, seed 3", 20, 5.0)


QUIET = (
    Started(0, 9, "r", "cpu", "fp32", 1, 2, 3, 4, 5), Encoding("pictures", 1, 2), Saved(3, "checkpoints/step-000003"), Noted("hello"),
    Stopped(4), Encoded(1, 2, "cache", 3.0),
)  # fmt: skip


def test_nothing_is_made_of_the_others(run: Run) -> None:
    assert [records(event, run) for event in QUIET] == [[]] * len(QUIET)
    told = {Step, Validated, Finished, Failed, Warned, Sampled}
    assert {type(e) for e in QUIET} | told == set(events._KINDS.values()), "a new kind of event has to be decided on"
