"""The shards of a folder, or those that a pattern such as {00000..00009}.tar names; and which of them are missing."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from pathlib import Path

from sdtune.data.layouts import Folder, Found, listed, plural

OF = re.compile(r"-(\d+)-of-(\d+)")
"""data-00000-of-00002.arrow: the first of two."""


def numbered(pattern: str) -> list[str]:
    """ "{000..002}.tar" as the three names that it stands for; nothing for another pattern."""
    before, _, rest = pattern.partition("{")
    numbers, _, after = rest.partition("}")
    first, dots, last = numbers.partition("..")
    if not (dots and first.isdigit() and last.isdigit()):
        return []
    return [f"{before}{n:0{len(first)}d}{after}" for n in range(int(first), int(last) + 1)]


def chosen(folder: Folder, suffixes: Collection[str]) -> list[Path]:
    """The files of these suffixes directly in the folder: those that `folder.file` names, or all."""
    there = {p.name: p for p in folder.files if p.suffix in suffixes and p.parent == folder.path}
    if folder.file is None:
        return list(there.values())
    if names := numbered(folder.file.name):
        return [there[name] for name in names if name in there]
    return [path for name, path in there.items() if fnmatch.fnmatchcase(name, folder.file.name)]


def tell_of_missing(folder: Folder, shards: Collection[Path], found: Found) -> None:
    """A fault for shards that a pattern names, or that the names of others speak of, and that are not there."""
    there = set(shards)
    if folder.file and (gone := [n for n in numbered(folder.file.name) if folder.path / n not in there]):
        return found.fault(
            folder.file.name, f"{plural(len(gone), 'shard')} of it not here ({listed(gone)}); add or unname them"
        )
    if folder.file:
        return None
    expected = {
        path.with_name(OF.sub(f"-{i:0{len(match[1])}d}-of-{match[2]}", path.name))
        for path in there
        if (match := OF.search(path.name)) and int(match[2]) <= MOST_SHARDS
        for i in range(int(match[2]))
    }
    if gone := sorted(folder.name(path) for path in expected - there):
        remedy = "add them (data.download=true those of a Hub id), or name those that are wanted, as in *.parquet"
        what = f"{plural(len(gone), 'shard')} not here ({listed(gone)}); {remedy}"
        found.fault(folder.path.name, what)
    return None


MOST_SHARDS = 100_000
