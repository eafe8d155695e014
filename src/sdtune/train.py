"""The training step and the loop. Everything that changes a weight starts in this file."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdtune import checkpoint, distributed, validation
from sdtune import config as configs
from sdtune.checkpoint import Checkpoint
from sdtune.config import RunConfig, TrainConfig
from sdtune.data.batch import Batch, batches, validation_batch
from sdtune.data.cache import Cache
from sdtune.data.dataset import Splits, resolve, scan, scan_class
from sdtune.data.layouts import listed, shown
from sdtune.data.record import changes, record
from sdtune.devices import choose, peak_memory_mb, use_threads
from sdtune.ema import Ema
from sdtune.environment import environment
from sdtune.errors import ConfigError, RunError, SdtuneError, TrainingError
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
from sdtune.files import as_json
from sdtune.flat import FlatOptimizer
from sdtune.model import Model
from sdtune.objective import Objective
from sdtune.runs import Run
from sdtune.sample import sample, save_png
from sdtune.updater import Updater

CHECK_STEP = 3  # by then each part of an adapter has had a gradient: B at the first step, A at the second


@dataclass
class State:
    """What training changes. Noise, data order and learning rate are not here: they follow from (seed, step)."""

    model: Model
    optimizer: Updater
    ema: Ema | None
    step: int = 0
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


def train_step(
    state: State, batches: Sequence[Batch], objective: Objective, *, lr: float, max_grad_norm: float, seed: int
) -> tuple[float, float]:
    """One optimiser step over `batches`: noise, predict, weigh, backward, clip, update. Returns loss and gradient norm."""
    device, rng = state.model.device, torch.Generator().manual_seed(seed * 1_000_003 + state.step)
    total = torch.zeros((), device=device)
    state.optimizer.begin(state.step, lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            seed * 1_000_003 + state.step + (distributed.rank() << 32)
        )  # dropout draws from the global one
        for batch in batches:
            rows = distributed.rows(len(batch.latents_BCHW))
            loss_B = objective(state.model.denoise, batch.latents_BCHW.to(device), batch.cond.to(device), rng, rows)
            loss = (loss_B * batch.weight_B[rows].to(device)).sum() / len(batch.latents_BCHW) / len(batches)
            loss.backward()
            state.optimizer.collect()
            total += loss.detach()
    for gradient in state.optimizer.gradients():
        distributed.add_up(gradient)
    distributed.add_up(total)
    if state.step + 1 == CHECK_STEP:
        state.without_gradient = list(state.optimizer.names_without_gradient())
    grad_norm = state.optimizer.clip(max_grad_norm)
    values = float(total), float(grad_norm)  # the step's one wait for the device
    if not all(map(math.isfinite, values)):
        raise TrainingError(
            f"step {state.step + 1}: loss {values[0]:g}, gradient norm {values[1]:g} at learning rate {lr:g}"
        )
    state.optimizer.step()
    state.step, state.looked = state.step + 1, False
    if state.ema:
        state.ema.update(state.step)
    return values


def train(config: RunConfig, run: Run) -> Iterator[Event]:
    """Train until `config.train.steps`, yielding what happens. Closing the iterator stops after the step and saves.

    A run folder that holds a part of this run is gone on with, bit by bit as if it had never stopped (CPU, fp32).
    """
    use_threads(config.train.threads)
    device, dtype = choose(config.train)
    if config.train.batch_size < distributed.size():
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} pictures for {distributed.size()} processes; it counts for all together, "
            "and each needs one"
        )
    if distributed.size() > 1 and getattr(config.optimizer, "fused_backward", False):
        raise ConfigError(
            "optimizer.fused_backward: there is no gradient left for several processes to add up; unset it"
        )
    run = run if distributed.primary() else replace(run, muted=True)
    with run.lock(), distributed.joined(device):
        if distributed.primary():
            yield from _prepare_folder(config, run)
        distributed.wait()
        if (done := _finished(config, run)) is not None:
            yield done
            return
        ready: _Ready | None = None
        saved, finished = 0, False
        try:
            for item in _build(config, run, device, dtype):
                if not isinstance(item, _Ready):
                    yield item
                    continue
                ready, saved = item, item.state.step
                yield _log(run, ready.started)
                for event in _loop(ready, config, run):
                    saved = event.step if isinstance(event, Saved) else saved
                    finished = isinstance(event, Finished)
                    yield _log(run, event)
        except _Stop:
            pass
        except GeneratorExit:
            if ready is not None and not finished and _asks_again(ready, config.train):
                distributed.any_of(True)  # the others stop after the same step
            raise
        except (SdtuneError, torch.OutOfMemoryError) as error:
            error = _explain_memory(config) if isinstance(error, torch.OutOfMemoryError) else error
            run.log(Failed(ready.state.step if ready else 0, str(error)))
            raise error from None
        finally:
            if ready is not None and saved < ready.state.step and not finished and ready.state.optimizer.whole:
                _save(ready.state, config, run)
                run.log(Stopped(ready.state.step))


class _Stop(Exception):
    """Another process of this run was told to stop."""


def _agree_to_go_on() -> None:
    """Asked before each work that the processes share. One that was stopped answers at its end, so all leave at the same place."""
    if distributed.any_of(False):
        raise _Stop


def _asks_again(ready: _Ready, options: TrainConfig) -> bool:
    """Whether the processes will agree once more before the run's end."""
    validates = ready.held_out is not None and options.validate_every > 0 and not ready.state.looked
    return validates or not _at_end(ready.state, options)


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


