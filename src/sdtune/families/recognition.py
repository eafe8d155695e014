"""Of which family a model is. Imports no torch. Each family says itself what is its own (`Source.owns`)."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from sdtune.errors import ModelError
from sdtune.families.places import Source, json_of, locate
from sdtune.families.sd1 import Sd1
from sdtune.families.sd2 import Sd2
from sdtune.families.sd3 import Sd3
from sdtune.families.sdxl import Sdxl

BuiltIn = Sd1 | Sd2 | Sdxl | Sd3
BUILT_IN: tuple[type[Source], ...] = get_args(BuiltIn)


def recognise(path: str) -> str | None:
    """The family ("sd1", ...) of what a recipe may name as `model.path`; None if it is not there or none of ours.

    A plugin's families are not asked: a recipe that names the plugin names the family, too.
    """
    try:
        found = family_of(locate(Source(path=path))[0])
    except ModelError:
        return None  # loading it says what is wrong
    return found.type if found else None


def family_of(path: Path) -> type[Source] | None:
    """The built-in family of a model folder or a single-file checkpoint that is there, by its names alone. Raises ModelError."""
    return next((family for family in BUILT_IN if family.owns(path)), None)


def check_family(path: Path, name: str, family: type[Source]) -> None:
    """Refuse what is not of `family`, where its names tell; `name` is for the message. Raises ModelError."""
    if family.owns(path):
        return
    found = family_of(path)
    if found:
        raise ModelError(f'{name}: is {found.title}, the recipe says {family.type}; set model.type="{found.type}"')
    known = ", ".join(f.title for f in dict.fromkeys((*BUILT_IN, family)))
    if path.is_file() and not family.mark:
        raise ModelError(
            f"{name}: {family.title} is read from folders in diffusers layout alone, not from single files"
        )
    if path.is_file():
        raise ModelError(f"{name}: no checkpoint of a known family; known: {known}")
    index = json_of(path / "model_index.json")
    if index.get(
        "transformer"
    ):  # the families with a U-Net share its class: their loading says which part does not fit
        raise ModelError(
            f"{name}: model_index.json names {index['transformer']!r} as transformer, of no known family; known: {known}. "
            "One from a plugin needs plugins and model.type, see docs/extending.md"
        )
