"""A card for each cell: overview, how it helps, origin of the idea, result, why better or worse.

What was measured stands between two marks and is written anew each time; everything else in the file is its reader's, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdtune.files import write_text

HEADINGS = ("overview", "how it helps", "origin of the idea", "result", "why better or worse")
MEASURED = ("overview", "result")
"""Headings whose facts are filled in."""
BEGIN, END = "<!-- measured: written anew by sdtune -->", "<!-- end of what was measured -->"
HINTS = {
    "how it helps": "<!-- What this experiment is meant to make better, and how. -->",
    "origin of the idea": "<!-- Paper, project or observation. -->",
    "why better or worse": "<!-- Your reading of the result. -->",
}
"""What stands where nothing is written yet."""
NAME = "card.md"


@dataclass(frozen=True)
class Card:
    """Facts by heading, and what people wrote under each."""

    name: str
    facts: Mapping[str, str]
    prose: Mapping[str, str]


def refresh(path: Path, name: str, facts: Mapping[str, str], prose: Mapping[str, str]) -> Card:
    """The card at `path` with these facts; a new one begins with `prose`. A card without the marks is left as it is."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = _blank(name, prose)
    filled = _filled(text, facts)
    if not path.exists() or filled != path.read_text(encoding="utf-8"):
        write_text(path, filled)
    return Card(name, facts, written(filled))


def written(text: str) -> dict[str, str]:
    """What people wrote under each heading: without facts and hints."""
    found = {}
    for heading, body in _sections(text):
        own = re.sub(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", "", body, flags=re.DOTALL)
        own = re.sub(r"<!--.*?-->", "", own, flags=re.DOTALL).strip()
        if heading in HEADINGS and own:
            found[heading] = own
    return found


def _sections(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"^##[ \t]+(.+?)[ \t]*$", text, flags=re.MULTILINE)
    return [(heading.lower(), body) for heading, body in zip(parts[1::2], parts[2::2], strict=True)]


def _blank(name: str, prose: Mapping[str, str]) -> str:
    lines = [f"# {name}", ""]
    for heading in HEADINGS:
        lines += [f"## {heading}", ""]
        lines += [BEGIN, END, ""] if heading in MEASURED else []
        if heading in HINTS:
            lines += [prose.get(heading) or HINTS[heading], ""]
    return "\n".join(lines)


def _filled(text: str, facts: Mapping[str, str]) -> str:
    """The facts between the marks of their headings; headings without marks stay as they are."""
    out = ""
    for part in re.split(r"(?m)^(?=##[ \t])", text):
        heading = part.partition("\n")[0].removeprefix("##").strip().lower()
        before, begin, rest = part.partition(BEGIN)
        _, end, after = rest.partition(END)
        out += f"{before}{BEGIN}\n{facts[heading]}\n{END}{after}" if begin and end and heading in facts else part
    return out
