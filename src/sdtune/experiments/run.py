"""Does the work of a matrix that is missing: trains and compares run after run, or several at once, each in a process of its own.

`experiment` is a generator of events. Closing it stops what runs, with all saved; the same call goes on. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import IO, Any

import psutil

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.errors import ConfigError, RunError
from sdtune.events import Finished
from sdtune.experiments import measure, work
from sdtune.experiments.cells import Cell, CellRun
from sdtune.experiments.events import Began, Broke, Event, Made, Planned, Ranked, State, Told, Worked
from sdtune.experiments.matrix import Matrix
from sdtune.experiments.shared import BASE, base_key
from sdtune.pairs import Plan, make_plan
from sdtune.runs import Run

TRAINING_SHARE = 0.7
"""Of a run's time, to say how far it is; the rest draws and judges."""
GRACE_S = 120.0
"""What a run that is stopped may take to end its step and save."""


@dataclass(frozen=True)
class Task:
    item: CellRun
    state: State

    @property
    def open(self) -> bool:
        return self.state != "finished"


def folder_of(matrix: Matrix, out: Path | None = None) -> Path:
    return out or Path("experiments") / matrix.name


def tasks(matrix: Matrix, out: Path, only: Sequence[str] = ()) -> list[Task]:
    """Every run of the cells that are asked for, with what is there of it. All cells get their first seed before any its second."""
    rows = [list(cell.runs(out, matrix.seeds)) for cell in matrix.only(only)]
    return [Task(item, state_of(item)) for column in zip(*rows, strict=True) for item in column]


def state_of(item: CellRun) -> State:
    if item.failure:
        return "failed"
    if not item.run.exists():
        return "missing"
    if not is_finished(item.run):
        return "begun"
    return "finished" if is_compared(item.run, item.config) else "to compare"


def is_finished(run: Run) -> bool:
    return run.final.is_dir() and any(isinstance(e, Finished) for e in run.events())


