"""What is asked for: prompts with settings of their own from files, wildcards as a matrix, and axes over settings. Imports no torch."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sdtune import config as configs
from sdtune.config import RunConfig, SampleConfig
from sdtune.data.wildcards import balanced
from sdtune.errors import ConfigError

MOST = 1000
"""Pictures of a matrix or grid, unless more are allowed: a wildcard too many multiplies them."""
AXES = 3
OPTIONS = {"n": "negative", "w": "width", "h": "height", "d": "seed", "l": "guidance", "s": "steps"}
"""What kohya's scripts write behind a prompt: --w 512."""
NAMES = {
    "negative_prompt": "negative", "seed": "seeds", "scale": "guidance", "cfg_scale": "guidance", "guidance_scale": "guidance",
    "sample_steps": "steps", "num_inference_steps": "steps", "sampler": "scheduler", "text": "prompt",
}  # fmt: skip
"""Other tools' names of our keys."""
_OPTION = re.compile(r"(?:^|\s)--([A-Za-z]+)(?:\s+|$)")
_INNERMOST = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Ask:
    """A prompt, and what of `sample` is set for it alone."""

    prompt: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """By the names of its keys: "steps", "guide.strength"."""
    where: str = ""
    """File and line, for messages."""
    number: int = 0
    """Which of the prompts that were given it comes from."""
    cell: tuple[str, ...] = ()
    """Its place in a grid: what each axis says there."""

    def config(self, run: RunConfig) -> SampleConfig:
        """How it is drawn. Raises ConfigError."""
        if not self.changes:
            return run.sample
        data = configs.to_dict(run)
        for key, value in self.changes.items():
            configs.put(data, f"sample.{key}", value)
        try:
            return configs.from_dict(data).sample
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}" if self.where else str(error)) from None


# ---- files


def read(path: Path) -> list[Ask]:
    """The prompts in a file: lines of text, or rows of JSONL, JSON, CSV or TOML with settings of their own. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    readers: dict[str, Callable[[str], Iterator[tuple[str, Any]]]] = {
        ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".toml": _toml
    }  # fmt: skip
    try:
        rows = list(readers.get(path.suffix.lower(), _lines)(text))
        asks = [_ask(row, f"{path}, {where}") for where, row in rows]
    except (ValueError, csv.Error) as error:
        raise ConfigError(str(error) if isinstance(error, ConfigError) else f"{path}: {error}") from None
    if not asks:
        raise ConfigError(f"{path}: holds no prompt; write one on each line")
    return [replace(ask, number=i) for i, ask in enumerate(asks)]


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    """A prompt a line, kohya's options behind it; what begins with # is a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        prompt, *options = _OPTION.split(line)
        row: dict[str, Any] = {"prompt": prompt.strip()}
        for name, value in zip(options[::2], options[1::2], strict=True):
            if name not in OPTIONS:
                known = ", ".join(f"--{short} ({long})" for short, long in OPTIONS.items())
                raise ValueError(f"line {number}: --{name} is not known behind a prompt; known: {known}")
            row[OPTIONS[name]] = value.strip()
        yield f"line {number}", row


