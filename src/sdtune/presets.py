"""Recipes that come with sdtune, and the keys of a recipe explained. A preset is a recipe with the help of each key written in."""

from __future__ import annotations

import dataclasses
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from sdtune.errors import ConfigError

if TYPE_CHECKING:
    from sdtune.schema import Section

ALIASES = {"demo-subject": "demo-pip", "demo": "demo-lora"}


def folder() -> Path:
    """Where the recipes are: inside the installed package, or in the repository."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def names() -> list[str]:
    """The presets, as `sdtune init` takes them."""
    return sorted(path.stem.replace("_", "-") for path in folder().glob("*.toml"))


def recipe(name: str) -> Path:
    """The file of the preset `name`. Raises ConfigError."""
    wanted = ALIASES.get(name, name).replace("_", "-")
    if wanted not in names():
        from difflib import get_close_matches

        near = get_close_matches(wanted, [*names(), *ALIASES], n=1)
        raise ConfigError(
            f"{name}: no such preset; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}")
        )
    return folder() / f"{wanted.replace('-', '_')}.toml"


def header(path: Path) -> dict[str, str]:
    """The labelled lines at the top of a recipe: Purpose, Hardware, Time, Expected, Command."""
    lines = (line[1:].partition(":") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return {label.strip().lower(): text.strip() for label, sep, text in lines if sep}


def commented(name: str, file: str) -> str:
    """The preset `name` as the text of a recipe called `file`, each key with its help above it."""
    path = recipe(name)
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    helps = {key.name: key for key in reversed(keys()) if _is_of(key, data)}
    out = [f"# {label.capitalize() + ':':<10}{text}" for label, text in header(path).items() if label != "command"]
    out += [f"# {'Command:':<10}sdtune train {file} && sdtune compare runs/{data['name']}"]
    out += [
        "#",
        "# Every key may also be given on the command line, for example train.steps=100. `sdtune keys` lists all of them.",
    ]
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        if (
            key := helps.get(section + line.partition("=")[0].strip())
            if "=" in line and not line.startswith("#")
            else None
        ):
            out += textwrap.wrap(_one_line(key), 100, initial_indent="# ", subsequent_indent="# ")
        if not line.startswith("#"):
            out.append(line)
    return "\n".join(out) + "\n"


def _is_of(key: Key, recipe: dict[str, Any]) -> bool:
    """Whether the recipe's kinds of section have this key. Without a type, any has."""
    kind = recipe.get(key.name.partition(".")[0], {})
    return not key.only or "type" not in kind or kind["type"] in key.only.split(", ")


# ---- the keys of a recipe


@dataclass(frozen=True)
class Key:
    """One key of the configuration. `only` names the kinds of section that have it, for example "lora" or "adamw, lion"."""

    name: str
    kind: str
    default: str
    help: str
    only: str = ""


def keys(prefix: str = "") -> list[Key]:
    """All keys whose dotted name begins with `prefix`, in the order of the configuration."""
    from sdtune.config import RunConfig

    return [key for key in _walk(RunConfig, "") if key.name.startswith(prefix)]


def _walk(section: type[Section], at: str, only: str = "") -> Iterator[Key]:
    from sdtune.schema import field_help

    helps = field_help(section)  # type: ignore[arg-type]  # mypy: a class is hashable
    hints = typing.get_type_hints(section, include_extras=True)
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(section)  # type: ignore[arg-type]
    for f in fields:
        if inner := list(_sections(hints[f.name])):
            if len(inner) > 1:
                kinds = ", ".join(f'"{getattr(s, "type", "")}"' for s in inner)
                yield Key(
                    f"{at}{f.name}.type",
                    f"one of {kinds}",
                    _value(getattr(_default(f), "type", None)),
                    helps.get(f.name, ""),
                )
            kinds_of = [
                list(_walk(s, f"{at}{f.name}.", getattr(s, "type", "") if len(inner) > 1 else "")) for s in inner
            ]
            yield from _merged(kinds_of)
        elif f.name != "type":
            yield Key(at + f.name, describe(hints[f.name]), _value(_default(f)), helps.get(f.name, ""), only)


def _merged(sections: list[list[Key]]) -> Iterator[Key]:
    """The keys of several kinds of section, in one row where they say the same; in no kind's name where all do."""
    rows: dict[Key, list[str]] = {}
    for key in (key for section in sections for key in section):
        rows.setdefault(dataclasses.replace(key, only=""), []).append(key.only)
    for key, kinds in rows.items():
        yield dataclasses.replace(key, only=", ".join(kinds) if len(kinds) < len(sections) else "")


def describe(annotation: Any) -> str:
    """A field's type in words: "integer > 0", "one of "linear", "cosine"", "list of text"."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        bounds = [b for mark in marks for m in getattr(mark, "metadata", [mark]) for b in _bounds(m)]
        return " ".join([describe(inner), *(["and ".join(f"{b} " for b in bounds).strip()] if bounds else [])])
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(f'"{value}"' for value in get_args(annotation))
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join("unset" if part is type(None) else describe(part) for part in get_args(annotation))
    if get_origin(annotation) is tuple:
        parts = [describe(part) for part in get_args(annotation) if part is not Ellipsis]
        return (
            f"list of {parts[0]}" if Ellipsis in get_args(annotation) else f"list of {len(parts)}: {', '.join(parts)}"
        )
    if get_origin(annotation) is dict:
        return f"table of {' to '.join(describe(part) for part in get_args(annotation))}"
    words = {int: "integer", float: "number", str: "text", bool: "true or false"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(mark: Any) -> Iterator[str]:
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if (value := getattr(mark, name, None)) is not None:
            yield f"{sign} {value}"


def _sections(annotation: Any) -> Iterator[type[Section]]:
    from sdtune.schema import Section

    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif get_origin(annotation) in (Annotated, types.UnionType, typing.Union):
        for part in get_args(annotation):
            yield from _sections(part)


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _value(value: Any) -> str:
    """A default as TOML would write it, or what stands for it."""
    if value is None:
        return "unset"
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _one_line(key: Key) -> str:
    return f"{key.help} ({key.kind})" if key.help and not key.kind.startswith(("text", "list")) else key.help
