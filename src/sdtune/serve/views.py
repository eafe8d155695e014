"""What clients are told of trainings, runs and datasets: ids, never paths. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["train", "evaluate"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
RunState = Literal["queued", "running", "stopping", "stopped", "finished", "failed", "empty"]
Page = Literal["report", "vote"]


@dataclass(frozen=True)
class WorkJob:
    """One sitting of a training, or one evaluation. A run that was stopped and goes on has a job for each sitting."""

    number: int
    """In the order of arrival."""
    id: str
    kind: Kind
    run: str
    """The id of the run."""
    state: JobState
    """cancelled: stopped by somebody; a training's weights are saved then."""
    request: dict[str, Any]
    """What was asked: of a training the posted config, with ids."""
    client: str
    error: dict[str, str] | None
    """{"code", "message"}."""
    stopping: bool
    """It was told to stop, and ends after its step."""
    created: float
    """Seconds since 1970, as the others."""
    started: float | None
    finished: float | None


@dataclass(frozen=True)
class RunView:
    """A run for clients."""

    id: str
    name: str
    state: RunState
    step: int
    steps: int
    method: str
    """Kind, rank, layers: "lora 8 many"."""
    base: str
    """What it began from, without a path."""
    began: float
    """Seconds since 1970."""
    seconds: float | None
    """Left to the end, about (ETA). None where it does not run, or is too young to tell."""
    rate: float | None
    """Steps a second, over the last of them; None where it does not run."""
    loss: float | None
    """Mean of the last 20 steps."""
    validation: float | None
    best: float | None
    """The lowest validation loss, and its step."""
    best_step: int | None
    compared: bool
    verdicts: dict[str, str]
    """Question -> answer, as in the report; empty before it is compared."""
    primary: str
    """Change of the figure that decides, with its interval."""
    message: str
    """Why it failed."""
    what: str
    """What it does now, if that is no step: "encoding pictures 12 of 40"."""
    model: str | None
    """The id under which it can be drawn with, once it is finished."""
    job: str | None
    """The id of its newest job of this server."""
    plugins: bool
    """Whether it is made with code of its own, so that it is only looked at here."""


@dataclass(frozen=True)
class Curves:
    """What was logged, thinned to at most 2000 steps (each the mean of its neighbours)."""

    step: list[int]
    loss: list[float]
    lr: list[float]
    grad_norm: list[float]
    validation_step: list[int]
    validation: list[float]
    validation_raw: list[float | None]
    """Of the weights themselves, where the loss is that of their moving average."""


@dataclass(frozen=True)
class Preview:
    """A picture that was drawn while training. Step 0 is the base model."""

    id: str
    """step-000100-02; of this run."""
    step: int
    prompt: str
    seed: int
    href: str
    """/api/runs/RUN/samples/ID"""


@dataclass(frozen=True)
class PresetView:
    name: str
    purpose: str
    hardware: str
    time: str
    fits: bool
    """Whether this server can start it as it is: its model and pictures are here."""
    config: dict[str, Any]
    """As POST /api/jobs takes it: what the recipe says, with ids; a model or set that is not here is left out."""


@dataclass(frozen=True)
class Estimate:
    """What a config will need, as far as that is known before it runs. None: not known."""

    trainable: int | None
    """Parameters."""
    total: int | None
    """Of the denoiser."""
    pictures: int
    """To train on."""
    validation_pictures: int
    epochs: float
    weights_mb: float | None
    """Of the whole model as it is loaded."""
    state_mb: float | None
    """Trained weights in fp32, their gradients, what the optimiser keeps, and the moving average. Activations come on top."""
    disk_mb: float | None
    """Checkpoints that are kept, the result and the encoded pictures, about."""
    free_mb: float
    """On the disk of the runs."""
    seconds: float | None
    """By the nearest run on this machine that had the same model, method, size and batch."""
    like: str | None
    """The id of that run."""
    notes: list[str]
    """For people."""


@dataclass(frozen=True)
class SetView:
    """A dataset that configs may name."""

    id: str
    """What stands in `data.path`. Shipped sets: "embedded:comic"."""
    title: str
    shipped: bool
    writable: bool
    """Whether captions can be written here."""
    why: str
    """If not: why."""


@dataclass(frozen=True)
class Finding:
    """A kind of finding of `sdtune data check --quick`."""

    kind: str
    policy: str
    """fail, skip, warn or ignore: what a training does about it."""
    count: int
    where: list[str]
    """Names of the first few."""
    what: str
    remedy: str


@dataclass(frozen=True)
class SetReport:
    """What `sdtune data check --quick` says."""

    id: str
    layout: str
    """How the folder says which picture has which captions."""
    train: int
    validation: int
    headline: str
    stops: bool
    """Whether a training would stop."""
    sizes: list[tuple[int, int, int]]
    """(width, height, how many), the most frequent first; at most 20."""
    findings: list[Finding]
    notes: list[str]


@dataclass(frozen=True)
class SetPicture:
    """A picture of a dataset."""

    n: int
    """Its place, from 0: what routes name it by."""
    name: str
    """Relative to the set, with slashes."""
    captions: list[str]
    by: Literal["nobody", "human", "sdtune"]
    """Who wrote the captions."""
    href: str
    """Of its thumbnail: /api/datasets/SET/pictures/N/thumbnail"""