def _jsonl(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: not JSON: {error.msg}") from None


def _json(text: str) -> Iterator[tuple[str, Any]]:
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise ValueError("holds no list of prompts")
    yield from ((f"prompt {i}", row) for i, row in enumerate(rows, 1))


def _csv(text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(text.splitlines())
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num}: has more cells than the first line has names")
        yield f"line {reader.line_num}", {key: value for key, value in row.items() if value}


def _toml(text: str) -> Iterator[tuple[str, Any]]:
    data = tomllib.loads(text)
    rows = data.get("prompts")
    if not isinstance(rows, list) or len(data) != 1:
        raise ValueError("a TOML file of prompts has tables called [[prompts]], and nothing else")
    yield from ((f"prompt {i}", row) for i, row in enumerate(rows, 1))


def _ask(row: Any, where: str) -> Ask:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: is no text and no table with a prompt")
    row = {NAMES.get(key, key): _seeds(value) if key in ("seed", "seeds") else value for key, value in row.items()}
    prompt = row.pop("prompt", None)
    if not isinstance(prompt, str):
        raise ConfigError(f"{where}: has no prompt")
    known = {f.name for f in fields(SampleConfig)} - {"prompts"}
    if strange := [key for key in row if key not in known]:
        raise ConfigError(f"{where}: {strange[0]!r} is no key of a prompt; known: prompt, {', '.join(sorted(known))}")
    return Ask(prompt, row, where)


def _seeds(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


# ---- wildcards and axes


@dataclass(frozen=True)
class Axis:
    """A key of `sample` and the values that it takes."""

    key: str
    values: tuple[Any, ...]

    @classmethod
    def read(cls, text: str) -> Axis:
        """`sample.steps=10,20,50`; values that hold commas as a TOML list, `sample.negative=["a, b", "c"]`. Raises ConfigError."""
        key, sep, raw = text.partition("=")
        key = key.strip().removeprefix("sample.")
        if not sep or not key:
            raise ConfigError(f"--grid: {text!r}: write a key and its values, such as sample.steps=10,20,50")
        if key.partition(".")[0] not in {f.name for f in fields(SampleConfig)} - {"prompts"}:
            raise ConfigError(f"--grid: sample.{key}: no such key; `sdtune keys sample` lists them")
        whole = configs.value_of(raw)
        values = whole if isinstance(whole, list) else [configs.value_of(part.strip()) for part in raw.split(",")]
        if len(set(map(str, values))) != len(values):
            raise ConfigError(f"--grid: sample.{key}: the same value twice in {raw!r}")
        return cls(key, tuple(values))

    @property
    def many(self) -> bool:
        """Whether one value of the key is itself a list."""
        return self.key in ("seeds", "adapters")

    def label(self, value: Any) -> str:
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        return f"{self.key.removesuffix('s') if self.many else self.key} {shown}"

    def setting(self, value: Any) -> Any:
        return _seeds(value) if self.many else value


def axes(texts: Sequence[str]) -> list[Axis]:
    """Raises ConfigError."""
    found = [Axis.read(text) for text in texts]
    if len(found) > AXES:
        raise ConfigError(f"--grid: {len(found)} axes; at most {AXES} can be shown: columns, rows, and blocks of rows")
    if len({axis.key for axis in found}) < len(found):
        raise ConfigError("--grid: the same key on two axes")
    return found


def expanded(
    asks: Sequence[Ask], run: RunConfig, *, grid: Sequence[Axis] = (), matrix: bool = False, most: int = MOST
) -> list[Ask]:
    """All that is asked for: with `matrix` a prompt for each combination of its {a|b|c}, and one for each cell of the grid.

    Raises ConfigError before there are more than `most` pictures."""
    cells = math.prod(len(axis.values) for axis in grid)
    of_grid = any(axis.key == "seeds" for axis in grid)
    drawn = [
        (combinations(a.prompt) if matrix else 1, 1 if of_grid else len(a.changes.get("seeds", run.sample.seeds)))
        for a in asks
    ]
    if (matrix or grid) and (total := cells * sum(prompts * seeds for prompts, seeds in drawn)) > most:
        seeds = "/".join(map(str, sorted({seeds for _, seeds in drawn})))
        prompts = f"{sum(prompts for prompts, _ in drawn):,} prompts"
        parts = [prompts, *(f"{len(a.values)} values of sample.{a.key}" for a in grid), f"{seeds} seeds"]
        raise ConfigError(
            f"{' x '.join(parts)} would be {total:,} pictures, more than {most:,}; take fewer, or allow them with --at-most"
        )
    if matrix:
        asks = [replace(ask, prompt=prompt) for ask in asks for prompt in dict.fromkeys(_matrix(ask.prompt))]
    asks = [replace(ask, number=i) for i, ask in enumerate(asks)]
    return [_cell(ask, grid, values) for ask in asks for values in _cells(grid)]


def _cells(grid: Sequence[Axis]) -> Iterator[tuple[Any, ...]]:
    """The first axis, whose values are columns, moves fastest; the last slowest."""
    for values in itertools.product(*(axis.values for axis in reversed(grid))):
        yield values[::-1]


def _cell(ask: Ask, grid: Sequence[Axis], values: Sequence[Any]) -> Ask:
    pairs = list(zip(grid, values, strict=True))
    changes = {**ask.changes, **{axis.key: axis.setting(value) for axis, value in pairs}}
    return replace(ask, changes=changes, cell=tuple(axis.label(value) for axis, value in pairs))


def combinations(prompt: str) -> int:
    """How many prompts the {a|b|c} of one make, choices that say the same counted each."""
    if not balanced(prompt):
        return 1
    product, total, outside = 1, 0, list[tuple[int, int]]()
    for sign in prompt:
        if sign == "{":
            outside.append((product, total))
            product, total = 1, 0
        elif sign == "|" and outside:
            product, total = 1, total + product
        elif sign == "}":
            inside = total + product
            product, total = outside.pop()
            product *= inside
    return product


def _matrix(prompt: str) -> Iterator[str]:
    """Each combination of the {a|b|c} in a prompt, the last one moving fastest. One whose braces are not balanced stays as it is."""
    found = balanced(prompt) and _INNERMOST.search(prompt)
    if not found:
        yield prompt
        return
    for text in _chosen(prompt, found):
        yield from _matrix(re.sub(" {2,}", " ", text).strip())


def _chosen(prompt: str, found: re.Match[str]) -> Iterator[str]:
    for choice in found[1].split("|"):
        yield prompt[: found.start()] + choice.strip() + prompt[found.end() :]
