"""The previews of a run, step by step: what each prompt and seed looked like while training went on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdtune.events import Sampled, Validated
from sdtune.runs import Run


@dataclass(frozen=True)
class Row:
    """One prompt and seed; a cell for each of the timeline's steps, None where it was not drawn or its file is gone."""

    prompt: str
    seed: int
    cells: tuple[Path | None, ...]


@dataclass(frozen=True)
class Timeline:
    steps: tuple[int, ...]
    """Step 0 is the base."""
    rows: tuple[Row, ...]
    losses: tuple[float | None, ...]
    """The validation loss at each step, where there is one."""


def read(run: Run, most: int) -> Timeline | None:
    """The previews at no more than `most` steps, the first and the last among them. None where fewer than two steps have any."""
    events = list(run.events())
    drawn = {(e.prompt, e.seed, e.step): run.path / e.path for e in events if isinstance(e, Sampled)}
    drawn = {key: path for key, path in drawn.items() if path.is_file()}
    steps = spread(sorted({step for _, _, step in drawn}), most)
    if len(steps) < 2:
        return None
    loss = {e.step: e.loss for e in events if isinstance(e, Validated)}
    rows = [
        Row(p, s, tuple(drawn.get((p, s, t)) for t in steps)) for p, s in dict.fromkeys((p, s) for p, s, _ in drawn)
    ]
    return Timeline(tuple(steps), tuple(r for r in rows if any(r.cells)), tuple(loss.get(t) for t in steps))


def spread(steps: list[int], most: int) -> list[int]:
    """`most` of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
