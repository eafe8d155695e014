"""Texts that were written for whoever has this machine, made fit for clients: without its paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PATH = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:'\"`,;()\[\]<>|]+)+[/\\](?=[^\s/\\])")
"""The folders of an absolute path, up to its last name."""


class Scrub:
    """Known folders become their ids; of other absolute paths the last name is left."""

    def __init__(self, known: Mapping[str, Path]) -> None:
        both = {(str(p), name) for name, path in known.items() for p in (path, path.absolute(), path.resolve())}
        self._known = sorted(both, key=lambda pair: -len(pair[0]))

    def __call__(self, text: str) -> str:
        for path, name in self._known:
            if len(path) > 1:
                text = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", lambda _, name=name: name, text)  # type: ignore[misc]
        return _PATH.sub("", text)
