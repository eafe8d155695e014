"""What a run reports: plain records that the command line prints, the web streams and `events.jsonl` keeps."""

import json
from dataclasses import dataclass
from typing import Any

from sdtune.happened import Happened
from sdtune.happened import record as record


@dataclass(frozen=True)
class Started(Happened):
    """A run begins, or goes on from `step`."""

    step: int
    steps: int
    run: str
    device: str
    precision: str
    trainable: int
    """Trainable parameters."""
    total: int
    """Parameters of the denoiser, adapters not counted."""
    pictures: int
    validation_pictures: int
    batch_size: int
    """Pictures per optimiser step (micro-batch times accumulation)."""


LOOKING = "looking at pictures"
"""What `Encoding` says while pictures are only read."""
LISTING = "listing files and reading captions"
"""And before that, while it is not known how many there are: the total is 0."""


@dataclass(frozen=True)
class Encoding(Happened):
    """Pictures or captions are being encoded into the cache: `done` of `total`. Or pictures are read before that."""

    what: str
    done: int
    total: int

    @property
    def words(self) -> str:
        return self.what if self.what in (LOOKING, LISTING) else f"encoding {self.what}"


@dataclass(frozen=True)
class Encoded(Happened):
    """All is encoded: `pictures` to train on, `validation_pictures`, the cache's folder."""

    pictures: int
    validation_pictures: int
    cache: str
    seconds: float


@dataclass(frozen=True)
class Step(Happened):
    """One optimiser step was taken. `loss` is the mean of its pictures, `grad_norm` before clipping."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    waited: float = 0.0
    """Of them, those in which the step waited for its pictures."""


@dataclass(frozen=True)
class Validated(Happened):
    """The validation loss: the same pictures, noise and timesteps each time. `per_picture` pairs across steps."""

    step: int
    loss: float
    per_picture: tuple[float, ...]
    per_timestep: tuple[float, ...] = ()
    """Mean over the pictures at each of the fixed timesteps, from nearly clean to nearly pure noise."""
    raw: float | None = None
    """The loss of the weights themselves, where `loss` is that of their moving average."""
    timesteps: tuple[int, ...] = ()
    """The fixed timesteps of `per_timestep`."""
    per_band: tuple[tuple[float, ...], ...] = ()
    """Each picture's loss in each band of these timesteps (`bands.split`), clean first, to six digits."""


@dataclass(frozen=True)
class Sampled(Happened):
    """A preview was written. Step 0 is the base model."""

    step: int
    prompt: str
    seed: int
    path: str
    """Relative to the run folder."""


@dataclass(frozen=True)
class Saved(Happened):
    """A checkpoint is complete on disk. `best` says that these are the weights of the lowest validation loss so far."""

    step: int
    path: str
    best: bool = False


@dataclass(frozen=True)
class Noted(Happened):
    """What was recognised or decided, for the reader of the log."""

    message: str
    step: int = 0


@dataclass(frozen=True)
class Warned(Happened):
    """Something the user should know: a part that does not train, a setting without effect, a caption that is cut."""

    message: str
    step: int = 0


@dataclass(frozen=True)
class Finished(Happened):
    """The run reached its end: its last step, or an early stop. `path` is the finished adapter or model, relative to the run folder."""

    step: int
    seconds: float
    path: str
    best_step: int | None = None
    peak_memory_mb: float | None = None
    early: bool = False
    """Whether it stopped before its last step because the validation loss fell no more (train.patience)."""


@dataclass(frozen=True)
class Stopped(Happened):
    """The run was interrupted after `step`; the same command goes on from there."""

    step: int


@dataclass(frozen=True)
class Failed(Happened):
    """The run ended on an error."""

    step: int
    message: str


Event = Started | Encoding | Encoded | Step | Validated | Sampled | Saved | Noted | Warned | Finished | Stopped | Failed
_KINDS: dict[str, type[Any]] = {
    c.__name__: c
    for c in (Started, Encoding, Encoded, Step, Validated, Sampled, Saved, Noted, Warned, Finished, Stopped, Failed)
}


def to_line(event: Event) -> str:
    """One line of JSON, `event` naming the kind."""
    return json.dumps(record(event), ensure_ascii=False)


def from_line(line: str) -> Event:
    record = json.loads(line)
    kind = _KINDS[record.pop("event")]
    for name in ("per_picture", "per_timestep", "timesteps", "per_band"):
        if name in record:
            record[name] = tuple(tuple(v) if isinstance(v, list) else v for v in record[name])
    made: Event = kind(**record)
    return made
