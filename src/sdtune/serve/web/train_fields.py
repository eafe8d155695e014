"""What a form of the config asks for, read from its JSON schema: groups of fields with help, range and usual value.

No list of fields is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdtune import config as configs
from sdtune.errors import ConfigError

Kind = Literal["flag", "choice", "whole", "number", "text", "lines", "numbers", "other"]
UNSET = "unset"
PARTS = {"": "Run", "on": "Findings"}
"""Headings of groups whose key is no word of its own."""


@dataclass(frozen=True)
class Field:
    """One key of the config."""

    key: str
    """With dots: optimizer.lr"""
    help: str
    kind: Kind
    usual: Any
    """The default; None: unset, or there is none."""
    choices: tuple[Any, ...] = ()
    unset: bool = False
    """Whether it may stay unset."""
    bounds: str = ""
    """The range in words: "more than 0"."""

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2].replace("_", " ")

    def shown(self, value: Any) -> str:
        """A value as the form shows it for typing; "" if unset."""
        if value is None:
            return ""
        if self.kind == "lines" and isinstance(value, list | tuple):
            return "\n".join(map(str, value))
        if self.kind == "numbers" and isinstance(value, list | tuple):
            return ", ".join(number(v) for v in value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return number(value)
        return value if isinstance(value, str) else configs.toml_value(value)

    def read(self, text: str) -> Any:
        """The value of what was typed; None if unset. Raises ValueError in the words of the form."""
        text = text if self.kind == "lines" else text.strip()
        if not text and self.unset:
            return None
        match self.kind:
            case "whole":
                return _number(text, whole=True)
            case "number":
                return _number(text)
            case "numbers":
                return [_number(part) for part in text.strip("[]").replace(",", " ").split()]
            case "lines":
                return [line.strip() for line in text.splitlines() if line.strip()]
            case "other":
                return configs.value_of(text)
        return text


def number(value: float) -> str:
    """As people write it: 0.0001, 1e-06, 200."""
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _number(text: str, *, whole: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text or 'nothing'} is no number") from None
    if not text.strip().lstrip("+-").isdigit():
        if whole and value != round(value):
            raise ValueError(f"{text} is no whole number")
        return round(value) if whole else value
    return int(text)


@dataclass(frozen=True)
class Group:
    """A section of the config."""

    key: str
    """With dots; "" for what belongs to no section."""
    help: str
    fields: tuple[Field, ...]
    kinds: tuple[str, ...] = ()
    """The `type`s that it may be of; "" among them: it may be left out."""
    kind: str = ""
    helps: tuple[str, ...] = ()
    """One for each of `kinds`."""

    @property
    def title(self) -> str:
        word = self.key.rpartition(".")[2]
        return PARTS.get(word, word.replace("_", " ").capitalize())


def groups(schema: Mapping[str, Any], config: Mapping[str, Any]) -> list[Group]:
    """The sections that `config` has by its types, in the order of the schema, those inside a section behind it."""
    parts = schema.get("$defs", {})
    return list(
        _walk(
            parts, _whole(parts, schema), "", "Name of the run, and what belongs to no section.", config, ("",), "", ()
        )
    )


def _walk(
    parts: Mapping[str, Any], section: Mapping[str, Any], key: str, text: str, config: Any, kinds: tuple[str, ...], kind: str,
    helps: tuple[str, ...],
) -> Iterator[Group]:  # fmt: skip
    config = config if isinstance(config, Mapping) else {}
    fields, inner = list[Field](), list[Group]()
    for name, raw in section.get("properties", {}).items():
        at, rule = f"{key}.{name}" if key else name, _whole(parts, raw)
        help_text = _plain(raw.get("description", rule.get("description")))
        if options := _tagged(parts, rule):
            chosen = str((config.get(name) or {}).get("type") or _usual_kind(rule, name, options))
            texts = tuple(_plain(option.get("description")) for option in options.values())
            inner += _walk(
                parts, options.get(chosen, {}), at, help_text, config.get(name), tuple(options), chosen, texts
            )
        elif "properties" in rule:
            inner += _walk(parts, rule, at, help_text, config.get(name), (), "", ())
        elif name != "type":
            fields.append(_field(parts, at, help_text, rule))
    if fields or len(kinds) > 1:
        yield Group(key, text, tuple(fields), kinds if len(kinds) > 1 else (), kind, helps)
    yield from inner


def _plain(text: Any) -> str:
    """A help text in one line, without marks of code."""
    return " ".join(str(text or "").replace("`", "").split())


def _tagged(parts: Mapping[str, Any], rule: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The kinds of a section by their `type`; with "" for one that may be left out. Empty: the rule is of no such section."""
    for option in rule.get("anyOf", ()):
        if found := _tagged(parts, _whole(parts, option)):
            return {"": {}, **found}
    if "oneOf" not in rule:
        return {}
    sections = [_whole(parts, option) for option in rule["oneOf"]]
    return {str(s["properties"]["type"]["const"]): s for s in sections if "type" in s.get("properties", {})}


