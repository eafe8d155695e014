"""Trainings and evaluations as jobs of the server, and the runs and datasets that they are about: what API and pages call.

Imports no torch. Everything raises ApiError. Runs, datasets and models are named by ids alone; paths never leave this package. What may
take long is `async`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from sdtune import config as configs
from sdtune import presets, timeline
from sdtune.config import RunConfig
from sdtune.contact import write_timeline
from sdtune.errors import SdtuneError
from sdtune.experiments.listing import method_text, outcome_of
from sdtune.runs import Run
from sdtune.serve import posted as posting
from sdtune.serve import process as processes
from sdtune.serve.errors import ApiError, not_found
from sdtune.serve.foreman import Foreman
from sdtune.serve.history import History, Runs, failed, picture_path, settings
from sdtune.serve.limits import Limits
from sdtune.serve.log import Log
from sdtune.serve.posted import Known
from sdtune.serve.registry import Registry
from sdtune.serve.sets import SetEntry, Sets
from sdtune.serve.views import Curves as Curves
from sdtune.serve.views import Estimate as Estimate
from sdtune.serve.views import Finding as Finding
from sdtune.serve.views import JobState as JobState
from sdtune.serve.views import Kind as Kind
from sdtune.serve.views import Page as Page
from sdtune.serve.views import PresetView as PresetView
from sdtune.serve.views import Preview as Preview
from sdtune.serve.views import RunState as RunState
from sdtune.serve.views import RunView as RunView
from sdtune.serve.views import SetPicture as SetPicture
from sdtune.serve.views import SetReport as SetReport
from sdtune.serve.views import SetView as SetView
from sdtune.serve.views import WorkJob as WorkJob
from sdtune.serve.works import Works

PATIENCE = 180.0
"""Seconds for a look-up in a process of its own."""
TAIL = 2**18
"""Bytes of a job's log that are looked at."""


@dataclasses.dataclass(frozen=True)
class Shop:
    """What the command line says of trainings."""

    runs: Path = Path("runs")
    """Where new runs go, and what lies below is listed."""
    data: tuple[Path, ...] = ()
    at_once: int = 1
    """Trainings and evaluations that run at the same time."""


