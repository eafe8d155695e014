"""Too little memory in the middle of a run: it is told with remedies, and what was trained before is whole and goes on."""

import importlib
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdtune import checkpoint, cli
from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.devices import is_out_of_memory
from sdtune.errors import RunError, TrainingError
from sdtune.events import Failed, Started, Step
from sdtune.flat import FlatOptimizer
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny

loop: Any = importlib.import_module("sdtune.train")  # the package has a function of this name

SETTINGS = (
    "train.steps=6", "train.batch_size=2", "train.accumulate=2", "train.save_every=2", "train.validate_every=0",
    "train.sample_every=0", "train.precision=fp32", "train.threads=1", "train.device=cpu", "data.validation_share=0",
    "optimizer.lr=1e-2", "sample.steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "pictures", ["a red dog", "a blue house", "the sun", "a green cat"])
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    paths = (f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}")
    return configs.load(None, [*paths, *SETTINGS, *overrides])


def losses(run: Run) -> list[float]:
    return [e.loss for e in run.events() if isinstance(e, Step)]


def result(run: Run) -> dict[str, torch.Tensor]:
    return load_file(next(run.final.glob("*.safetensors")))


@pytest.fixture(scope="module")
def straight(world: Path) -> Run:
    run = Run(world / "straight")
    list(train(config_of(world), run))
    return run


def by_class() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def by_cpu() -> None:
    torch.empty(2**57)


def by_words() -> None:
    raise RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB).")


FULL = {"class": by_class, "cpu": by_cpu, "words": by_words}
SAYS = (
    r"^out of memory with batches of 2; try: halve train.batch_size and double train.accumulate; or "
    r"train.gradient_checkpointing=true; or method.type=qlora$"
)


def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[[Any], bool], how: str) -> None:
    """Let the function `name` run out of memory before it does anything, where `when` says so of its first argument."""
    real = getattr(owner, name)

    def function(first: Any, *rest: Any, **options: Any) -> Any:
        if when(first):
            FULL[how]()
        return real(first, *rest, **options)

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize(("step", "how"), [(1, "class"), (4, "cpu"), (4, "words")])
def test_a_step_without_memory_is_told_and_the_run_goes_on(
    step: int, how: str, world: Path, straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = config_of(world), Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        failing(patch, loop, "train_step", lambda state: state.step + 1 == step, how)
        with pytest.raises(TrainingError, match=SAYS) as error:
            list(train(config, run))
    assert error.value.exit_code == 5
    assert [(e.step, e.message) for e in run.events() if isinstance(e, Failed)] == [(step - 1, str(error.value))]
    newest, faults = checkpoint.latest(run)
    assert not faults and not run.lock_file.exists() and not run.final.exists()
    assert (newest.step if newest else 0) == step - 1, "the steps since the last checkpoint are saved, too"
    again = list(train(config_of(world, "train.gradient_checkpointing=true") if how == "words" else config, run))
    assert next(e.step for e in again if isinstance(e, Started)) == step - 1
    exact = {"rel": 1e-4} if how == "words" else {"rel": 0, "abs": 0}  # computed again, a sum may round differently
    assert losses(run) == pytest.approx(losses(straight), **exact)
    if how != "words":
        assert all(torch.equal(value, result(straight)[name]) for name, value in result(run).items())


def test_the_command_line_has_an_exit_code_for_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tmp_path / "tiny.toml", Run(tmp_path / "run")
    recipe.write_text(configs.to_toml(config_of(world)), encoding="utf-8")
    failing(monkeypatch, loop, "train_step", lambda state: state.step == 1, "cpu")
    heard = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            cli.main(["train", str(recipe), "--out", str(run.path), "--quiet"])
    finally:
        signal.signal(signal.SIGTERM, heard)
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (5, "")
    assert re.search(SAYS.replace("^", "^error: "), said.err.rstrip("\n"))
    assert checkpoint.read(run.checkpoints / "step-000001").step == 1


def test_between_two_passes_of_a_step(
    world: Path, straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a gradient is there, no weight is changed."""
    config, run, passes = config_of(world), Run(tmp_path / "run"), iter(range(100))
    with monkeypatch.context() as patch:
        failing(patch, FlatOptimizer, "collect", lambda _: next(passes) == 7, "cpu")
        with pytest.raises(TrainingError, match=SAYS):
            list(train(config, run))
    newest, _ = checkpoint.latest(run)
    assert newest is not None and newest.step == 3
    list(train(config, run))
    assert losses(run) == losses(straight)


def test_half_an_update_is_not_saved(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some weights are a step ahead of others then: the last checkpoint is what goes on."""
    short = ("train.steps=4", "train.accumulate=1")
    muon = config_of(world, "optimizer.type=muon", "method.type=full", *short)  # two optimisers, one after the other
    whole, run, updates = Run(tmp_path / "whole"), Run(tmp_path / "run"), iter(range(100))
    list(train(muon, whole))
    with monkeypatch.context() as patch:
        failing(patch, torch.optim.AdamW, "step", lambda _: next(updates) == 3, "cpu")
        with pytest.raises(TrainingError, match="out of memory"):
            list(train(muon, run))
    newest, faults = checkpoint.latest(run)
    assert not faults and newest is not None and newest.step == 2
    list(train(muon, run))
    assert losses(run) == losses(whole)


def test_other_faults_keep_their_words() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(RunError("out of memory")), "an error of ours says what it means already"
    assert not is_out_of_memory(KeyError("out of memory"))