def _usual_kind(rule: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> str:
    if "" in options:
        return ""
    usual = configs.usual_type(name)
    return usual if usual in options else next(iter(options))


def _whole(parts: Mapping[str, Any], rule: Mapping[str, Any]) -> Mapping[str, Any]:
    """A rule with what it refers to."""
    name = str(rule.get("$ref", "")).rpartition("/")[2]
    return {**parts[name], **{k: v for k, v in rule.items() if k != "$ref"}} if name else rule


# ---- one field


def _field(parts: Mapping[str, Any], key: str, text: str, rule: Mapping[str, Any]) -> Field:
    options = [_whole(parts, option) for option in rule.get("anyOf", (rule,))]
    unset = any(option.get("type") == "null" for option in options)
    options = [option for option in options if option.get("type") != "null"]
    usual = rule.get("default", {} if options and options[0].get("type") == "object" else None)
    choices = _choices(options)
    kind = _kind(options, choices)
    bounds = " or ".join(found for option in options if (found := _bounds(option)))
    return Field(key, text, kind, usual, choices if kind == "choice" else (), unset, bounds)


def _choices(options: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """All values, if there are few; () where anything may stand."""
    found = list[Any]()
    for option in options:
        if "enum" in option:
            found += option["enum"]
        elif "const" in option:
            found.append(option["const"])
        elif option.get("type") == "boolean":
            found += [False, True]
        else:
            return ()
    return tuple(found)


def _kind(options: Sequence[Mapping[str, Any]], choices: tuple[Any, ...]) -> Kind:
    if len(options) == 1 and options[0].get("type") == "boolean":
        return "flag"
    if choices:
        return "choice"
    if len(options) != 1:
        return "other"
    (rule,) = options
    plain: dict[Any, Kind] = {"integer": "whole", "number": "number", "string": "text"}
    if rule.get("type") != "array":
        return plain.get(rule.get("type"), "other")
    inside = {item.get("type") for item in rule.get("prefixItems", [rule.get("items", {})])}
    return "lines" if inside == {"string"} else "numbers" if inside <= {"integer", "number"} else "other"


def _bounds(rule: Mapping[str, Any]) -> str:
    least, most = rule.get("minimum"), rule.get("maximum")
    above, below = rule.get("exclusiveMinimum"), rule.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f"{number(least)} to {number(most)}"
    words = (("from", least), ("more than", above), ("at most", most), ("less than", below))
    found = " and ".join(f"{word} {number(value)}" for word, value in words if value is not None)
    return f"{found}, whole" if found and rule.get("type") == "integer" and above is None else found


# ---- finding


def search(found: Sequence[Group], words: str) -> list[Field]:
    """Fields in whose key or help every word stands; those whose key has them come first."""
    wanted = [word for word in words.lower().replace("_", " ").replace(".", " ").split() if word]
    if not wanted:
        return []
    named, told = list[Field](), list[Field]()
    for field in (field for group in found for field in group.fields):
        key = field.key.lower().replace("_", " ").replace(".", " ")
        if all(word in key for word in wanted):
            named.append(field)
        elif all(word in f"{key} {field.help.lower()}" for word in wanted):
            told.append(field)
    return named + told


def faults(config: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with a config, by dotted key; what belongs to no key stands under ""."""
    try:
        configs.from_dict({key: value for key, value in config.items() if key != "plugins"})
    except ConfigError as error:
        return by_key(str(error))
    return {}


def by_key(text: str) -> dict[str, str]:
    """A ConfigError's lines by the keys that they begin with."""
    out = dict[str, str]()
    for line in text.splitlines():
        key, colon, message = line.partition(": ")
        named = bool(colon) and key.replace(".", "").replace("_", "").isalnum()
        key, message = (key, message) if named else ("", line)
        out[key] = f"{out[key]}; {message}" if key in out else message
    return out
