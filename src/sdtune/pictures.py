"""The pictures of a recipe, looked at with what its model reads: before training, before a comparison, and by the doctors. Loads no
weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdtune.config import RunConfig
from sdtune.data import dataset
from sdtune.data.check.findings import Fit
from sdtune.data.dataset import Progress, Splits, Survey, read_through
from sdtune.data.frames import resolutions
from sdtune.errors import ModelError
from sdtune.families import settings


@dataclass(frozen=True)
class Reading:
    """What the model of a recipe reads, as far as its settings say."""

    fit: Fit
    unknown: str = ""
    """Why captions cannot be counted, or sizes not be judged."""


def reading(config: RunConfig) -> Reading:
    """Side and tokenizer of the model. What cannot be found out is said, and left to loading the model."""
    try:
        folder = settings.folder_of(config.model)
        usual, words = settings.resolution(folder), settings.words(folder, config.data.caption_chunks)
    except ModelError as error:
        return Reading(Fit(tuple(resolutions(config.data, 0)) if config.data.resolution else ()), str(error))
    if usual is None and config.data.resolution is None:
        why = f"{config.model.path}: its settings name no size; set data.resolution"
        return Reading(Fit(tokens=words), why)
    return Reading(Fit(tuple(resolutions(config.data, usual or 0)), settings.grid(folder), words))


def scan(config: RunConfig) -> Splits:
    """See `dataset.scan`."""
    return read_through(scanning(config))


def scanning(config: RunConfig) -> dataset.Reading[Splits]:
    """See `dataset.scanning`."""
    known, on = reading(config), config.data.on
    splits = yield from dataset.scanning(config.data, seed=config.train.seed, fit=known.fit)
    if known.unknown and {on.tiny, on.enlarged, on.long_caption} & {"fail", "skip"}:
        splits.notes.append(f"what data.on says of sizes or long captions cannot be obeyed: {known.unknown}")
    return splits


def survey(config: RunConfig, reading: Reading, progress: Progress | None = None, *, quick: bool = False) -> Survey:
    """See `dataset.survey`."""
    return dataset.survey(config.data, seed=config.train.seed, fit=reading.fit, quick=quick, progress=progress)


def trigger_words(config: RunConfig, more: Sequence[str] = ()) -> list[str]:
    """What each caption should have: the prefix, the method's new words, and `more`."""
    words = [config.data.caption_prefix.strip(), *getattr(config.method, "tokens", {}), *more]
    return list(dict.fromkeys(filter(None, words)))
