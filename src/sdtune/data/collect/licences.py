"""Licences by short codes, read from addresses and names, and which of them a search may give."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdtune.errors import ConfigError

FREE = ("cc0", "pdm", "gov")
"""Works that ask for nothing: given to the public domain, free of known rights, or made by the US government."""
SETS: dict[str, tuple[str, ...] | None] = {
    "any": None,
    "cc0": FREE,
    "by": (*FREE, "by"),
    "by-sa": (*FREE, "by", "by-sa"),
    "commercial": (*FREE, "by", "by-sa", "by-nd", "unsplash"),
    "modification": (*FREE, "by", "by-sa", "by-nc", "by-nc-sa", "unsplash"),
    "free": (*FREE, "by", "by-sa", "unsplash"),
}
"""What --licence takes, and the codes that it lets through; None: all, unknown ones too."""
_CC = re.compile(r"https?://(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)")
_NAME = re.compile(r"\bcc[ -](by(?:-nc)?(?:-nd|-sa)?)(?:[ -](\d\.\d))?\b")
_KNOWN = {"by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd"}


@dataclass(frozen=True)
class Licence:
    code: str
    """"other" for one that is none of those known here."""
    name: str
    url: str = ""


UNKNOWN = Licence("other", "unknown")


def allowed(wanted: str, code: str) -> bool:
    """Whether the set `wanted` lets a licence of that code through."""
    codes = codes_of(wanted)
    return codes is None or code in codes


def codes_of(wanted: str) -> tuple[str, ...] | None:
    if wanted not in SETS:
        raise ConfigError(f"--licence {wanted}: no such set; one of {', '.join(SETS)}")
    return SETS[wanted]


def licence(url: str, name: str = "") -> Licence:
    """The licence that an address names, or else a name: "CC BY-SA 4.0", "Public domain"."""
    url = url if url.startswith(("http://", "https://")) else ""
    if found := _CC.match(url):
        kind, code, version = found.groups()
        if kind == "publicdomain" and code in ("zero", "mark"):
            return (
                Licence("cc0", f"CC0 {version}", url) if code == "zero" else Licence("pdm", "Public Domain Mark", url)
            )
        if code in _KNOWN:
            return Licence(code, f"CC {code.upper()} {version}", url)
    plain = name.lower()
    if "cc0" in plain:
        return Licence("cc0", name, url)
    if found := _NAME.search(plain):
        return Licence(found[1], name, url)
    if plain.startswith(("public domain", "pd-", "pd ", "no known copyright")):
        return Licence("pdm", name, url)
    if "united states government" in plain:
        return Licence("gov", name, url)
    return Licence("other", name or UNKNOWN.name, url)
