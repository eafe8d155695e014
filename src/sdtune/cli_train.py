"""The commands that make and follow runs: demo, init, train, timeline, tensorboard, follow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sdtune
from sdtune import console, presets
from sdtune.cli_judge import show_comparison
from sdtune.cli_shared import Options, Overrides, interrupts, on_devices, options_of, run_at, show_downloads, tell
from sdtune.errors import ConfigError
from sdtune.follow import Tool

if TYPE_CHECKING:
    from sdtune.config import RunConfig
    from sdtune.console import Screen
    from sdtune.runs import Run


def demo(
    ctx: typer.Context,
    method: Annotated[str, typer.Option(help="lora: a small adapter. full: every weight of the model.")] = "lora",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run.  [dim]runs/demo-lora or runs/demo-full[/dim]", show_default=False),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier demo in that folder and start anew.")
    ] = False,
) -> None:
    """Fine-tune the small model that comes with sdtune, and compare.

    It learns a drawing style and is set against what it was before.
    Two CPU cores and a few minutes; no GPU, no network, no files of yours.

    Example  [cyan]sdtune demo[/cyan]
    Writes   runs/demo-lora/ with comparison/report.html, which it names
             and, on a desktop, opens.
    Again    the same command goes on with a stopped demo, or says that
             it is finished; --fresh starts anew.
    """
    from sdtune import demo_run

    options = options_of(ctx)
    config = demo_run.config(method)
    run = run_at(out or Path("runs") / config.name)
    if fresh:
        demo_run.clear(run)
    with options.screen() as screen:
        screen.say(f"sdtune demo: {demo_run.intention(method)}")
        screen.say("")
        _drive(config, run, screen, options)
        screen.say("")
        show_comparison(run, (), screen)
        if not (options.as_json or options.quiet):
            demo_run.open_report(run)


def init(
    ctx: typer.Context,
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET",
            help=f"{', '.join(presets.names())}.",
        ),
    ] = "demo-lora",
    out: Annotated[
        Path | None, typer.Option(help="The file to write.  [dim]<preset>.toml[/dim]", show_default=False)
    ] = None,
) -> None:
    """Write a recipe to start from, each key explained.

    It runs as it is: change the folder of the pictures, then the rest
    as you learn.

    Example  [cyan]sdtune init sd15-lora --out mine.toml[/cyan]
    Writes   one TOML file; an existing file is never overwritten.
    """
    from sdtune.files import write_text

    path = out or Path(preset.replace("-", "_") + ".toml")
    text = presets.commented(preset, console.quote(path))
    if path.exists():
        raise ConfigError(f"{path}: exists already; give another name with --out")
    write_text(path, text)
    screen = options_of(ctx).screen()
    screen.emit({"recipe": str(path)})
    screen.rows(
        [
            ("wrote", str(path)),
            ("next", f"sdtune doctor {console.quote(path)}"),
            ("then", f"sdtune train {console.quote(path)}"),
        ]
    )


def train(
    ctx: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe (TOML); `sdtune init` writes one.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.  [dim]runs/<name>[/dim]", show_default=False)
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="Train on so many devices of this machine, one process each.", show_default=False)
    ] = 1,
) -> None:
    """Fine-tune a model as a recipe says.

    Encodes the pictures once, trains, validates on held-out pictures,
    draws previews and saves checkpoints.

    Example  [cyan]sdtune train mine.toml train.steps=200 name=short[/cyan]
    Writes   runs/<name>/ with config.toml, events.jsonl, samples/,
             checkpoints/ and final/, the result.
    Again    the same command goes on with a stopped run, or says that
             it is finished. Ctrl-C once ends the step and saves;
             twice leaves at once.

    Devices  --devices 4, or torchrun --nproc-per-node 4 -m sdtune train ...
             train.batch_size counts for all of them together: the same
             recipe trains the same on one device and on many.

    Overrides are key=value, with the recipe's keys and TOML's values.
    They come after the recipe, the last one wins, and they may set
    keys that the recipe does not have:
             [cyan]method.rank=32  data.path=pictures  sample.prompts='\\["a cat"]'[/cyan]
    [cyan]sdtune keys[/cyan] lists all keys with default, type and meaning.
    """
    options = options_of(ctx)
    config = sdtune.load_config(recipe, *(overrides or ()))
    on_devices(devices, options)
    with options.screen() as screen:
        _drive(config, run_at(out or Path("runs") / config.name), screen, options)


def timeline(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The PNG to write.  [dim]<run>/timeline.png[/dim]", show_default=False)
    ] = None,
    columns: Annotated[int, typer.Option(min=2, help="At most so many steps, evenly spread.")] = 12,
) -> None:
    """Put a run's previews on one sheet, step by step.

    A row for each prompt and seed, a column for each step, the base
    first; over it the validation loss. Also of a run that goes on.

    Example  [cyan]sdtune timeline runs/demo-lora[/cyan]
    Writes   <run>/timeline.png. Run it again to take in what is new.
    """
    from sdtune import timeline
    from sdtune.contact import write_timeline
    from sdtune.errors import RunError

    source = run_at(run)
    source.config()  # the error for a folder that is no run
    found = timeline.read(source, columns)
    if found is None:
        raise RunError(f"{run}: has previews of fewer than two steps; train.sample_every says how often they are drawn")
    path = out or source.timeline_file
    write_timeline(found, path)
    screen = options_of(ctx).screen()
    screen.emit({"timeline": str(path), "steps": found.steps})
    screen.result(path)


def tensorboard(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Where to write.  [dim]<run>/tensorboard[/dim]", show_default=False)
    ] = None,
) -> None:
    """Turn a run's log into files for TensorBoard.

    Losses, learning rate, speed and previews. Needs the extra:
    [cyan]pip install 'sdtune\\[tensorboard]'[/cyan]

    Example  [cyan]sdtune tensorboard runs/demo-lora && tensorboard --logdir runs[/cyan]
    Writes   <run>/tensorboard/. Run it again to take in what is new.
    """
    from sdtune.tb import write

    folder = out or run / "tensorboard"
    records = write(run_at(run), folder)
    screen = options_of(ctx).screen()
    screen.emit({"folder": str(folder), "records": records})
    screen.rows([("wrote", f"{folder} ({records} records)"), ("next", f"tensorboard --logdir {console.quote(folder)}")])


def follow(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    to: Annotated[
        Tool, typer.Option(metavar="TOOL", help="tensorboard, wandb, mlflow or trackio.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to write.  [dim]tensorboard, wandb: the run's folder; others: beside it, for all runs[/dim]",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="Send it there, over the network: https://api.wandb.ai, an MLflow tracking URI, a Trackio Space.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Only what is there; do not wait for more.")] = False,
) -> None:
    """Show a run in another tool, also while it trains.

    Sends losses, learning rate, speed, previews, warnings and the
    config, first what was logged, then what comes, until the run ends.
    Start it beside the training; it never slows or harms it.
    Nothing leaves this machine unless --server names where to.

    Example  [cyan]sdtune follow runs/demo-lora --to mlflow[/cyan]
    Writes   the tool's own files. Again: in place of those of before.
    """
    from sdtune.follow.reader import follow

    source, screen = run_at(run), options_of(ctx).screen()
    with screen, interrupts(lambda: os.write(2, b"\nstopping: what was logged so far is sent\n")) as caught:
        screen.busy(f"following {run}" + ("" if once else "; Ctrl-C ends it, not the training"))
        sent = follow(source, to, out=out, server=server, wait=not once, stop=lambda: bool(caught))
        screen.done()
    screen.emit(console.record(sent))
    screen.rows(
        [
            ("sent", f"{sent.records} records to {sent.where}"),
            ("run", "not over yet" if sent.outcome == "running" else sent.outcome),
            ("view", sent.view),
        ]
    )
    if caught:
        raise typer.Exit(128 + caught[0])


# ---- training under Ctrl-C


def _drive(config: RunConfig, run: Run, screen: Screen, options: Options) -> None:
    """Train and draw. The first Ctrl-C or SIGTERM closes the run after its step, which saves it; the second leaves at once."""
    from sdtune.events import Finished, Started, Stopped

    show_downloads(config.model.download, config.data.download)
    step, complete, began = 0, False, False
    with interrupts(screen.stopping) as caught:
        screen.begin(config, run.path)
        events = sdtune.train(config, run)
        try:
            for event in events:
                began |= isinstance(event, Started)
                complete = isinstance(event, Finished)
                if complete and not began:
                    screen.say("this run is finished already:")
                screen.draw(event)
                step = max(step, getattr(event, "step", 0))
                if caught:
                    break
        finally:
            events.close()
    if caught and not complete:
        screen.draw(Stopped(step))
        tell(f"go on with: {options.command}")
        raise typer.Exit(128 + caught[0])
