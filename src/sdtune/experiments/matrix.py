"""The matrix: which cells there are, and how all of them are compared. Read from TOML; imports no torch.

base = "demo_lora.toml"                  # a recipe beside this file; or tables: [base.model], [base.data], ...
seeds = [0, 1, 2]                        # trainings of each cell
primary = "kid"                          # the figure that decides, fixed before the first run
set = {train.steps = 100}                # for all cells
[axes.grid]                              # every combination
method.rank = [2, 8]
[axes.paired]                            # side by side: first with first, second with second; crossed with the grid
optimizer.lr = [1e-3, 5e-4]
train.steps = [100, 200]
[[axes.list]]                            # one cell each
name = "full"
method.type = "full"
[[exclude]]                              # cells of the grid that are not wanted
method.rank = 8
optimizer.lr = 1e-3
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdtune import config as configs
from sdtune.data.layouts import listed, plural
from sdtune.errors import ConfigError
from sdtune.experiments.cells import Cell

KEYS = ("name", "about", "base", "set", "seeds", "primary", "limit", "axes", "exclude")
AXES = ("grid", "paired", "list")
WORDS = ("name", "idea", "source")
"""Keys of the grid, and of a cell of `axes.list`, that are no settings."""
LIMIT = 64
"""Cells, unless `limit` says otherwise."""
MOST = 100_000
"""Combinations that are looked at, before `exclude`."""
SEEDS_TO_CLAIM = 3
"""Trainings that a cell needs before anything is said of the cell rather than of one run."""
FIXED = {
    "name": "it names a run; cells have names of their own",
    "train.seed": "give the seeds of all cells in `seeds`",
    "plugins": "name them once, in the base recipe",
    "evaluate": "how is compared must be the same for all cells; put it into `set`",
    "sample": "how pictures are drawn must be the same for all cells; put it into `set`",
}
"""Keys that no axis may change, and why."""
Settings = dict[str, Any]


@dataclass(frozen=True)
class Matrix:
    """What is to be run."""

    name: str
    file: Path
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    plugins: Path
    """Where plugins that the base recipe names are looked for."""
    about: str = ""

    @property
    def primary(self) -> str:
        return self.cells[0].config.evaluate.primary

    def only(self, names: Sequence[str]) -> tuple[Cell, ...]:
        """The cells of these names or ids. Raises ConfigError for one that there is not."""
        known = {cell.name: cell for cell in self.cells} | {cell.id: cell for cell in self.cells}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError("\n".join(f"--only: no such cell{_near(name, known)}" for name in unknown))
        return tuple(cell for cell in self.cells if not names or {cell.name, cell.id} & set(names))


def load(path: str | Path) -> Matrix:
    """The matrix of a file. Raises ConfigError with all faults at once, those of a cell with its name."""
    path = Path(path)
    data = _toml(path, "a matrix")
    faults: list[str] = [f"{key}: no such key{_near(key, KEYS)}" for key in data if key not in KEYS]
    name = data.get("name", re.sub(r"[^A-Za-z0-9_.+-]", "-", path.stem))
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,49}", name):
        faults.append(f"name: {name!r}: letters, digits and _ . + -, at most 50")
        name = "matrix"
    base, plugins = _base(data, path, faults)
    seeds = _seeds(data.get("seeds", [0]), faults)
    limit = data.get("limit", LIMIT)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        faults.append(f"limit: {limit!r} is not a number of cells")
        limit = LIMIT
    found = _cells(data.get("axes", {}), faults)
    found = _without(found, data.get("exclude", []), base, faults)
    if len(found) > limit:
        faults.append(
            f"axes: {len(found)} cells, more than the limit of {limit}; leave some out with [[exclude]], or raise `limit`"
        )
    if faults:  # what follows would only repeat them for each cell
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    cells = _built(found, base, plugins, seeds[0], path)
    return Matrix(name, path, seeds, tuple(cells), plugins, str(data.get("about", "")))


def applied(base: Mapping[str, Any], settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """The nested config with dotted `settings` put in, and the keys that had to go.

    Where a setting changes the `type` of a group, keys of the base that the new type does not have are left out.
    """
    out, gone = copy.deepcopy(dict(base)), []
    for key in sorted(settings, key=lambda k: not k.endswith(".type")):
        group, _, leaf = key.rpartition(".")
        node = out
        for part in filter(None, group.split(".")):
            inner = node.get(part)
            if not isinstance(inner, dict):
                inner = node[part] = {}
            node = inner
        if (
            leaf == "type"
            and "." not in (group or ".")
            and settings[key] != node.get("type", configs.usual_type(group))
        ):
            new = configs.keys_of(group, str(settings[key]))
            gone += [f"{group}.{k}" for k in node if k not in new and k != "type"]
            out[group] = node = {k: v for k, v in node.items() if k in new}
        node[leaf] = settings[key]
    return out, [key for key in gone if key not in settings]


# ---- reading


def _toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {(error.strerror or 'cannot be read').lower()}; {what} is a TOML file, see recipes/matrices"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _base(data: Mapping[str, Any], path: Path, faults: list[str]) -> tuple[dict[str, Any], Path]:
    """The base recipe with what is set for all, and the folder that its plugins are looked for in."""
    given = data.get("base")
    if isinstance(given, dict):
        base, plugins = given, path.parent
    elif isinstance(given, str):
        base, plugins = _toml(path.parent / given, "the base of a matrix"), (path.parent / given).parent
    else:
        faults.append('base: name a recipe, as in base = "../demo_lora.toml", or write its tables as [base.model], ...')
        return {}, path.parent
    extra = data.get("set", {})
    if not isinstance(extra, dict):
        faults.append("set: is no table of keys, such as [set] with train.steps = 100")
        extra = {}
    if "primary" in data:
        extra = extra | {"evaluate": {**extra.get("evaluate", {}), "primary": data["primary"]}}
    return applied(base, configs.flat(extra))[0], plugins


def _seeds(given: object, faults: list[str]) -> tuple[int, ...]:
    if isinstance(given, list) and given and all(isinstance(s, int) and not isinstance(s, bool) for s in given):
        if len(set(given)) == len(given):
            return tuple(given)
        faults.append(f"seeds: {given}: each only once")
    else:
        faults.append(f"seeds: {given!r} is not a list of whole numbers, such as [0, 1, 2]")
    return (0,)


Found = tuple[str, Settings, dict[str, str]]
"""A cell as the file has it: its name ("" if none is given), what it sets, and words about it."""


def _cells(axes: object, faults: list[str]) -> list[Found]:
    """Every combination of grid and paired axes, and each cell of the list."""
    if not isinstance(axes, dict):
        faults.append("axes: is no table; write [axes.grid], [axes.paired] or [[axes.list]]")
        return []
    faults += [f"axes.{key}: no such form{_near(key, AXES)}" for key in axes if key not in AXES]
    common, tracks = _tracks(axes, faults)
    template = common.pop("name", "")
    count = math.prod(len(track) for track in tracks)
    if count > MOST:
        faults.append(f"axes: {count:,} combinations, which is no experiment that ends; give fewer values")
        return []
    found: list[Found] = []
    for choice in itertools.product(*tracks) if tracks else ():
        settings = {k: v for part in choice for k, v in part.items()}
        found.append((_named(template, settings), settings, common))
    listed_cells = axes.get("list", [])
    if not isinstance(listed_cells, list) or not all(isinstance(cell, dict) for cell in listed_cells):
        faults.append("axes.list: write each cell as [[axes.list]] with its keys below")
        listed_cells = []
    for cell in listed_cells:
        words = {k: str(cell[k]) for k in WORDS if k in cell}
        found.append((words.pop("name", ""), configs.flat({k: v for k, v in cell.items() if k not in WORDS}), words))
    if not found and not faults:
        found.append(("base-recipe", {}, {}))
    for key in dict.fromkeys(key for _, settings, _ in found for key in settings):
        if why := next((why for fixed, why in FIXED.items() if key == fixed or key.startswith(f"{fixed}.")), ""):
            faults.append(f"axes: {key}: cannot be an axis: {why}")
    return found


def _tracks(axes: Mapping[str, Any], faults: list[str]) -> tuple[dict[str, str], list[list[Settings]]]:
    """The grid's own words, its pattern of names among them, and the axes: each a list of what its places set."""
    grid = axes.get("grid", {})
    paired = axes.get("paired", [])
    paired = [paired] if isinstance(paired, dict) else paired
    if not isinstance(grid, dict) or not isinstance(paired, list) or not all(isinstance(p, dict) for p in paired):
        faults.append("axes: grid and paired are tables of keys, each with a list of values")
        return {}, []
    words = {k: str(grid[k]) for k in WORDS if k in grid}
    tracks = []
    for key, values in configs.flat({k: v for k, v in grid.items() if k not in WORDS}).items():
        if _is_axis(f"axes.grid: {key}", values, faults):
            tracks.append([_setting(key, value) for value in values])
    for table in paired:
        axis = configs.flat(table)
        good = [_is_axis(f"axes.paired: {key}", values, faults) for key, values in axis.items()]  # all faults are told
        if not all(good):
            continue
        if len({len(values) for values in axis.values()}) > 1:
            sizes = ", ".join(f"{key} has {len(values)}" for key, values in axis.items())
            faults.append(f"axes.paired: as many values for each key are needed; {sizes}")
            continue
        rows = zip(*axis.values(), strict=True)
        tracks.append(
            [
                {k: v for key, value in zip(axis, row, strict=True) for k, v in _setting(key, value).items()}
                for row in rows
            ]
        )
    return words, tracks


