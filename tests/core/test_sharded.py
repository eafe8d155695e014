"""Weights split over processes train what whole ones train, and their checkpoints are the same files.

The processes are real ones, joined by gloo; what they do is in `several`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sdtune import config as configs
from sdtune.errors import ConfigError
from sdtune.events import Noted, Sampled, Saved, Started, Step, Stopped, Validated, Warned
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny
from tests.core import several

RECIPE = """
model.path = "{folder}/model"
data = {{ path = "{folder}/data", cache = "{folder}/cache", validation_share = 0.3 }}
method.type = "full"
optimizer = {{ lr = 1e-2, eps = 1e-3 }}
sample = {{ steps = 1, seeds = [0] }}
[train]
steps = 4
batch_size = 5
accumulate = 2
ema = 0.9
save_every = 2
validate_every = 2
validation_timesteps = 2
sample_every = 2
threads = 1
device = "cpu"
precision = "fp32"
gradient_checkpointing = true
"""
TWO = ("adamw", "average", "dead", "memory", "whole", "train")
MORE = ("lion", "schedule-free", "in_bf16", "fresh", "again", "from one", "train bf16", "stops", "diverges", "no_room")
"""What takes longer, in two processes; it goes on with what TWO left."""
FOUR = (*several.SECTIONS, "average", "dead", "memory", "whole", "train", "from one", "from two", "stops")


class World(NamedTuple):
    folder: Path
    alone: Run
    """In one process, not split; the same as far as step 2, to go on with, is made of it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("sharded")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(
        folder / "data", [f"a {colour} {thing}" for colour in ("red", "blue") for thing in tiny.WORDS[6:11]]
    )
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return World(folder, trained(folder, "alone"))


def trained(folder: Path, name: str, *overrides: str) -> Run:
    run = Run(folder / name)
    list(train(configs.load(folder / "recipe.toml", overrides), run))
    return run


def launch(size: int, folder: Path, checks: tuple[str, ...]) -> list[dict[str, str]]:
    """What each of `size` processes says of each check."""
    shared = {
        "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "PORTS": " ".join(map(str, free_ports(len(checks) + 10))), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.core.several", str(folder), *checks],
            # each with sets in an order of its own
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONHASHSEED": str(rank + 1)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(size)
    ]
    try:
        for process in processes:
            process.wait(timeout=250)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{size}-{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


@pytest.fixture(scope="module")
def two(world: World) -> list[dict[str, str]]:
    return launch(2, world.folder, TWO)


@pytest.fixture(scope="module")
def more(world: World, two: list[dict[str, str]]) -> list[dict[str, str]]:
    return launch(2, world.folder, MORE)


@pytest.fixture(scope="module")
def four(world: World, two: list[dict[str, str]]) -> list[dict[str, str]]:
    return launch(4, world.folder, FOUR)


@pytest.mark.parametrize("check", TWO)
def test_in_two_processes(two: list[dict[str, str]], check: str) -> None:
    assert not any(said.get(check, "not reached") for said in two), said_of(two)


@pytest.mark.slow
@pytest.mark.parametrize("check", MORE)
def test_more_in_two_processes(more: list[dict[str, str]], check: str) -> None:
    assert not any(said.get(check, "not reached") for said in more), said_of(more)


@pytest.mark.slow
@pytest.mark.parametrize("check", FOUR)
def test_in_four_processes(four: list[dict[str, str]], check: str) -> None:
    assert not any(said.get(check, "not reached") for said in four), said_of(four)


def said_of(processes: list[dict[str, str]]) -> str:
    return "\n".join(text for said in processes for text in said.values())


def losses(run: Run) -> list[float]:
    return [e.loss for e in run.events() if isinstance(e, Step)]


def files(run: Run, pattern: str) -> dict[str, Tensor]:
    return {
        f"{path.relative_to(run.path)} {name}": tensor
        for path in sorted(run.path.glob(pattern))
        for name, tensor in load_file(path).items()
    }


def assert_same_but_for_rounding(run: Run, other: Run, *, loss: float = 1e-5, weight: float = 1e-5) -> None:
    """The events and what is in every file; of the optimiser, whose tensors have one order, too."""
    assert losses(run) == pytest.approx(losses(other), rel=loss)
    kinds = [
        [(type(e).__name__, e.step) for e in r.events() if isinstance(e, Step | Validated | Sampled | Saved | Warned)]
        for r in (run, other)
    ]
    assert kinds[0] == kinds[1]
    for a, b in zip(*([e for e in r.events() if isinstance(e, Validated)] for r in (run, other)), strict=True):
        assert (*a.per_picture, a.raw or 0) == pytest.approx((*b.per_picture, b.raw or 0), rel=loss)
    for pattern in ("checkpoints/step-*/*.safetensors", "final/**/*.safetensors"):
        mine, theirs = files(run, pattern), files(other, pattern)
        assert mine.keys() == theirs.keys() and mine
        for name, tensor in theirs.items():
            assert torch.allclose(mine[name], tensor, rtol=1e-3, atol=weight), name


def test_two_processes_train_what_one_trains(world: World, two: list[dict[str, str]]) -> None:
    """With accumulation, clipping, checkpointing, unequal shares, an average, and fewer held-out pictures than processes."""
    run = Run(world.folder / "of-2")
    assert_same_but_for_rounding(run, world.alone)
    configs_of = [(r.final / "unet" / "config.json").read_text() for r in (run, world.alone)]
    assert configs_of[0] == configs_of[1]


@pytest.mark.slow
def test_four_processes_train_what_one_trains(world: World, four: list[dict[str, str]]) -> None:
    assert_same_but_for_rounding(Run(world.folder / "of-4"), world.alone)


@pytest.mark.slow
def test_bf16_trains_nearly_the_same(world: World, more: list[dict[str, str]]) -> None:
    alone = trained(world.folder, "alone-bf16", *several.BF16)
    assert_same_but_for_rounding(Run(world.folder / "bf16"), alone, loss=5e-3, weight=2e-2)


@pytest.mark.slow
def test_a_run_goes_on_bit_by_bit_on_as_many_processes(world: World, more: list[dict[str, str]]) -> None:
    run, straight = Run(world.folder / "again"), Run(world.folder / "of-2")
    assert losses(run) == losses(straight)
    for pattern in ("checkpoints/step-*/*.safetensors", "final/**/*.safetensors"):
        mine, theirs = files(run, pattern), files(straight, pattern)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in theirs)


