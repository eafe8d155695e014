"""Configs from clients: the keys that hold a place or code take ids or are refused, all others are the config's own. Imports no torch."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.errors import ConfigError
from sdtune.schema import Section
from sdtune.serve.errors import ApiError
from sdtune.serve.limits import Limits
from sdtune.serve.registry import Entry, Registry
from sdtune.serve.scrub import Scrub
from sdtune.serve.sets import Sets

Rule = Literal["model", "set", "list", "refused"]
PLACES: dict[str, Rule] = {
    "plugins": "refused",
    "model.path": "model",
    "model.config": "refused",
    "model.revision": "refused",
    "model.variant": "refused",
    "model.download": "refused",
    "data.path": "set",
    "data.sources.path": "set",
    "data.roots": "refused",
    "data.validation": "set",
    "data.mask_path": "set",
    "data.class_path": "set",
    "data.cache": "refused",
    "data.download": "refused",
    "sample.adapters": "refused",
    "sample.image": "refused",
    "sample.mask": "refused",
    "sample.guide.clip": "refused",
    "sample.guide.download": "refused",
    "evaluate.prompts": "list",
    "evaluate.reference": "set",
    "evaluate.control": "set",
    "evaluate.unrelated": "list",
}
"""Keys that hold a path, an address, a Hub id or code, or let something be fetched. model: an original's id; set: a dataset's id;
list: texts themselves, not the name of a file of texts; refused: nothing but what it is when it is left out."""
WORDS = frozenset(
    {
        "name", "data.caption_column", "data.background", "data.caption_prefix", "data.caption_suffix", "data.class_prompt",
        "method.tokens", "method.targets", "method.text_targets", "method.rank_pattern", "method.alpha_pattern", "optimizer.lr_scale",
        "sample.prompts", "sample.negative", "sample.guide.colour", "sample.guide.text",
    }
)  # fmt: skip
"""Keys whose text is never taken for a place."""
WHY = {
    "plugins": "are code, which a request cannot bring; name them on the server's command line",
    "data.roots": "are folders of the server; its command line names the datasets",
    "data.cache": "is a folder of the server, which chooses it",
}
SHIPPED = {"type": "sd1", "path": "embedded"}
MOST: dict[str, float] = {
    "train.steps": 10_000_000, "train.batch_size": 4096, "train.accumulate": 4096, "train.keep": 1000, "train.threads": 1024,
    "train.validation_timesteps": 1000, "method.rank": 4096, "method.token_vectors": 75, "data.sources.repeats": 100_000,
    "data.crops": 64, "data.jitters": 64, "data.holes": 64, "data.caption_variants": 64, "data.class_count": 10_000,
    "data.caption_chunks": 16, "sample.batch_size": 64, "evaluate.max_prompts": 1000, "evaluate.max_unrelated": 1000,
    "evaluate.draws": 100_000,
}  # fmt: skip
"""The most of what takes memory or time, beside `Limits`."""
DEPTH = 6
ITEMS = 1000
"""Of a list or table."""


@dataclasses.dataclass(frozen=True)
class Known:
    """What ids stand for."""

    registry: Registry
    sets: Sets
    limits: Limits

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The recipe's [model] of each original, by id."""
        found = {e.id: json.loads(e.model) for e in self.registry.entries.values() if e.kind == "original"}
        return found if "embedded" in found else {**found, "embedded": dict(SHIPPED)}

    def scrub(self, runs: Path) -> Scrub:
        models = {
            name: Path(m["path"]).expanduser()
            for name, m in self.models.items()
            if Path(m["path"]).expanduser().is_dir()
        }
        return Scrub({**models, **{s.id: s.folder for s in self.sets.all() if not s.shipped}, "runs": runs})


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body. Raises ApiError."""

    def refused(text: str) -> Any:
        raise ValueError(text)

    try:
        found = json.loads(body, parse_constant=refused)
    except (ValueError, RecursionError):
        raise ApiError(400, "invalid_json", "the body is not valid JSON") from None
    if not isinstance(found, dict):
        raise ApiError(422, "invalid", "the body is no JSON object")
    return found


def read(posted: Mapping[str, Any], known: Known) -> RunConfig:
    """A posted config with its ids resolved, checked wholly. Raises ApiError."""
    if not isinstance(posted, Mapping):
        raise ApiError(422, "invalid", "config: is no JSON object", field="config")
    _check_values("", posted, known.limits)
    data = copy.deepcopy(dict(posted))
    data["model"] = _model(data.get("model", {}), known)
    for key, holder, leaf in _leaves(data, ""):
        _resolve(key, holder, leaf, known)
        _check_size(key, holder[leaf], known.limits)
    try:
        config = configs.from_dict(data)
    except ConfigError as error:
        line = str(error).splitlines()[0]
        field = line.partition(":")[0]
        said = known.scrub(Path())(line)[:400]
        raise ApiError(422, "invalid", said, field=field if re.fullmatch(r"[a-z_.]+", field) else "config") from None
    _check_drawings(config, known.limits)
    return config


def back(config: Mapping[str, Any], known: Known) -> tuple[dict[str, Any], list[str]]:
    """A recipe's or run's settings as a client posts them; and the keys that were left out, since what they name has no id here."""
    out, lost = copy.deepcopy(dict(config)), list[str]()
    model = out.pop("model", {})
    path = model.get("path", "embedded" if model.get("type", "sd1") == "sd1" else None)
    same = [
        i for i, m in known.models.items() if m["path"] == path and m.get("type", "sd1") == model.get("type", "sd1")
    ]
    kept = {k: v for k, v in model.items() if v is not None and (k == "type" or f"model.{k}" not in PLACES)}
    out["model"] = {**kept, **({"path": same[0]} if same else {})}
    lost += [] if same else ["model.path"]
    places = {s.place: s.id for s in known.sets.all()} | {str(s.folder): s.id for s in known.sets.all()}
    for key, holder, leaf in list(_leaves(out, "")):
        rule, value = PLACES.get(key), holder[leaf]
        if key == "model.path" or rule is None or value in (None, (), [], False):
            continue
        if (
            rule == "set"
            and isinstance(value, str)
            and (name := places.get(str(Path(value).expanduser())) or places.get(value))
        ):
            holder[leaf] = name
        elif rule != "list" or isinstance(value, str):
            del holder[leaf]
            lost.append(key)
    if "data.sources.path" in lost:
        out["data"].pop("sources")
    return {k: v for k, v in _plain(out).items() if v is not None}, lost


def schema(known: Known) -> dict[str, Any]:
    """The JSON schema of a posted config: without what is refused, ids as enums."""
    found = copy.deepcopy(configs.json_schema())
    where = {cls.__name__: prefix for prefix, cls in sections(RunConfig)}
    ids = {"model": sorted(known.models), "set": [s.id for s in known.sets.all()]}
    for name, part in [("RunConfig", found), *found.get("$defs", {}).items()]:
        prefix = where.get(name)
        if prefix is None:
            continue
        for leaf, about in list(part.get("properties", {}).items()):
            rule = PLACES.get(f"{prefix}{leaf}")
            if rule == "refused":
                del part["properties"][leaf]
            elif rule in ("model", "set"):
                _name_ids(about, ids[rule], optional="anyOf" in about)
            elif rule == "list":
                about["anyOf"] = [kind for kind in about.get("anyOf", []) if kind.get("type") != "string"]
    return found


def _name_ids(about: dict[str, Any], ids: Sequence[str], *, optional: bool) -> None:
    about.pop("anyOf", None)
    if about.get("default") not in ids:
        about.pop("default", None)
    choice = {"type": "string", "enum": list(ids)}
    about.update({"anyOf": [choice, {"type": "null"}], "default": None} if optional else choice)


# ---- the keys of a config


def sections(cls: type[Section] = RunConfig, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Each class of a config with what its keys begin with: ("data.sources.", Source)."""
    yield prefix, cls
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # every section is a dataclass
        for inner in _classes(hints[field.name]):
            yield from sections(inner, f"{prefix}{field.name}.")