def _is_axis(where: str, values: object, faults: list[str]) -> bool:
    if isinstance(values, list) and values:
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            faults.append(f"{where}: {twice[0]!r} is there twice")
        return True
    faults.append(f"{where}: {values!r} is not a list of values; a key with one value for all cells belongs into `set`")
    return False


def _setting(key: str, value: object) -> Settings:
    return configs.flat(value, f"{key}.") if isinstance(value, dict) else {key: value}


def _named(pattern: str, settings: Settings) -> str:
    """The pattern of names with `{rank}` or `{method.rank}` filled in. Raises ConfigError for what is no axis."""
    known = {key.rpartition(".")[2]: value for key, value in settings.items()} | settings

    def value(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise ConfigError(f"axes.grid: name: no axis is called {found[1]!r}{_near(found[1], known)}")
        return _word(known[found[1]])

    return re.sub(r"\{([^{}]*)\}", value, pattern)


def _word(value: object) -> str:
    """A value as a part of a name."""
    if isinstance(value, list | tuple):
        return "+".join(map(_word, value))
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-") or "none"


def _without(found: list[Found], excluded: object, base: Mapping[str, Any], faults: list[str]) -> list[Found]:
    if not isinstance(excluded, list) or not all(isinstance(rule, dict) for rule in excluded):
        faults.append("exclude: write each as [[exclude]] with the keys and values of the cells that are not wanted")
        return found
    for n, rule in enumerate(map(configs.flat, excluded), start=1):
        usual = configs.flat(base)
        hit = [cell for cell in found if rule and all(_fits(cell[1].get(k, usual.get(k)), v) for k, v in rule.items())]
        if not hit:
            keys = ", ".join(f"{k} = {v}" for k, v in rule.items())
            faults.append(f"exclude {n} ({keys}): fits no cell")
        found = [cell for cell in found if cell not in hit]
    if excluded and not found:
        faults.append("exclude: leaves no cell")
    return found


def _fits(value: object, wanted: object) -> bool:
    return value in wanted if isinstance(wanted, list) and not isinstance(value, list) else value == wanted


def _built(found: list[Found], base: dict[str, Any], plugins: Path, seed: int, file: Path) -> list[Cell]:
    """The cells with their configs. Raises ConfigError: a fault that many cells share is told once."""
    faults: dict[str, list[str]] = {}
    cells: list[Cell] = []
    names = _names([name for name, *_ in found], [settings for _, settings, _ in found])
    for name, (_, settings, words) in zip(names, found, strict=True):
        data, gone = applied(base, settings)
        data["name"], data["train"] = name, {**data.get("train", {}), "seed": seed}
        try:
            config = configs.from_dict(data, folder=plugins)
        except ConfigError as error:
            for line in str(error).splitlines():
                faults.setdefault(line, []).append(name)
            continue
        cells.append(Cell(name, settings, config, words.get("idea", ""), words.get("source", ""), tuple(gone)))
    by_id: dict[str, str] = {}
    for cell in cells:
        if (other := by_id.setdefault(cell.id, cell.name)) != cell.name:
            faults.setdefault(f"trains the same as {other}", []).append(cell.name)
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        faults.setdefault("a cell's name, but several cells have it; give each its own `name`", []).append(name)
    if faults:
        whole = len(found)
        rows = [f"{_of(cells_of, whole)}{line}" for line, cells_of in faults.items()]
        raise ConfigError("\n".join(f"{file}: {row}" for row in rows))
    return cells


def _of(names: Sequence[str], whole: int) -> str:
    if len(names) == whole and whole > 1:
        return "all cells: "
    return f"{'cell' if len(names) == 1 else 'cells'} {listed(names, 3)}: "


def _names(given: Sequence[str], settings: Sequence[Settings]) -> list[str]:
    """A name for each cell: its own, or the values in which it differs from others."""
    keys = {k for s in settings for k in s}
    varied = {k for k in keys if len({repr(t.get(k)) for t in settings}) > 1} or keys
    out = []
    for name, own in zip(given, settings, strict=True):
        parts = [f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in own.items() if key in varied]
        text = name or "_".join(parts) or "base-recipe"
        out.append(_word(text)[:60].strip("-"))
    return out


def _near(key: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {listed(known, 12)}"


def settings_text(settings: Settings) -> str:
    """What a cell sets, for people: method.rank 8, method.targets many."""
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "the base recipe as it is"


def counted(matrix: Matrix) -> str:
    return f"{plural(len(matrix.cells), 'cell')} x {plural(len(matrix.seeds), 'seed')}"


def differing(cells: Sequence[Cell]) -> Iterator[tuple[str, list[str]]]:
    """The keys in which the cells differ from each other, each with its value in every cell."""
    keys = dict.fromkeys(key for cell in cells for key in cell.settings)
    for key in keys:
        values = [_value(cell, key) for cell in cells]
        if len(set(values)) > 1:
            yield key, values


def _value(cell: Cell, key: str) -> str:
    node: object = cell.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else getattr(node, part, None)
    return "" if node is None else ", ".join(map(str, node)) if isinstance(node, tuple) else str(node)
