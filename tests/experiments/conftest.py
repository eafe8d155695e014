"""A tiny model, pictures and a matrix over it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdtune.experiments import work
from sdtune.experiments.cells import CellRun
from sdtune.experiments.matrix import Matrix, load
from sdtune.experiments.run import tasks
from sdtune.experiments.shared import base_key
from tests import tiny

BASE = """
[model]
path = "{model}"
[data]
path = "{data}"
cache = "{cache}"
[method]
targets = "attention"
rank = 2
[optimizer]
lr = 1e-2
[train]
steps = {steps}
batch_size = 2
precision = "fp32"
device = "cpu"
threads = 1
validate_every = 2
validation_timesteps = 1
sample_every = 0
save_every = 2
[sample]
steps = 2
[evaluate]
seeds = [3]
draws = 100
primary = "validation_loss"
"""


TWO = "axes.grid.method.rank = [1, 2]"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "data" / "train", ["a red apple", "a blue dog", "a green cat"])
    tiny.imagefolder(folder / "data" / "validation", ["a red dog", "a blue cat", "the sun"], seed=20)
    return folder


def write_matrix(world: Path, folder: Path, text: str, steps: int = 4) -> Matrix:
    """A matrix over the tiny model, from the text below its base."""
    base = BASE.format(model=world / "model", data=world / "data", cache=world / "cache", steps=steps)
    (folder / "base.toml").write_text(base, encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(f'base = "base.toml"\n{text}', encoding="utf-8")
    return load(path)


def in_process(item: CellRun, out: Path, stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
    """What the worker answers, without a process of its own."""
    base = out / "shared" / f"base-{base_key(item.config)}"
    told = json.loads(work.job(item.config, item.run, base, Path(), shared=False, gpu=None))
    return list(work.work(told, stop))


@pytest.fixture
def made(world: Path, tmp_path: Path) -> Callable[..., Matrix]:
    return lambda text, steps=4: write_matrix(world, tmp_path, text, steps)


@pytest.fixture(scope="session")
def once(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Matrix, Path]:
    folder = tmp_path_factory.mktemp("once")
    matrix, out = write_matrix(world, folder, TWO), folder / "out"
    for task in tasks(matrix, out):
        assert in_process(task.item, out)[-1] == {"made": True}
    return matrix, out


@pytest.fixture
def finished(once: tuple[Matrix, Path], tmp_path: Path) -> tuple[Matrix, Path]:
    """A matrix of two cells with one seed, made."""
    shutil.copytree(once[1], tmp_path / "out", copy_function=os.link)
    return once[0], tmp_path / "out"
