"""Datasets of the Hub: which files of a repository are wanted, and where its local copy lies. Imports no torch."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from sdtune import hub
from sdtune.data import archives
from sdtune.data.images import SUFFIXES
from sdtune.data.layouts import listed, outside
from sdtune.data.readers.named import numbered
from sdtune.errors import DataError

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.+))?")
TEXTS = (".json", ".jsonl", ".csv", ".txt", ".caption")
WANTED = (*archives.SUFFIXES, *TEXTS, *sorted(SUFFIXES), *(s.upper() for s in sorted(SUFFIXES)))
"""Of a repository only what readers open: no scripts, no pickle."""


def hub_copy(path: str, *, download: bool = False) -> Path:
    """What hf:owner/name[@revision][/folder or pattern] names in the Hub's local cache, fetched first if `download`. Raises DataError."""
    match = NAME.fullmatch(path)
    if not match or (match[3] and outside(match[3])):
        raise DataError(f"{path}: not of the form hf:owner/name, hf:owner/name@revision or hf:owner/name/folder")
    repo, revision, inside = match.groups()
    copy = _fetched(repo, revision, inside) if download else _snapshot(repo, revision, inside, download=False)
    place = copy / inside if inside else copy
    pattern = place.suffix in archives.SUFFIXES
    if place.is_dir() and any(p.suffix in WANTED for p in place.rglob("*")):
        return place
    if pattern and place.parent.is_dir():
        return place
    there = sorted(p.name + "/" * p.is_dir() for p in copy.iterdir() if not p.name.startswith("."))
    what = (
        f"no {inside} in it; in the local Hub cache are: "
        if inside
        else "no pictures or data in the local Hub cache, only: "
    )
    more = "" if download else " (data.download=true fetches what is missing)"
    raise DataError(f"{path}: {what}{listed(there) or 'no files'}{more}")


@lru_cache(maxsize=64)
def _fetched(repo: str, revision: str | None, inside: str | None) -> Path:
    """Asked of the Hub once in a process: a branch that moves meanwhile changes nothing."""
    return _snapshot(repo, revision, inside, download=True)


def _snapshot(repo: str, revision: str | None, inside: str | None, *, download: bool) -> Path:
    if inside and Path(inside).suffix in archives.SUFFIXES:
        wanted = numbered(inside) or [inside]
    else:
        wanted = [f"{inside}/*{suffix}" if inside else f"*{suffix}" for suffix in WANTED]
    return hub.snapshot(
        repo, wanted, revision=revision, download=download, remedy="data.download=true fetches it", kind="dataset", error=DataError
    )  # fmt: skip
