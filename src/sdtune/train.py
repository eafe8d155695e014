"""The training step and the loop. Everything that changes a weight starts in this file."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from sdtune import distributed, validation
from sdtune.config import RunConfig, TrainConfig
from sdtune.data.batch import Batch, ahead, batches
from sdtune.data.cache import Cache
from sdtune.data.layouts import listed, shown
from sdtune.devices import choose, is_out_of_memory, peak_memory_mb, set_up_cpu
from sdtune.errors import ConfigError, Diverged, SdtuneError, TrainingError
from sdtune.events import Event, Failed, Finished, Noted, Sampled, Saved, Step, Stopped, Validated, Warned
from sdtune.memory import activations_elsewhere
from sdtune.objective import Loss
from sdtune.optim.kinds import Leanable
from sdtune.prepare import Ready, build, credit_page, finished_run, prepare_folder
from sdtune.runs import ASKS, Ask, Run
from sdtune.sample import sample, save_png
from sdtune.state import State, keep_best, save, write_final

STOPS = 2**20  # more than there are processes
CHECK_STEP = 3  # by then each part of an adapter has had a gradient: B at the first step, A at the second


def train_step(
    state: State, batches: Sequence[Batch], objective: Loss, *, lr: float, max_grad_norm: float, seed: int
) -> tuple[float, float]:
    """One optimiser step over `batches`: noise, predict, weigh, backward, clip, update. Returns loss and gradient norm."""
    device, rng = state.model.device, torch.Generator().manual_seed(seed * 1_000_003 + state.step)
    total, scale = torch.zeros((), device=device), state.scale.value if state.scale else 1.0
    state.optimizer.begin(state.step, lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + state.step + (distributed.rank() << 32))  # for dropout
        for batch in batches:
            rows = distributed.rows(len(batch.latents_BCHW))
            part = batch.to(device)
            with activations_elsewhere(state.model, wanted=state.activations_elsewhere):
                loss_B = objective(state.model.denoise, part.latents_BCHW, part.cond, rng, rows, part.mask_B1HW)
            loss = (loss_B * part.weight_B[rows]).sum() / len(part.latents_BCHW) / len(batches)
            (loss * scale if state.scale else loss).backward()
            state.optimizer.collect()
            total += loss.detach()
    for gradient in state.optimizer.gradients():
        if not state.optimizer.sharded:  # else the backward pass has done it
            distributed.add_up(gradient)
        if state.scale:
            gradient /= scale
    distributed.add_up(total)
    grad_norm = state.optimizer.clip(max_grad_norm)
    values = float(total), float(grad_norm)  # the step's one wait for the device
    taken = state.scale.judge(sum(values)) if state.scale else all(map(math.isfinite, values))
    if not taken and (state.scale is None or state.scale.hopeless):
        raise Diverged(
            f"step {state.step + 1}: loss {values[0]:g}, gradient norm {values[1]:g} at learning rate {lr:g}"
            + (f", loss scale {scale:g}" if state.scale else "")
        )
    if taken and state.taken + 1 == CHECK_STEP:
        state.without_gradient = list(state.optimizer.names_without_gradient())
    state.optimizer.step() if taken else state.optimizer.drop()
    state.step, state.taken, state.looked = state.step + 1, state.taken + taken, False
    if state.ema:
        state.ema.update(state.step)
    return values


def train(config: RunConfig, run: Run) -> Iterator[Event]:
    """Train until `config.train.steps`, yielding what happens. Closing the iterator stops after the step and saves.

    A run folder that holds a part of this run is gone on with, bit by bit as if it had never stopped (CPU, fp32).
    """
    set_up_cpu(config.train.threads)
    device, dtype = choose(config.train)
    if config.train.batch_size < distributed.size():
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} pictures for {distributed.size()} processes; it counts for all together, "
            "and each needs one"
        )
    if distributed.size() > 1 and isinstance(config.optimizer, Leanable) and config.optimizer.fused_backward:
        raise ConfigError(
            "optimizer.fused_backward: there is no gradient left for several processes to add up; unset it"
        )
    run = run if distributed.primary() else replace(run, muted=True)
    with run.lock(), distributed.joined(device):
        if distributed.primary():
            yield from prepare_folder(config, run)
        distributed.wait()
        if (done := finished_run(config, run)) is not None:
            yield done
            return
        ready: Ready | None = None
        saved, finished = 0, False
        together = False  # whether all processes are at the same place, and know it
        try:
            for item in build(config, run, device, dtype):
                if not isinstance(item, Ready):
                    yield item
                    continue
                ready, saved = item, item.state.step
                yield run.logged(ready.started)
                for event in _loop(ready, config, run):
                    saved = event.step if isinstance(event, Saved) else saved
                    finished = isinstance(event, Finished)
                    yield run.logged(event)
        except _Stop:
            together = True
        except GeneratorExit:
            if ready is not None and not finished:
                together = distributed.any_of(True)  # the others stop where they ask next
            raise
        except Exception as error:
            told = _explain_memory(config) if is_out_of_memory(error) else error
            if not isinstance(told, SdtuneError):
                raise
            together = isinstance(told, Diverged)
            run.log(Failed(ready.state.step if ready else 0, str(told)))
            raise told from None
        finally:
            if ready is not None and not finished:
                _save_unsaved(ready.state, saved, together, config, run)


class _Stop(Exception):
    """Another process of this run was told to stop."""


def _agree_to_go_on(asked: Sequence[Ask] = ()) -> tuple[Ask, ...]:
    """Asked before each work that processes may share, with no event on the way to its end; last before the result is written.

    A process that was stopped at an event answers instead of what it would have asked next: so all leave at the same place.
    On the way all hear what the first of them was `asked`.
    """
    said = distributed.sum_of(sum(STOPS << ASKS.index(what) for what in asked))
    if said % STOPS:
        raise _Stop
    return tuple(what for i, what in enumerate(ASKS) if said & STOPS << i)


def _save_unsaved(state: State, saved: int, together: bool, config: RunConfig, run: Run) -> None:
    """Save what was trained since step `saved`. If the processes hold parts, they can only do that together."""
    if saved < state.step and state.optimizer.whole and (together or not state.optimizer.sharded):
        save(state, config, run)
        run.log(Stopped(state.step))
    if together:
        distributed.wait()  # one that ends earlier would take the one that writes with it


def _explain_memory(config: RunConfig) -> TrainingError:
    remedies = ["halve train.batch_size and double train.accumulate"]
    remedies += [] if config.train.gradient_checkpointing else ["train.gradient_checkpointing=true"]
    splits = distributed.size() > 1 and not config.train.shard and getattr(config.method, "trains_all", False)
    remedies += ["train.shard=true"] if splits else []
    remedies += [config.method.lighter]
    return TrainingError(f"out of memory with batches of {config.train.batch_size}; try: {'; or '.join(remedies)}")


def _loop(ready: Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    state, options, start = ready.state, config.train, time.time()
    initial = mean = state.optimizer.held() if state.step < CHECK_STEP else {}
    if initial and state.ema and state.step:
        mean = state.ema.held()  # at step 0 it is the weights
    if not state.looked:
        yield from _look(ready, config, run)
    made = batches(
        ready.cache,
        config.data,
        batch_size=options.batch_size,
        seed=options.seed,
        start=state.step * options.accumulate,
    )
    with closing(ahead(made, 2 * options.accumulate)) as stream:
        yield from _steps(stream, ready, config, run, initial, mean)
    if text := validation.verdict([e for e in run.events() if isinstance(e, Validated)]):
        yield Noted(text, state.step)
    _agree_to_go_on()
    run.take_asks()  # too late: all is drawn and saved
    result = write_final(state, config, run, (yield from credit_page(config, run)))
    yield Finished(
        state.step, time.time() - start, str(result.relative_to(run.path)), state.best_step,
        peak_memory_mb(state.model.device), early=state.step < options.steps,
    )  # fmt: skip


def _steps(
    stream: Iterator[Batch],
    ready: Ready,
    config: RunConfig,
    run: Run,
    initial: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
) -> Iterator[Event]:
    """Step after step, with what is due after each. `initial` and `mean` are what `_did_it_train` compares with."""
    state, options = ready.state, config.train
    while not _at_end(state, options):
        if asked := _agree_to_go_on(run.take_asks()):
            yield from _obey(asked, ready, config, run)
            continue
        began = time.time()
        lr = config.optimizer.lr_at(state.step, options.steps)
        state.train_mode(True)
        parts = list(islice(stream, options.accumulate))
        waited = time.time() - began
        try:
            loss, grad_norm = train_step(
                state, parts, ready.objective, lr=lr, max_grad_norm=options.max_grad_norm, seed=options.seed
            )
        except Diverged as error:
            raise Diverged(f"{error}; its pictures: {_pictures(parts, ready.cache)}") from None
        seconds = time.time() - began
        dead = list(_did_it_train(state, initial, mean)) if initial and state.taken == CHECK_STEP else []
        if state.taken >= CHECK_STEP:
            initial = mean = {}  # copies of all weights: let them go
        if math.isfinite(loss + grad_norm):
            yield Step(state.step, loss, grad_norm, lr, seconds, waited)
        elif state.scale:
            message = f"the gradient is too large for fp16: step given up, loss scale halved to {state.scale.value:g}"
            yield Warned(message, state.step)
        yield from dead
        yield from _look(ready, config, run)
        if _due(state, options, options.save_every):
            _agree_to_go_on()
            path = save(state, config, run)
            yield Saved(state.step, str(path.relative_to(run.path)), best=state.best_step == state.step)


def _pictures(parts: Sequence[Batch], cache: Cache) -> str:
    """The pictures of a step by name, each once."""
    names = dict.fromkeys(cache.name(item) for part in parts for item in part.indices_B.tolist())
    return listed([shown(Path(name)) for name in names], 16)


def _obey(asked: Sequence[Ask], ready: Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    """Between two steps: what was asked from outside and is not done yet. It changes nothing of the steps to come."""
    state, options = ready.state, config.train
    if "save" in asked and not (state.step and _due(state, options, options.save_every)):
        path = save(state, config, run)
        yield Saved(state.step, str(path.relative_to(run.path)), best=state.best_step == state.step)
    if "sample" in asked and not (options.sample_every and _due(state, options, options.sample_every)):
        state.train_mode(False)
        with state.shown():
            yield from _previews(ready, config, run)


def _look(ready: Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    """Validation loss and previews, where this step has them."""
    state, options = ready.state, config.train
    state.train_mode(False)
    if ready.held_out and options.validate_every and _due(state, options, options.validate_every):
        _agree_to_go_on()
        yield _validate(ready, ready.held_out, config, run)
    if options.sample_every and _due(state, options, options.sample_every):
        with state.shown():
            yield from _previews(ready, config, run)
    state.looked = True


def _due(state: State, options: TrainConfig, every: int) -> bool:
    return state.step % every == 0 or _at_end(state, options)


def _at_end(state: State, options: TrainConfig) -> bool:
    """Whether the run's last step is done: the one asked for, or the one at which patience is over."""
    since = state.step - (state.best_step if state.best_step is not None else state.step)
    return state.step >= options.steps or bool(options.patience and since >= options.patience * options.validate_every)


