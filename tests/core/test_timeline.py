"""The previews of a run on one line of time: the right picture under the right step."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdtune import timeline
from sdtune.contact import GAP, LINE, SIDE, TITLE, write_timeline
from sdtune.events import Sampled, Validated
from sdtune.runs import Run

PROMPTS = ("a dog", "the sun")


def colour(prompt: str, seed: int, step: int) -> tuple[int, int, int]:
    return 60 + 100 * PROMPTS.index(prompt), 50 + 100 * seed, 10 + step


def draw(run: Run, step: int, *, side: int = 32, only: tuple[str, ...] = PROMPTS) -> None:
    """Previews of one step, each of a colour of its own."""
    for i, (prompt, seed) in enumerate((p, s) for p in only for s in (0, 1)):
        file = run.samples / f"step-{step:06d}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), colour(prompt, seed, step)).save(file)
        run.log(Sampled(step, prompt, seed, file.relative_to(run.path).as_posix()))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    for step in (0, 20, 40):
        run.log(Validated(step, 0.5 - step / 100, (0.5,)))
        draw(run, step)
    return run


def test_a_row_for_each_prompt_and_seed_and_a_column_for_each_step(run: Run) -> None:
    found = timeline.read(run, 12)
    assert found is not None and found.steps == (0, 20, 40)
    assert found.losses == pytest.approx((0.5, 0.3, 0.1))
    assert [(r.prompt, r.seed) for r in found.rows] == [(p, s) for p in PROMPTS for s in (0, 1)]
    for row in found.rows:
        for step, cell in zip(found.steps, row.cells, strict=True):
            assert cell is not None
            with Image.open(cell) as image:
                assert image.getpixel((0, 0)) == colour(row.prompt, row.seed, step)


def test_what_is_missing_leaves_a_gap(run: Run) -> None:
    (run.samples / "step-000020" / "00.png").unlink()
    draw(run, 50, only=PROMPTS[1:])
    found = timeline.read(run, 12)
    assert found is not None and found.losses[-1] is None
    assert [[cell is not None for cell in r.cells] for r in found.rows] == [
        [True, False, True, False], [True, True, True, False], [True] * 4, [True] * 4,
    ]  # fmt: skip


def test_too_many_steps_are_thinned_out_evenly() -> None:
    steps = [10 * i for i in range(41)]
    assert timeline.spread(steps, 41) == steps
    thinned = timeline.spread(steps, 5)
    assert thinned == [0, 100, 200, 300, 400]
    assert timeline.spread(steps, 2) == [0, 400]


def test_one_step_is_no_timeline(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert timeline.read(run, 12) is None
    draw(run, 0)
    assert timeline.read(run, 12) is None


@pytest.mark.parametrize("side, shown", [(32, 128), (64, 128), (600, SIDE)])
def test_the_sheet_has_every_picture_in_its_place(run: Run, tmp_path: Path, side: int, shown: int) -> None:
    for step in (0, 20, 40):
        draw(run, step, side=side)
    found = timeline.read(run, 12)
    assert found is not None
    write_timeline(found, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (GAP + 2 * LINE + 4 * (TITLE + shown + GAP), GAP + 3 * (shown + GAP), 3)
    for i, row in enumerate(found.rows):
        y = GAP + 2 * LINE + i * (TITLE + shown + GAP) + TITLE
        assert (sheet[y - TITLE : y] < 128).any(), "the prompt stands over its pictures"
        for j, step in enumerate(found.steps):
            x = GAP + j * (shown + GAP)
            cell = sheet[y : y + shown, x : x + shown]
            assert (cell == colour(row.prompt, row.seed, step)).all()
            assert (sheet[y : y + shown, x + shown : x + shown + GAP] == 255).all()
    heads = sheet[GAP : GAP + 2 * LINE]
    assert all((heads[:, GAP + j * (shown + GAP) :][:, :shown] < 128).any() for j in range(3))