def _classes(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _classes(part)


def _leaves(data: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each key as it is called in PLACES, with the table that has it and its name there. Keys of unknown tables are left to the config."""
    groups = {key.rpartition(".")[0] for key, _ in _NAMES}
    for leaf, value in list(data.items()):
        key = f"{prefix}{leaf}"
        yield key, data, leaf
        inner = value if leaf in data else None
        if key in groups and isinstance(inner, dict):
            yield from _leaves(inner, f"{key}.")
        elif key in groups and isinstance(inner, list | tuple):
            for part in inner:
                if isinstance(part, dict):
                    yield from _leaves(part, f"{key}.")


def names() -> list[tuple[str, Any]]:
    """All keys of a config with their types, whatever the kinds of their sections."""
    return [
        (f"{prefix}{field.name}", typing.get_type_hints(cls, include_extras=True)[field.name])
        for prefix, cls in sections(RunConfig)
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    ]


_NAMES = names()


# ---- what is refused


def _model(given: Any, known: Known) -> dict[str, Any]:
    """The recipe's [model] of the id that is given. Raises ApiError."""
    if not isinstance(given, dict):
        raise ApiError(422, "invalid", "model: is no table of keys", field="model")
    name = given.get("path")
    if name is None and given.get("type", "sd1") == "sd1":
        name = "embedded"
    if not isinstance(name, str) or name not in known.models:
        entry: Entry | None = known.registry.get(name) if isinstance(name, str) else None
        if entry:
            raise ApiError(422, "invalid", f"model.path: {entry.id} is tuned; name an original", field="model.path")
        raise ApiError(404, "not_found", "no such model; GET /api/models lists them", field="model.path")
    own = known.models[name]
    if given.get("type", own["type"]) != own["type"]:
        raise ApiError(422, "invalid", f"model.type: {name} is of type {own['type']}", field="model.type")
    for leaf in given:
        if PLACES.get(f"model.{leaf}") == "refused" and given[leaf] not in (None, False):
            raise ApiError(
                422, "invalid", f"model.{leaf}: goes with the model, and cannot be set", field=f"model.{leaf}"
            )
    mine = {k: v for k, v in given.items() if f"model.{k}" not in PLACES}
    return {**{k: v for k, v in own.items() if v is not None}, **mine}


def _resolve(key: str, holder: dict[str, Any], leaf: str, known: Known) -> None:
    rule, value = PLACES.get(key), holder[leaf]
    if rule is None or key.startswith("model.") or value is None:
        return
    if rule == "refused" and value not in ([], (), False):
        why = WHY.get(key, "names a place that a request cannot name; leave it out")
        raise ApiError(422, "invalid", f"{key}: {why}", field=key)
    if rule == "list" and isinstance(value, str):
        raise ApiError(422, "invalid", f"{key}: a list of texts, please; a file cannot be named here", field=key)
    if rule == "set":
        found = known.sets.get(value) if isinstance(value, str) else None
        if found is None:
            raise ApiError(404, "not_found", "no such dataset; GET /api/datasets lists them", field=key)
        holder[leaf] = found.place


def _check_values(key: str, value: Any, limits: Limits, depth: int = 0) -> None:
    """Texts, lists and tables of a size that a person could have written; numbers that are numbers."""
    if depth > DEPTH:
        raise _too_much(key, f"more than {DEPTH} tables in each other")
    if isinstance(value, str) and (
        len(value) > limits.text or any("\ud800" <= c <= "\udfff" or c == "\0" for c in value)
    ):
        raise _too_much(key, f"more than {limits.text} characters, or half characters or NUL")
    if isinstance(value, float) and not math.isfinite(value):
        raise _too_much(key, "not a number")
    if isinstance(value, int) and abs(value) > 2**63:
        raise _too_much(key, "more than 64 bits")
    if isinstance(value, Mapping | list | tuple):
        if len(value) > ITEMS:
            raise _too_much(key, f"more than {ITEMS} entries")
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            if not isinstance(value, Mapping):
                _check_values(key, inner, limits, depth + 1)
                continue
            if not isinstance(name, str) or len(name) > 200:
                raise _too_much(key, "a key that is no text or too long")
            _check_values(f"{key}.{name}" if key else name, inner, limits, depth + 1)


def _check_size(key: str, value: Any, limits: Limits) -> None:
    sides = ("data.resolution", "sample.width", "sample.height")
    most = limits.side if key in sides else limits.steps if key == "sample.steps" else MOST.get(key)
    for number in value if isinstance(value, list) else [value]:
        if most is not None and isinstance(number, int | float) and number > most:
            raise ApiError(422, "invalid", f"{key}: {number} is more than {most:g}", field=key)


def _check_drawings(config: RunConfig, limits: Limits) -> None:
    """Previews are few, and not larger than other pictures."""
    drawn, most = max(1, len(config.sample.prompts)) * len(config.sample.seeds), 16 * limits.seeds
    if drawn > most:
        raise ApiError(
            422, "invalid", f"sample.seeds: {drawn} previews each time are more than {most}", field="sample.seeds"
        )
    if (config.sample.width or 0) * (config.sample.height or 0) > limits.pixels:
        raise ApiError(
            422,
            "invalid",
            f"sample.width, sample.height: together more than {limits.pixels} pixels",
            field="sample.width",
        )


def _too_much(key: str, what: str) -> ApiError:
    return ApiError(422, "invalid", f"{key[:100] or 'config'}: {what}", field=key[:100])


def _plain(value: Any) -> Any:
    """As JSON has it: tuples as lists, unset keys left out."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
