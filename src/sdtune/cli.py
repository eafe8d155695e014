"""The command line: reads arguments, calls the Python API, draws what it reports. No logic that the API lacks.

The commands are in the modules cli_*; here is how they hang together, and what happens around each of them.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from sdtune import (
    cli_data,
    cli_experiment,
    cli_judge,
    cli_look,
    cli_metrics,
    cli_sample,
    cli_serve,
    cli_show,
    cli_train,
)
from sdtune.cli_shared import Options, tell
from sdtune.errors import ConfigError, SdtuneError

EXIT_CODES = {
    0: "done",
    1: "something else went wrong (--debug shows where); `doctor`: a check failed",
    2: "the command line or the configuration is wrong",
    3: "pictures or captions cannot be used",
    4: "a model cannot be found, read or fitted",
    5: "training cannot go on; the last good checkpoint is intact",
    6: "a run folder is in use, damaged, or of another configuration",
    7: "what was asked cannot be measured soundly",
    130: "stopped by Ctrl-C; everything so far is saved",
    143: "stopped by SIGTERM; everything so far is saved",
}
EVERYWHERE = ("--json", "--quiet", "--debug")
ANYWHERE = "Options of every command, anywhere on the line"


def _exit_codes() -> str:
    return "\n".join(f"  [bold]{code:>3}[/bold]  {text}" for code, text in EXIT_CODES.items())


app = typer.Typer(
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help=(
        "Fine-tunes Stable Diffusion and proves what the fine-tuning did.\n\n"
        "First     [cyan]sdtune demo[/cyan]: the whole way on a small model that comes along;\n"
        "          no GPU, no network.\n"
        "Then      [cyan]sdtune init sd15-lora[/cyan], edit the recipe that it writes,\n"
        "          [cyan]sdtune train sd15_lora.toml[/cyan], [cyan]sdtune compare runs/sd15-lora[/cyan]\n\n"
        "A run is a recipe and overrides such as [cyan]optimizer.lr=1e-4[/cyan]; there are no\n"
        "other settings. The same command again goes on with a stopped run."
    ),
    epilog="Exit codes\n" + _exit_codes(),
)


@app.callback()
def _everywhere(
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=ANYWHERE, help="JSON lines on stdout and nothing else there; for programs."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", rich_help_panel=ANYWHERE, help="Only warnings, errors and the paths of results.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", rich_help_panel=ANYWHERE, help="Show the traceback of an error.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    pass  # main() has read them: they may stand anywhere on the line


app.add_typer(cli_data.app, name="data")
for _command in (
    cli_train.demo,
    cli_train.init,
    cli_train.train,
    cli_sample.sample,
    cli_show.show,
    cli_serve.serve,
    cli_judge.compare,
    cli_judge.evaluate,
    cli_judge.sweep,
    cli_metrics.protocol,
    cli_metrics.metrics,
    cli_experiment.experiment,
    cli_experiment.ls,
    cli_look.doctor,
    cli_look.inspect,
    cli_look.keys,
    cli_train.timeline,
    cli_train.tensorboard,
    cli_train.follow,
):
    app.command()(_command)


# ---- the entry point


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line `argv` (of the process if None) and leave with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign must not end a run
    if "--version" in arguments:
        from importlib.metadata import version

        print(f"sdtune {version('sdtune')}")
        sys.exit(0)
    ends = arguments.index("--") if "--" in arguments else len(arguments)
    found = {flag for flag in arguments[:ends] if flag in EVERYWHERE}
    rest = [a for i, a in enumerate(arguments) if i >= ends or a not in EVERYWHERE]
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    options = Options("--json" in found, "--quiet" in found, "--debug" in found, shlex.join(["sdtune", *arguments]))
    if not rest or "--help" in rest:
        from typer import rich_utils

        rich_utils.STYLE_HELPTEXT = ""  # examples are not to be dim
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if os.environ.get("RANK", "0") != "0":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # one of several processes: the first one draws
    try:
        app(rest, prog_name="sdtune", obj=options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of a pipe has left: nothing more to say
        sys.exit(1)
    except Exception as error:
        if options.debug:
            raise
        sys.exit(_explain(error, options))
    sys.exit(0)


def _explain(error: Exception, options: Options) -> int:
    """Say what went wrong, in a line or a list; returns the exit code."""
    if isinstance(error, SdtuneError):
        faults = str(error).splitlines()
        several = isinstance(error, ConfigError) and len(faults) > 1
        message = "\n  ".join([f"{len(faults)} faults", *faults]) if several else str(error)
    elif isinstance(error, OSError) and error.strerror:
        message = f"{error.filename or 'a file'}: {error.strerror.lower()}"
    else:
        message = f"unexpected {type(error).__name__}: {error}\nthis is a fault of sdtune: run the command again with --debug and report it"
    if options.as_json:
        from sdtune.events import Failed

        options.screen().draw(Failed(0, message))
    tell(f"error: {message}")
    return error.exit_code if isinstance(error, SdtuneError) else 1
