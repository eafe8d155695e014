"""From the pictures of a recipe to its filled caches, as `sdtune data encode` and every training begin."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from sdtune import distributed
from sdtune.config import OF_PICTURES, SAME_PICTURES, RunConfig
from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example, Reading, Splits, resolve, scan_class
from sdtune.data.layouts import plural
from sdtune.data.sets import KnownSet
from sdtune.devices import choose, set_up_cpu
from sdtune.errors import ConfigError, DataError
from sdtune.events import LISTING, LOOKING, Encoded, Encoding, Event, Noted, Warned
from sdtune.files import free_bytes
from sdtune.model import Model
from sdtune.original import size_of
from sdtune.pictures import scanning
from sdtune.sample import sample, save_png

TOLD_BYTES = 2**28
"""What is to be encoded is announced if it takes more than that."""
TOLD_S = 0.3
"""How often it is told how many pictures are looked at."""


def encode(config: RunConfig, *, verify: bool = False, dry_run: bool = False) -> Generator[Event, None, None]:
    """Fill the caches of `config`, so that a training begins at once. Each of several processes encodes a share.

    `verify` also reads all that is there already; damaged entries are encoded again. `dry_run` only says what is to be done, and
    looks no closer than that. Raises ConfigError for both at once.
    """
    if verify and dry_run:
        raise ConfigError("--verify: has no effect with --dry-run, which changes nothing; leave one of them out")
    set_up_cpu(config.train.threads)
    device, dtype = choose(config.train)
    began = time.monotonic()
    with distributed.joined(device):
        known, splits = yield from look(config)
        yield from (Noted(note) for note in known.notes)
        model = config.model.load(device=device, dtype=dtype)
        model.chunks = config.data.caption_chunks
        if dry_run:
            splits = splits or (yield from _look_at_pictures(config))
            drawn = yield from _to_be_drawn(model, config)
            missing = _missing(_opened(splits, drawn, model, config.data))
            yield Noted(to_do(missing, config.data) or "all is encoded already")
            return
        caches = yield from encoded(known, splits, model, config, verify=verify)
        yield Encoded(caches[0].pictures, caches[1].pictures, str(config.data.cache_folder()), time.monotonic() - began)


def look(config: RunConfig) -> Generator[Event, None, tuple[KnownSet, Splits | None]]:
    """What is known of the set; and what a scan gives, if there had to be one. Raises DataError that lists all that is wrong.

    The first process scans before the others, which then find what it has found out about the files.
    """
    known = KnownSet(
        config.data, config.train.seed, read_by=json.dumps(vars(config.model), default=str, sort_keys=True)
    )
    if not distributed.any_of(not known.scanned):  # asked before one of them remembers what it finds
        return known, None
    return known, (yield from _scan(known, config))


def _scan(known: KnownSet, config: RunConfig) -> Generator[Event, None, Splits]:
    if not distributed.primary():
        distributed.wait()
    splits = yield from _look_at_pictures(config)
    known.remember(splits)
    if distributed.primary():
        distributed.wait()
    return splits


def _look_at_pictures(config: RunConfig) -> Generator[Event, None, Splits]:
    """Those of the sources, and the class pictures that are given."""
    splits, data = (yield from _told(scanning(config))), config.data
    if not data.class_prompt or not data.class_path:
        return splits
    examples, notes = scan_class(resolve(data.class_path), data)
    told = [f"class pictures: {note}" for note in notes]
    return replace(splits, train=[*splits.train, *examples], notes=[*splits.notes, *told])


def _told(reading: Reading[Splits]) -> Generator[Event, None, Splits]:
    """How far it is, a few times a second."""
    last = time.monotonic()
    while True:
        try:
            done, total = next(reading)
        except StopIteration as end:
            splits: Splits = end.value
            return splits
        if time.monotonic() - last > TOLD_S:
            yield Encoding(LOOKING if total else LISTING, done, total)
            last = time.monotonic()


def encoded(
    known: KnownSet, splits: Splits | None, model: Model, config: RunConfig, *, verify: bool = False
) -> Generator[Event, None, tuple[Cache, Cache]]:
    """The filled caches of training and validation: as they were, or encoded now. `splits`: what a scan found, if there was one.

    With `verify` all that is there is read and checked. Raises DataError where the disk has no room for what is to be encoded.
    """
    class_pictures = yield from _class_pictures(model, config)
    caches = None if verify else known.caches(model, class_pictures)
    if not distributed.any_of(caches is None):
        assert caches
        yield from (Warned(note) for cache in caches for note in cache.notes)
        return caches
    splits, data = splits or (yield from _look_at_pictures(config)), config.data
    # of pictures of our own the notes say nothing new
    drawn = [example for folder in class_pictures for example in scan_class(folder, data)[0][: data.class_count]]
    caches = _opened(splits, drawn, model, data)
    if text := _room(caches, data):
        yield Noted(text)
    for cache, what in zip(caches, ("", "validation "), strict=True):
        for name, done, total in cache.fill(verify=verify):
            yield Encoding(what + name, done, total)
        yield from (Warned(note) for note in cache.notes)
        cache.let_go()
    if distributed.primary():
        known.keep(caches, model, class_pictures)
    return caches


def _opened(splits: Splits, drawn: Sequence[Example], model: Model, data: DataConfig) -> tuple[Cache, Cache]:
    train, validation = [*splits.train, *drawn], splits.validation
    return Cache.open(train, model, data), Cache.open(validation, model, data, augment=False)


def to_do(missing: Missing, data: DataConfig) -> str:
    """What is to be encoded, and the room for it; "" if nothing is."""
    counts, needed = missing
    if not needed:
        return ""
    listed = ", ".join(plural(count, what) for what, count in counts.items())
    return f"to be encoded: {listed}; {_size(needed)}, of {_size(free_bytes(data.cache_folder()))} free in {data.cache_folder()}"


def _room(caches: Sequence[Cache], data: DataConfig) -> str:
    """What to say before much is encoded, or "". Raises DataError if there is no room for it."""
    _, needed = missing = _missing(caches)
    if needed > (free := free_bytes(data.cache_folder())):
        remedy = "" if data.cache_dtype == "fp16" else ', or data.cache_dtype="fp16", which halves it'
        raise DataError(
            f"{data.cache_folder()}: {_size(needed)} needed for the encoded pictures and captions, {_size(free)} free; "
            f"make room, or set data.cache to another disk{remedy}"
        )
    return to_do(missing, data) if needed > TOLD_BYTES else ""


Missing = tuple[dict[str, int], int]
"""How many of each kind are to be encoded, and the bytes that all of it takes."""


def _missing(caches: Sequence[Cache]) -> Missing:
    counts, needed = dict[str, int](), 0
    for cache in caches:
        for what, count, size in cache.missing():
            counts[what] = counts.get(what, 0) + count
            needed += count * size
    return counts, needed


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _class_pictures(model: Model, config: RunConfig) -> Generator[Event, None, tuple[Path, ...]]:
    """The folder of the class pictures that the base model draws for prior preservation, if it does; those that are missing are drawn."""
    data = config.data
    if not data.class_prompt or data.class_path:
        return ()
    folder = _class_folder(model, config)
    if distributed.primary():
        options = replace(
            config.sample.from_prompts, prompts=(data.class_prompt,), seeds=tuple(range(data.class_count))
        )
        missing = [seed for seed in options.seeds if not (folder / f"{seed:05d}.png").exists()]
        for picture in sample(model, options, seeds=missing):
            save_png(picture, folder / f"{picture.seed:05d}.png")
            if picture.flaw:
                yield Warned(f"class picture {folder / f'{picture.seed:05d}.png'}: {picture.flaw}")
            yield Encoding(
                "class pictures", data.class_count - len(missing) + missing.index(picture.seed) + 1, data.class_count
            )
    distributed.wait()
    return (folder,)


def _to_be_drawn(model: Model, config: RunConfig) -> Generator[Event, None, list[Example]]:
    """What `_class_pictures` would give, without drawing: those that are there, and what the others will be as far as it is known."""
    data = config.data
    if not data.class_prompt or data.class_path:
        return []
    folder, size = _class_folder(model, config), size_of(config.sample.from_prompts, model)
    there = scan_class(folder, data)[0][: data.class_count] if any(folder.glob("*.png")) else []
    missing = [f"{i:05d}.png" for i in range(data.class_count) if not (folder / f"{i:05d}.png").exists()]
    if missing:
        yield Noted(f"to be drawn by the base: {plural(len(missing), 'class picture')} ({data.class_prompt!r})")
    return there + [
        Example(folder / name, (data.class_prompt,), size, digest=f"{folder.name}/{name}", group=1) for name in missing
    ]


def _class_folder(model: Model, config: RunConfig) -> Path:
    """Where the class pictures of this model, prompt and way of sampling are kept."""
    passed = ("prompts", "seeds", "strength", *SAME_PICTURES, *OF_PICTURES)
    asked = {k: v for k, v in vars(config.sample).items() if k not in passed}
    chunks = [model.chunks] if model.chunks > 1 else []
    text = json.dumps([model.source, model.fingerprint, config.data.class_prompt, asked, *chunks], sort_keys=True)
    return config.data.cache_folder() / f"class-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