def _validate(ready: Ready, held_out: Sequence[Batch], config: RunConfig, run: Run) -> Validated:
    """The validation loss, with the best weights kept if it is the lowest so far."""
    state, K = ready.state, config.train.validation_timesteps
    raw = float(validation.of_all(state.model, ready.objective, held_out, timesteps=K).mean()) if state.ema else None
    with state.shown():
        losses_NK = validation.of_all(state.model, ready.objective, held_out, timesteps=K)
    found = validation.event(state.step, losses_NK, validation.fixed_timesteps(ready.objective, K), raw)
    if state.step and found.loss < state.best_loss:
        state.best_loss, state.best_step = found.loss, state.step
        keep_best(state, config, run)
    return found


def _previews(ready: Ready, config: RunConfig, run: Run) -> Iterator[Event]:
    """Pictures of the first process; of a model that is split, all draw the same ones with it."""
    draws = distributed.primary() or ready.state.optimizer.sharded
    pictures = sample(ready.state.model, config.sample, prompts=ready.prompts) if draws else None
    for i in range(len(ready.prompts) * len(config.sample.seeds)):
        _agree_to_go_on()
        if pictures is None:
            continue
        picture = next(pictures)
        path = run.samples / f"step-{ready.state.step:06d}" / f"{i:02d}.png"
        if not run.muted:
            save_png(picture, path)
        yield Sampled(ready.state.step, picture.prompt, picture.seed, str(path.relative_to(run.path)))
        if picture.flaw:
            yield Warned(f"preview of {picture.prompt!r}, seed {picture.seed}: {picture.flaw}", ready.state.step)


