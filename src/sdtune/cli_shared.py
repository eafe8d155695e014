"""What all commands share: their options, the lines they say, and how they are stopped."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from sdtune import console

if TYPE_CHECKING:
    from sdtune.console import Screen
    from sdtune.runs import Run


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="A.B=C", help="Settings that replace those of the recipe. `sdtune keys` lists them.", show_default=False
    ),
]


Drawer = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="A run, a LoRA or embedding file, a model folder or file, a Hub id, or a recipe (its base model).",
    ),
]
"""What draws."""


@dataclass(frozen=True)
class Options:
    """The options that every command takes, wherever they stand on the line."""

    as_json: bool = False
    quiet: bool = False
    debug: bool = False
    command: str = "sdtune"
    """The command line itself, to be shown as what goes on with a run."""

    def screen(self) -> Screen:
        return console.screen(as_json=self.as_json, quiet=self.quiet)


def options_of(ctx: typer.Context) -> Options:
    assert isinstance(ctx.obj, Options)
    return ctx.obj


def on_devices(devices: int, options: Options) -> None:
    """Run this command in as many processes, and end as they end; in one of them, and where one is all, go on."""
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        from sdtune import distributed

        raise typer.Exit(distributed.launch(devices, shlex.split(options.command)[1:]))


def show_downloads(*wanted: bool) -> None:
    """Let the Hub's progress bars be seen if anything may be fetched; before the first import of its library."""
    if any(wanted):
        os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)


@contextmanager
def interrupts(say: Callable[[], object]) -> Iterator[list[int]]:
    """The list of SIGINT and SIGTERM heard so far, the first answered by `say`; a second one ends the process."""
    caught: list[int] = []

    def heard(number: int, frame: FrameType | None) -> None:
        if caught:
            if sys.stdout.isatty():
                os.write(1, b"\x1b[?25h\n")  # the cursor, which the live display hides
            os._exit(128 + number)
        caught.append(number)
        say()

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def with_default(first: str, overrides: Sequence[str] | None, default: str) -> tuple[str, list[str]]:
    """A command's first argument and its overrides; `first` may have been left out: then it holds an override."""
    rest = list(overrides or ())
    return (default, [first, *rest]) if "=" in first and not Path(first).exists() else (first, rest)


def tell(text: str) -> None:
    """One line on stderr; "error:" in red in a terminal."""
    if (number := os.environ.get("RANK", "0")) != "0":
        text = f"process {number}: {text}"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        text = text.replace("error:", "\x1b[1;31merror:\x1b[0m", 1) if text.startswith("error:") else text
    print(text, file=sys.stderr)


def run_at(path: Path) -> Run:
    """The run in a folder; ~ is the home."""
    from sdtune.runs import Run

    return Run(path.expanduser())
