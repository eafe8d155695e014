"""What other tools are told of an event: the same names in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdtune import bands
from sdtune.events import Event, Failed, Finished, Sampled, Step, Validated, Warned
from sdtune.runs import Run


@dataclass(frozen=True)
class Scalars:
    """Numbers of one step."""

    values: Mapping[str, float]
    step: int
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class Picture:
    """A preview, an existing PNG. The same name at every step of a run."""

    name: str
    path: Path
    caption: str
    step: int
    time: float


@dataclass(frozen=True)
class Note:
    """A warning, or the error that ended the run."""

    text: str
    step: int
    time: float


Record = Scalars | Picture | Note


def records(event: Event, run: Run) -> list[Record]:
    """What the event is to other tools; nothing for most."""
    match event:
        case Step():
            values = {"train/loss": event.loss, "train/grad_norm": event.grad_norm, "train/lr": event.lr}
            values |= {"speed/steps_per_second": 1 / event.seconds} if event.seconds > 0 else {}
            return [Scalars(values, event.step, event.time)]
        case Validated():
            values = {"validation/loss": event.loss}
            values |= {} if event.raw is None else {"validation/raw": event.raw}
            values |= {f"validation/{name}": sum(band) / len(band) for name, band in bands.named(event).items()}
            return [Scalars(values, event.step, event.time)]
        case Finished():
            values = {"speed/seconds": event.seconds}
            values |= {} if event.peak_memory_mb is None else {"memory/peak_mb": event.peak_memory_mb}
            return [Scalars(values, event.step, event.time)]
        case Sampled():
            path = run.path / event.path
            name, caption = f"preview/{event.prompt[:60]}/seed {event.seed}", f"{event.prompt}, seed {event.seed}"
            return [Picture(name, path, caption, event.step, event.time)] if path.is_file() else []  # or removed since
        case Warned() | Failed():
            return [Note(event.message, event.step, event.time)]
    return []
