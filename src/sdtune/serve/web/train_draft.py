"""A config while it is being written: what was chosen, what it began from, and the command and recipe that would do the same."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from sdtune import config as configs
from sdtune import presets
from sdtune.errors import ConfigError


class Draft:
    """Nested values by dotted keys, over those that it began from."""

    def __init__(self, begun: Mapping[str, Any], preset: str = "") -> None:
        self.begun = copy.deepcopy(dict(begun))
        self.config = copy.deepcopy(self.begun)
        self.preset = preset
        """The recipe that it began from, as `sdtune init` takes it; "" if none."""

    def get(self, key: str, usual: Any = None) -> Any:
        return _at(self.config, key, usual)

    def put(self, key: str, value: Any, usual: Any = None) -> None:
        """Set a key. What is as usual and was not said at the beginning is left out."""
        if value == usual and _at(self.begun, key, _NOTHING) is _NOTHING:
            self._drop(key)
        else:
            configs.put(self.config, key, value)

    def reset(self, key: str) -> None:
        """As at the beginning."""
        value = _at(self.begun, key, _NOTHING)
        if value is _NOTHING:
            self._drop(key)
        else:
            configs.put(self.config, key, copy.deepcopy(value))

    def changed(self, key: str, usual: Any = None) -> bool:
        return bool(_at(self.config, key, usual) != _at(self.begun, key, usual))

    def turn(self, group: str, kind: str) -> None:
        """Let a section be of another `type`: it keeps the keys that both have. "" leaves it out."""
        old = self.get(group) or {}
        known = configs.keys_of(group, kind)
        if not kind:
            self._drop(group)
        else:
            configs.put(
                self.config, group, {"type": kind, **{k: v for k, v in old.items() if k in known and k != "type"}}
            )

    def _drop(self, key: str) -> None:
        *parents, leaf = key.split(".")
        table = _at(self.config, ".".join(parents), {}) if parents else self.config
        if isinstance(table, dict):
            table.pop(leaf, None)

    # ---- elsewhere

    def recipe(self) -> str:
        """The config as the text of a recipe: what was chosen, and no more."""
        tables = {name: value for name, value in self.config.items() if isinstance(value, dict) and value}
        top = [
            f"{name} = {configs.toml_value(v)}"
            for name, v in self.config.items()
            if name not in tables and v not in (None, {})
        ]
        parts = ["\n".join(top)] if top else []
        for name, table in tables.items():
            rows = [f"{key} = {configs.toml_value(value)}" for key, value in table.items() if value is not None]
            parts.append("\n".join([f"[{name}]", *rows]))
        return "\n\n".join(parts) + "\n"

    def command(self) -> str:
        """A line for a shell that trains the same, from the preset where that can be said so, else from the downloaded recipe."""
        file = f"{self.get('name') or 'run'}.toml"
        if self.preset:
            overrides = self._overrides()
            if overrides is not None:
                begin = f"sdtune init {shlex.quote(self.preset)} --out {shlex.quote(file)}"
                return f"{begin} && {shlex.join(['sdtune', 'train', file, *overrides])}"
        return shlex.join(["sdtune", "train", file])

    def _overrides(self) -> list[str] | None:
        """What turns the preset into this config; None where no line of overrides does."""
        path = presets.recipe(self.preset)
        try:
            wanted = configs.from_dict(self.config)
            overrides = configs.changes(configs.load(path), wanted)
            overrides = [_plain(override) for override in overrides]
            return overrides if configs.load(path, overrides) == wanted else None
        except ConfigError:
            return None


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or with the next number behind it that no run has."""
    own, dash, number = name.rpartition("-")
    stem, at = (own, int(number)) if dash and number.isdecimal() and own else (name, 1)
    found = name
    while found in taken:
        at += 1
        found = f"{stem}-{at}"
    return found


_NOTHING = object()


def _plain(override: str) -> str:
    """Without quotes around a text that is read as one without them, too."""
    key, _, raw = override.partition("=")
    value = configs.value_of(raw)
    return (
        f"{key}={value}"
        if isinstance(value, str) and value.strip() == value and configs.value_of(value) == value
        else override
    )


def _at(table: Any, key: str, usual: Any) -> Any:
    for name in key.split("."):
        if not isinstance(table, Mapping) or name not in table:
            return usual
        table = table[name]
    return table