def is_compared(run: Run, config: RunConfig) -> bool:
    """Whether the run was compared in the way that `config` says."""
    try:
        had = json.loads(run.scores_file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        return False
    wanted = tomllib.loads(configs.to_toml(config))
    return all(_of_comparison(had, part) == _of_comparison(wanted, part) for part in ("evaluate", "sample"))


def _of_comparison(config: dict[str, Any], part: str) -> dict[str, Any]:
    apart = ("prompts", "seeds", "image", "mask", "denoising_strength", "batch_size") if part == "sample" else ()
    return {k: v for k, v in config.get(part, {}).items() if k not in apart}


# ---- how long it takes


class Clock:
    """How long the rest will take, by the runs that are finished, and by how far those are that go on."""

    def __init__(self, todo: Sequence[Task], known: Sequence[Task], lanes: int) -> None:
        self._lanes = lanes
        self._open = {task.item.run.path: task.item.cell.id for task in todo}
        self._took: dict[str, list[float]] = {}
        self._shares: dict[Path, tuple[float, float]] = {}
        for task in known:
            if task.state == "finished" and (seconds := measure.wall(task.item.run)):
                self._took.setdefault(task.item.cell.id, []).append(seconds)

    def begin(self, item: CellRun) -> None:
        self._shares[item.run.path] = 0.0, time.monotonic()

    def at(self, item: CellRun, share: float) -> None:
        self._shares[item.run.path] = share, self._shares[item.run.path][1]

    def made(self, item: CellRun) -> float:
        """It is made; returns its seconds in this sitting."""
        seconds = time.monotonic() - self._shares[item.run.path][1]
        self._took.setdefault(item.cell.id, []).append(measure.wall(item.run) or seconds)
        self.drop(item)
        return seconds

    def drop(self, item: CellRun) -> None:
        self._open.pop(item.run.path, None)
        self._shares.pop(item.run.path, None)

    def left(self) -> float | None:
        """Seconds, or None where nothing is known yet."""
        guess = self._usual()
        if guess is None:
            return None
        total = 0.0
        for path, cell in self._open.items():
            whole = fmean(self._took[cell]) if cell in self._took else guess
            total += whole * (1 - self._shares.get(path, (0.0, 0.0))[0])
        return total / self._lanes

    def _usual(self) -> float | None:
        known = [s for seconds in self._took.values() for s in seconds]
        if known:
            return fmean(known)
        going = [(time.monotonic() - began) / share for share, began in self._shares.values() if share > 0.05]
        return fmean(going) if going else None


# ---- the work


def experiment(
    matrix: Matrix,
    out: Path | None = None,
    *,
    jobs: int = 1,
    devices: int = 0,
    only: Sequence[str] = (),
    retry: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, None]:
    """Make every run that is missing, then the page. `jobs` at once on a CPU, or one on each of so many CUDA `devices`.

    A run that fails is noted and passed over from then on, unless `retry`. `stop` is asked twice a second, for whoever cannot wait for the
    next event to close the iterator. Raises ConfigError, DataError, EvaluationError or RunError
    before anything is begun.
    """
    from sdtune.experiments import page

    out = folder_of(matrix, out)
    lanes = max(jobs, devices)
    with Run(out).lock():
        known = tasks(matrix, out, only)
        todo = [task for task in known if task.open and (retry or task.state != "failed")]
        clock = Clock(todo, known, lanes)
        states: dict[State, int] = dict(Counter(task.state for task in known))  # a Counter is no plain value
        yield Planned(str(out), len({t.item.cell.id for t in known}), len(known), states, len(todo), clock.left())
        if todo:
            check_comparable(matrix, [task.item.cell for task in known])
        yield from _Pool(matrix, out, todo, clock, lanes, devices).events(stop)
        if stop():
            return
        yield from _rank(matrix, out, page)


def _rank(matrix: Matrix, out: Path, page: Any) -> Iterator[Event]:
    """The page of all that there is, also of cells that were not asked for now."""
    whole = tasks(matrix, out)
    there = [task.item for task in whole if task.state == "finished"]
    if there:
        best = page.write(page.of_matrix(matrix, out, whole))
        yield Ranked(str(out / page.NAME), len(there), len(whole) - len(there), best, str(out / page.SHEET))


def check_comparable(matrix: Matrix, cells: Sequence[Cell]) -> None:
    """All runs must be asked for the same prompts and held against the same pictures. Raises ConfigError; DataError, EvaluationError."""
    seen: dict[str, tuple[str, Plan]] = {}
    first: Plan | None = None
    for cell in cells:
        for seed in matrix.seeds[:2]:  # if two have the same pictures, all have
            config = dataclasses.replace(cell.config, train=dataclasses.replace(cell.config.train, seed=seed))
            key = json.dumps([seed, dataclasses.asdict(config.data), dataclasses.asdict(config.model)], default=str)
            if key in seen:
                continue
            plan = make_plan(config)
            seen[key] = cell.name, plan
            first = first or plan
            if why := _differs(first, plan):
                raise ConfigError(_remedy(cells[0], cell, seed, matrix.seeds[0], why))


def _differs(a: Plan, b: Plan) -> str:
    if [e.digest for e in a.reference] != [e.digest for e in b.reference]:
        return "held-out pictures"
    return "prompts" if a.prompts != b.prompts else ""


def _remedy(first: Cell, cell: Cell, seed: int, first_seed: int, what: str) -> str:
    if cell is first or seed != first_seed:
        return (
            f"cell {cell.name}: with seed {seed} it has other {what} than with seed {first_seed}, since train.seed chooses the validation "
            "pictures of a folder that has none; give it some for good (`sdtune data split`), or set evaluate.reference"
        )
    keys = "evaluate.reference" if what == "held-out pictures" else "evaluate.prompts"
    return (
        f"cell {cell.name}: has other {what} than {first.name}, so their figures would not compare; set {keys} in `set`"
    )


@dataclass
class _Lane:
    """One process, and what it works on."""

    item: CellRun
    process: subprocess.Popen[str]
    errors: IO[str]
    answer: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        """Of what ties it to this process; the listening thread closes what it reads."""
        self.errors.close()
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()


class _Pool:
    """As many processes as there are lanes, each with the next run that is missing."""

    def __init__(self, matrix: Matrix, out: Path, todo: Sequence[Task], clock: Clock, lanes: int, devices: int) -> None:
        self.matrix, self.out, self.clock, self.devices = matrix, out, clock, devices
        self.waiting, self.count = [task.item for task in todo], len(todo)
        self.lanes: dict[int, _Lane | None] = dict.fromkeys(range(min(lanes, len(todo))))
        self.listeners: list[threading.Thread] = []
        self.heard: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()

    def events(self, stop: Callable[[], bool]) -> Generator[Event, None, None]:
        try:
            while True:
                for number, lane in self.lanes.items():
                    if lane is None and self.waiting:
                        yield self._start(number, self.waiting.pop(0))
                if not any(self.lanes.values()):
                    return
                try:
                    heard = self.heard.get(timeout=0.5)
                except queue.Empty:
                    heard = None
                if stop():
                    return
                if heard:
                    yield from self._take(*heard)
        finally:
            self._stop()

    def _start(self, number: int, item: CellRun) -> Began:
        item.failure_file.unlink(missing_ok=True)
        _wait_for(item.run)
        gpu = number % self.devices if self.devices else None
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (as long as the process)
        process = subprocess.Popen(
            [sys.executable, "-m", "sdtune.experiments.work"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            env={**os.environ, **_environment(gpu, len(self.lanes))},
            start_new_session=True,  # a terminal's Ctrl-C reaches it through us, once
        )  # fmt: skip
        assert process.stdin is not None
        base = self.out / "shared" / f"base-{base_key(item.config)}"
        line = work.job(item.config, item.run, base, self.matrix.plugins, shared=len(self.lanes) > 1, gpu=gpu)
        process.stdin.write(line + "\n")
        process.stdin.flush()
        self.lanes[number] = _Lane(item, process, errors)
        listener = threading.Thread(target=self._listen, args=(number, process), daemon=True)
        listener.start()
        self.listeners.append(listener)
        self.clock.begin(item)
        device = "" if gpu is None else f"cuda:{gpu}"
        return Began(item.cell.name, item.seed, str(item.run.path), self.count - len(self.waiting), self.count, device)

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.heard.put((number, json.loads(line)))
        self.heard.put((number, None))

    def _take(self, number: int, answer: dict[str, Any] | None) -> Iterator[Event]:
        lane = self.lanes[number]
        assert lane is not None
        item = lane.item
        if answer is None:
            self.lanes[number] = None
            yield from self._ended(lane)
        elif "warning" in answer:
            yield Told(item.cell.name, item.seed, answer["warning"])
        elif "what" in answer:
            share = _share(answer)
            self.clock.at(item, share)
            yield Worked(
                item.cell.name, item.seed, answer["what"], answer["done"], answer["total"], share, self.clock.left()
            )
        else:
            lane.answer = answer

    def _ended(self, lane: _Lane) -> Iterator[Event]:
        """The process is gone: with a result, or with a reason that is noted."""
        item, code = lane.item, lane.process.wait()
        if "made" in lane.answer:
            lane.close()
            seconds = self.clock.made(item)
            left = self.clock.left()
            yield Made(item.cell.name, item.seed, str(item.run.path), seconds, headline_of(item.run), left)
            return
        self.clock.drop(item)
        lane.errors.seek(0)
        trace = lane.answer.get("traceback") or lane.errors.read()[-4000:]
        lane.close()
        message = lane.answer.get("failed") or _died(code)
        if "stopped" in lane.answer:
            return
        item.note_failure(message, trace)
        yield Broke(item.cell.name, item.seed, message)

    def _stop(self) -> None:
        """Ask all that still run to save and end, and wait for them."""
        running = [lane for lane in self.lanes.values() if lane is not None]
        for lane in running:
            if lane.process.poll() is None:
                lane.process.send_signal(signal.SIGTERM)
        ends = time.monotonic() + GRACE_S
        for lane in running:
            try:
                lane.process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                lane.process.kill()
                lane.process.wait()
            lane.close()
        for listener in self.listeners:
            listener.join()


def _wait_for(run: Run) -> None:
    """A run whose experiment was killed may still save: let it. Raises RunError if another process keeps it."""
    ends = time.monotonic() + GRACE_S
    while run.living():
        if time.monotonic() > ends:
            raise RunError(f"{run.path}: in use by another process; wait for it, or stop it")
        time.sleep(0.2)


def _environment(gpu: int | None, lanes: int) -> dict[str, str]:
    """What a worker's processes see: one device of those that this one sees, and its share of the processor."""
    out: dict[str, str] = {}
    if gpu is not None:
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        out["CUDA_VISIBLE_DEVICES"] = seen[gpu] if gpu < len(seen) else "none" if seen else str(gpu)
    if lanes > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
        out["OMP_NUM_THREADS"] = str(max(1, cores // lanes))
    return out


def _share(answer: dict[str, Any]) -> float:
    """How much of a run's work is done."""
    part = answer["done"] / max(1, answer["total"])
    match answer["what"]:
        case "step":
            return TRAINING_SHARE * float(part)
        case "tuned pictures":
            return TRAINING_SHARE + (1 - TRAINING_SHARE) * 0.9 * float(part)
        case "looking at pictures" | "report":
            return 0.97
        case what:
            return TRAINING_SHARE if what == BASE else 0.0


def _died(code: int) -> str:
    if code in (-9, 137):
        return "its process was killed; the machine may have had too little memory (train.batch_size, train.gradient_checkpointing)"
    return f"its process ended with code {code} and no word"


def headline_of(run: Run) -> str:
    """The sentence of a run's comparison."""
    try:
        return str(json.loads(run.scores_file.read_text(encoding="utf-8"))["headline"])
    except (OSError, ValueError, KeyError):
        return ""
