"""The matrix: which cells there are, what makes one cell another, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sdtune import config as configs
from sdtune.errors import ConfigError
from sdtune.experiments.cells import identity
from sdtune.experiments.matrix import Matrix, load
from sdtune.presets import folder

BASE = """
[model]
path = "embedded"
[data]
path = "embedded:comic"
[method]
rank = 16
alpha = 16
targets = "many"
[optimizer]
lr = 1e-3
"""


def matrix(tmp_path: Path, text: str, base: str = BASE) -> Matrix:
    (tmp_path / "base.toml").write_text(base, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text if "base" in text else f'base = "base.toml"\n{text}', encoding="utf-8")
    return load(tmp_path / "mine.toml")


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        matrix(tmp_path, text)
    return [line.removeprefix(f"{tmp_path / 'mine.toml'}: ") for line in str(caught.value).splitlines()]


def test_the_grid_is_every_combination(tmp_path: Path) -> None:
    cells = matrix(tmp_path, 'axes.grid = {method.rank = [2, 8], method.targets = ["attention", "many"]}').cells
    found = [(c.name, getattr(c.config.method, "rank"), getattr(c.config.method, "targets")) for c in cells]  # noqa: B009
    assert found == [
        ("rank-2_targets-attention", 2, "attention"),
        ("rank-2_targets-many", 2, "many"),
        ("rank-8_targets-attention", 8, "attention"),
        ("rank-8_targets-many", 8, "many"),
    ]


def test_words_of_the_grid_are_those_of_its_cells(tmp_path: Path) -> None:
    text = 'axes.grid = {name = "r{method.rank}{", idea = "Why not.", method.rank = [2, 8]}'
    assert [(c.name, c.idea) for c in matrix(tmp_path, text).cells] == [("r2", "Why not."), ("r8", "Why not.")]


def test_paired_axes_go_side_by_side_and_cross_the_grid(tmp_path: Path) -> None:
    text = '[axes.grid]\nname = "{rank}-{lr}-{targets}"\nmethod.targets = ["attention", "many"]\n'
    text += "[axes.paired]\nmethod.rank = [2, 8]\noptimizer.lr = [1e-3, 5e-4]"
    assert [c.name for c in matrix(tmp_path, text).cells] == [
        "2-0.001-attention", "8-0.0005-attention", "2-0.001-many", "8-0.0005-many",
    ]  # fmt: skip


def test_a_list_adds_cells_with_words(tmp_path: Path) -> None:
    text = '[axes.grid]\nmethod.rank = [2]\n[[axes.list]]\nname = "full"\nidea = "All."\nsource = "A paper."\nmethod.type = "full"'
    grid, full = matrix(tmp_path, text).cells
    assert (full.name, full.idea, full.source, full.config.method.type) == ("full", "All.", "A paper.", "full")
    assert full.left_out == ("method.rank", "method.alpha", "method.targets") and not grid.left_out


def test_a_new_type_keeps_the_keys_that_it_has_too(tmp_path: Path) -> None:
    (cell,) = matrix(tmp_path, '[[axes.list]]\nmethod.type = "dora"').cells
    assert (cell.config.method.type, getattr(cell.config.method, "rank"), cell.left_out) == ("dora", 16, ())  # noqa: B009


def test_without_axes_the_base_recipe_is_the_one_cell(tmp_path: Path) -> None:
    found = matrix(tmp_path, "seeds = [3, 4]\nset.train.steps = 7")
    assert [c.config.train.steps for c in found.cells] == [7] and found.seeds == (3, 4)


def test_the_base_may_be_written_in_place(tmp_path: Path) -> None:
    found = matrix(tmp_path, '[base.model]\npath = "embedded"\n[base.method]\nrank = 3')
    assert getattr(found.cells[0].config.method, "rank") == 3  # noqa: B009


def test_exclude_leaves_cells_out(tmp_path: Path) -> None:
    text = 'axes.grid = {method.rank = [2, 8, 32], method.targets = ["attention", "many"]}\n'
    text += '[[exclude]]\nmethod.rank = [8, 32]\nmethod.targets = "many"'
    assert [c.name for c in matrix(tmp_path, text).cells] == [
        "rank-2_targets-attention", "rank-2_targets-many", "rank-8_targets-attention", "rank-32_targets-attention",
    ]  # fmt: skip
    assert faults(tmp_path, "axes.grid.method.rank = [2]\n[[exclude]]\nmethod.rank = 3") == [
        "exclude 1 (method.rank = 3): fits no cell"
    ]


def test_primary_is_set_for_all(tmp_path: Path) -> None:
    assert matrix(tmp_path, 'primary = "validation_loss"').primary == "validation_loss"


# ---- identity


def test_a_changed_cell_is_a_new_cell(tmp_path: Path) -> None:
    a, b = matrix(tmp_path, "axes.grid.method.rank = [2, 8]").cells
    assert a.id != b.id
    assert a.id == matrix(tmp_path, 'axes.list = [{name = "other", method.rank = 2}]').cells[0].id
    assert a.id != matrix(tmp_path, "axes.grid.method.rank = [2]\nset.train.steps = 8").cells[0].id


@pytest.mark.parametrize(
    "same", ["train.seed=9", "name=x", "evaluate.draws=100", "sample.steps=3", "train.save_every=7", "data.cache=c"]
)
def test_what_does_not_change_the_training_changes_no_id(same: str) -> None:
    assert identity(configs.load(None, [same])) == identity(configs.load())


@pytest.mark.parametrize(
    "other",
    ["method.type=dora", "method.rank=5", "train.steps=5", "data.flip=true", "optimizer.type=lion", "model.type=sdxl"],
)
def test_what_changes_the_training_changes_the_id(other: str) -> None:
    assert identity(configs.load(None, [other])) != identity(configs.load())


def test_the_id_of_the_defaults_stays() -> None:
    """A key with a new default must not turn all cells into new ones: this value is for good."""
    assert identity(configs.load()) == identity(configs.from_dict({"method": {"type": "lora"}}))


def test_a_renamed_cell_stays_where_it_is(tmp_path: Path) -> None:
    (old,) = matrix(tmp_path, 'axes.list = [{name = "old", method.rank = 2}]').cells
    (new,) = matrix(tmp_path, 'axes.list = [{name = "new", method.rank = 2}]').cells
    old.folder(tmp_path).mkdir()
    assert new.folder(tmp_path) == old.folder(tmp_path)
    assert [r.config.name for r in new.runs(tmp_path, (5,))] == [f"old-{old.id}-s5"]


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("axis.grid.method.rank = [2]", "axis: no such key; did you mean 'axes'?"),
        ("axes.gird.method.rank = [2]", "axes.gird: no such form; did you mean 'grid'?"),
        ("axes.grid.method.rank = 2", "axes.grid: method.rank: 2 is not a list of values"),
        ("axes.grid.method.rnk = [2]", "cell rnk-2: method.rnk: no such key; did you mean 'rank'?"),
        ("seeds = [0, 0]", "seeds: [0, 0]: each only once"),
        ('seeds = ["a"]', "seeds: ['a'] is not a list of whole numbers, such as [0, 1, 2]"),
        ("axes.grid.sample.steps = [2]", "axes: sample.steps: cannot be an axis: how pictures are drawn must be"),
        ("axes.grid.train.seed = [2]", "axes: train.seed: cannot be an axis: give the seeds of all cells in `seeds`"),
        ("limit = 0", "limit: 0 is not a number of cells"),
        ("limit = 2\naxes.grid.method.rank = [2, 3, 4]", "axes: 3 cells, more than the limit of 2"),
        ("axes.paired = {method.rank = [2, 8], optimizer.lr = [1e-3]}", "axes.paired: as many values for each key are needed"),
        ("axes.grid.method.rank = [4, 4]", "axes.grid: method.rank: 4 is there twice"),
        ('axes.list = [{name = "a", method.rank = 2}, {name = "a", method.rank = 3}]', "cell a: a cell's name, but several"),
        ('axes.list = [{name = "a", method.rank = 2}, {name = "b", method.rank = 2}]', "cell b: trains the same as a"),
        ('axes.grid = {name = "r{rnk}", method.rank = [2]}', "axes.grid: name: no axis is called 'rnk'; did you mean 'rank'?"),
        ('primary = "fid"', "evaluate.primary: input should be 'kid' or 'validation_loss', got 'fid'"),
    ],
)  # fmt: skip
def test_faults_say_where_and_what_to_do(tmp_path: Path, text: str, fault: str) -> None:
    assert any(fault in line for line in faults(tmp_path, text)), faults(tmp_path, text)


def test_a_contradiction_names_its_cell_and_shared_faults_are_told_once(tmp_path: Path) -> None:
    text = '[axes.grid]\nmethod.rank = [0, 8, 16, 32]\n[[axes.list]]\nname = "lean"\noptimizer.fused_backward = true'
    found = faults(tmp_path, text)
    assert found[0] == "cell rank-0: method.rank: input should be greater than 0, got 0"
    assert found[1].startswith("cell lean: optimizer.fused_backward: clipping needs")
    assert faults(tmp_path, "set.method.rnk = 1\naxes.grid.method.rank = [2, 4, 8]") == [
        "all cells: method.rnk: no such key; did you mean 'rank'?"
    ]


def test_all_faults_at_once(tmp_path: Path) -> None:
    assert len(faults(tmp_path, "seeds = []\nlimit = 0\nfoo = 1\naxes.grid.method.rank = 3")) == 4


def test_a_million_combinations_end_at_once(tmp_path: Path) -> None:
    values = list(range(1, 1001))
    text = f"axes.grid = {{method.rank = {values}, train.steps = {values}}}"
    assert faults(tmp_path, text) == [
        "axes: 1,000,000 combinations, which is no experiment that ends; give fewer values"
    ]


@pytest.mark.parametrize("text", ["base = 3", "", "base = 'missing.toml'"])
def test_a_base_is_needed(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"base: name a recipe|missing.toml: no such file"):
        load(tmp_path / "mine.toml")


def test_only_names_cells(tmp_path: Path) -> None:
    found = matrix(tmp_path, "axes.grid.method.rank = [2, 8]")
    assert [c.name for c in found.only(["rank-8", found.cells[0].id])] == ["rank-2", "rank-8"]
    with pytest.raises(ConfigError, match="no such cell; did you mean 'rank-8'"):
        found.only(["rank8"])


# ---- those that come along


def test_the_six_experiments_are_the_recipes_of_the_same_names() -> None:
    six = load(folder() / "matrices" / "qlora-six.toml")
    assert six.primary == "validation_loss" and len(six.cells) == 6
    for cell in six.cells:
        recipe = configs.load(folder() / f"sdxl_{cell.name.replace('-', '_')}.toml")
        for part in ("model", "data", "method", "optimizer", "objective"):
            assert getattr(cell.config, part) == getattr(recipe, part), cell.name


def test_the_embedded_matrix_has_ranks_layers_and_methods(tmp_path: Path) -> None:
    shutil.copytree(folder(), tmp_path / "recipes")
    found = load(tmp_path / "recipes" / "matrices" / "embedded.toml")
    assert {c.config.method.type for c in found.cells} == {"lora", "full", "dora", "qlora"}
    assert len(found.cells) * len(found.seeds) == 27 and not any(c.config.train.sample_every for c in found.cells)
