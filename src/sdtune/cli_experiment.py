"""The commands over many runs: experiment, ls."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sdtune
from sdtune import console
from sdtune.cli_shared import interrupts, options_of, tell

if TYPE_CHECKING:
    from sdtune.console import Screen
    from sdtune.experiments.matrix import Matrix
    from sdtune.experiments.run import Task

NUMBERS = (2, 3, 4)


def experiment(
    ctx: typer.Context,
    matrix: Annotated[
        Path, typer.Argument(metavar="MATRIX", help="A matrix (TOML); recipes/matrices has some.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of all its runs.  [dim]experiments/<name>[/dim]", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and what is missing; do nothing.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CELL", help="Only this cell, by name or id; may be given several times.", show_default=False
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="So many runs at once, sharing the processor.")] = 1,
    devices: Annotated[
        int, typer.Option(min=0, max=64, help="So many CUDA devices, a run on each at once.", show_default=False)
    ] = 0,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
) -> None:
    """Train many variants, and say which can be told apart.

    A matrix names a recipe, the keys that vary, and training seeds. Each
    combination is a cell, trained once for each seed and compared on
    the same prompts; the base is a row of its own.

    Example  [cyan]sdtune experiment recipes/matrices/embedded.toml --dry-run[/cyan]
    Writes   experiments/<name>/ with a run folder for each cell and seed,
             index.html (leaderboard, costs, pictures, cards),
             leaderboard.md, leaderboard.json, and contact.png with the
             pictures of all rows side by side.
    Again    does only what is missing: a new cell, a new seed, a run that
             was cut off. A changed cell is a new cell; nothing is
             overwritten. Ctrl-C saves; the same command goes on.
    """
    from sdtune.experiments import matrix as matrices
    from sdtune.experiments.run import folder_of, tasks

    options = options_of(ctx)
    plan = matrices.load(matrix)
    folder = folder_of(plan, out)
    with options.screen() as screen:
        show_plan(plan, tasks(plan, folder, only or ()), screen)
        if dry_run:
            return
        _drive(plan, folder, screen, jobs=jobs, devices=devices, only=only or (), retry=retry, again=options.command)


def ls(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, also deep inside.")] = Path(),
) -> None:
    """List runs: state, method, steps, verdicts, size and time.

    The verdicts are one sign each, in the report's order: helped, moved
    to the target, content kept, away from the base, overfit, forgot,
    copied. + is the answer that one hopes for, - is not, ? cannot tell.

    Example  [cyan]sdtune ls runs[/cyan]
    Writes   nothing.
    """
    from sdtune.experiments import listing

    screen = options_of(ctx).screen()
    found = listing.rows(folder.expanduser())
    if isinstance(screen, console.Json):
        for row in found:
            screen.emit(console.record(row))
        return
    if not found:
        screen.say(f"{folder}: holds no runs; `sdtune train` makes one")
        return
    heads = ["run", "state", "method", "steps", "verdicts", "primary figure", "size", "time", "began"]
    lines = [
        [
            _below(row.run, folder), row.state if not row.compared else "compared", row.method, _steps(row.step, row.steps),
            row.marks if row.compared else "", row.primary, _size(row.size_mb), _time(row.seconds), listing.when(row.began),
        ]
        for row in found
    ]  # fmt: skip
    console.table(heads, lines, (3, 6, 7))
    for row in found:
        if row.message:
            tell(f"{_below(row.run, folder)}: {row.message}")


def show_plan(matrix: Matrix, found: Sequence[Task], screen: Screen) -> None:
    """A line for each cell: what makes it different, and what is there of it."""
    from sdtune.experiments.matrix import counted, differing
    from sdtune.experiments.measure import wall

    screen.emit({"matrix": matrix.name, "runs": [_task_record(task) for task in found]})
    if isinstance(screen, console.Json | console.Silent):
        return
    cells = {task.item.cell.name: task.item.cell for task in found}
    keys = dict(differing(list(cells.values())))
    heads = [
        "cell",
        "id",
        *(key.removeprefix("method.").removeprefix("train.") for key in keys),
        "there",
        "missing",
        "a run",
    ]
    rows = []
    for i, (name, cell) in enumerate(cells.items()):
        own = [task for task in found if task.item.cell.name == name]
        there = [t for t in own if t.state == "finished"]
        took = [seconds for t in there if (seconds := wall(t.item.run))]
        rows.append(
            [name, cell.id, *(values[i] for values in keys.values()), str(len(there)), _missing(own),
             console.duration(sum(took) / len(took)) if took else ""]
        )  # fmt: skip
    screen.say(f"{matrix.name}: {counted(matrix)}, compared by {matrix.primary}")
    console.table(heads, rows, (len(heads) - 3,))
    left_out = {key for cell in cells.values() for key in cell.left_out}
    for cell in cells.values():
        if cell.left_out:
            screen.say(f"{cell.name}: has no {', '.join(cell.left_out)}; the base recipe's are left out")
    if left_out or rows:
        screen.say("")


def _missing(own: Sequence[Task]) -> str:
    """2 missing, 1 begun, 1 failed."""
    counts = {state: sum(t.state == state for t in own) for state in ("missing", "begun", "to compare", "failed")}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n)


def _task_record(task: Task) -> dict[str, object]:
    item = task.item
    return {
        "cell": item.cell.name,
        "id": item.cell.id,
        "seed": item.seed,
        "run": str(item.run.path),
        "state": task.state,
    }


def _drive(
    matrix: Matrix,
    folder: Path,
    screen: Screen,
    *,
    jobs: int,
    devices: int,
    only: Sequence[str],
    retry: bool,
    again: str,
) -> None:
    from sdtune.experiments.events import Broke, Ranked, plain

    broke, page = 0, None
    with interrupts(lambda: screen.stopping("the runs end their step and are saved")) as caught:
        events = sdtune.experiment(
            matrix, folder, jobs=jobs, devices=devices, only=only, retry=retry, stop=lambda: bool(caught)
        )
        drawn = Drawn(screen, several=max(jobs, devices) > 1)
        try:
            for event in events:
                screen.emit(plain(event))
                drawn.draw(event)
                broke += isinstance(event, Broke)
                page = event if isinstance(event, Ranked) else page
                if caught:
                    break
        finally:
            events.close()
            screen.done()
    if caught and page is None:
        tell(f"go on with: {again}")
        raise typer.Exit(128 + caught[0])
    if broke:
        tell(f"{broke} of the runs failed; mend what they say, then add --retry")
        raise typer.Exit(1)


class Drawn:
    """Events of an experiment on a screen: a line for each run, a bar for what goes on."""

    SPEAK_EVERY = 20.0

    def __init__(self, screen: Screen, *, several: bool) -> None:
        self.screen, self.several = screen, several
        self._spoke, self._number, self._todo = 0.0, 0, 0

    def draw(self, event: object) -> None:
        from sdtune.experiments.events import Began, Broke, Made, Planned, Ranked, Told, Worked

        match event:
            case Planned():
                left = f", about {console.duration(event.seconds)}" if event.todo and event.seconds else ""
                work = f"{event.todo} to do{left}" if event.todo else "nothing to do"
                self._say(f"{event.runs} runs, {event.states.get('finished', 0)} finished, {work}; {event.out}")
            case Began():
                self._number, self._todo = event.number, event.todo
                where = f" on {event.device}" if event.device else ""
                self._say(f"run {event.number} of {event.todo}: {event.cell}, seed {event.seed}{where}")
            case Worked():
                self._work(event)
            case Told():
                self._say(f"warning: {event.cell}, seed {event.seed}: {event.message}")
            case Made():
                left = f"; {console.duration(event.seconds_left)} left" if event.seconds_left else ""
                self._say(f"{event.cell}, seed {event.seed}: {console.duration(event.seconds)}{left}. {event.headline}")
            case Broke():
                self.screen.done()
                tell(f"failed: {event.cell}, seed {event.seed}: {event.message}")
            case Ranked():
                self.screen.done()
                self._say(f"{event.best}." if event.best else "")
                missing = f" ({event.missing} runs missing)" if event.missing else ""
                self.screen.result(Path(event.page), f"page of {event.runs} runs{missing}")
                self._say(f"the same pictures side by side  {event.sheet}")
            case _:
                pass

    def _work(self, event: object) -> None:
        from sdtune.experiments.events import Worked

        assert isinstance(event, Worked)
        left = f"{console.duration(event.seconds_left)} left" if event.seconds_left else ""
        who = f"{event.cell}, seed {event.seed}:" if self.several else f"{self._number}/{self._todo}"
        what = f"{who} {event.what}"
        if isinstance(self.screen, console.Live):
            self.screen.doing(what, event.done, event.total, left)
        elif isinstance(self.screen, console.Plain) and time.monotonic() - self._spoke > self.SPEAK_EVERY:
            self._spoke = time.monotonic()
            self.screen.say(f"  {what} {event.done}/{event.total}" + (f", {left}" if left else ""))

    def _say(self, text: str) -> None:
        if text:
            self.screen.say(text)


def _below(run: str, folder: Path) -> str:
    short = os.path.relpath(run, folder.expanduser())
    return run if short == "." else short


def _steps(step: int, steps: int) -> str:
    return str(steps) if step == steps else f"{step} of {steps}"


def _size(mb: float | None) -> str:
    return "" if mb is None else f"{mb:.1f} MB" if mb < 1000 else f"{mb / 1000:.1f} GB"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else console.duration(seconds)
