"""What other processes ask of a training (RUN/ask/): done once, between two steps, and without a trace in the rest."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.events import Event, Sampled, Saved, Started, Step, Validated
from sdtune.files import write_json
from sdtune.runs import ASKS, Run
from sdtune.train import train
from tests import tiny
from tests.core.test_distributed import start, wait_for_step


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "data", [f"a {colour} dog" for colour in tiny.WORDS[3:9]])
    file = folder / "recipe.toml"
    file.write_text(
        f"""model.path = "{folder}/model"
data = {{ path = "{folder}/data", cache = "{folder}/cache", validation_share = 0.3 }}
method = {{ rank = 2, dropout = 0.3 }}
optimizer.lr = 1e-2
sample = {{ steps = 2, seeds = [0], prompts = ["a red dog"] }}
[train]
steps = 7
batch_size = 2
ema = 0.9
save_every = 4
validate_every = 3
sample_every = 4
threads = 1
device = "cpu"
precision = "fp32"
""",
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Run:
    """The run that nobody asked anything."""
    run = Run(recipe.parent / "alone")
    list(train(configs.load(recipe), run))
    return run


def result(run: Run) -> dict[str, bytes]:
    """The weights' bytes; the file's header has its texts in any order."""
    file = next(run.final.glob("*.safetensors"))
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def figures(run: Run) -> list[tuple[float, ...]]:
    steps = [(e.step, e.loss, e.grad_norm) for e in run.events() if isinstance(e, Step)]
    return [*steps, *((e.step, *e.per_picture) for e in run.events() if isinstance(e, Validated))]


def asking(config: RunConfig, run: Run, *after: int) -> list[Event]:
    """All events of a training of which both is asked after these steps."""
    seen = []
    for event in train(config, run):
        seen.append(event)
        if (isinstance(event, Step) and event.step in after) or (isinstance(event, Started) and 0 in after):
            run.ask("save")
            run.ask("sample")
    return seen


def test_what_is_asked_is_done_and_the_training_is_the_same_to_the_bit(recipe: Path, alone: Run) -> None:
    run = Run(recipe.parent / "asked")
    events = asking(configs.load(recipe), run, 2, 5)
    extra = [(type(e), e.step) for e in events if isinstance(e, Saved | Sampled) and e.step in (2, 5)]
    assert extra == [(Saved, 2), (Sampled, 2), (Saved, 5), (Sampled, 5)]
    assert result(run) == result(alone) and figures(run) == figures(alone)
    assert (run.samples / "step-000002" / "00.png").is_file()
    assert not run.asks.exists()


def test_a_run_that_goes_on_from_there_is_the_same_to_the_bit(recipe: Path, alone: Run) -> None:
    config, run = configs.load(recipe), Run(recipe.parent / "resumed")
    for event in (events := train(config, run)):
        if isinstance(event, Step) and event.step == 2:
            run.ask("save")
        if isinstance(event, Saved):
            break
    events.close()  # type: ignore[attr-defined]
    assert load_file(run.checkpoints / "step-000002" / "weights.safetensors")
    assert asking(config, run, 3)
    assert result(run) == result(alone) and figures(run) == figures(alone)


def test_what_a_step_has_anyway_is_not_done_twice(recipe: Path) -> None:
    events = asking(configs.load(recipe), Run(recipe.parent / "twice"), 0, 4)
    assert [e.step for e in events if isinstance(e, Saved)] == [0, 4, 7]
    assert [e.step for e in events if isinstance(e, Sampled)] == [0, 4, 7]


def test_what_comes_too_late_is_let_go(recipe: Path) -> None:
    run = Run(recipe.parent / "late")
    events = asking(configs.load(recipe), run, 7)
    assert [e.step for e in events if isinstance(e, Sampled)] == [0, 4, 7]
    assert not run.asks.exists()


def test_a_run_tells_what_was_asked_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.take_asks() == ()
    run.ask("sample")
    (run.asks / "strange").touch()
    assert Run(tmp_path, muted=True).take_asks() == ()
    assert run.take_asks() == ("sample",) and run.take_asks() == ()
    run.ask("save")
    run.ask("sample")
    assert run.take_asks() == ASKS


def test_a_dead_process_that_nobody_has_buried_holds_no_run(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(child.pid)
    began = process.create_time()
    while process.status() != psutil.STATUS_ZOMBIE:
        pass
    run = Run(tmp_path)
    write_json(run.lock_file, {"pid": child.pid, "host": socket.gethostname(), "started": began})
    assert not run.living()
    child.wait()


@pytest.mark.slow
def test_two_processes_do_together_what_one_was_asked(recipe: Path) -> None:
    run = Run(recipe.parent / "two")
    process = start(recipe, run, 2, "train.steps=40", "train.sample_every=0", "train.save_every=100")
    wait_for_step(run, 2)
    run.ask("save")
    run.ask("sample")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    steps = [{e.step for e in run.events() if isinstance(e, kind) and 0 < e.step < 40} for kind in (Saved, Sampled)]
    assert len(steps[0]) == 1 and steps[0] == steps[1]
