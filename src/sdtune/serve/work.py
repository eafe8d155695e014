"""Trainings and evaluations as jobs of the server, and the runs and datasets that they are about: what API and pages call. Imports no torch.

Everything raises ApiError. Runs, datasets and models are named by ids alone; paths never leave this package. What may take long is `async`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdtune.config import RunConfig
from sdtune.serve.log import Log

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


class Work:
    """The server's trainings and evaluations. Everything of it runs in the server's event loop."""

    # ---- its life

    async def start(self) -> None:
        """Find what an earlier server left running, and begin to watch and to start."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop watching. What runs goes on, and the next server finds it."""
        raise NotImplementedError

    # ---- jobs

    def train(self, config: Mapping[str, Any], client: str, key: str | None = None) -> tuple[WorkJob, bool]:
        """Queue a training of a posted config; whether the job is new. A run of this very config that is there already is gone on with.

        404 not_found: a model or dataset. 409 exists: another run has this name; running: it is at work or waits already;
        finished: there is nothing left to do. 422 invalid: a key, with `field`. 429, 507: as for drawings.
        """
        raise NotImplementedError

    def evaluate(self, run: str, client: str, key: str | None = None) -> tuple[WorkJob, bool]:
        """Queue `sdtune compare` of a finished run. 409 not_finished, running."""
        raise NotImplementedError

    def job(self, name: str) -> WorkJob | None:
        """By id; None if it is none of these jobs (it may be a drawing)."""
        raise NotImplementedError

    def jobs(self, *, states: Sequence[str] = (), limit: int = 50, before: int | None = None) -> list[WorkJob]:
        """The newest first; `before` is a `number`, to page."""
        raise NotImplementedError

    def told(self, job: WorkJob) -> dict[str, Any]:
        """A job for clients, as GET /api/jobs/ID answers."""
        raise NotImplementedError

    def cancel(self, job: WorkJob) -> None:
        """A waiting job ends now; a training ends its step and saves, an evaluation ends and keeps what it has drawn."""
        raise NotImplementedError

    def log_of(self, job: WorkJob) -> Log:
        """Its events, to `listen` to: state, step, validated, sampled, saved, noted, warned, busy, and done, error or cancelled at the end.

        step: {"step", "steps", "loss", "lr", "rate" (steps a second), "seconds" (left)}; validated: {"step", "loss", "best"};
        sampled: a `Preview` as dict; saved: {"step", "best"}; noted, warned: {"message", "step"}; busy: {"what", "done", "total"};
        rewound: {"step"}, when a run goes on from there: what came later is done again. done: {"state", "run", "model", "verdicts"}.
        """
        raise NotImplementedError

    # ---- runs

    async def runs(self) -> list[RunView]:
        """What lies below the folder of the runs and what the command line named, the newest first."""
        raise NotImplementedError

    async def run(self, name: str) -> RunView:
        """404 not_found."""
        raise NotImplementedError

    async def curves(self, name: str) -> Curves:
        raise NotImplementedError

    async def samples(self, name: str) -> list[Preview]:
        """In the order of steps, then of prompts and seeds."""
        raise NotImplementedError

    def sample_file(self, name: str, picture: str) -> Path:
        """The PNG of a preview, for the server to send; `picture` is a `Preview.id`."""
        raise NotImplementedError

    def config_text(self, name: str) -> str:
        """The run's config as TOML, without paths of this machine."""
        raise NotImplementedError

    def posted_config(self, name: str) -> dict[str, Any]:
        """The run's config as POST /api/jobs takes it, with ids, to begin another run from; what has no id is left out."""
        raise NotImplementedError

    def log_text(self, name: str, lines: int = 200) -> str:
        """The last lines that the run's newest job has printed; "" without one."""
        raise NotImplementedError

    def page(self, name: str, page: Page) -> Path:
        """report.html or vote.html. 404 not_compared."""
        raise NotImplementedError

    async def timeline(self, name: str) -> Path:
        """The PNG of `sdtune timeline`, drawn anew where it is old. 404 no_samples with fewer than two steps of previews."""
        raise NotImplementedError

    def stop_run(self, name: str) -> WorkJob:
        """End the step and save. 409 not_running."""
        raise NotImplementedError

    def go_on(self, name: str, client: str) -> WorkJob:
        """Queue the next sitting of a stopped or failed run. 409 running, finished; 409 plugins."""
        raise NotImplementedError

    def save_now(self, name: str) -> None:
        """Let a running training save a checkpoint after its step. 409 not_running."""
        raise NotImplementedError

    def sample_now(self, name: str) -> None:
        """Let a running training draw its previews after its step. 409 not_running."""
        raise NotImplementedError

    # ---- configs

    def read_config(self, posted: Mapping[str, Any]) -> RunConfig:
        """A posted config, checked wholly, with ids resolved. The result holds paths: not for clients."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """JSON schema of a posted config: types, defaults, bounds, help (`description`). Keys that clients may not set are not in it;
        model.path and data.path are enums of the ids."""
        raise NotImplementedError

    def presets(self) -> list[PresetView]:
        """The recipes that come with sdtune, those that fit first."""
        raise NotImplementedError

    async def estimate(self, posted: Mapping[str, Any]) -> Estimate:
        """What this config will need. Takes seconds: the model is read in a process of its own."""
        raise NotImplementedError

    # ---- datasets

    def sets(self) -> list[SetView]:
        """Folders that the command line named, then the sets that come with sdtune."""
        raise NotImplementedError

    def set(self, name: str) -> SetView:
        """404 not_found."""
        raise NotImplementedError

    async def set_report(self, name: str) -> SetReport:
        """A quick check of it: headers, captions and names, seconds for 100,000 pictures."""
        raise NotImplementedError

    async def pictures(self, name: str, offset: int = 0, limit: int = 50) -> tuple[list[SetPicture], int]:
        """A part of the pictures, in a fixed order, and how many there are in all."""
        raise NotImplementedError

    async def thumbnail(self, name: str, n: int, side: int = 256) -> bytes:
        """JPEG or PNG without metadata, at most `side` (16 to 1024) pixels a side."""
        raise NotImplementedError

    async def write_captions(self, name: str, n: int, captions: Sequence[str], picture: str | None = None) -> SetPicture:
        """Write the captions of a picture where the set keeps them; they count as written by a person. Several: one is drawn at each visit.

        `picture` is the name that the client takes `n` for. 403 read_only; 409 changed: `n` is another picture by now.
        """
        raise NotImplementedError
