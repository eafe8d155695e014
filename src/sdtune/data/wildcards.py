"""{red|blue|green} in a caption, one of which is drawn. Imports no torch."""

from __future__ import annotations

import re

from sdtune.data.chance import uniform

_INNERMOST = re.compile(r"\{([^{}]*)\}")


def choose(text: str, key: str | None) -> str:
    """`text` with one choice of each {a|b}, inner braces first: drawn by a hash of `key`, the first if it is None.

    A text whose braces are not balanced stays as it is.
    """
    if not balanced(text):
        return text
    drawn = 0
    while found := _INNERMOST.search(text):
        choices = found[1].split("|")
        choice = choices[0 if key is None else int(uniform(f"choice/{key}/{drawn}") * len(choices))]
        text, drawn = text[: found.start()] + choice.strip() + text[found.end() :], drawn + 1
    return re.sub(" {2,}", " ", text) if drawn else text


def balanced(text: str) -> bool:
    """Whether each brace has its other one."""
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0
