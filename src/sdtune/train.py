"""The training step and the loop. Everything that changes a weight starts in this file."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdtune import checkpoint
from sdtune import config as configs
from sdtune.checkpoint import Checkpoint
from sdtune.config import RunConfig
from sdtune.data.batch import Batch, batches, validation_batch
from sdtune.data.cache import Cache
from sdtune.data.dataset import Splits, resolve, scan
from sdtune.data.layouts import listed, shown
from sdtune.data.record import changes, record
from sdtune.devices import choose, peak_memory_mb, use_threads
from sdtune.ema import Ema
from sdtune.environment import environment
from sdtune.errors import RunError, SdtuneError, TrainingError
from sdtune.events import (
    Encoding,
    Event,
    Failed,
    Finished,
    Noted,
    Sampled,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
)
from sdtune.files import write_json
from sdtune.flat import FlatAdamW
from sdtune.model import Model
from sdtune.objective import Objective
from sdtune.runs import Run
from sdtune.sample import sample, save_png

CHECK_STEP = 3  # by then each part of an adapter has had a gradient: B at the first step, A at the second


@dataclass
class State:
    """What training changes. Noise, data order and learning rate are not here: they follow from (seed, step)."""

    model: Model
    optimizer: FlatAdamW
    ema: Ema | None
    step: int = 0
    best_step: int | None = None
    best_loss: float = math.inf
    looked: bool = False
    """Whether the validation and previews of this step are done."""
    without_gradient: list[str] = field(default_factory=list)

    def train_mode(self, training: bool) -> None:
        """Dropout and the like on or off, in the parts that are trained."""
        for part in {name.partition(".")[0] for name in self.optimizer.parameters}:
            self.model.parts[part].train(training)


def train_step(
    state: State, batches: Sequence[Batch], objective: Objective, *, lr: float, max_grad_norm: float, seed: int
) -> tuple[float, float]:
    """One optimiser step over `batches`: noise, predict, weigh, backward, clip, update. Returns loss and gradient norm."""
    device, rng = state.model.device, torch.Generator().manual_seed(seed * 1_000_003 + state.step)
    total = torch.zeros((), device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + state.step)  # dropout draws from the global generator
        for batch in batches:
            loss_B = objective(state.model.denoise, batch.latents_BCHW.to(device), batch.cond.to(device), rng)
            loss = (loss_B * batch.weight_B.to(device)).mean() / len(batches)
            loss.backward()
            state.optimizer.collect()
            total += loss.detach()
    if state.step + 1 == CHECK_STEP:
        state.without_gradient = list(state.optimizer.names_without_gradient())
    grad_norm = state.optimizer.clip(max_grad_norm)
    values = float(total), float(grad_norm)  # the step's one wait for the device
    if not all(map(math.isfinite, values)):
        raise TrainingError(
            f"step {state.step + 1}: loss {values[0]:g}, gradient norm {values[1]:g} at learning rate {lr:g}"
        )
    state.optimizer.step(lr)
    state.step, state.looked = state.step + 1, False
    if state.ema:
        state.ema.update(state.step)
    return values


def train(config: RunConfig, run: Run) -> Iterator[Event]:
    """Train until `config.train.steps`, yielding what happens. Closing the iterator stops after the step and saves.

    A run folder that holds a part of this run is gone on with, bit by bit as if it had never stopped (CPU, fp32).
    """
    with run.lock():
        yield from _prepare_folder(config, run)
        if (done := _finished(config, run)) is not None:
            yield done
            return
        ready: _Ready | None = None
        saved = 0
        try:
            for item in _build(config, run):
                if not isinstance(item, _Ready):
                    yield item
                    continue
                ready, saved = item, item.state.step
                yield _log(run, ready.started)
                for event in _loop(ready, config, run):
                    saved = event.step if isinstance(event, Saved) else saved
                    yield _log(run, event)
        except (SdtuneError, torch.OutOfMemoryError) as error:
            error = _explain_memory(config) if isinstance(error, torch.OutOfMemoryError) else error
            run.log(Failed(ready.state.step if ready else 0, str(error)))
            raise error from None
        finally:
            if ready is not None and saved < ready.state.step < config.train.steps:
                _save(ready.state, config, run)
                run.log(Stopped(ready.state.step))


def _explain_memory(config: RunConfig) -> TrainingError:
    remedies = ["halve train.batch_size and double train.accumulate"]
    remedies += [] if config.train.gradient_checkpointing else ["train.gradient_checkpointing=true"]
    remedies += [config.method.lighter]
    return TrainingError(f"out of memory with batches of {config.train.batch_size}; try: {'; or '.join(remedies)}")


@dataclass
class _Ready:
    """All that the loop needs."""

    state: State
    objective: Objective
    cache: Cache
    held_out: Batch | None
    prompts: tuple[str, ...]
    started: Started


def _build(config: RunConfig, run: Run) -> Iterator[Event | _Ready]:
    use_threads(config.train.threads)
    device, dtype = choose(config.train)
    found = yield from _take_up(run)
    splits = scan(config.data, seed=config.train.seed)
    model = config.model.load(device=device, dtype=dtype)
    write_json(run.environment_file, environment(device))
    for note in splits.notes:
        yield _log(run, Noted(note))
    yield from _note_changed_pictures(splits, config, run, found.step if found else 0)
    caches = []
    for examples, what in ((splits.train, ""), (splits.validation, "validation ")):
        resolution = config.data.resolution or model.resolution
        cache = Cache.open(
            examples, model, config.data, resolution=resolution, augment=not what, tokens=config.method.trains_text
        )
        for name, done, total in cache.fill():
            yield Encoding(what + name, done, total)
        for note in cache.notes:
            yield _log(run, Warned(note))
        caches.append(cache)
    total = sum(p.numel() for p in model.denoiser.parameters())
    parameters = config.method.attach(model, seed=config.train.seed)
    if config.train.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        for encoder in model.text_encoders if config.method.trains_text else ():
            # transformers renamed it; its lower bound here has the old name alone
            enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
            enable()  # type: ignore[operator]
    optimizer = config.optimizer.build(parameters)
    ema = Ema(optimizer, config.train.ema) if config.train.ema else None
    state = State(model, optimizer, ema)
    if found:
        _resume(state, found)
    yield _Ready(
        state, config.objective.build(model), caches[0], validation_batch(caches[1]) if len(caches[1]) else None,
        config.sample.prompts or _captions(splits), Started(
            step=state.step, steps=config.train.steps, run=str(run.path), device=str(device),
            precision=str(dtype).removeprefix("torch."), trainable=len(optimizer.weights), total=total,
            pictures=len(splits.train), validation_pictures=len(splits.validation),
            batch_size=config.train.batch_size * config.train.accumulate,
        ),
    )  # fmt: skip


def _note_changed_pictures(splits: Splits, config: RunConfig, run: Run, step: int) -> Iterator[Event]:
    """Say which pictures or captions are no longer what this run began with, and remember them as they are now."""
    now = record(splits, resolve(config.data.path))
    if run.data_file.exists() and (text := changes(json.loads(run.data_file.read_text(encoding="utf-8")), now)):
        message = f"the pictures have changed since this run began; from here on it goes by the new ones: {text}"
        yield _log(run, Warned(message, step))
    write_json(run.data_file, now)


def _loop(ready: _Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    state, options, start = ready.state, config.train, time.time()
    initial = state.optimizer.weights.clone()
    if not state.looked:
        yield from _look(ready, config, run)
    stream = batches(
        ready.cache,
        config.data,
        batch_size=options.batch_size,
        seed=options.seed,
        start=state.step * options.accumulate,
    )
    while state.step < options.steps:
        began = time.time()
        lr = config.optimizer.lr_at(state.step, options.steps)
        state.train_mode(True)
        parts = list(islice(stream, options.accumulate))
        try:
            loss, grad_norm = train_step(
                state, parts, ready.objective, lr=lr, max_grad_norm=options.max_grad_norm, seed=options.seed
            )
        except TrainingError as error:
            raise TrainingError(f"{error}; its pictures: {_pictures(parts, ready.cache)}") from None
        yield Step(state.step, loss, grad_norm, lr, time.time() - began)
        if state.step == CHECK_STEP:
            yield from _did_it_train(state, initial)
        yield from _look(ready, config, run)
        if state.step % options.save_every == 0 or state.step == options.steps:
            path = _save(state, config, run)
            yield Saved(state.step, str(path.relative_to(run.path)), best=state.best_step == state.step)
    result = _write_final(state, config, run)
    yield Finished(
        state.step,
        time.time() - start,
        str(result.relative_to(run.path)),
        state.best_step,
        peak_memory_mb(state.model.device),
    )


def _pictures(parts: Sequence[Batch], cache: Cache) -> str:
    """The pictures of a step by name, each once."""
    images = dict.fromkeys(cache.examples[i].image for part in parts for i in part.indices_B.tolist())
    return listed([shown(Path(image.name)) for image in images], 16)


def _look(ready: _Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    """Validation loss and previews, where this step has them."""
    state, options = ready.state, config.train
    last = state.step == options.steps
    validate = (
        ready.held_out is not None and options.validate_every and (state.step % options.validate_every == 0 or last)
    )
    preview = options.sample_every and (state.step % options.sample_every == 0 or last)
    if not (validate or preview):
        state.looked = True
        return
    state.train_mode(False)
    with state.ema.applied() if state.ema else nullcontext():
        if validate and ready.held_out is not None:
            losses = validation_losses(
                state.model, ready.objective, ready.held_out, timesteps=options.validation_timesteps
            )
            mean = sum(losses) / len(losses)
            yield Validated(state.step, mean, losses)
            if state.step and mean < state.best_loss:
                state.best_loss, state.best_step = mean, state.step
        if preview:
            yield from _previews(ready, config, run)
    state.looked = True


@torch.no_grad()
def validation_losses(
    model: Model, objective: Objective, held_out: Batch, *, timesteps: int, chunk: int = 32
) -> tuple[float, ...]:
    """The unweighted loss of each held-out picture, averaged over fixed timesteps with fixed noise.

    Always the same pictures, noise and timesteps, so that two models (or two steps) can be compared picture by picture.
    """
    N, T = len(held_out.latents_BCHW), len(objective.alphas_T)
    t_K = ((torch.arange(timesteps) + 0.5) * T / timesteps).long()
    rng = torch.Generator().manual_seed(20_240_229)
    noise_KNCHW = torch.randn((timesteps, *held_out.latents_BCHW.shape), generator=rng)
    sums = torch.zeros(N)
    for k, t in enumerate(t_K.tolist()):
        for rows in torch.arange(N).split(chunk):
            x0 = held_out.latents_BCHW[rows].to(model.device)
            t_B = torch.full((len(rows),), t, device=x0.device)
            error_B = objective.error(
                model.denoise, x0, held_out.cond[rows].to(model.device), t_B, noise_KNCHW[k, rows].to(x0)
            )
            sums[rows] += error_B.cpu() / timesteps
    return tuple(sums.tolist())


def _previews(ready: _Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    for i, picture in enumerate(sample(ready.state.model, config.sample, prompts=ready.prompts)):
        path = run.samples / f"step-{ready.state.step:06d}" / f"{i:02d}.png"
        save_png(picture, path)
        yield Sampled(ready.state.step, picture.prompt, picture.seed, str(path.relative_to(run.path)))


def _did_it_train(state: State, initial: Tensor) -> Iterator[Event]:
    """Name the parts that got no gradient, or whose weights did not move."""
    moved = state.optimizer.named(state.optimizer.weights - initial)
    still = [name for name, change in moved.items() if not bool(change.any())]
    for names, what in ((state.without_gradient, "get no gradient (zero or not finite)"), (still, "did not move")):
        if names:
            yield Warned(
                f"did it train? {len(names)} of {len(moved)} trainable parts {what}: {', '.join(names[:3])}", state.step
            )


def _save(state: State, config: RunConfig, run: Run) -> Path:
    optimizer = state.optimizer
    tensors = {"weights.safetensors": optimizer.named(optimizer.weights), "optimizer.safetensors": optimizer.moments()}
    if state.ema:
        tensors["ema.safetensors"] = optimizer.named(state.ema.mean)
    record = {
        "step": state.step, "looked": state.looked, "best_step": state.best_step,
        "best_loss": None if math.isinf(state.best_loss) else state.best_loss,
        "method": config.method.type,
    }  # fmt: skip
    return checkpoint.save(run, record, tensors, keep=config.train.keep, best=state.best_step)


def _take_up(run: Run) -> Generator[Event, None, Checkpoint | None]:
    """The newest whole checkpoint, if there is one; forget what the log says of later steps."""
    checkpoint.sweep(run)
    found, faults = checkpoint.latest(run)
    step = found.step if found else 0
    run.rewind_log(found.step if found else -1, looked=bool(found and found.state["looked"]))
    for fault in faults:
        yield _log(run, Warned(f"{fault}; going on from {found.path.name if found else 'the beginning'}", step))
    return found


def _resume(state: State, found: Checkpoint) -> None:
    """Bring `state` to where the checkpoint was. Raises RunError if it is of another method."""
    weights, moments, mean = (found.tensors(file) for file in checkpoint.FILES)
    assert weights is not None
    if weights.keys() != state.optimizer.parameters.keys():
        raise RunError(
            f"{found.path}: was saved by another method or target set; choose another name=, or delete the run folder"
        )
    state.optimizer.load_weights(state.optimizer.flat(weights))
    state.optimizer.load_moments(moments or {})
    if state.ema and mean:
        state.ema.mean = state.optimizer.flat(mean)
    state.step, state.looked, state.best_step = found.step, found.state["looked"], found.state["best_step"]
    state.best_loss = math.inf if found.state["best_loss"] is None else found.state["best_loss"]


def _write_final(state: State, config: RunConfig, run: Run) -> Path:
    """The finished adapter or model under `final/`, written beside and renamed."""
    part = run.path / ".tmp-final"
    shutil.rmtree(part, ignore_errors=True)
    about = {
        "base": state.model.label, "family": state.model.family, "method": config.method.type, "steps": state.step,
        "run": config.name, "prediction": state.model.prediction, "ema": config.train.ema or 0,
    }  # fmt: skip
    with state.ema.applied() if state.ema else nullcontext():
        result = config.method.export(
            state.model, state.optimizer.named(state.optimizer.weights), part, config.name, about
        )
    shutil.rmtree(run.final, ignore_errors=True)
    part.rename(run.final)
    return run.final / result.relative_to(part)


def _log(run: Run, event: Event) -> Event:
    run.log(event)
    return event


HARMLESS = {
    "train.save_every",
    "train.keep",
    "train.validate_every",
    "train.sample_every",
    "train.threads",
    "train.device",
}


def _prepare_folder(config: RunConfig, run: Run) -> Iterator[Event]:
    """Write the config of a new run; compare it with the one that is there. Raises RunError for a change that matters."""
    if run.exists() and (changes := _differences(configs.to_dict(run.config()), configs.to_dict(config))):
        matter = [
            line
            for key, line in changes.items()
            if key not in HARMLESS and key.split(".")[0] not in ("sample", "evaluate")
        ]
        if matter:
            listed = "\n  ".join(matter)
            raise RunError(
                f"{run.path}: holds a run with another config; choose another name=, or delete the folder. Changed:\n  {listed}"
            )
        yield Warned(f"going on with a changed config: {'; '.join(changes.values())}")
    run.write_config(config)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Key -> "key: old -> new" for each value that differs."""
    out: dict[str, str] = {}
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), prefix + key
        if isinstance(a, dict) and isinstance(b, dict):
            out |= _differences(a, b, name + ".")
        elif a != b:
            out[name] = f"{name}: {a!r} -> {b!r}"
    return out


def _finished(config: RunConfig, run: Run) -> Finished | None:
    """The last event of a run that is complete already."""
    if not run.final.is_dir():
        return None
    return next((e for e in run.events() if isinstance(e, Finished) and e.step == config.train.steps), None)


def _captions(splits: Splits, count: int = 4) -> tuple[str, ...]:
    """Prompts for previews without any: captions of held-out pictures, else of the training pictures."""
    captions = dict.fromkeys(example.captions[0] for example in splits.validation or splits.train)
    return tuple(captions)[:count]