@pytest.mark.slow
def test_several_go_on_with_what_one_began(world: World, more: list[dict[str, str]]) -> None:
    run = Run(world.folder / "from-one-of-2")
    assert [e.step for e in run.events() if isinstance(e, Started)][-1] == 2
    assert_same_but_for_rounding(run, world.alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["from-two", "from-one-of-4"])
def test_four_go_on_with_what_others_began(world: World, four: list[dict[str, str]], name: str) -> None:
    assert_same_but_for_rounding(Run(world.folder / name), world.alone)


def test_one_goes_on_with_what_several_began(world: World, two: list[dict[str, str]]) -> None:
    """By the same recipe: one process alone has nothing to split, and says so."""
    several.back_to_step_2(world.folder / "of-2", world.folder / "one-from-two")
    run = trained(world.folder, "one-from-two", "train.shard=true")
    assert_same_but_for_rounding(run, world.alone)
    assert any("one process alone holds everything" in e.message for e in run.events() if isinstance(e, Noted))


# ---- the command line


def start(world: World, run: Run) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sdtune", "train", str(world.folder / "recipe.toml"), "train.shard=true"]
    command += [*ENDLESS, "--out", str(run.path), "--devices", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


ENDLESS = (*several.QUICK, "train.steps=2000", "optimizer.schedule=constant", "train.sample_every=0")


def wait_for_step(run: Run, step: int) -> None:
    deadline = time.monotonic() + 200
    while not any(isinstance(e, Step) and e.step >= step for e in run.events()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.slow
def test_ctrl_c_saves_once_and_one_process_goes_on(world: World, tmp_path: Path) -> None:
    run, straight = Run(tmp_path / "run"), Run(tmp_path / "straight")
    with start(world, run) as process:
        wait_for_step(run, 1)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and all_gone(children)
    assert out.count("stopped after step") == 1, "one process draws the progress"
    (stopped,) = (e for e in run.events() if isinstance(e, Stopped))
    assert [e.step for e in run.events() if isinstance(e, Step)] == list(range(1, stopped.step + 1))
    assert {p.name for p in run.checkpoints.iterdir()} >= {f"step-{stopped.step:06d}"}
    config = configs.load(world.folder / "recipe.toml", ENDLESS)
    for r in (straight, run):
        events = train(config, r)
        last = next(e for e in events if isinstance(e, Step) and e.step == stopped.step + 2)
        events.close()  # type: ignore[attr-defined]
        assert last.step == stopped.step + 2
    assert losses(run) == pytest.approx(losses(straight), rel=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_its_checkpoints_whole(world: World, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with start(world, run) as process:
        wait_for_step(run, 3)
        ranks = {int(p.environ()["RANK"]): p for p in psutil.Process(process.pid).children()}
        ranks[1].send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "another process of this run has ended; the same command goes on from the last checkpoint" in err
    assert "Traceback" not in err
    assert all_gone(list(ranks.values()))
    assert not [e for e in run.events() if isinstance(e, Stopped)], "parts of weights are nothing to save"
    events = train(configs.load(world.folder / "recipe.toml", ENDLESS), run)
    started, _ = islice((e for e in events if isinstance(e, Started | Step)), 2)
    events.close()  # type: ignore[attr-defined]
    assert isinstance(started, Started) and started.step >= 2 and started.step % 2 == 0


# ---- what cannot be split


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.type=lora"], "'lora' trains few beside a whole model that stays"),
        (["optimizer.type=adafactor"], "'adafactor' looks at rows and columns of whole weights"),
        (["optimizer.type=adamw8bit"], "'adamw8bit' looks at blocks of 256 numbers"),
        (["optimizer.type=prodigy"], "'prodigy' looks at all weights together"),
        (["optimizer.type=muon"], "'muon' looks at rows and columns of whole weights"),
        (["train.offload_activations=true"], "with offload_activations the weights of blocks"),
        (["optimizer.weights=bf16"], "optimizer.weights=bf16 and fused_backward need whole weights"),
    ],
)
def test_what_cannot_be_split_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"train.shard: .*{says}"):
        configs.load(None, ["method.type=full", "train.shard=true", *overrides])
