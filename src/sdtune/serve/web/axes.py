"""The settings that a grid can vary, and how their values are written in a field. Knows nothing of pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdtune.samplers import SAMPLERS
from sdtune.serve.registry import Entry, Registry
from sdtune.serve.web.book import Axis

MOST = 36
"""Pictures of a grid."""


@dataclass(frozen=True)
class Setting:
    """One that can be varied. `read` makes a value of the text between two commas; None: values are chosen from a list."""

    title: str
    read: Callable[[str], Any] | None = None
    example: str = ""


def _prompt(text: str) -> str:
    return text


SETTINGS: Mapping[str, Setting] = {
    "model": Setting("Model or checkpoint"),
    "strength": Setting("Strength of what was trained", float, "0, 0.5, 0.75, 1, 1.25"),
    "prompt": Setting("Prompt", _prompt, "a red apple; a dog's face (with semicolons)"),
    "seed": Setting("Seed", int, "1, 2, 3"),
    "guidance": Setting("Guidance", float, "1, 3, 5, 8"),
    "steps": Setting("Steps", int, "8, 12, 20"),
    "scheduler": Setting("Sampler"),
    "denoising_strength": Setting("How far from the picture to begin with", float, "0.3, 0.5, 0.75, 1"),
}


def choices(key: str, registry: Registry, entry: Entry) -> list[str]:
    """Of a setting that is chosen from a list: the run's checkpoints by step and its result, or the samplers."""
    if key == "scheduler":
        return list(SAMPLERS)
    run = registry.get(entry.id.partition("@")[0]) or entry
    steps = [name for name in run.checkpoints if not name.endswith("@best")]
    others = [e.id for e in registry.entries.values() if e.id != run.id and e.kind != "original"]
    return [*steps, run.id, *others]


def read(key: str, text: str) -> Axis:
    """The axis that was written. Raises ValueError in words for the page."""
    setting = SETTINGS[key]
    assert setting.read
    parts = [part.strip() for part in text.split(";" if key == "prompt" else ",")]
    try:
        values = [setting.read(part) for part in parts if part]
    except ValueError:
        raise ValueError(f"{setting.title}: write numbers with commas, as in {setting.example}") from None
    if not values:
        raise ValueError(f"{setting.title}: write values, as in {setting.example}")
    return Axis(key, tuple(dict.fromkeys(values)))


def cells(values: Mapping[str, Any], x: Axis, y: Axis) -> list[dict[str, Any]]:
    """The form's values of each cell, row by row. Raises ValueError."""
    if x.key == y.key:
        raise ValueError("Across and down vary the same setting: choose another for one of them")
    if len(x.values) * len(y.values) > MOST:
        raise ValueError(f"{len(x.values)} x {len(y.values)} pictures are more than {MOST}: leave some values out")
    if "denoising_strength" in (x.key, y.key) and not values["image"]:
        raise ValueError("There is no picture to begin with: choose one in the form, or vary another setting")
    one = {**values, "count": 1, "draw": "tuned"}
    return [one | {y.key: down, x.key: across} for down in y.values for across in x.values]


def named(axis: Axis, value: Any) -> str:
    """A value as it stands at the grid's side."""
    if axis.key == "model":
        own, _, which = str(value).partition("@")
        return f"step {int(which[5:])}" if which.startswith("step-") else which or f"{own}, result"
    return f"{value:g}" if isinstance(value, float) else str(value)