def _build(config: RunConfig, run: Run, device: torch.device, dtype: torch.dtype) -> Iterator[Event | _Ready]:
    config.optimizer.check()
    found = yield from _take_up(run)
    splits = scan(config.data, seed=config.train.seed)
    model = config.model.load(device=device, dtype=dtype)
    run.write(run.environment_file, as_json(environment(device)))
    for note in splits.notes:
        yield _log(run, Noted(note))
    splits = yield from _with_class_pictures(splits, model, config)
    yield from _note_changed_pictures(splits, config, run, found.step if found else 0)
    caches = []
    for examples, what in ((splits.train, ""), (splits.validation, "validation ")):
        resolution = config.data.resolution or model.resolution
        cache = Cache.open(
            examples, model, config.data, resolution=resolution, augment=not what, tokens=config.method.trains_text
        )
        if not distributed.primary():
            distributed.wait()  # the first process encodes, the others read
        for name, done, total in cache.fill():
            yield Encoding(what + name, done, total)
        if distributed.primary():
            distributed.wait()
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
    optimizer = config.optimizer.build(parameters, seed=config.train.seed)
    ema = Ema(optimizer, config.train.ema) if config.train.ema and isinstance(optimizer, FlatOptimizer) else None
    state = State(model, optimizer, ema)
    if found:
        _resume(state, found)
    yield _Ready(
        state, config.objective.build(model), caches[0], validation_batch(caches[1]) if len(caches[1]) else None,
        config.sample.prompts or _captions(splits), Started(
            step=state.step, steps=config.train.steps, run=str(run.path), device=str(device),
            precision=str(dtype).removeprefix("torch."), trainable=optimizer.count, total=total,
            pictures=len(splits.train), validation_pictures=len(splits.validation),
            batch_size=config.train.batch_size * config.train.accumulate,
        ),
    )  # fmt: skip


def _with_class_pictures(splits: Splits, model: Model, config: RunConfig) -> Generator[Event, None, Splits]:
    """`splits` with the class pictures of prior preservation; the base model draws those that are missing."""
    data = config.data
    if not data.class_prompt:
        return splits
    folder = resolve(data.class_path) if data.class_path else _class_folder(model, config)
    if not data.class_path and distributed.primary():
        options = replace(config.sample, prompts=(data.class_prompt,), seeds=tuple(range(data.class_count)))
        missing = [seed for seed in options.seeds if not (folder / f"{seed:05d}.png").exists()]
        for picture in sample(model, options, seeds=missing):
            save_png(picture, folder / f"{picture.seed:05d}.png")
            yield Encoding(
                "class pictures", data.class_count - len(missing) + missing.index(picture.seed) + 1, data.class_count
            )
    distributed.wait()
    return replace(
        splits, train=[*splits.train, *scan_class(folder, data)[: None if data.class_path else data.class_count]]
    )


