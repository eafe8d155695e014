"""What is compared with what: prompts, held-out pictures, the base's own domain, unrelated prompts. Reads folders, draws nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sdtune.config import RunConfig
from sdtune.data import dataset
from sdtune.data.caption import decorate
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example
from sdtune.errors import DataError, EvaluationError
from sdtune.pictures import scan
from sdtune.stats import spread
from sdtune.viewing import embedded, scorer_gap

SIDES = ("base", "tuned")


@dataclass(frozen=True)
class Pair:
    """One prompt and seed, drawn by the base and by the tuned model."""

    prompt: str
    seed: int
    base: Path
    tuned: Path
    flaws: tuple[str, str] = ("", "")
    """What is wrong with each of the two as a picture (`sample.flaw_of`); usually nothing."""


@dataclass(frozen=True)
class Plan:
    """What is compared with what. Captions have the prefix and suffix of the data."""

    prompts: tuple[str, ...]
    train: tuple[Example, ...]
    reference: tuple[Example, ...]
    control: tuple[Example, ...]
    sources: dict[str, str]
    """Where prompts, reference, control and unrelated prompts come from, in words."""
    notes: tuple[str, ...]
    unrelated: tuple[str, ...] = ()
    """Prompts of what the training was not about."""


def make_plan(config: RunConfig) -> Plan:
    """Read the folders and choose the prompts. Raises DataError or EvaluationError."""
    splits = scan(config)
    held_out, source = _reference(config, splits.validation)
    control, control_source = _control(config)
    prompts, prompt_source = _prompts(config, held_out)
    notes = []
    if source.startswith("the validation pictures"):
        notes.append(
            "The held-out pictures are those of the validation loss; a folder test/ beside train/ would be cleaner."
        )
    if leaked := {e.digest for e in held_out} & {e.digest for e in splits.train}:
        raise EvaluationError(f"evaluate.reference: {len(leaked)} of its pictures are trained on; give held-out ones")
    known = {*prompts, *(caption for e in splits.train for caption in e.captions)}
    unrelated, unrelated_source = _unrelated(config, control, known)
    sources = {"prompts": prompt_source, "reference": source, "control": control_source, "unrelated": unrelated_source}
    return Plan(
        tuple(prompts), tuple(splits.train), tuple(held_out), tuple(control), sources, tuple(notes), tuple(unrelated)
    )


def _reference(config: RunConfig, validation: list[Example]) -> tuple[list[Example], str]:
    if config.evaluate.reference:
        folder = dataset.resolve(config.evaluate.reference)
        return dataset.scan_folder(folder, config.data)[0], f"evaluate.reference ({config.evaluate.reference})"
    for place in config.data.places():
        root = dataset.locate(place.path)
        for name in dataset.TEST:
            if (root / name).is_dir():
                return dataset.scan_folder(root / name, config.data, layout=place.layout)[
                    0
                ], f"the {name} pictures of {place.path}"
    if not validation:
        raise EvaluationError(
            "no held-out pictures: set evaluate.reference to a folder, or data.validation_share above 0"
        )
    return validation, f"the validation pictures of {config.data.label}"


def _control(config: RunConfig) -> tuple[list[Example], str]:
    """Pictures of the base's own domain; the embedded base brings its own. The data's prefix and suffix do not concern them."""
    plain = dataclasses.replace(config.data, caption_prefix="", caption_suffix="")
    if config.evaluate.control:
        return _any_test(config.evaluate.control, plain), f"evaluate.control ({config.evaluate.control})"
    if not embedded(config):
        return [], "none"
    try:
        return _any_test("embedded:drawings", plain), "embedded:drawings"
    except DataError:
        return [], "none"


def _any_test(path: str, config: DataConfig) -> list[Example]:
    """The test pictures of a set, or all pictures of a plain folder."""
    root = dataset.resolve(path)
    folder = next((root / name for name in dataset.TEST if (root / name).is_dir()), root)
    return dataset.scan_folder(folder, config)[0]


def _prompts(config: RunConfig, held_out: list[Example]) -> tuple[list[str], str]:
    """The distinct prompts. Those of captions are spread evenly if there are more than evaluate.max_prompts."""
    if asked := _asked(config.evaluate.prompts, "evaluate.prompts"):
        return list(dict.fromkeys(_decorated(p, config.data) for p in asked)), "evaluate.prompts"
    return spread(
        list(dict.fromkeys(e.captions[0] for e in held_out)), config.evaluate.max_prompts
    ), "captions of the held-out pictures"


def _unrelated(config: RunConfig, control: Sequence[Example], known: Collection[str]) -> tuple[list[str], str]:
    """Prompts of what the training was not about; those of the control pictures that are no training caption or prompt."""
    most = config.evaluate.max_unrelated
    if config.evaluate.unrelated is not None:
        asked = _asked(config.evaluate.unrelated, "evaluate.unrelated") or ()
        if related := sorted(set(asked) & set(known)):
            raise EvaluationError(
                f"evaluate.unrelated: {related[0]!r} is a prompt or caption of the training; take it out"
            )
        return spread(list(dict.fromkeys(asked)), most), "evaluate.unrelated" if asked else "none"
    if not control and not embedded(config) and not scorer_gap(config):
        general = (resources.files("sdtune") / "judging" / "unrelated.txt").read_text(encoding="utf-8").splitlines()
        return spread([p for p in general if p not in known], most), "a list of everyday things that comes with sdtune"
    own = dict.fromkeys(e.captions[0] for e in control if e.captions[0] and e.captions[0] not in known)
    found = spread(list(own), most)
    return found, "captions of the control pictures" if found else "none"


def _asked(prompts: tuple[str, ...] | str | None, key: str) -> tuple[str, ...] | None:
    """Prompts, or those of a text file. Raises EvaluationError."""
    if not isinstance(prompts, str):
        return prompts
    try:
        lines = Path(prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{key}: {prompts}: cannot be read as text ({type(error).__name__})") from None
    return tuple(line.strip() for line in lines if line.strip())


def _decorated(prompt: str, config: DataConfig) -> str:
    """With the prefix and suffix that the training captions have, unless it has them already."""
    prefix, suffix = config.caption_prefix.strip(), config.caption_suffix.strip()
    inner = prompt.removeprefix(prefix).removesuffix(suffix).strip(" ") if prefix or suffix else prompt
    return decorate(inner, config)
