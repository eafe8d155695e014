"""Votes of people who saw both pictures and did not know which was which.

A ballot is known by the pictures on it: votes on other pictures, even of the same prompts, do not count. Which side showed the
tuned picture is a function of the ballot and the pair, known to nobody who only has the page's pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdtune import stats
from sdtune.data.layouts import plural
from sdtune.errors import EvaluationError
from sdtune.files import atomic_write
from sdtune.judging.figures import MIN_PROMPTS
from sdtune.judging.scores import Figure

FORMAT = "sdtune votes 1"
CHOICES = ("left", "right", "same")
LARGEST = 10_000_000
"""Bytes of a file of votes that are read."""


@dataclass(frozen=True)
class Votes:
    """What one person chose: number of the pair -> "left", "right" or "same"."""

    ballot: str
    voter: str
    chosen: dict[int, str]


def ballot_of(pictures: Sequence[tuple[str, int, Path, Path]]) -> str:
    """The name of a ballot with these pairs: (prompt, seed, base, tuned)."""
    digest = hashlib.sha256()
    for prompt, seed, base, tuned in pictures:
        digest.update(json.dumps([prompt, seed]).encode())
        digest.update(hashlib.sha256(base.read_bytes()).digest() + hashlib.sha256(tuned.read_bytes()).digest())
    return digest.hexdigest()[:32]


def tuned_is_left(ballot: str, pair: int) -> bool:
    return bool(hashlib.sha256(f"{ballot}/{pair}".encode()).digest()[0] & 1)


def read(path: Path) -> Votes:
    """A file that the voting page gave. Raises EvaluationError."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("too large")
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError("of another format")
        chosen = {int(vote["pair"]): str(vote["choice"]) for vote in found["votes"]}
        if wrong := sorted(set(chosen.values()) - set(CHOICES)):
            raise ValueError(f"a choice {wrong[0][:40]!r}")
        return Votes(str(found["ballot"]), str(found.get("voter", ""))[:80], chosen)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError) else "damaged"
        raise EvaluationError(f"{path}: no votes of sdtune ({why}); the page vote.html writes them") from None


def figure(votes: Sequence[Votes], ballot: str, prompt_of: Sequence[int], draws: int, seed: int) -> Figure | None:
    """The mean preference for the tuned pictures, -1 to 1; None without votes. `prompt_of`: the prompt's number of each pair.

    The unit is the prompt: all votes on its pictures, of all voters, are averaged.
    """
    prompts = max(prompt_of, default=-1) + 1
    choices = [(pair, choice) for v in votes for pair, choice in v.chosen.items() if 0 <= pair < len(prompt_of)]
    if not choices:
        return None
    value = np.array(
        [0.0 if c == "same" else 1.0 if (c == "left") == tuned_is_left(ballot, p) else -1.0 for p, c in choices]
    )
    mean_P = stats.group_means(value, np.array([prompt_of[p] for p, _ in choices], np.int64), prompts)
    asked = mean_P[np.isfinite(mean_P)]
    people = plural(len({v.voter for v in votes if v.chosen}), "voter")
    counts = f"{plural(len(choices), 'blind choice')} on {plural(len(asked), 'prompt')} by {people}"
    note = f"{counts}; 1 is always the tuned picture, -1 always the base's"
    few = len(asked) < MIN_PROMPTS
    return Figure(
        "votes", "Blind votes for the tuned pictures", "higher",
        difference=stats.bootstrap_mean(asked, draws, seed),
        evidence=not few,
        note=f"not evidence: {note}; at least {MIN_PROMPTS} prompts are needed" if few else note,
        wins=int((asked > 0).sum()),
        losses=int((asked < 0).sum()),
    )  # fmt: skip


def merged(votes: Sequence[Votes]) -> list[Votes]:
    """One for each voter: a later file of the same person adds to the earlier one, and replaces what is in both."""
    by_voter: dict[str, Votes] = {}
    for v in votes:
        before = by_voter.get(v.voter)
        by_voter[v.voter] = dataclasses.replace(v, chosen={**before.chosen, **v.chosen}) if before else v
    return list(by_voter.values())


def keep(path: Path, folder: Path) -> Path:
    """Copy a file of votes to those of a comparison. Raises EvaluationError if it is none."""
    found = read(path)
    data = path.read_bytes()
    name = "".join(c if c.isalnum() else "-" for c in found.voter).strip("-") or "anonymous"
    place, number = folder / f"{name}.json", 1
    while place.exists() and place.read_bytes() != data:
        number += 1
        place = folder / f"{name}-{number}.json"
    with atomic_write(place) as file:
        file.write(data)
    return place


def of(folder: Path, ballot: str) -> tuple[list[Votes], int]:
    """The votes in a folder that are on this ballot, one for each voter; and how many files are on another. Raises EvaluationError."""
    files = sorted(folder.glob("*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    found = [read(file) for file in files]
    ours = [v for v in found if v.ballot == ballot]
    return merged(ours), len(found) - len(ours)