class Work:
    """The server's trainings and evaluations. Everything of it runs in the server's event loop."""

    def __init__(
        self, shop: Shop, folder: Path, registry: Registry, limits: Limits, finished: Callable[[Run], str | None]
    ) -> None:
        """`folder` is the server's own; `finished` is told of a run that can be drawn with, and gives the id of its model."""
        more = [Path(entry.place) for entry in registry.entries.values() if entry.kind == "run"]
        self.registry, self.limits = registry, limits
        self.sets_known, self.runs_known = Sets(shop.data), Runs(shop.runs, more)
        self.works = Works(folder / "queue.sqlite")
        known = Known(registry, self.sets_known, limits)
        self.foreman = Foreman(
            self.works, folder / "work", lambda: known.scrub(self.runs_known.folder), finished, at_once=shop.at_once
        )
        self._known = known
        self._writing, self._asking, self._decoding = asyncio.Lock(), asyncio.Semaphore(1), asyncio.Semaphore(2)
        self._reports = dict[str, SetReport]()

    # ---- its life

    async def start(self) -> None:
        """Find what an earlier server left running, and begin to watch and to start."""
        await self.foreman.start()

    def part(self) -> None:
        """The server will stop: start nothing more, and tell listeners."""
        self.foreman.part()

    async def stop(self) -> None:
        """Stop watching. What runs goes on, and the next server finds it."""
        await self.foreman.stop()
        self.works.close()

    # ---- jobs

    def train(self, config: Mapping[str, Any], client: str, key: str | None = None) -> tuple[WorkJob, bool]:
        """Queue a training of a posted config; whether the job is new. A run of this very config that is there already is gone on with.

        404 not_found: a model or dataset. 409 exists: another run has this name; running: it is at work or waits already;
        finished: there is nothing left to do. 422 invalid: a key, with `field`. 429, 507: as for drawings.
        """
        read = self.read_config(config)
        if key is not None and (known := self.works.by_key(client, key)):
            if known.kind == "train" and known.request == config:
                return known, False
            raise ApiError(409, "key_reused", "this Idempotency-Key was used for another job")
        place = self._place_for(read)
        return self._queue("train", read.name, place, dict(config), client, key, configs.to_toml(read)), True

    def _place_for(self, config: RunConfig) -> Path:
        """The folder of a new run, or of this very run that is not finished. Raises ApiError."""
        place = self.runs_known.new_place(config.name)
        self._check_free(config.name)
        if place.is_symlink() or (place.exists() and not Run(place).exists()):
            raise ApiError(
                409, "exists", f"name: {config.name} is a folder of other things; choose another", field="name"
            )
        if not place.exists():
            return place
        same = not _plugins(place)
        with suppress(SdtuneError):
            same = same and configs.to_dict(Run(place).config()) == configs.to_dict(config)
            if same:
                self._check_unfinished(config.name, place)
                return place
        raise ApiError(
            409, "exists", f"name: there is a run {config.name} with another config; choose another", field="name"
        )

    def evaluate(self, run: str, client: str, key: str | None = None) -> tuple[WorkJob, bool]:
        """Queue `sdtune compare` of a finished run. 409 not_finished, running."""
        place = self._place(run)
        if key is not None and (known := self.works.by_key(client, key)):
            if known.kind == "evaluate" and known.run == run:
                return known, False
            raise ApiError(409, "key_reused", "this Idempotency-Key was used for another job")
        self._check_free(run)
        self._check_own_code(place)
        if not Run(place).final.is_dir():
            raise ApiError(409, "not_finished", "the run is not finished; an evaluation needs its result")
        return self._queue("evaluate", run, place, {"run": run}, client, key), True

    def _queue(
        self, kind: Kind, run: str, place: Path, request: dict[str, Any], client: str, key: str | None, recipe: str = ""
    ) -> WorkJob:
        self._check_room(client, place)
        try:
            job = self.works.add(kind, run, place, request, client, key)
        except sqlite3.OperationalError:
            raise ApiError(507, "disk_full", "the job cannot be kept: the disk is full") from None
        try:
            self.foreman.take(job, recipe)
        except OSError:
            self.works.end(job.id, "failed", {"code": "disk_full", "message": "its recipe could not be written"})
            raise ApiError(507, "disk_full", "the job cannot be kept: its recipe could not be written") from None
        return job

    def _check_room(self, client: str, place: Path) -> None:
        retry = {"retry-after": "60"}
        if self.works.count("queued") >= self.limits.queue:
            raise ApiError(429, "queue_full", f"{self.limits.queue} trainings wait already", headers=retry)
        if self.works.count("queued", client) >= self.limits.client:
            raise ApiError(
                429, "client_full", f"{self.limits.client} trainings of this client wait already", headers=retry
            )
        there = next(p for p in (place, *place.parents) if p.exists())
        if shutil.disk_usage(there).free < self.limits.room:
            raise ApiError(507, "disk_full", "too little room on the server's disk for a run")

    def _check_free(self, run: str) -> None:
        if job := self.works.open_of(run):
            raise ApiError(409, "running", f"the run is at work or waits already, as job {job.id}")
        if (place := self.runs_known.scan().get(run)) and Run(place).living():
            raise ApiError(409, "running", "the run is at work already, started elsewhere")

    def _check_unfinished(self, run: str, place: Path) -> None:
        history = self.runs_known.history(place)
        if Run(place).final.is_dir() and history.finished:
            raise ApiError(409, "finished", f"the run {run} is finished already; there is nothing left to do")

    @staticmethod
    def _check_own_code(place: Path) -> None:
        if _plugins(place):
            raise ApiError(409, "plugins", "the run needs code of its own, which this server does not run")

    def job(self, name: str) -> WorkJob | None:
        """By id; None if it is none of these jobs (it may be a drawing)."""
        return self.works.get(name)

    def jobs(self, *, states: Sequence[str] = (), limit: int = 50, before: int | None = None) -> list[WorkJob]:
        """The newest first; `before` is a `number`, to page."""
        return self.works.jobs(states, limit=limit, before=before)

    def told(self, job: WorkJob) -> dict[str, Any]:
        """A job for clients, as GET /api/jobs/ID answers."""
        sitting = self.foreman.sitting(job.id)
        told: dict[str, Any] = {
            "id": job.id, "kind": job.kind, "state": job.state, "run": job.run, "stopping": job.stopping, "number": job.number,
            "request": {"kind": job.kind, **({"config": job.request} if job.kind == "train" else job.request)},
            "created": job.created, "started": job.started, "finished": job.finished, "error": job.error,
            "progress": sitting.progress if sitting else None, "events": f"/api/jobs/{job.id}/events",
        }  # fmt: skip
        return told | ({"ahead": self.works.ahead(job)} if job.state == "queued" else {})

    def cancel(self, job: WorkJob) -> None:
        """A waiting job ends now; a training ends its step and saves, an evaluation ends and keeps what it has drawn."""
        self.foreman.cancel(job)

    def log_of(self, job: WorkJob) -> Log:
        """Its events, to `listen` to: state, step, validated, sampled, saved, noted, warned, busy, and done, error or cancelled at the end.

        step: {"step", "steps", "loss", "lr", "rate" (steps a second), "seconds" (left)}; validated: {"step", "loss", "best"};
        sampled: a `Preview` as dict; saved: {"step", "best"}; noted, warned: {"message", "step"}; busy: {"what", "done", "total"};
        rewound: {"step"}, when a run goes on from there: what came later is done again. done: {"state", "run", "model", "verdicts"}.
        """
        place = self.works.place(job.run)
        assert place
        return self.foreman.log_of(job, place)

    # ---- runs

    def _place(self, name: str) -> Path:
        """The folder of a run that is there. Raises ApiError."""
        if (place := self.folder_of(name)) is None:
            raise not_found("run")
        return place

    async def id_of(self, folder: Path) -> str | None:
        """The id of the run in a folder; None if it is none of those that can be trained and compared here."""
        places = await asyncio.to_thread(self.runs_known.scan)
        return next((name for name, place in places.items() if place.resolve() == folder.resolve()), None)

    def folder_of(self, name: str) -> Path | None:
        """Where the run of an id lies. Never told to clients."""
        return self.runs_known.place(name)

    async def runs(self) -> list[RunView]:
        """What lies below the folder of the runs and what the command line named, the newest first."""
        places = await asyncio.to_thread(self.runs_known.scan)
        places |= {name: place for name, place in self.works.runs().items() if name not in places}
        found = [await self._view(name, place) for name, place in places.items()]
        return sorted(found, key=lambda view: (-view.began, view.id))

    async def run(self, name: str) -> RunView:
        """404 not_found."""
        place = self.runs_known.place(name) or self.works.runs().get(name)
        if place is None:
            raise not_found("run")
        return await self._view(name, place)

    async def _view(self, name: str, place: Path) -> RunView:
        job, model = self.works.newest_of(name), self._model_of(place)
        recipe = self.foreman.recipe(job.id) if job else None
        return await asyncio.to_thread(self._look, name, place, job, model, recipe)

    def _model_of(self, place: Path) -> str | None:
        where = str(place.resolve())
        return next((e.id for e in self.registry.entries.values() if e.kind == "run" and e.place == where), None)

    def _look(self, name: str, place: Path, job: WorkJob | None, model: str | None, recipe: Path | None) -> RunView:
        run, history = Run(place), self.runs_known.history(place)
        config = settings(run.config_file) or (settings(recipe) if recipe else {})
        train, base = config.get("train", {}), config.get("model", {})
        state, message = self._state(run, history, job)
        found, best, going = outcome_of(run), history.best, state in ("running", "stopping")
        rate, steps = history.rate if going else None, int(train.get("steps", 0))
        sitting = self.foreman.sitting(job.id) if job else None
        began = history.started.time if history.started else job.created if job else _changed(place)
        last = max(history.validated.values(), key=lambda v: v.step, default=None)
        return RunView(
            id=name, name=str(config.get("name", name)), state=state, step=history.step, steps=steps,
            method=method_text(config.get("method", {})), base=self._base(base), began=began,
            seconds=max(0, steps - history.step) / rate if rate else None, rate=rate, loss=history.loss,
            validation=last.loss if last else None, best=best.loss if best else None, best_step=best.step if best else None,
            compared=found.compared, verdicts=found.verdicts, primary=found.primary,
            message=self._scrub(message), what=sitting.busy if sitting else "", model=model, job=job.id if job else None,
            plugins=bool(config.get("plugins")),
        )  # fmt: skip

    def _state(self, run: Run, history: History, job: WorkJob | None) -> tuple[RunState, str]:
        """The state of a run, and why it failed."""
        if job and job.kind == "train" and job.state in ("queued", "running"):
            return ("queued", "") if job.state == "queued" else ("stopping" if job.stopping else "running", "")
        if run.living():
            return "running", ""
        if run.final.is_dir() and history.finished:
            return "finished", ""
        if job and job.kind == "train" and job.state == "failed" and job.error:
            return "failed", job.error["message"]
        if message := failed(history, 0):
            return "failed", message
        return ("stopped" if history.steps or (job and job.kind == "train") else "empty"), ""

    def _base(self, model: dict[str, Any]) -> str:
        path = str(model.get("path", "embedded"))
        same = [name for name, known in self._known.models.items() if known["path"] == path]
        return same[0] if same else path if not Path(path).expanduser().is_absolute() else Path(path).name

    def _scrub(self, text: str) -> str:
        return self._known.scrub(self.runs_known.folder)(text)

    async def curves(self, name: str) -> Curves:
        history = await asyncio.to_thread(self.runs_known.history, self._place(name))
        return await asyncio.to_thread(history.curves)

    async def samples(self, name: str) -> list[Preview]:
        """In the order of steps, then of prompts and seeds."""
        history = await asyncio.to_thread(self.runs_known.history, self._place(name))
        return await asyncio.to_thread(history.previews, name)

    def sample_file(self, name: str, picture: str) -> Path:
        """The PNG of a preview, for the server to send; `picture` is a `Preview.id`."""
        path = picture_path(Run(self._place(name)), picture)
        if path is None or not path.is_file():
            raise not_found("picture")
        return path

    def config_text(self, name: str) -> str:
        """The run's config as TOML, without paths of this machine."""
        try:
            return self._scrub(Run(self._place(name)).config_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            raise not_found("run") from None

    def posted_config(self, name: str) -> dict[str, Any]:
        """The run's config as POST /api/jobs takes it, with ids, to begin another run from; what has no id is left out."""
        config = settings(Run(self._place(name)).config_file)
        return posting.back({k: v for k, v in config.items() if k != "plugins"}, self._known)[0]

    def log_text(self, name: str, lines: int = 200) -> str:
        """The last lines that the run's newest job has printed; "" without one."""
        self._need(name)
        job = self.works.newest_of(name)
        return self._scrub(_end_of(self.foreman.log_file(job.id), lines)) if job else ""

    def _need(self, name: str) -> None:
        if self.works.newest_of(name) is None:
            self._place(name)

    def page(self, name: str, page: Page) -> Path:
        """report.html or vote.html. 404 not_compared."""
        run = Run(self._place(name))
        path = run.report_file if page == "report" else run.vote_file
        if not path.is_file():
            raise ApiError(404, "not_compared", "the run was not evaluated yet: POST /api/jobs with kind evaluate")
        return path

    async def timeline(self, name: str) -> Path:
        """The PNG of `sdtune timeline`, drawn anew where it is old. 404 no_samples with fewer than two steps of previews."""
        run = Run(self._place(name))
        try:
            drawn = await asyncio.to_thread(_draw_timeline, run)
        except (OSError, SdtuneError, ValueError, KeyError, TypeError):
            drawn = False
        if not drawn:
            raise ApiError(404, "no_samples", "there are previews of fewer than two steps")
        return run.timeline_file

    def _sitting(self, name: str) -> WorkJob:
        """The training of this run that is at work. Raises ApiError."""
        self._need(name)
        job = self.works.open_of(name)
        if job is None or job.kind != "train" or job.state != "running":
            raise ApiError(409, "not_running", "no training of this server is at work on this run")
        return job

    def stop_run(self, name: str) -> WorkJob:
        """End the step and save; a waiting one is taken from the queue. 409 not_running."""
        self._need(name)
        job = self.works.open_of(name)
        if job is None:
            raise ApiError(409, "not_running", "no job of this server is at work on this run")
        self.cancel(job)
        return self.works.get(job.id) or job

    def go_on(self, name: str, client: str) -> WorkJob:
        """Queue the next sitting of a stopped or failed run. 409 running, finished; 409 plugins."""
        self._check_free(name)
        place = self.runs_known.place(name)
        if place is None:  # it was stopped before it had begun
            return self._begin_again(name, client)
        self._check_own_code(place)
        self._check_unfinished(name, place)
        try:
            config = Run(place).config()
        except SdtuneError:
            raise ApiError(409, "unreadable", "the run's config cannot be read") from None
        before = self.works.newest_of(name)
        request = before.request if before and before.kind == "train" else self.posted_config(name)
        return self._queue("train", name, place, request, client, None, configs.to_toml(config))

    def _begin_again(self, name: str, client: str) -> WorkJob:
        before = self.works.newest_of(name)
        if before is None or before.kind != "train":
            raise not_found("run")
        return self.train(before.request, client)[0]

    def save_now(self, name: str) -> None:
        """Let a running training save a checkpoint after its step. 409 not_running."""
        self._sitting(name)
        Run(self._place(name)).ask("save")

    def sample_now(self, name: str) -> None:
        """Let a running training draw its previews after its step. 409 not_running."""
        self._sitting(name)
        Run(self._place(name)).ask("sample")

    # ---- configs

    def read_config(self, posted: Mapping[str, Any]) -> RunConfig:
        """A posted config, checked wholly, with ids resolved. The result holds paths: not for clients."""
        return posting.read(posted, self._known)

    def schema(self) -> dict[str, Any]:
        """JSON schema of a posted config: types, defaults, bounds, help (`description`). Keys that clients may not set are not in it;
        model.path and data.path are enums of the ids."""
        return posting.schema(self._known)

    def presets(self) -> list[PresetView]:
        """The recipes that come with sdtune, those that fit first."""
        return sorted(self._presets, key=lambda preset: (not preset.fits, preset.name))

    @cached_property
    def _presets(self) -> list[PresetView]:
        found = []
        for name in presets.names():
            file = presets.recipe(name)
            config, lost = posting.back(settings(file), self._known)
            about = presets.header(file)
            purpose, hardware, took = (about.get(key, "") for key in ("purpose", "hardware", "time"))
            found.append(PresetView(name, purpose, hardware, took, not lost, config))
        return found

    async def estimate(self, posted: Mapping[str, Any]) -> Estimate:
        """What this config will need. Takes seconds: the model is read in a process of its own."""
        config = self.read_config(posted)
        told = await self._ask_clerk("estimate", config)
        like, seconds = await asyncio.to_thread(self._nearest, config)
        pictures = int(told.get("train", 0))
        notes = [
            self._scrub(str(note)) for note in [*told.get("notes", []), *([told["error"]] if "error" in told else [])]
        ]
        notes += (
            ["activations, which grow with batch and resolution, come on top of the memory"]
            if "weights_mb" in told
            else []
        )
        notes += [] if like else ["no run like it was made here, so that its time is not known"]
        seen = config.train.steps * config.train.batch_size * config.train.accumulate
        return Estimate(
            trainable=told.get("trainable"), total=told.get("total"), pictures=pictures, validation_pictures=int(told.get("validation", 0)),
            epochs=seen / pictures if pictures else 0.0, weights_mb=told.get("weights_mb"), state_mb=told.get("state_mb"),
            disk_mb=told.get("disk_mb"), free_mb=self._free_mb(), seconds=seconds, like=like, notes=notes,
        )  # fmt: skip

    def _free_mb(self) -> float:
        folder = self.runs_known.folder
        return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 2**20

    def _nearest(self, config: RunConfig) -> tuple[str | None, float | None]:
        """The newest run here that took steps of the same kind, and the seconds that so many steps took it."""
        wanted = _pace(json.loads(json.dumps(configs.to_dict(config))))
        found: list[tuple[float, str, float]] = []
        for name, place in self.runs_known.scan().items():
            if _pace(settings(Run(place).config_file)) != wanted:
                continue
            steps = self.runs_known.history(place).steps
            if len(steps) > 10:
                times = sorted(s.seconds for s in steps[1:])
                found.append((steps[-1].time, name, times[len(times) // 2] * config.train.steps))
        return (max(found)[1], max(found)[2]) if found else (None, None)

    async def _ask_clerk(self, what: str, config: RunConfig) -> dict[str, Any]:
        """What `clerk` answers in a process of its own. Raises ApiError."""
        async with self._asking:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sdtune.serve.clerk", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                limit=2**24, env=processes.environment(),
            )  # fmt: skip
            question = json.dumps({"what": what, "config": configs.to_toml(config)})
            try:
                async with asyncio.timeout(PATIENCE):
                    out, _ = await process.communicate(question.encode() + b"\n")
                found: dict[str, Any] = json.loads(out)
            except TimeoutError:
                raise ApiError(504, "slow", f"the look-up took more than {PATIENCE:g} s") from None
            except ValueError:
                raise ApiError(500, "internal", "the look-up ended early; the server's log says more") from None
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
            return found

    # ---- datasets

    def sets(self) -> list[SetView]:
        """Folders that the command line named, then the sets that come with sdtune."""
        return [entry.told() for entry in self.sets_known.all()]

    def set(self, name: str) -> SetView:
        """404 not_found."""
        return self.sets_known.need(name).told()

    async def set_report(self, name: str) -> SetReport:
        """A quick check of it: headers, captions and names, seconds for 100,000 pictures."""
        entry = self.sets_known.need(name)
        if name not in self._reports or not entry.shipped:
            config = configs.from_dict({"data": {"path": entry.place}})
            self._reports[name] = self._report(entry, await self._ask_clerk("check", config))
        return self._reports[name]

    def _report(self, entry: SetEntry, told: dict[str, Any]) -> SetReport:
        if "error" in told:
            said = self._scrub(told["error"].splitlines()[0])
            return SetReport(entry.id, "", 0, 0, said, stops=True, sizes=[], findings=[], notes=[])
        kinds = [self._finding(row) for row in told["kinds"]]
        sizes = [(int(w), int(h), int(count)) for w, h, count in told["sizes"]]
        notes = [self._scrub(note) for note in told["notes"]]
        return SetReport(
            entry.id,
            told["layout"],
            told["train"],
            told["validation"],
            told["headline"],
            told["stops"],
            sizes,
            kinds,
            notes,
        )

    def _finding(self, row: dict[str, Any]) -> Finding:
        where = [self._scrub(finding["where"]) for finding in row["findings"][:5]]
        return Finding(row["kind"], row["policy"], row["count"], where, row["about"], row["remedy"])

    async def pictures(self, name: str, offset: int = 0, limit: int = 50) -> tuple[list[SetPicture], int]:
        """A part of the pictures, in a fixed order, and how many there are in all."""
        return await asyncio.to_thread(self.sets_known.page, self.sets_known.need(name), offset, limit)

    async def thumbnail(self, name: str, n: int, side: int = 256) -> bytes:
        """JPEG or PNG without metadata, at most `side` (16 to 1024) pixels a side."""
        entry, most = self.sets_known.need(name), max(16, min(side, 1024))
        async with self._decoding:
            return (await asyncio.to_thread(self.sets_known.thumbnail, entry, n, most))[0]

    async def write_captions(
        self, name: str, n: int, captions: Sequence[str], picture: str | None = None
    ) -> SetPicture:
        """Write the captions of a picture where the set keeps them; they count as written by a person. Several: one is drawn at each visit.

        `picture` is the name that the client takes `n` for. 403 read_only; 409 changed: `n` is another picture by now.
        """
        entry = self.sets_known.need(name)
        async with self._writing:
            return await asyncio.to_thread(self.sets_known.write, entry, n, captions, picture)


def _plugins(place: Path) -> bool:
    """Whether a run is made with code of its own; so it is, too, where its config cannot be read."""
    config = settings(Run(place).config_file)
    return not config or bool(config.get("plugins"))


def _pace(config: dict[str, Any]) -> list[Any]:
    """What the time of a step depends on."""
    keys = {
        "model": ("type", "path"), "method": ("type", "rank", "targets"), "data": ("resolution", "path", "caption_chunks"),
        "train": ("batch_size", "accumulate", "precision", "device", "gradient_checkpointing", "block_swap"),
    }  # fmt: skip
    return [config.get(group, {}).get(key) for group, names in keys.items() for key in names]


def _changed(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:
        return 0.0


def _end_of(file: Path, lines: int) -> str:
    """The last lines of a file."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(max(0, size - TAIL))
            text = opened.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-max(1, min(lines, 2000)) :])


def _draw_timeline(run: Run) -> bool:
    """Whether there is one."""
    file, log = run.timeline_file, run.events_file
    if file.is_file() and log.is_file() and file.stat().st_mtime >= log.stat().st_mtime:
        return True
    found = timeline.read(run, 12)
    if found is None:
        return False
    write_timeline(found, file)
    return True
