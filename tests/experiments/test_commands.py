"""The commands over many runs: experiment, ls, compare with several runs. In this process, on runs that are made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sdtune.experiments.matrix import Matrix
from sdtune.experiments.run import tasks
from tests import command

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run `sdtune ARGUMENTS` in an empty folder; returns exit code, stdout and stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return command.run


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_dry_run_shows_cells_and_what_is_missing_and_does_nothing(
    finished: tuple[Matrix, Path], made: Callable[..., Matrix], call: Call
) -> None:
    matrix, out = made("axes.grid.method.rank = [1, 2, 3]\nseeds = [0, 1]"), finished[1]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code, text, err = call("experiment", matrix.file, "--out", out, "--dry-run")
    assert (code, err) == (0, "")
    assert lines(text)[0] == "tiny: 3 cells x 2 seeds, compared by validation_loss"
    ids = [cell.id for cell in matrix.cells]
    for name, cell, there, missing in zip((1, 2, 3), ids, (1, 1, 0), (1, 1, 2), strict=True):
        assert re.search(rf"^rank-{name} +{cell} +{name} +{there} +{missing} missing", text, re.MULTILINE), text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    code, text, _ = call("experiment", matrix.file, "--out", out, "--dry-run", "--json", "--only", "rank-3")
    (record,) = map(json.loads, text.splitlines())
    assert [(run["cell"], run["seed"], run["state"]) for run in record["runs"]] == [
        ("rank-3", 0, "missing"), ("rank-3", 1, "missing"),
    ]  # fmt: skip
    code, text, err = call("experiment", matrix.file, "--out", out, "--dry-run", "--only", "rank3")
    assert (code, text) == (2, "") and "no such cell; did you mean 'rank-3'" in err


def test_with_nothing_to_do_the_page_is_written_and_named(finished: tuple[Matrix, Path], call: Call) -> None:
    matrix, out = finished
    code, text, err = call("experiment", matrix.file, "--out", out)
    assert (code, err) == (0, "")
    assert f"2 runs, 2 finished, nothing to do; {out}" in text
    for told, name in (("page of 2 runs", "index.html"), ("the same pictures side by side", "contact.png")):
        assert f"{told}  {out / name}" in text and (out / name).is_file()
    code, text, _ = call("experiment", matrix.file, "--out", out, "--json")
    last = json.loads(text.splitlines()[-1])
    assert (last["event"], last["page"], last["sheet"]) == ("Ranked", str(out / "index.html"), str(out / "contact.png"))


def test_ls_has_a_line_for_each_run(finished: tuple[Matrix, Path], call: Call) -> None:
    _, out = finished
    code, text, err = call("ls", out)
    assert (code, err) == (0, "")
    head, *rows = text.splitlines()
    assert re.split(r" {2,}", head.strip()) == [
        "run", "state", "method", "steps", "verdicts", "primary figure", "size", "time", "began",
    ]  # fmt: skip
    for name, row in zip(("rank-1", "rank-2"), rows, strict=True):
        assert re.match(rf"{name}-\w{{8}}/seed-0 +compared +lora {name[-1]} attention +4 ", row), row
        assert "validation_loss " in row
    code, text, _ = call("ls", out, "--json")
    assert [(r["state"], r["compared"], r["step"]) for r in map(json.loads, text.splitlines())] == [
        ("finished", True, 4)
    ] * 2
    assert call("ls")[1] == ".: holds no runs; `sdtune train` makes one\n"
    code, text, err = call("ls", "nowhere")
    assert (code, text) == (6, "") and "nowhere: no such folder" in err


def test_compare_of_several_runs_makes_one_page(finished: tuple[Matrix, Path], call: Call) -> None:
    matrix, out = finished
    a, b = (task.item.run.path for task in tasks(matrix, out))
    code, text, err = call("compare", a, b, "--quiet")
    assert (code, err) == (0, "")
    (page,) = map(Path, text.splitlines())
    assert page.parent.parent == Path("comparisons") and page.name == "index.html"
    assert {p.name for p in page.parent.iterdir()} >= {
        "index.html",
        "leaderboard.md",
        "leaderboard.json",
        "contact.png",
    }
    assert not (a.parent / "comparisons").exists()
    code, text, err = call("compare", a, b, "--out", "mine")
    assert code == 0, err
    assert f"page  {Path('mine/index.html')}" in text and f"side by side  {Path('mine/contact.png')}" in text
    code, text, err = call("compare", a, a, "--quiet")
    assert (code, text) == (2, "") and "each run only once" in err
