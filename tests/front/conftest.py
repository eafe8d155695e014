"""The command line as a subprocess, and a tiny recipe for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import tiny

COMMAND = [sys.executable, "-m", "sdtune"]
RECIPE = """
name = "{name}"
[model]
path = "{model}"
[data]
path = "{data}"
cache = "{cache}"
[method]
targets = "attention"
rank = 2
[optimizer]
lr = 1e-3
[train]
steps = 30
batch_size = 2
precision = "fp32"
validate_every = 10
sample_every = 0
save_every = 15
[sample]
steps = 2
seeds = [0]
"""


@dataclass(frozen=True)
class Place:
    """A folder to work in, with a tiny model, pictures and a recipe."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.toml"

    def popen(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `sdtune ARGUMENTS` to its end."""
        with self.popen(*arguments, **environment) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def fails(self, code: int, *arguments: str) -> str:
        """Run it, see it fail with `code`, without a traceback and before anything is said on stdout; returns stderr."""
        done = self.run(*arguments)
        assert done.stdout == ""
        return _fault(done, code)

    def fails_after_opening(self, code: int, *arguments: str) -> str:
        """The same for what shows only when the run is opened."""
        return _fault(self.run(*arguments), code)


def _fault(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Shared by all tests of the front: each uses run names of its own."""
    folder = tmp_path_factory.mktemp("front")
    model = tiny.sd1_folder(folder / "model")
    captions: Sequence[str] = ["a red apple", "a blue dog", "a green cat", "a photo of the sun", "a house", "sks"]
    tiny.imagefolder(folder / "data" / "train", captions)
    tiny.imagefolder(folder / "data" / "validation", captions[:3], seed=100)
    text = RECIPE.format(name="tiny", model=model, data=folder / "data", cache=folder / "cache")
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    return Place(folder)


@pytest.fixture(scope="session")
def finished(place: Place) -> subprocess.CompletedProcess[str]:
    """The run `done`, trained to its end with --json."""
    done = place.run("train", "tiny.toml", "name=done", "--json")
    assert done.returncode == 0, done.stderr
    return done
