"""Draws a run's events: live in a terminal, plain lines elsewhere, JSON lines for programs. Imports rich only to draw."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sdtune.events import (
    LOOKING,
    Encoding,
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
from sdtune.units import count as count
from sdtune.units import duration as duration
from sdtune.units import megabytes as megabytes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from sdtune.config import RunConfig

BARS = "▁▂▃▄▅▆▇█"
SPEAK_EVERY = 30.0
"""Seconds between two lines on something slow where there is no terminal."""
BAND_NUMBERS = (1, 2, 3, 4)
"""The columns of `band_table` that hold numbers."""


# ---- words for numbers


def change(value: float, base: float) -> str:
    """The change from `base` to `value` in per cent, with its sign."""
    return f"{100 * (value - base) / base:+.1f} %" if base else ""


def memory_mb() -> float:
    """The process's resident memory, or on CUDA the device's peak, in MB."""
    import psutil

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    return float(psutil.Process().memory_info().rss / 2**20)


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as at most `width` little bars, each the mean of its share."""
    size = max(1, -(-len(values) // max(1, width)))
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    if not high > low:  # flat, or not a number
        return ""
    return "".join(BARS[min(7, int(8 * (v - low) / (high - low)))] for v in means)


def pack(fields: Sequence[str], width: int, gap: str = "   ") -> list[str]:
    """The fields on as few lines of at most `width` characters as they need, in order."""
    lines: list[str] = []
    for text in filter(None, fields):
        if lines and len(lines[-1]) + len(gap) + len(text) <= width:
            lines[-1] += gap + text
        else:
            lines.append(text)
    return lines


# ---- what is known of a run so far


@dataclass
class Progress:
    """What the events so far say: position, speed, smoothed loss, validation against step 0."""

    step: int = 0
    steps: int = 0
    batch_size: int = 0
    loss: float | None = None
    lr: float = 0.0
    base_validation: float | None = None
    validation: float | None = None
    validated_at: int = 0
    losses: list[float] = field(default_factory=list)
    validations: list[Validated] = field(default_factory=list)
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    _weight: float = 0.0
    _sum: float = 0.0
    _from: tuple[float, int] | None = None

    def take(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.steps, self.batch_size = event.step, event.steps, event.batch_size
            case Step():
                self._take_step(event)
            case Validated(step=step, loss=loss):
                self.validations.append(event)
                self.validation, self.validated_at = loss, step
                if step == 0:
                    self.base_validation = loss
            case _:
                pass

    def recall(self, folder: Path) -> None:
        """Take in what the log of a run that goes on says of its earlier steps."""
        from sdtune.runs import Run

        for event in Run(folder).events():
            match event:
                case Validated():
                    self.take(event)
                case Step(loss=loss):
                    self._smooth(loss)
                case _:
                    pass

    def _smooth(self, loss: float) -> None:
        self.losses.append(loss)
        self._sum = 0.95 * self._sum + 0.05 * loss
        self._weight = 0.95 * self._weight + 0.05
        self.loss = self._sum / self._weight

    def _take_step(self, event: Step) -> None:
        if self._from is None:
            self._from = (event.time - event.seconds, event.step - 1)
        self._seconds.append(event.seconds)
        self._smooth(event.loss)
        self.step, self.lr = event.step, event.lr

    @property
    def rate(self) -> float:
        """Steps per second over the last ones."""
        total = sum(self._seconds)
        return len(self._seconds) / total if total > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds still to go, previews and validation counted in."""
        if self._from is None or self.step <= self._from[1]:
            return None
        began, first = self._from
        return (time.time() - began) / (self.step - first) * (self.steps - self.step)

    def speed(self) -> list[str]:
        if not self.rate:
            return []
        it = f"{self.rate:.2f} it/s" if self.rate < 10 else f"{self.rate:.0f} it/s"
        return [it, f"{self.rate * self.batch_size:.1f} img/s"]

    def remaining(self) -> str:
        return "" if self.left is None else f"{duration(self.left)} left"

    def validated(self) -> str:
        if self.validation is None:
            return ""
        more = change(self.validation, self.base_validation) if self.base_validation else ""
        return f"validation {self.validation:.4f}" + (f" ({more} to step 0)" if more and self.validated_at else "")


class Remaining:
    """How long something will still take, by how fast it went since it was first asked of."""

    def __init__(self) -> None:
        self._what, self._first, self._began = "", 0, 0.0

    def text(self, what: str, done: int, total: int) -> str:
        """ "2 min 05 s left"; "" where nothing is known yet."""
        now = time.monotonic()
        if what != self._what or done < self._first:
            self._what, self._first, self._began = what, done, now
        if not self._first < done < total:
            return ""
        return f"{duration((now - self._began) / (done - self._first) * (total - done))} left"


def plan(config: RunConfig, started: Started, folder: Path) -> list[tuple[str, str]]:
    """What is about to happen, in rows of name and text."""
    from sdtune.schema import defaults  # pydantic, which --help does without

    usual = defaults(config.method)
    method = {
        k: v for k, v in vars(config.method).items() if k != "type" and (k in ("rank", "targets") or v != usual.get(k))
    }
    share = 100 * started.trainable / max(1, started.total)
    visits = started.steps * started.batch_size / max(1, started.pictures)
    rows = [
        ("model", f"{config.model.path} ({config.model.type}, {count(started.total)} parameters in the denoiser)"),
        ("pictures", f"{started.pictures} to train on, {started.validation_pictures} held out ({config.data.label})"),
        ("method", ", ".join([config.method.type, *(f"{k} {_plain(v)}" for k, v in method.items())])),
        ("trains", f"{count(started.trainable)} parameters ({share:.3g} % of the denoiser)"),
        ("steps", f"{started.steps} of {started.batch_size} pictures ({visits:.3g} passes over the pictures)"),
        ("device", f"{started.device}, {started.precision}"),
        ("folder", str(folder)),
    ]
    return [*rows, ("goes on", f"from step {started.step}")] if started.step else rows


def ending(run: Path, event: Finished, progress: Progress) -> list[tuple[str, str]]:
    best = f"lowest at step {event.best_step}" if event.best_step is not None else ""
    validation = ", ".join(filter(None, [progress.validated().removeprefix("validation "), best]))
    peak = f"peak memory {megabytes(event.peak_memory_mb)}" if event.peak_memory_mb else ""
    return [
        ("finished", ", ".join(filter(None, [f"step {event.step} after {duration(event.seconds)}", peak]))),
        *([("validation", validation)] if validation else []),
        ("result", str(run / event.path)),
        ("next", f"sdtune compare {quote(run)}"),
    ]


def band_table(config: RunConfig, event: Finished, progress: Progress) -> tuple[str, list[list[str]]]:
    """The change of the validation loss in each band of timesteps from the base to the result: a title, and rows under heads.

    No rows where the run has no such losses.
    """
    from sdtune.bands import changes  # numpy, which --help does without
    from sdtune.stats import MIN_UNITS

    best = event.best_step if config.train.result == "best" else None
    found = {e.step: e for e in progress.validations}
    base, now = found.get(0), found.get(event.step if best is None else best)
    rows = changes(base, now) if base and now and now.step else ()
    if base is None or now is None or not rows:
        return "", []
    n = len(now.per_picture)
    title = f"validation loss by timestep, {n} pictures; 95 % intervals"
    title += "" if n >= MIN_UNITS else f"; no verdict with fewer than {MIN_UNITS}"
    heads = ["timesteps", "step 0", f"step {now.step}", "change", "interval", "verdict"]
    cells = []
    for row in rows:
        value, low, high = (f"{100 * v:+.1f}" for v in row.relative)
        span = f"{low} to {high} %" if n > 1 else ""
        name = f"{row.name} ({row.timesteps})"
        cells.append([name, f"{row.base:.4f}", f"{row.now:.4f}", f"{value} %", span, row.verdict])
    return title, [heads, *cells]


def quote(path: object) -> str:
    """`path` as one word of a shell."""
    import shlex

    return shlex.quote(str(path))


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_plain(v) or 'anything'}" for key, v in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- where it is drawn


class Screen(AbstractContextManager["Screen"]):
    """Draws one run. `begin` before the first event; then each event; `rows` and `say` for what comes between and after."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, config: RunConfig, folder: Path) -> None:
        """A run of `config` is about to start in `folder`."""

    def draw(self, event: Event) -> None:
        """Show one event."""

    def say(self, text: str) -> None:
        """One line for people."""

    def rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Lines of name and text, for people."""

    def result(self, path: Path, name: str = "") -> None:
        """A file that was made; `name` says what it is."""
        self.say(f"{name}  {path}" if name else str(path))

    def emit(self, record: object) -> None:
        """One JSON object, for programs."""

    def busy(self, text: str) -> None:
        """Something slow begins."""

    def doing(self, what: str, done: int, total: int, speed: str = "") -> None:
        """It is at `done` of `total`; `speed` says how fast it goes and how long it will take."""

    def done(self) -> None:
        """It has ended."""

    def verdict(self, question: str, answer: str, because: str, good: bool | None) -> None:
        """One line of a comparison's result. `good` says whether the answer is the wished one; None: open."""

    def warn(self, text: str) -> None:
        """A warning for people; programs have a record of their own of it."""
        self.draw(Warned(text))

    def stopping(self, what: str = "the step ends and is saved") -> None:
        """The first Ctrl-C was heard; `what` happens now. Called from a signal handler: must not wait for anything."""
        os.write(2, f"\nstopping: {what}; once more leaves at once\n".encode())


class Silent(Screen):
    """--quiet: warnings on stderr, and the paths of results."""

    def __init__(self) -> None:
        self._folder = Path()

    def begin(self, config: RunConfig, folder: Path) -> None:
        self._folder = folder

    def draw(self, event: Event) -> None:
        match event:
            case Warned():
                sys.stderr.write(f"warning: {event.message}\n")
            case Finished():
                self.result(self._folder / event.path)
            case _:
                pass

    def result(self, path: Path, name: str = "") -> None:
        _write(str(path))


class Json(Screen):
    """--json: each event one line on stdout, nothing else."""

    def draw(self, event: Event) -> None:
        _write(to_line(event))

    def emit(self, record: object) -> None:
        _write(json.dumps(record, ensure_ascii=False))

    def warn(self, text: str) -> None:
        pass


class Plain(Screen):
    """Not a terminal: a line per event, and about twenty for the steps of a run."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._config: RunConfig | None = None
        self._folder = Path()
        self._last = time.monotonic()
        self._encoding = ""
        self._remaining = Remaining()
        self._previewed = -1

    def begin(self, config: RunConfig, folder: Path) -> None:
        self.progress = Progress()
        self._config, self._folder = config, folder
        self.busy(f"opening {folder}: model {config.model.path}, pictures {config.data.label}")

    def draw(self, event: Event) -> None:
        self.progress.take(event)
        for line in self._lines(event):
            _write(line)

    def _lines(self, event: Event) -> Iterator[str]:
        p = self.progress
        match event:
            case Started():
                assert self._config is not None
                if event.step:
                    p.recall(self._folder)
                yield from aligned(plan(self._config, event, self._folder))
            case Encoding():
                if event.what != self._encoding and event.total:
                    looking = event.what == LOOKING
                    yield f"looking at {event.total} pictures" if looking else f"encoding {event.total} {event.what}"
                elif not event.total and time.monotonic() - self._last >= SPEAK_EVERY:
                    yield f"{event.what} ({event.done:,}) ..."
                    self._last = time.monotonic()
                self._encoding = event.what
            case Step():
                if self._due(event.step):
                    yield _step_line(p)
            case Validated():
                yield f"step {event.step}: {p.validated()}"
            case Sampled():
                if event.step != self._previewed:
                    yield f"step {event.step}: previews in {Path(event.path).parent}"
                self._previewed = event.step
            case Saved():
                yield f"step {event.step}: saved {event.path}" + (
                    " (lowest validation loss so far)" if event.best else ""
                )
            case Warned():
                yield f"warning: {event.message}"
            case Noted():
                yield f"note: {event.message}"
            case Finished():
                assert self._config is not None
                if not p.validations:  # it was finished before
                    p.recall(self._folder)
                yield from aligned(ending(self._folder, event, p))
                title, rows = band_table(self._config, event, p)
                yield from ["", title, *columns(rows, BAND_NUMBERS)] if rows else []
            case Stopped():
                yield _stopped(event)
            case Failed():
                yield f"failed at step {event.step}"

    def _due(self, step: int) -> bool:
        interval = max(1, self.progress.steps // 20)
        if step % interval == 0 or step in (1, self.progress.steps) or time.monotonic() - self._last > 30:
            self._last = time.monotonic()
            return True
        return False

    def say(self, text: str) -> None:
        _write(text)

    def rows(self, rows: Sequence[tuple[str, str]]) -> None:
        for line in aligned(rows):
            _write(line)

    def busy(self, text: str) -> None:
        _write(f"{text} ...")

    def doing(self, what: str, done: int, total: int, speed: str = "") -> None:
        left = ", ".join(filter(None, (speed, self._remaining.text(what, done, total))))
        if not total and time.monotonic() - self._last >= SPEAK_EVERY:
            _write(f"{what} ({done:,}) ...")
            self._last = time.monotonic()
        elif what != self._encoding and total > 1:
            _write(f"{what} ({total}) ...")
            self._last = time.monotonic()
        elif left and time.monotonic() - self._last >= SPEAK_EVERY:
            _write(f"{what} {done}/{total}, {left}")
            self._last = time.monotonic()
        self._encoding = what

    def verdict(self, question: str, answer: str, because: str, good: bool | None) -> None:
        _write(f"{answer:<11}  {question}")
        _write(f"{'':11}  {because}")


class Live(Screen):
    """A terminal: what happened scrolls up, the state stands below it and is drawn again four times a second."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live as RichLive

        self.console = console
        self.progress = Progress()
        self._config: RunConfig | None = None
        self._folder = Path()
        self._bar: tuple[str, int, int, str] | None = None
        self._remaining = Remaining()
        self._busy = ""
        self._note = ""
        self._live = RichLive(
            get_renderable=self._state, console=console, refresh_per_second=4, transient=True, vertical_overflow="crop"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, config: RunConfig, folder: Path) -> None:
        self.progress = Progress()
        self._config, self._folder = config, folder
        self.busy(f"opening {folder}: model {config.model.path}, pictures {config.data.label}")

    def busy(self, text: str) -> None:
        self._busy = text
        self._live.start(refresh=True)

    def doing(self, what: str, done: int, total: int, speed: str = "") -> None:
        self._live.start()
        left = ", ".join(filter(None, (speed, self._remaining.text(what, done, total))))
        self._bar = (what, done, total, left) if done < total else None
        self._busy = self._busy if total else f"{what} ({done:,})"

    def done(self) -> None:
        self._busy, self._bar = "", None
        self._live.stop()

    def verdict(self, question: str, answer: str, because: str, good: bool | None) -> None:
        from rich.table import Table

        colour = {True: "bold green", False: "bold red", None: "bold yellow"}[good]
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=11)
        grid.add_column(overflow="fold")
        grid.add_row(self._styled(answer, colour), self._styled(question, "bold"))
        grid.add_row("", self._styled(because, ""))
        self.console.print(grid)

    def draw(self, event: Event) -> None:
        self._live.start()
        self.progress.take(event)
        self._bar = None
        match event:
            case Started():
                assert self._config is not None
                self._busy = "preparing"
                if event.step:
                    self.progress.recall(self._folder)
                self.rows(plan(self._config, event, self._folder))
                self.say("")
            case Encoding():
                self.doing(event.words, event.done, event.total)
            case Step():
                self._busy = ""
            case Validated():
                self._print(self._validated(event))
            case Saved():
                self._dim(f"step {event.step}: saved {event.path}" + (" (best so far)" if event.best else ""))
            case Noted():
                self._dim(f"note: {event.message}")
            case Warned():
                self._print(self._styled(f"warning: {event.message}", "yellow"))
            case Finished():
                assert self._config is not None
                self._live.stop()
                if not self.progress.validations:  # it was finished before
                    self.progress.recall(self._folder)
                self.say("")
                self.rows(ending(self._folder, event, self.progress))
                title, rows = band_table(self._config, event, self.progress)
                if rows:
                    self.say(f"\n{title}")
                    table(rows[0], rows[1:], BAND_NUMBERS)
            case Stopped():
                self._live.stop()
                self.say(_stopped(event))
            case Failed():
                self._live.stop()
            case _:
                pass

    def say(self, text: str) -> None:
        self._print(self._styled(text, ""))

    def rows(self, rows: Sequence[tuple[str, str]]) -> None:
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in rows:
            grid.add_row(name, self._styled(text, ""))
        self.console.print(grid)

    def stopping(self, what: str = "the step ends and is saved") -> None:
        self._note = f"stopping: {what}; Ctrl-C once more leaves at once"

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)

    def _dim(self, text: str) -> None:
        self._print(self._styled(text, "dim"))

    def _styled(self, text: str, style: str) -> Text:
        from rich.text import Text

        return Text(text, style=style)

    def _validated(self, event: Validated) -> Text:
        text = self._styled(f"step {event.step}: {self.progress.validated()}", "")
        base = self.progress.base_validation
        if base and event.step and "(" in text.plain:
            text.stylize("green" if event.loss < base else "red", text.plain.index("("))
        return text

    def _state(self) -> RenderableType:
        """The lines below the scrolling text."""
        from rich.console import Group
        from rich.spinner import Spinner

        width = self.console.width
        parts: list[RenderableType] = []
        if self._bar is not None:
            parts.append(_bar(*self._bar, width))
        elif self.progress.loss is not None and not self._busy:
            parts.append(_bar("step", self.progress.step, self.progress.steps, "", width))
            parts += [
                self._styled(line, "")
                for line in pack(_status(self.progress, width, "utf" in self.console.encoding.lower()), width)
            ]
        elif self._busy:
            parts.append(Spinner("dots", self._styled(self._busy, ""), style="cyan"))
        if self._note:
            parts.append(self._styled(self._note, "bold yellow"))
        return Group(*parts)


def screen(*, as_json: bool = False, quiet: bool = False) -> Screen:
    """The screen that fits: JSON or quiet if asked for, live in a terminal, plain lines otherwise."""
    if as_json:
        return Json()
    if quiet:
        return Silent()
    if not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return Plain()
    from rich.console import Console

    return Live(Console(highlight=False, markup=False, emoji=False))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns; the last column is as long as it needs."""
    widths = [
        max(len(row[i]) for row in rows if i < len(row) - 1) for i in range(max((len(r) for r in rows), default=1) - 1)
    ]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows
    ]


def columns(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> list[str]:
    """Rows of as many cells each as lines; the columns `numbers` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> None:
    """Print a table; the columns `numbers` are aligned to the right. Fits the terminal; whole when piped."""
    if not sys.stdout.isatty():
        for line in columns([heads, *rows], numbers):
            _write(line)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, head in enumerate(heads):
        drawn.add_column(head, justify="right" if i in numbers else "left", overflow="fold", no_wrap=i in numbers)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(drawn)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _stopped(event: Stopped) -> str:
    return f"stopped after step {event.step}, which is saved" if event.step else "stopped before the first step"


def _step_line(p: Progress) -> str:
    width = len(str(p.steps))
    fields = [f"step {p.step:>{width}}/{p.steps}", f"loss {p.loss:.4f}", f"lr {p.lr:.2e}", *p.speed(), p.remaining()]
    return "  ".join(filter(None, [*fields, f"memory {megabytes(memory_mb())}"]))


def _status(p: Progress, width: int, bars: bool) -> list[str]:
    assert p.loss is not None
    spark = sparkline(p.losses, min(24, width // 4)) if bars else ""
    return [
        f"loss {p.loss:.4f} {spark}".rstrip(),
        f"lr {p.lr:.2e}",
        *p.speed(),
        p.remaining(),
        megabytes(memory_mb()),
        p.validated(),
    ]


def _bar(label: str, done: int, total: int, left: str, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    text = f"{done}/{total}  {left}".rstrip()
    bar = ProgressBar(total, done, width=max(4, min(50, width - len(label) - len(text) - 3)), complete_style="cyan")
    grid.add_row(label, bar, text)
    return grid


def record(value: Any) -> Any:
    """`value` as plain JSON types: dataclasses, paths and tuples inside are turned into dictionaries, text and lists."""
    import dataclasses

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: record(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): record(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [record(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def finding(status: str, name: str, detail: str, remedy: str) -> None:
    """One line of `sdtune doctor`, with the remedy on a line of its own."""
    colour = {"ok": "32", "note": "2", "warn": "33", "fail": "1;31"}[status]
    mark = f"\x1b[{colour}m{status:<4}\x1b[0m" if _coloured() else f"{status:<4}"
    _write(f"{mark}  {name:<14}  {detail}")
    if remedy:
        _write(f"{'':22}-> {remedy}")


def key_list(keys: Sequence[Any]) -> None:
    """`sdtune keys`: name, default and type on a line, the help below it."""
    import shutil
    import textwrap

    width = min(100, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
    for key in keys:
        name = f"\x1b[36m{key.name}\x1b[0m" if _coloured() else key.name
        only = f", {key.name.partition('.')[0]}.type = {key.only}" if key.only else ""
        _write(f"{name} = {key.default}  ({key.kind}{only})")
        for line in textwrap.wrap(key.help, width - 4):
            _write(f"    {line}")


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
