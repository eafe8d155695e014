"""Several processes train what one trains, stop together, and notice when one of them dies."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from sdtune import config as configs
from sdtune import distributed
from sdtune.errors import ConfigError
from sdtune.events import Sampled, Saved, Started, Step, Stopped, Validated
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny

RECIPE = """
model.path = "{folder}/model"
data = {{ path = "{folder}/data", cache = "{folder}/cache", validation_share = 0.3 }}
method.rank = 2
optimizer.lr = 1e-2
sample = {{ steps = 2, seeds = [0] }}
[train]
steps = 6
batch_size = 5
accumulate = 2
ema = 0.9
save_every = 3
validate_every = 2
sample_every = 6
threads = 1
device = "cpu"
precision = "fp32"
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(
        folder / "data", [f"a {colour} {thing}" for colour in ("red", "blue") for thing in tiny.WORDS[6:11]]
    )
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Run:
    """The run in one process."""
    run = Run(recipe.parent / "alone")
    list(train(configs.load(recipe), run))
    return run


def start(recipe: Path, run: Run, devices: int, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sdtune", "train", str(recipe), *overrides]
    command += ["--out", str(run.path), "--devices", str(devices)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(run: Run, step: int) -> None:
    deadline = time.monotonic() + 200
    while not any(isinstance(e, Step) and e.step >= step for e in run.events()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def losses(run: Run) -> list[float]:
    return [e.loss for e in run.events() if isinstance(e, Step)]


def assert_same_but_for_rounding(run: Run, alone: Run) -> None:
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    kinds = [
        [type(e).__name__ for e in r.events() if isinstance(e, Step | Validated | Sampled | Saved)]
        for r in (run, alone)
    ]
    assert kinds[0] == kinds[1]
    pairs = zip(
        (e for e in run.events() if isinstance(e, Validated)),
        (e for e in alone.events() if isinstance(e, Validated)),
        strict=True,
    )
    for a, b in pairs:
        assert a.per_picture == pytest.approx(b.per_picture, rel=1e-5)
    mine, theirs = (load_file(next(r.final.glob("*.safetensors"))) for r in (run, alone))
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def pair(recipe: Path) -> Run:
    """The run in two processes."""
    run = Run(recipe.parent / "pair")
    with start(recipe, run, 2) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("result") == 1, "one process draws the progress"
    return run


def test_two_processes_train_what_one_trains(pair: Run, alone: Run) -> None:
    """Five pictures on two processes: their shares are unequal, and count as in the whole batch."""
    assert_same_but_for_rounding(pair, alone)
    assert not pair.lock_file.exists()


@pytest.mark.slow
def test_four_processes_train_what_one_trains(recipe: Path, alone: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with start(recipe, run, 4) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert_same_but_for_rounding(run, alone)


def back_at_step_3(run: Run, to: Path) -> Run:
    """The run as it was when it had saved step 3."""
    shutil.copytree(run.path, to)
    for path in ("final", "checkpoints/step-000006"):
        shutil.rmtree(to / path)
    state = json.loads((to / "checkpoints/step-000003/state.json").read_text(encoding="utf-8"))
    if state["best_step"] is None or state["best_step"] > 3:
        shutil.rmtree(to / "checkpoints/best")
    return Run(to)


def test_one_process_goes_on_with_what_two_have_trained(recipe: Path, pair: Run, alone: Run, tmp_path: Path) -> None:
    run = back_at_step_3(pair, tmp_path / "run")
    events = list(train(configs.load(recipe), run))
    assert next(e.step for e in events if isinstance(e, Started)) == 3
    assert losses(run)[:3] == losses(pair)[:3]
    assert_same_but_for_rounding(run, alone)


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_has_trained(recipe: Path, alone: Run, tmp_path: Path) -> None:
    run = back_at_step_3(alone, tmp_path / "run")
    with start(recipe, run, 2) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "from step 3" in out and losses(run)[:3] == losses(alone)[:3]
    assert_same_but_for_rounding(run, alone)


# ---- torchrun


def torchrun(options: Sequence[str], recipe: Path, run: Run) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "sdtune", "train", str(recipe)]
    return subprocess.Popen(
        [*command, "--out", str(run.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_torchrun_starts_what_devices_starts(recipe: Path, alone: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with torchrun(["--standalone", "--nproc-per-node", "2"], recipe, run) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("result") == 1
    assert_same_but_for_rounding(run, alone)


@pytest.mark.slow
def test_torchrun_on_several_machines(recipe: Path, alone: Run, tmp_path: Path) -> None:
    """Two agents that meet at a port, each with two processes: number 1 of each machine is not number 1 of the run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run, meet = Run(tmp_path / "run"), ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    agents = [
        torchrun(["--nnodes", "2", "--node-rank", str(n), "--nproc-per-node", "2", *meet], recipe, run)
        for n in range(2)
    ]
    try:
        told = [agent.communicate(timeout=250) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert [out.count("result") for out, _ in told] == [1, 0], "the first machine draws the progress"
    assert_same_but_for_rounding(run, alone)


@pytest.mark.parametrize("validate_every", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stop_is_the_same_step_for_all_and_one_process_goes_on(
    recipe: Path, tmp_path: Path, validate_every: int
) -> None:
    run = Run(tmp_path / "run")
    with start(recipe, run, 2, "train.steps=2000", f"train.validate_every={validate_every}") as process:
        wait_for_step(run, 2)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    (stopped,) = (e for e in run.events() if isinstance(e, Stopped))
    assert "go on with" not in out
    steps = [e.step for e in run.events() if isinstance(e, Step)]
    assert steps == list(range(1, stopped.step + 1))
    assert (run.checkpoints / f"step-{stopped.step:06d}").is_dir()
    events = train(configs.load(recipe, ["train.steps=2000", f"train.validate_every={validate_every}"]), run)
    resumed = list(islice((e for e in events if isinstance(e, Started | Step)), 3))
    events.close()  # type: ignore[attr-defined]
    assert [e.step for e in resumed] == [stopped.step, stopped.step + 1, stopped.step + 2]


def test_a_process_that_dies_ends_the_run_with_its_checkpoints_whole(recipe: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with start(recipe, run, 2, "train.steps=2000") as process:
        wait_for_step(run, 4)
        ranks = {int(p.environ()["RANK"]): p for p in psutil.Process(process.pid).children()}
        ranks[1].send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "another process of this run has ended; the same command goes on from the last checkpoint" in err
    assert "Traceback" not in err
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in ranks.values())
    events = train(configs.load(recipe, ["train.steps=2000"]), run)
    started = next(e for e in events if isinstance(e, Started))
    events.close()  # type: ignore[attr-defined]
    assert started.step >= 3


def test_too_few_pictures_for_the_processes(recipe: Path, tmp_path: Path) -> None:
    with start(recipe, Run(tmp_path / "run"), 2, "train.batch_size=1") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "train.batch_size: 1 pictures for 2 processes" in err


def test_a_gradient_that_is_used_up_at_once_cannot_be_added_up(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = ["optimizer.fused_backward=true", "train.accumulate=1", "train.max_grad_norm=0", "train.ema=0"]
    with pytest.raises(ConfigError, match=r"optimizer.fused_backward: there is no gradient left"):
        list(train(configs.load(recipe, options), Run(tmp_path / "run")))


@pytest.mark.parametrize(("total", "size"), [(5, 2), (4, 4), (7, 3), (16, 1)])
def test_shares_are_whole_and_even(monkeypatch: pytest.MonkeyPatch, total: int, size: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(size))
    shares = []
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(list(range(total)[distributed.rows(total)]))
    assert [i for share in shares for i in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
