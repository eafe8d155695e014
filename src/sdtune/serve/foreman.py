"""Starts trainings and evaluations as processes of their own, follows their logs, and says how they ended. Imports no torch.

A process goes on when the server ends, however that ends; the next server finds it by what the table of works says of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import subprocess
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdtune.errors import SdtuneError
from sdtune.events import (
    Event,
    Failed,
    Finished,
    Noted,
    Sampled,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
    to_line,
)
from sdtune.experiments.listing import outcome_of
from sdtune.files import write_text
from sdtune.follow.tail import News, Reader
from sdtune.runs import Run
from sdtune.serve import process as processes
from sdtune.serve.history import RECENT, preview
from sdtune.serve.log import Log
from sdtune.serve.scrub import Scrub
from sdtune.serve.views import WorkJob
from sdtune.serve.works import Process, Works

PAUSE = 0.3
"""Seconds between two looks at what runs."""
LOGS = 100
"""Jobs that are over and whose events are still kept."""
_OF = re.compile(r"^(?P<what>.+?) (?:(?P<done>\d+)/(?P<total>\d+)|\((?P<all>\d+)\))")
log = logging.getLogger("sdtune.serve")


@dataclass
class Sitting:
    """A job that runs."""

    job: WorkJob
    place: Path
    process: Process | None
    child: subprocess.Popen[bytes] | None = None
    """None: an earlier server has started it."""
    progress: dict[str, Any] | None = None
    """The last step, as events tell it."""
    busy: str = ""
    """What it does while it takes no steps, in its own words."""
    failure: str = ""
    stopped: bool = False
    finished: bool = False
    teller: Teller = field(init=False)

    def __post_init__(self) -> None:
        self.teller = Teller(self.job.run)
        self.reader = Reader(Run(self.place))

    def over(self) -> bool:
        if self.child is not None:
            return self.child.poll() is not None
        return self.process is None or not processes.lives(self.process)

    def take(self, event: Event) -> None:
        """What decides how the job ends; events of earlier sittings do not."""
        if event.time < (self.job.started or 0.0) - 1:
            return
        match event:
            case Started():
                self.failure, self.stopped, self.busy = "", False, ""
            case Failed():
                self.failure = event.message
            case Stopped():
                self.stopped = True
            case Finished():
                self.finished = True


class Teller:
    """Turns a run's events into what clients are told, each once, also when the log was rewound."""

    def __init__(self, run: str) -> None:
        self._run, self._steps, self._best = run, 0, float("inf")
        self._told = set[str]()
        self._times = deque[tuple[int, float]](maxlen=RECENT)

    def tell(self, event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(event, Step):
            yield "step", self._step(event)
            return
        line = to_line(event)
        if line in self._told:
            return
        self._told.add(line)
        match event:
            case Started():
                self._steps = event.steps
                self._times.clear()
                about = {
                    key: getattr(event, key)
                    for key in ("step", "steps", "device", "precision", "trainable", "total", "pictures")
                }
                yield "state", {"state": "running", **about}
            case Validated():
                best = bool(event.step) and event.loss < self._best
                self._best = event.loss if best else self._best
                yield "validated", {"step": event.step, "loss": event.loss, "best": best}
            case Sampled():
                if (shown := preview(self._run, event)) is not None:
                    yield "sampled", dataclasses.asdict(shown)
            case Saved():
                yield "saved", {"step": event.step, "best": event.best}
            case Noted():
                yield "noted", {"message": event.message, "step": event.step}
            case Warned():
                yield "warned", {"message": event.message, "step": event.step}
            case _:
                return

    def _step(self, event: Step) -> dict[str, Any]:
        self._times.append((event.step, event.time))
        (first, began), took = self._times[0], event.time - self._times[0][1]
        rate = (event.step - first) / took if event.step > first and took > 0 and began else None
        left = (self._steps - event.step) / rate if rate and self._steps else None
        return {
            "step": event.step,
            "steps": self._steps,
            "loss": event.loss,
            "lr": event.lr,
            "rate": rate,
            "seconds": left,
        }


class Foreman:
    """Everything of it runs in the server's event loop."""

    def __init__(
        self,
        works: Works,
        folder: Path,
        scrub: Callable[[], Scrub],
        finished: Callable[[Run], str | None],
        *,
        at_once: int = 1,
    ) -> None:
        """`folder` keeps recipes and logs of jobs; `finished` is told of a trained run, and gives the id of its model."""
        self.works, self.folder, self.at_once = works, folder, at_once
        self._scrub, self._finished = scrub, finished
        self._sittings = dict[str, Sitting]()
        self._logs = OrderedDict[str, Log]()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending = False

    def recipe(self, job: str) -> Path:
        return self.folder / f"{job}.toml"

    def log_file(self, job: str) -> Path:
        return self.folder / f"{job}.log"

    def sitting(self, job: str) -> Sitting | None:
        return self._sittings.get(job)

    # ---- its life

    async def start(self) -> None:
        """Take up what an earlier server left, and begin to watch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for job in self.works.jobs(("running",), limit=1000):
            place = self.works.place(job.run)
            assert place
            found = self.works.process(job.id) or await asyncio.to_thread(processes.named, self._word(job, place))
            if found is None:  # that server ended before it had started it
                self.works.put_back(job.id)
                continue
            self.works.keep_process(job.id, found)
            self._sittings[job.id] = Sitting(job, place, found)
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def _word(self, job: WorkJob, place: Path) -> str:
        """What stands on the command line of this job's process, and on no other's."""
        return str(self.recipe(job.id) if job.kind == "train" else place)

    async def stop(self) -> None:
        """Look away. The processes go on."""
        self.part()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def part(self) -> None:
        """Start nothing more, and tell listeners that the server goes."""
        self._ending = True
        for journal in self._logs.values():
            if not journal.over:
                journal.say("restart", {"message": "the server stops; the work goes on"}, last=True)

    async def _watch(self) -> None:
        while True:
            try:
                for sitting in list(self._sittings.values()):
                    await self._look(sitting)
                self._start_next()
            except Exception:  # the others are to be watched all the same
                log.exception("trainings")
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PAUSE if self._sittings else 5)

    # ---- starting

    def take(self, job: WorkJob, recipe: str = "") -> None:
        """A new job: its recipe is kept, and it is started when it is its turn. Raises OSError."""
        if recipe:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.recipe(job.id), recipe)
        self._wake.set()

    def _start_next(self) -> None:
        while not self._ending and len(self._sittings) < self.at_once and (job := self.works.waiting()):
            place = self.works.place(job.run)
            assert place
            if job.kind == "train" and not self.recipe(job.id).is_file():
                self._end(job, "failed", {"code": "gone", "message": "its recipe is not here any more"})
                continue
            self.works.start(job.id)
            train = ["train", str(self.recipe(job.id)), "--out", str(place)]
            try:
                child = processes.start(
                    train if job.kind == "train" else ["compare", str(place)], self.log_file(job.id)
                )
            except OSError as error:
                log.error("job %s: cannot be started: %s", job.id, error)
                self._end(
                    job,
                    "failed",
                    {"code": "no_process", "message": "its process could not be started; the server's log says why"},
                )
                continue
            found = processes.identified(child.pid)
            if found:
                self.works.keep_process(job.id, found)
            now = self.works.get(job.id)
            assert now
            self._sittings[job.id] = Sitting(now, place, found, child)
            self.log_of(now, place).say("state", {"state": "running"})

    # ---- watching

    async def _look(self, sitting: Sitting) -> None:
        over = sitting.over()  # asked first: what it wrote before it ended is read below
        if sitting.job.kind == "train":
            news = await asyncio.to_thread(_news, sitting.reader)
            self._tell(sitting, news)
        if sitting.progress is None or sitting.job.kind == "evaluate":
            self._tell_busy(sitting)
        if over and sitting.job.id in self._sittings:
            self._ended(sitting)

    def _tell(self, sitting: Sitting, news: News) -> None:
        journal = self.log_of(sitting.job, sitting.place)
        if news.anew:
            steps = [getattr(e, "step", 0) for e in news.events]
            journal.say("rewound", {"step": max(steps, default=0)})
        own = [event.time >= (sitting.job.started or 0.0) - 1 for event in news.events]
        for event in news.events:
            sitting.take(event)
        if last := self._say(journal, sitting.teller, zip(news.events, own, strict=True)):
            sitting.progress, sitting.busy = last, ""

    def _say(self, journal: Log, teller: Teller, events: Iterable[tuple[Event, bool]]) -> dict[str, Any] | None:
        """Tell listeners; of steps in a row the last. Beside each event: whether it is of this sitting. Gives the last step that was."""
        step: dict[str, Any] | None = None
        last = None
        for event, own in events:
            for name, data in teller.tell(event):
                if name in ("state", "step") and not own:
                    continue
                if name == "step":
                    step = last = data
                    continue
                if step:
                    journal.say("step", step)
                    step = None
                journal.say(name, {key: self._clean(value) for key, value in data.items()})
        if step:
            journal.say("step", step)
        return last

    def _clean(self, value: Any) -> Any:
        return (
            self._scrub()(value) if isinstance(value, str) and "/" in value and not value.startswith("/api/") else value
        )

    def _tell_busy(self, sitting: Sitting) -> None:
        """Its last line, as long as that is all that is known."""
        line = self._scrub()(_last_line(self.log_file(sitting.job.id)))[:300]
        if line and line != sitting.busy:
            sitting.busy = line
            match = _OF.match(line)
            done, total = (match["done"], match["total"] or match["all"]) if match else (None, None)
            what = match["what"] if match else "getting ready"  # other lines say what it is, not what it does
            told = {"what": what, "done": int(done) if done else None, "total": int(total) if total else None}
            self.log_of(sitting.job, sitting.place).say("busy", told)

    # ---- the end

    def _ended(self, sitting: Sitting) -> None:
        del self._sittings[sitting.job.id]
        job = self.works.get(sitting.job.id) or sitting.job
        code = sitting.child.returncode if sitting.child else None
        if self._succeeded(sitting, code):
            self._end(job, "done", more=self._outcome(job, sitting.place))
        elif job.stopping or (sitting.stopped and not sitting.failure):
            self._end(job, "cancelled")
        else:
            self._end(job, "failed", {"code": "failed", "message": self._why(sitting, code)})
        self._wake.set()

    def _succeeded(self, sitting: Sitting, code: int | None) -> bool:
        run = Run(sitting.place)
        if sitting.job.kind == "train":
            already = code == 0 and not sitting.stopped  # it was finished before
            return run.final.is_dir() and (sitting.finished or already)
        made = run.scores_file.is_file() and run.scores_file.stat().st_mtime >= (sitting.job.started or 0) - 1
        return code == 0 or (code is None and made)

    def _why(self, sitting: Sitting, code: int | None) -> str:
        """In the words of the run's log, else the last of what its process has said."""
        said = sitting.failure or _last_line(self.log_file(sitting.job.id)).removeprefix("error: ")
        killed = f"its process was ended from outside (signal {-code})" if code is not None and code < 0 else ""
        return (
            self._scrub()("; the last that it said: ".join(filter(None, (killed, said))))[:1000]
            or "its process has ended without a word"
        )

    def _outcome(self, job: WorkJob, place: Path) -> dict[str, Any]:
        """What listeners are told of a job that is done."""
        run, model = Run(place), None
        if job.kind == "train":
            try:
                model = self._finished(run)
            except (SdtuneError, OSError, ValueError, KeyError) as error:
                log.warning("run %s: is trained, but cannot be drawn with: %s", job.run, error)
        return {"model": model, "verdicts": outcome_of(run).verdicts}

    def _end(
        self, job: WorkJob, state: Any, error: dict[str, str] | None = None, more: dict[str, Any] | None = None
    ) -> None:
        place = self.works.place(job.run)
        assert place
        journal = self.log_of(job, place)  # before the end is known: it says it itself otherwise
        if self.works.end(job.id, state, error) and not journal.over:
            journal.say(
                _ENDS[state],
                {"state": state, "run": job.run, **({"error": error} if error else {}), **(more or {})},
                last=True,
            )

    # ---- for the routes

    def cancel(self, job: WorkJob) -> None:
        """A waiting job ends now; one at work is told to, once: a second signal would not let it save."""
        now = self.works.get(job.id)
        if now is None or now.state not in ("queued", "running") or now.stopping:
            return
        if now.state == "queued":
            self._end(now, "cancelled")
        elif sitting := self._sittings.get(job.id):
            self.works.mark_stopping(job.id)
            self.log_of(now, sitting.place).say("state", {"state": "stopping"})
            if sitting.process:
                processes.stop(sitting.process)

    def log_of(self, job: WorkJob, place: Path) -> Log:
        """The events of a job; of one that is over what its run's log has of that time."""
        if job.id not in self._logs:
            self._logs[job.id] = journal = Log()
            journal.say("state", {"state": "queued"})
            if job.finished:
                self._retell(job, place, journal)
            elif job.state == "running":
                journal.say("state", {"state": "running"})
            for name in [name for name, kept in self._logs.items() if kept.over][:-LOGS]:
                del self._logs[name]
        return self._logs[job.id]

    def _retell(self, job: WorkJob, place: Path, journal: Log) -> None:
        began, until = job.started or 0.0, job.finished or time.time()
        events = _news(Reader(Run(place))).events if job.kind == "train" and job.started else ()
        self._say(journal, Teller(job.run), ((e, e.time >= began - 1) for e in events if e.time <= until))
        more = {"error": job.error} if job.error else {}
        journal.say(_ENDS[job.state], {"state": job.state, "run": job.run, **more}, last=True)


_ENDS = {"done": "done", "failed": "error", "cancelled": "cancelled"}


def _news(reader: Reader) -> News:
    try:
        return reader.news()
    except (OSError, ValueError, KeyError, TypeError):  # gone, or of another version
        return News(())


def _last_line(file: Path) -> str:
    """The last line with something on it."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(max(0, size - 8192))
            lines = opened.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