def _did_it_train(state: State, initial: Mapping[str, Tensor], mean: Mapping[str, Tensor]) -> Iterator[Event]:
    """Name the parts that got no gradient, whose weights did not move, or whose moving average did not follow them.

    `initial` and `mean` are the weights and their average before the first step of this sitting.
    """
    still = _unmoved(state.optimizer.held(), initial)
    behind = [name for name in _unmoved(state.ema.held() if state.ema else {}, mean) if name not in still]
    for names, what in (
        (state.without_gradient, "get no gradient (zero or not finite)"),
        (still, "did not move"),
        (behind, "move, but their moving average (train.ema) does not"),
    ):
        if names:
            which = _by_part(names, list(initial))
            yield Warned(f"did it train? {len(names)} of {len(initial)} trainable parts {what}: {which}", state.step)


def _unmoved(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[str]:
    """The names of what is as it was, in every process that holds something of it."""
    if not now:
        return []
    moved_N = torch.tensor([int(not torch.equal(value, before[name])) for name, value in now.items()])
    distributed.add_up(moved_N)
    return [name for name, moved in zip(now, moved_N.tolist(), strict=True) if not moved]


def _by_part(names: Sequence[str], known: Sequence[str]) -> str:
    """The parts of the model (U-Net, a text encoder) that `names` make up wholly, and the first few names of others."""
    total, dead = (Counter(name.partition(".")[0] for name in some) for some in (known, names))
    whole = [part for part in dead if dead[part] == total[part]]
    rest = [name for name in names if name.partition(".")[0] not in whole]
    return ", ".join([*(f"all {dead[part]} of {part}" for part in whole), *rest[:3]])
