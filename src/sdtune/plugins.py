"""Own methods, target sets, objectives, optimisers, guides and model families: Python files that a recipe names, and nothing else loads.

A plugin says what it brings in plain tuples of config classes: METHODS, OBJECTIVES, OPTIMIZERS, GUIDES, FAMILIES, and in a dictionary
TARGETS of named target sets. docs/extending.md goes through an example of each.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sdtune.errors import ConfigError
from sdtune.methods import targets
from sdtune.schema import Section

VARIABLE = "SDTUNE_PLUGINS"
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "FAMILIES": ("model", ("load",)),
    "GUIDES": ("sample.guide", ("build",)),
    "METHODS": ("method", ("attach", "apply", "detach", "export")),
    "OBJECTIVES": ("objective", ("build",)),
    "OPTIMIZERS": ("optimizer", ("build", "check", "lr_at")),
}
"""What a plugin may bring: the group of keys that it is chosen in, and the verbs that its classes need."""


@dataclass(frozen=True)
class Plugin:
    name: str
    """An absolute path, or the name of an installed module."""
    classes: tuple[tuple[str, type[Section]], ...]
    """(group of keys, class) of all that it brings."""


_loaded: dict[str, Plugin] = {}


def load(names: Sequence[str], folder: Path | None = None, *, from_run: bool = False) -> tuple[Plugin, ...]:
    """The plugins `names`: .py files or package folders (looked for in `folder`, then here), or names of installed modules.

    With `from_run` the names come from a run's folder, which may be a stranger's: only what was loaded in this process already,
    or is named in $SDTUNE_PLUGINS, is run. Raises ConfigError.
    """
    known = [_full_name(name, Path.cwd()) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    plugins = []
    for given in names:
        name = _full_name(given, folder)
        if from_run and name not in _loaded and name not in known:
            raise ConfigError(
                f"plugins: this run was made with {name}, which is code; if you trust it, name it: {VARIABLE}={name} sdtune ..."
            )
        if name not in _loaded:
            _loaded[name] = _read(name)
        plugins.append(_loaded[name])
    return tuple(plugins)


def _full_name(name: str, folder: Path | None) -> str:
    """The absolute path of a file or folder; an installed module's name as it is. Raises ConfigError."""
    path = Path(name).expanduser()
    places = [path] if path.is_absolute() else [*([folder / path] if folder else []), path]
    for place in places:
        if place.is_file() or (place / "__init__.py").is_file():
            return str(place.resolve())
    if path.suffix == ".py" or len(path.parts) > 1 or not _installed(name):
        tried = ", ".join(str(place.absolute()) for place in places)
        raise ConfigError(f"plugins: {name!r}: no such file, package folder or installed module; looked for {tried}")
    return name


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _read(name: str) -> Plugin:
    try:
        module = _module(Path(name)) if Path(name).is_absolute() else importlib.import_module(name)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"plugins: {name}: cannot be loaded: {type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        ) from error
    classes = [(group, cls) for key, (group, verbs) in KINDS.items() for cls in _classes(module, name, key, verbs)]
    sets = getattr(module, "TARGETS", {})
    if not classes and not sets:
        raise ConfigError(f"plugins: {name}: brings nothing; it needs one of {', '.join(KINDS)}, TARGETS")
    _add_targets(name, sets)
    return Plugin(name, tuple(classes))


def _module(path: Path) -> ModuleType:
    """The file or package at `path`, run as a module of its own name."""
    name = f"sdtune_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    inside = [str(path)] if path.is_dir() else None
    file = path / "__init__.py" if path.is_dir() else path
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pydantic look for what annotations name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _classes(module: ModuleType, name: str, key: str, verbs: tuple[str, ...]) -> list[type[Section]]:
    found = getattr(module, key, ())
    if not isinstance(found, tuple | list):
        raise ConfigError(f"plugins: {name}: {key} is no tuple of classes")
    for cls in found:
        fault = _fault(cls, verbs)
        if fault:
            raise ConfigError(f"plugins: {name}: {key}: {getattr(cls, '__name__', cls)!s} {fault}")
    return list(found)


def _fault(cls: Any, verbs: tuple[str, ...]) -> str:
    """What keeps `cls` from being a part of a config; "" if nothing."""
    parameters: Any = getattr(cls, "__dataclass_params__", None)
    if not (isinstance(cls, type) and issubclass(cls, Section) and "__dataclass_params__" in vars(cls)):
        return "is no dataclass that derives from sdtune.schema.Section"
    if not parameters.frozen:
        return "is not frozen; write @dataclass(frozen=True, kw_only=True)"
    fields: Mapping[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    tag = fields.get("type")
    if tag is None or not isinstance(tag.default, str) or "Literal" not in str(tag.type):
        return 'has no tag; write type: Literal["my-name"] = "my-name"'
    lacking = [verb for verb in verbs if not callable(getattr(cls, verb, None))]
    return f"lacks {', '.join(lacking)}()" if lacking else ""


def _add_targets(name: str, sets: Mapping[str, tuple[str, ...]]) -> None:
    for key, patterns in sets.items():
        if targets.TARGETS.get(key, patterns) != patterns:
            raise ConfigError(f"plugins: {name}: TARGETS: there is a set {key!r} already; choose another name")
        targets.TARGETS[key] = tuple(patterns)