def _class_folder(model: Model, config: RunConfig) -> Path:
    """Where the class pictures of this model, prompt and way of sampling are kept."""
    asked = {k: v for k, v in vars(config.sample).items() if k not in ("prompts", "seeds", "batch_size", "strength")}
    text = json.dumps([model.source, model.fingerprint, config.data.class_prompt, asked], sort_keys=True)
    return config.data.cache_folder() / f"class-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _note_changed_pictures(splits: Splits, config: RunConfig, run: Run, step: int) -> Iterator[Event]:
    """Say which pictures or captions are no longer what this run began with, and remember them as they are now."""
    now = record(splits, resolve(config.data.path))
    if run.data_file.exists() and (text := changes(json.loads(run.data_file.read_text(encoding="utf-8")), now)):
        message = f"the pictures have changed since this run began; from here on it goes by the new ones: {text}"
        yield _log(run, Warned(message, step))
    run.write(run.data_file, as_json(now))


def _loop(ready: _Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    state, options, start = ready.state, config.train, time.time()
    initial = state.optimizer.values() if state.step < CHECK_STEP else {}
    if not state.looked:
        yield from _look(ready, config, run)
    stream = batches(
        ready.cache,
        config.data,
        batch_size=options.batch_size,
        seed=options.seed,
        start=state.step * options.accumulate,
    )
    while not _at_end(state, options):
        _agree_to_go_on()
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
            initial = {}  # a copy of all weights: let it go
        yield from _look(ready, config, run)
        if _due(state, options, options.save_every):
            path = _save(state, config, run)
            yield Saved(state.step, str(path.relative_to(run.path)), best=state.best_step == state.step)
    if text := validation.verdict([e for e in run.events() if isinstance(e, Validated)]):
        yield Noted(text, state.step)
    result = _write_final(state, config, run)
    yield Finished(
        state.step, time.time() - start, str(result.relative_to(run.path)), state.best_step,
        peak_memory_mb(state.model.device), early=state.step < options.steps,
    )  # fmt: skip


def _pictures(parts: Sequence[Batch], cache: Cache) -> str:
    """The pictures of a step by name, each once."""
    images = dict.fromkeys(cache.examples[i].image for part in parts for i in part.indices_B.tolist())
    return listed([shown(Path(image.name)) for image in images], 16)


def _look(ready: _Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    """Validation loss and previews, where this step has them."""
    state, options = ready.state, config.train
    state.train_mode(False)
    if ready.held_out is not None and options.validate_every and _due(state, options, options.validate_every):
        _agree_to_go_on()
        yield from _validate(ready, ready.held_out, config, run)
    if distributed.primary() and options.sample_every and _due(state, options, options.sample_every):
        with state.shown():
            yield from _previews(ready, config, run)
    state.looked = True


def _due(state: State, options: TrainConfig, every: int) -> bool:
    return state.step % every == 0 or _at_end(state, options)


def _at_end(state: State, options: TrainConfig) -> bool:
    """Whether the run's last step is done: the one asked for, or the one at which patience is over."""
    since = state.step - (state.best_step if state.best_step is not None else state.step)
    return state.step >= options.steps or bool(options.patience and since >= options.patience * options.validate_every)


def _validate(ready: _Ready, held_out: Batch, config: RunConfig, run: Run) -> Iterator[Event]:
    """The validation loss, and the best weights kept if it is the lowest so far."""
    state, K = ready.state, config.train.validation_timesteps
    raw = float(validation.losses(state.model, ready.objective, held_out, timesteps=K).mean()) if state.ema else None
    with state.shown():
        losses_NK = validation.losses(state.model, ready.objective, held_out, timesteps=K)
    per_picture: list[float] = sum((losses_NK / K).unbind(1)).tolist()  # type: ignore[union-attr]
    mean = sum(per_picture) / len(per_picture)
    yield Validated(state.step, mean, tuple(per_picture), tuple(losses_NK.mean(0).tolist()), raw)
    if state.step and mean < state.best_loss:
        state.best_loss, state.best_step = mean, state.step
        if not run.muted:
            with state.shown():
                weights = {"weights.safetensors": state.optimizer.values()}
            checkpoint.save(run, _record(state, config), weights, keep=config.train.keep, name="best")


def _previews(ready: _Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    for i, picture in enumerate(sample(ready.state.model, config.sample, prompts=ready.prompts)):
        path = run.samples / f"step-{ready.state.step:06d}" / f"{i:02d}.png"
        save_png(picture, path)
        yield Sampled(ready.state.step, picture.prompt, picture.seed, str(path.relative_to(run.path)))


def _did_it_train(state: State, initial: Mapping[str, Tensor]) -> Iterator[Event]:
    """Name the parts that got no gradient, or whose weights did not move."""
    still = [name for name, weight in state.optimizer.values().items() if torch.equal(weight, initial[name])]
    for names, what in ((state.without_gradient, "get no gradient (zero or not finite)"), (still, "did not move")):
        if names:
            yield Warned(
                f"did it train? {len(names)} of {len(initial)} trainable parts {what}: {', '.join(names[:3])}",
                state.step,
            )


def _record(state: State, config: RunConfig) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return {
        "step": state.step, "looked": state.looked, "best_step": state.best_step,
        "best_loss": None if math.isinf(state.best_loss) else state.best_loss,
        "method": config.method.type,
    }  # fmt: skip


def _save(state: State, config: RunConfig, run: Run) -> Path:
    if run.muted:
        return run.checkpoints
    moments, numbers = state.optimizer.state()
    with state.optimizer.evaluated():
        tensors = {"weights.safetensors": state.optimizer.values(), "optimizer.safetensors": moments}
    if state.ema:
        tensors["ema.safetensors"] = state.ema.values()
    return checkpoint.save(run, {**_record(state, config), "optimizer": numbers}, tensors, keep=config.train.keep)


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
    state.optimizer.load(weights)
    try:
        state.optimizer.load_state(moments or {}, found.state.get("optimizer", {}))
    except RunError as error:
        raise RunError(f"{found.path}: {error}; choose another name=, or delete the run folder") from None
    if state.ema and mean:
        state.ema.load(mean)
    state.step, state.looked, state.best_step = found.step, found.state["looked"], found.state["best_step"]
    state.best_loss = math.inf if found.state["best_loss"] is None else found.state["best_loss"]


def _write_final(state: State, config: RunConfig, run: Run) -> Path:
    """The finished adapter or model under `final/`, written beside and renamed."""
    if run.muted:
        return run.final
    part = run.path / ".tmp-final"
    shutil.rmtree(part, ignore_errors=True)
    best = state.best_step if config.train.result == "best" else None
    about = {
        "base": state.model.label, "family": state.model.family, "method": config.method.type, "steps": best or state.step,
        "run": config.name, "prediction": state.model.prediction, "ema": config.train.ema or 0,
    }  # fmt: skip
    with state.shown() if best is None else _best_weights(state, run):
        result = config.method.export(state.model, state.optimizer.values(), part, config.name, about)
    shutil.rmtree(run.final, ignore_errors=True)
    part.rename(run.final)
    return run.final / result.relative_to(part)


@contextmanager
def _best_weights(state: State, run: Run) -> Iterator[None]:
    """Inside, the model has the weights of the lowest validation loss."""
    own = state.optimizer.values()
    state.optimizer.load(checkpoint.read(run.checkpoints / "best").tensors(checkpoint.FILES[0]) or {})
    try:
        yield
    finally:
        state.optimizer.load(own)


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
    return next(
        (e for e in run.events() if isinstance(e, Finished) and (e.early or e.step == config.train.steps)), None
    )


def _captions(splits: Splits, count: int = 4) -> tuple[str, ...]:
    """Prompts for previews without any: captions of held-out pictures, else of the training pictures."""
    captions = dict.fromkeys(example.captions[0] for example in splits.validation or splits.train)
    return tuple(captions)[:count]
