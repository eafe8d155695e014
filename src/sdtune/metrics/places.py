"""Where the weights of an encoder lie, and how they come here. Imports no torch; uses no network but in `get`.

A folder `home/ENCODER/` with the published files, as they are called, is enough, wherever it was copied from. What is published on the
Hub may also lie in the Hub's local cache.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from sdtune.errors import EvaluationError
from sdtune.files import atomic_write, cache_home
from sdtune.hub import snapshot
from sdtune.metrics.registry import ENCODERS, METRICS, Hub, Spec, Web, encoders_of

VARIABLE = "SDTUNE_ENCODERS"
TIMEOUT_S = 60.0
PIECE = 1 << 20

Told = Callable[[str, int, int], None]
"""Of a file: how much of it is here, and of how much (0: unknown), in bytes."""


@dataclass(frozen=True)
class Missing:
    """What was left out, why, and how to get it."""

    encoder: str
    why: str
    remedy: str
    """The command that fetches it."""
    by_hand: str
    """What to copy where, on a machine without a network."""

    def __str__(self) -> str:
        return f"{self.encoder}: {self.why}; {self.remedy}, or {self.by_hand}"


class NotHere(EvaluationError):
    """An encoder's weights are not on this machine."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(str(missing))
        self.missing = missing


def home() -> Path:
    """$SDTUNE_ENCODERS, else `encoders` in sdtune's cache."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else cache_home() / "encoders"


def spec_of(name: str) -> Spec:
    """The encoder of that name. Raises EvaluationError."""
    if name not in ENCODERS:
        raise EvaluationError(f"{name}: no such encoder; known: {', '.join(ENCODERS)}")
    return ENCODERS[name]


def locate(name: str, at: Path | None = None) -> dict[str, Path]:
    """The encoder's files by their published names. Raises NotHere. Of files that may stand for each other, the first."""
    spec, found = spec_of(name), dict[str, Path]()
    at = at or home()
    for part in spec.parts:
        files = _web(part, at, name) if isinstance(part, Web) else _hub(part, at / name)
        if files is None:
            raise NotHere(_missing(spec, part, at))
        found.update(files)
    return found


def is_here(name: str, at: Path | None = None) -> bool:
    try:
        locate(name, at)
    except NotHere:
        return False
    return True


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(name: str, files: dict[str, Path]) -> dict[str, str]:
    """The SHA-256 of files with weights, and of others where it is known. Raises EvaluationError for one that is not as published."""
    found = {}
    for file, path in files.items():
        expected = expected_sha256(spec_of(name), file)
        if path.suffix in (".json", ".txt") and not expected:
            continue
        found[file] = sha256_of(path)
        if expected and not found[file].startswith(expected):
            raise EvaluationError(
                f"{path}: is not the published file (SHA-256 {found[file][:12]}..., expected {expected[:12]}...); "
                f"remove it and fetch it again"
            )
    return found


def expected_sha256(spec: Spec, file: str) -> str | None:
    """All or the first digits of it, where it is publicly known."""
    for part in spec.parts:
        if isinstance(part, Web) and part.name == file:
            return part.sha256
        if isinstance(part, Hub) and part.sha256 and file in part.sha256:
            return part.sha256[file]
    return None


def get(name: str, at: Path | None = None, told: Told | None = None) -> dict[str, Path]:
    """Fetch what is not here, and check it. Only what the user asked for by name comes here. Raises EvaluationError."""
    spec, at = spec_of(name), at or home()
    for part in spec.parts:
        if isinstance(part, Web):
            if _web(part, at, name) is None:
                fetch(part, at / name / part.name, told)
        elif _hub(part, at / name) is None:
            _fetch_hub(part, told)
    files = locate(name, at)
    check(name, files)
    return files


def fetch(part: Web, path: Path, told: Told | None = None) -> None:
    """Download a file under its final name, whole and checked, or not at all. Raises EvaluationError."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(part.url, headers={"User-Agent": "sdtune"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, atomic_write(path) as file:
            total = int(answer.headers.get("Content-Length") or 0)
            while piece := answer.read(PIECE):
                file.write(piece)
                digest.update(piece)
                done += len(piece)
                if told:
                    told(part.name, done, total)
            if total and done != total:
                raise EvaluationError(f"{part.url}: ended after {done} of {total} bytes; try again")
            if part.sha256 and not digest.hexdigest().startswith(part.sha256):
                raise EvaluationError(
                    f"{part.url}: gave another file than the published one (SHA-256 {digest.hexdigest()[:12]}..., "
                    f"expected {part.sha256[:12]}...); it was not kept"
                )
    except urllib.error.HTTPError as error:
        raise EvaluationError(f"{part.url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise EvaluationError(
            f"{part.url}: cannot be fetched ({reason}); fetch it on another machine and put it to {path}"
        ) from None


def missing_for(metric: str, at: Path | None = None) -> list[Missing]:
    """What keeps a metric from being taken: nothing where one of its encoders is here whole, else what the usual one lacks."""
    choices = METRICS[metric].encoders
    if any(all(is_here(name, at) for name in choice.split("+")) for choice in choices):
        return []
    usual = [name for name in encoders_of(METRICS[metric]) if name in choices[0].split("+")]
    found = []
    for name in usual:
        try:
            locate(name, at)
        except NotHere as error:
            found.append(error.missing)
    return found


def _web(part: Web, at: Path, name: str) -> dict[str, Path] | None:
    """In the folder of the encoder, or of another one that has the same file."""
    for folder in (name, *(other for other, spec in ENCODERS.items() if part in spec.parts)):
        path = at / folder / part.name
        if path.is_file():
            return {part.name: path}
    return None


def _hub(part: Hub, folder: Path) -> dict[str, Path] | None:
    """All files of the part from one place: `folder`, or the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> Path | None:
        found = try_to_load_from_cache(part.repo, file, revision=part.revision)
        return Path(found) if isinstance(found, str) else None

    def beside(file: str) -> Path | None:
        return folder / file if (folder / file).is_file() else None

    for look in (beside, cached):
        found = {}
        for choice in part.files:
            path = next((p for p in map(look, choice) if p), None)
            if path is None:
                break
            found[path.name] = path
        else:
            return found
    return None


def _fetch_hub(part: Hub, told: Told | None) -> None:
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # that a repository lacks the first of two forms is no news
    for choice in part.files:
        for file in choice:
            progress = (lambda done, total, file=file: told(file, done, total)) if told else None
            remedy = "it is not on the Hub, or not to be had"
            folder = snapshot(
                part.repo,
                [file],
                revision=part.revision,
                download=True,
                remedy=remedy,
                error=EvaluationError,
                progress=progress,
            )
            if (folder / file).is_file():
                break
        else:
            raise EvaluationError(f"{part.repo}: has no {' or '.join(choice)}")


def _missing(spec: Spec, part: Hub | Web, at: Path) -> Missing:
    if isinstance(part, Web):
        what, where = part.name, part.url
    else:
        what = ", ".join(" or ".join(choice) for choice in part.files)
        where = f"{part.repo} on the Hub" + (f" at {part.revision[:7]}" if part.revision else "")
    return Missing(
        spec.name, f"its weights are not here (no {what})", f"sdtune metrics --get {spec.name} (about {spec.size_mb:,} MB)",
        f"copy the file{'s' * isinstance(part, Hub)} from {where} to {at / spec.name}",
    )  # fmt: skip
