"""Everything before the first step: the folder, the pictures, the model and its method, the state that is gone on with."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from sdtune import config as configs
from sdtune import distributed
from sdtune.config import RunConfig
from sdtune.data import owed
from sdtune.data.batch import Batch, validation_batches
from sdtune.data.cache import Cache
from sdtune.data.record import changes
from sdtune.data.sets import KnownSet
from sdtune.ema import Ema
from sdtune.encode import encoded, look
from sdtune.environment import environment
from sdtune.errors import ConfigError, RunError, SdtuneError
from sdtune.events import Encoding, Event, Finished, Noted, Started, Warned
from sdtune.files import as_json
from sdtune.memory import Swap, compute_again
from sdtune.model import Model
from sdtune.objective import Loss
from sdtune.runs import Run
from sdtune.scaling import LossScale
from sdtune.state import State, resume, take_up
from sdtune.updater import Fp32Updater, Updater

T = TypeVar("T")


@dataclass
class Ready:
    """All that the loop needs."""

    state: State
    objective: Loss
    cache: Cache
    held_out: list[Batch]
    """A batch for each frame."""
    prompts: tuple[str, ...]
    started: Started


def build(config: RunConfig, run: Run, device: torch.device, dtype: torch.dtype) -> Iterator[Event | Ready]:
    config.optimizer.check()
    if config.sample.adapters:
        raise ConfigError(
            "sample.adapters: previews show what is trained alone; leave it out here, and name them to `sdtune sample --lora`"
        )
    found = yield from take_up(run)
    known, splits = yield from look(config)
    model = config.model.load(device=device, dtype=dtype)
    model.chunks = config.data.caption_chunks
    run.write(run.environment_file, as_json(environment(device)))
    for note in known.notes:
        yield run.logged(Noted(note))
    yield from _note_changed_pictures(known, run, found.step if found else 0)
    caches = yield from _logged(encoded(known, splits, model, config), run)
    splits = None  # of a large set they take more memory than all that follows
    total = sum(p.numel() for p in model.denoiser.parameters())
    parameters = config.method.attach(model, seed=config.train.seed)
    if config.method.trains_text:
        for cache in caches:
            cache.tokenize()
    _check_words(model, caches[0])
    objective = config.objective.build(model, config.method.teacher(model) if config.objective.needs_teacher else None)
    yield from _save_memory(model, config, run, trained={name.partition(".")[0] for name in parameters})
    optimizer = _updater(config, model, parameters)
    if config.train.shard and not optimizer.sharded:
        yield run.logged(Noted("train.shard: one process alone holds everything; --devices 2 or more would split it"))
    ema = Ema(optimizer, config.train.ema) if config.train.ema and isinstance(optimizer, Fp32Updater) else None
    state = State(model, optimizer, ema, scale=LossScale() if dtype == torch.float16 else None)
    state.activations_elsewhere = config.train.offload_activations and device.type != "cpu"
    if found:
        resume(state, found)
    yield Ready(
        state, objective, caches[0], validation_batches(caches[1]),
        config.sample.prompts or _captions(caches), Started(
            step=state.step, steps=config.train.steps, run=str(run.path), device=str(device),
            precision=str(dtype).removeprefix("torch."), trainable=optimizer.count, total=total,
            pictures=caches[0].pictures, validation_pictures=caches[1].pictures,
            batch_size=config.train.batch_size * config.train.accumulate,
        ),
    )  # fmt: skip


def _logged(events: Generator[Event, None, T], run: Run) -> Generator[Event, None, T]:
    """The same events, those that tell something kept in the run's log; gives what they end with."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            value: T = end.value
            return value
        yield event if isinstance(event, Encoding) else run.logged(event)


def _updater(config: RunConfig, model: Model, parameters: Mapping[str, nn.Parameter]) -> Updater:
    if not config.train.shard or distributed.size() == 1:
        return config.optimizer.build(parameters, seed=config.train.seed)
    from sdtune.sharded import ShardedOptimizer

    return ShardedOptimizer(model.parts, parameters, config.optimizer.make, lr_scale=config.optimizer.lr_scale)


def _save_memory(model: Model, config: RunConfig, run: Run, trained: set[str]) -> Iterator[Event]:
    """What `train` says of it; a setting that has no effect here is told."""
    options, device = config.train, model.device
    if device.type == "cpu":
        for key in ("block_swap", "offload_activations"):
            if getattr(options, key):
                yield run.logged(Warned(f"train.{key}: has no effect on a CPU, whose memory is the computer's"))
    elif options.block_swap:
        Swap(model.denoiser, options.block_swap, device)
    compute_again(model, options.gradient_checkpointing, text=config.method.trains_text)
    if options.unload and device.type == "cuda":
        model.unload(keep=trained)


def _check_words(model: Model, cache: Cache) -> None:
    """Raises ConfigError for a new word that no caption has, and that would learn nothing."""
    for word in model.new_words.words if model.new_words else ():
        if not cache.has_word(word):
            raise ConfigError(
                f"method.tokens: no caption has the word {word!r}, so it would learn nothing; write it there, or set "
                f'data.caption_prefix="{word}"'
            )


def _note_changed_pictures(known: KnownSet, run: Run, step: int) -> Iterator[Event]:
    """Say which pictures or captions are no longer what this run began with, and remember them as they are now."""
    now = known.record()
    was = run.data_file.read_text(encoding="utf-8") if run.data_file.exists() else now
    if was != now and (text := changes(json.loads(was), json.loads(now))):
        message = f"the pictures have changed since this run began; from here on it goes by the new ones: {text}"
        yield run.logged(Warned(message, step))
    run.write(run.data_file, now)


def credit_page(config: RunConfig, run: Run) -> Generator[Event, None, dict[str, str]]:
    """The page of whom the pictures are owed to, by its name, if anything is known of that."""
    if run.muted or not run.data_file.exists():
        return {}
    try:
        names = json.loads(run.data_file.read_text(encoding="utf-8"))["train"]
        text = owed.page(config.data, names, config.name)
    except (SdtuneError, OSError) as error:  # the pictures may be gone by now, which is no reason to lose the weights
        yield Warned(f"no {owed.CREDITS} beside the result: {str(error).splitlines()[0]}")
        return {}
    return {owed.CREDITS: text} if text else {}


HARMLESS = {
    "train.save_every",
    "train.keep",
    "train.validate_every",
    "train.sample_every",
    "train.threads",
    "train.shard",
    "train.gradient_checkpointing",
    "train.offload_activations",
    "train.block_swap",
    "train.unload",
    "train.device",
}


def prepare_folder(config: RunConfig, run: Run) -> Iterator[Event]:
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


def finished_run(config: RunConfig, run: Run) -> Finished | None:
    """The last event of a run that is complete already."""
    if not run.final.is_dir():
        return None
    return next(
        (e for e in run.events() if isinstance(e, Finished) and (e.early or e.step == config.train.steps)), None
    )


def _captions(caches: Sequence[Cache], count: int = 4) -> tuple[str, ...]:
    """Prompts for previews without any: captions of held-out pictures, else of the training pictures."""
    cache = next((cache for cache in reversed(caches) if len(cache)), caches[0])
    captions = dict[str, None]()
    for item in range(len(cache)):
        captions[cache.captions(item)[0]] = None
        if len(captions) == count:
            break
    return tuple(captions)
