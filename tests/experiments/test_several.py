"""Any runs on one page: asked alike, the runs untouched, refused where they cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sdtune import config as configs
from sdtune.errors import ConfigError, EvaluationError, RunError
from sdtune.experiments import listing
from sdtune.experiments.several import compare_runs
from sdtune.runs import Run
from sdtune.train import train
from tests.experiments.conftest import BASE


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b, a again with another seed, and one that was trained on what judges the others."""
    folder = tmp_path_factory.mktemp("runs")
    text = BASE.format(model=world / "model", data=world / "data", cache=world / "cache", steps=2)
    (folder / "base.toml").write_text(text, encoding="utf-8")
    for name, overrides in {
        "a": [], "b": ["method.rank=3"], "a-1": ["train.seed=1"],
        "leaky": [f"data.path={world / 'data' / 'validation'}", "data.validation_share=0", "train.validate_every=0"],
    }.items():  # fmt: skip
        for _ in train(configs.load(folder / "base.toml", [*overrides, f"name={name}"]), Run(folder / name)):
            pass
    return folder


def rows(out: Path) -> dict[str, int]:
    found = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    return {row["name"]: len(row["seeds"]) for row in found["figures"]["validation_loss"]["rows"]}


def test_runs_share_prompts_and_stay_untouched(trained: Path, tmp_path: Path) -> None:
    before = sorted(p for p in (trained / "a").rglob("*"))
    page, _ = compare_runs([Run(trained / "a"), Run(trained / "b")], ["evaluate.seeds=[5, 6]"], tmp_path)
    assert page.is_file() and rows(tmp_path) == {"a": 1, "b": 1, "base": 1}
    assert sorted(p for p in (trained / "a").rglob("*")) == before
    plans = [json.loads((tmp_path / "runs" / name / "scores.json").read_text())["plan"] for name in ("a", "b")]
    assert plans[0]["prompts"] == plans[1]["prompts"] and plans[0]["seeds"] == plans[1]["seeds"] == [5, 6]
    base = [next((tmp_path / "runs" / name / "base").glob("*.png")).stat().st_ino for name in ("a", "b")]
    assert base[0] == base[1]  # drawn once
    assert "method.rank 3" in page.read_text(encoding="utf-8")


def test_seeds_of_one_recipe_are_one_row(trained: Path, tmp_path: Path) -> None:
    compare_runs([Run(trained / name) for name in ("a", "b", "a-1")], [], tmp_path)
    assert rows(tmp_path) == {"a and 1 seed more": 2, "b": 1, "base": 1}


def test_what_cannot_be_compared_is_refused_with_the_reason(trained: Path, tmp_path: Path) -> None:
    a = Run(trained / "a")
    with pytest.raises(ConfigError, match="each run only once"):
        compare_runs([a, Run(trained / "b" / ".." / "a")], [], tmp_path)
    with pytest.raises(
        EvaluationError, match=r"leaky: was trained on 3 pictures that would judge it; give evaluate.reference="
    ):
        compare_runs([a, Run(trained / "leaky")], [], tmp_path)
    with pytest.raises(RunError, match="not a run folder"):
        compare_runs([a, Run(tmp_path)], [], tmp_path)
    shutil.copytree(trained / "a", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "final")
    with pytest.raises(RunError, match="is not finished, and only results are compared"):
        compare_runs([a, Run(tmp_path / "cut")], [], tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_the_list_of_runs(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "deep" / "runs")
    shutil.rmtree(tmp_path / "deep" / "runs" / "b" / "final")
    found = {Path(row.run).name: row for row in listing.rows(tmp_path)}
    assert set(found) == {"a", "b", "a-1", "leaky"}
    assert (found["a"].state, found["b"].state) == ("finished", "stopped")
    assert (found["a"].step, found["a"].steps, found["a"].method, found["a"].compared) == (
        2,
        2,
        "lora 2 attention",
        False,
    )
    assert found["a"].size_mb and found["b"].size_mb is None and found["a"].seconds is not None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("x = 1")
    assert len(listing.rows(tmp_path)) == 4
    with (tmp_path / "deep" / "runs" / "a" / "events.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"kind": "of another version"}\n')
    assert len(listing.rows(tmp_path)) == 4
    with pytest.raises(RunError, match="no such folder"):
        listing.rows(tmp_path / "missing")


def test_marks_of_verdicts(trained: Path) -> None:
    row = listing.row(trained / "a")
    assert row is not None
    answers = {
        "helped": "yes",
        "moved": "yes",
        "content": "no",
        "away": "cannot tell",
        "overfit": "no",
        "copied": "yes",
    }
    assert listing.Row(**{**vars(row), "verdicts": answers}).marks == "++-?+?-"
