"""What training changes, on its way to the disk and back."""

from __future__ import annotations

import math
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdtune import checkpoint
from sdtune.checkpoint import Checkpoint
from sdtune.config import RunConfig
from sdtune.ema import Ema
from sdtune.errors import RunError
from sdtune.events import Event, Warned
from sdtune.files import write_text
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.scaling import LossScale
from sdtune.updater import Updater


@dataclass
class State:
    """What training changes. Noise, data order and learning rate are not here: they follow from (seed, step)."""

    model: Model
    optimizer: Updater
    ema: Ema | None
    scale: LossScale | None = None
    """In fp16."""
    activations_elsewhere: bool = False
    step: int = 0
    taken: int = 0
    """Steps that were not given up (as some are in fp16); those before this sitting count as taken."""
    best_step: int | None = None
    best_loss: float = math.inf
    looked: bool = False
    """Whether the validation and previews of this step are done."""
    without_gradient: list[str] = field(default_factory=list)

    def shown(self) -> AbstractContextManager[None]:
        """The model computes with the weights that previews, validation and the result have."""
        return self.ema.applied() if self.ema else self.optimizer.evaluated()

    def train_mode(self, training: bool) -> None:
        """Dropout and the like on or off, in the parts that are trained."""
        for part in {name.partition(".")[0] for name in self.optimizer.parameters}:
            self.model.parts[part].train(training)


def _idle(state: State, run: Run) -> bool:
    """Whether this process has no part in what is written: another one writes, and has all that it takes."""
    return run.muted and not state.optimizer.sharded


def save(state: State, config: RunConfig, run: Run) -> Path:
    if _idle(state, run):
        return run.checkpoints
    moments, numbers = state.optimizer.state()
    with state.optimizer.evaluated():
        tensors = {"weights.safetensors": state.optimizer.values(), "optimizer.safetensors": moments}
    if state.ema:
        tensors["ema.safetensors"] = state.ema.values()
    return checkpoint.save(run, {**_record(state, config), "optimizer": numbers}, tensors, keep=config.train.keep)


def keep_best(state: State, config: RunConfig, run: Run) -> None:
    """Keep the weights as those of the lowest validation loss so far."""
    if _idle(state, run):
        return
    with state.shown():
        weights = {"weights.safetensors": state.optimizer.values()}
    checkpoint.save(run, _record(state, config), weights, keep=config.train.keep, name="best")


def _record(state: State, config: RunConfig) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    scale = {"loss_scale": [state.scale.value, state.scale.good, state.scale.bad]} if state.scale else {}
    return {
        **scale, "step": state.step, "looked": state.looked, "best_step": state.best_step,
        "best_loss": None if math.isinf(state.best_loss) else state.best_loss,
        "method": config.method.type,
    }  # fmt: skip


def take_up(run: Run) -> Generator[Event, None, Checkpoint | None]:
    """The newest whole checkpoint, if there is one; forget what the log says of later steps."""
    checkpoint.sweep(run)
    found, faults = checkpoint.latest(run)
    step = found.step if found else 0
    run.rewind_log(found.step if found else -1, looked=bool(found and found.state["looked"]))
    for fault in faults:
        yield run.logged(Warned(f"{fault}; going on from {found.path.name if found else 'the beginning'}", step))
    return found


def resume(state: State, found: Checkpoint) -> None:
    """Bring `state` to where the checkpoint was. Raises RunError if it is of another method."""
    weights, moments, mean = (found.tensors(file) for file in checkpoint.FILES)
    assert weights is not None
    if weights.keys() != state.optimizer.parameters.keys():
        raise RunError(
            f"{found.path}: was saved by another method or target set; choose another name=, or delete the run folder"
        )
    state.optimizer.load(weights)
    try:
        state.optimizer.load_state(moments or {}, found.state.get("optimizer", {}))
    except RunError as error:
        raise RunError(f"{found.path}: {error}; choose another name=, or delete the run folder") from None
    if state.ema and mean:
        state.ema.load(mean)
    if state.scale and "loss_scale" in found.state:
        state.scale.value, state.scale.good, state.scale.bad = found.state["loss_scale"]
    state.step = state.taken = found.step
    state.looked, state.best_step = found.state["looked"], found.state["best_step"]
    state.best_loss = math.inf if found.state["best_loss"] is None else found.state["best_loss"]


def write_final(state: State, config: RunConfig, run: Run, more: Mapping[str, str] | None = None) -> Path:
    """The finished adapter or model under `final/`, written beside and renamed; `more`: names and texts of files to lie with it."""
    if _idle(state, run):
        return run.final
    best = state.best_step if config.train.result == "best" else None
    about = {
        "base": state.model.label, "family": state.model.family, "method": config.method.type, "steps": best or state.step,
        "run": config.name, "prediction": state.model.prediction, "ema": config.train.ema or 0,
    }  # fmt: skip
    with state.shown() if best is None else _best_weights(state, run):
        values = state.optimizer.values()
        if run.muted:
            return run.final
        part = run.path / ".tmp-final"
        shutil.rmtree(part, ignore_errors=True)
        with state.optimizer.assembled(values):
            result = config.method.export(state.model, values, part, config.name, about)
    for name, text in (more or {}).items():
        write_text(part / name, text)
    shutil.rmtree(run.final, ignore_errors=True)
    part.rename(run.final)
    return run.final / result.relative_to(part)


@contextmanager
def _best_weights(state: State, run: Run) -> Iterator[None]:
    """Inside, the model has the weights of the lowest validation loss."""
    own = state.optimizer.held()
    state.optimizer.load(checkpoint.read(run.checkpoints / "best").tensors(checkpoint.FILES[0]) or {})
    try:
        yield
    finally:
        state.optimizer.put_back(own)
