"""What every part of a configuration is made of: a frozen dataclass whose field strings are its help."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ConfigDict, GetJsonSchemaHandler

from sdtune.errors import ConfigError


class Section:
    """Base of the parts. Unknown keys are refused; the string under a field is its `--help`, form label and documentation."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Help of inherited fields, too: pydantic reads the strings of a class's own body only."""
        schema = handler(core_schema)
        helps = field_help(cls)  # type: ignore[arg-type]  # mypy: a class is hashable
        for name, field in handler.resolve_ref_schema(schema).get("properties", {}).items():
            if name in helps:
                field.setdefault("description", helps[name])
        return schema


@cache
def field_help(section: type) -> dict[str, str]:
    """The string under each field of `section`, inherited ones included."""
    texts: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(help_text))):
                    texts[name] = inspect.cleandoc(help_text)
    return texts


def defaults(section: object) -> dict[str, Any]:
    """The default of each field of `section` that has one."""
    assert dataclasses.is_dataclass(section)
    made = {f.name: f.default for f in dataclasses.fields(section) if f.default is not dataclasses.MISSING}
    factories = {f.name: f.default_factory for f in dataclasses.fields(section)}
    return made | {name: make() for name, make in factories.items() if make is not dataclasses.MISSING}


def refuse_idle(section: object, group: str, uses: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
    """Raise ConfigError for a key that was changed but is looked at only with certain values of another."""
    usual = defaults(section)
    for key, (other, values) in uses.items():
        if getattr(section, key) != usual[key] and getattr(section, other) not in values:
            needed = " or ".join(f'"{value}"' for value in values)
            raise ConfigError(f"{group}.{key}: has an effect only with {group}.{other} {needed}")
