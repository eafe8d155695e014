"""The command line: reads arguments, calls the Python API, draws what it reports. No logic that the API lacks."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

import sdtune
from sdtune import cli_data, console, presets
from sdtune.cli_shared import Options, interrupts, options_of, tell
from sdtune.errors import ConfigError, SdtuneError
from sdtune.follow import Tool

if TYPE_CHECKING:
    from sdtune.compare import Comparison
    from sdtune.config import RunConfig
    from sdtune.console import Screen
    from sdtune.evaluate import Scores
    from sdtune.infotext import Drawn
    from sdtune.inspection import AdapterReport, ModelReport, RecipeReport, Report
    from sdtune.runs import Run
    from sdtune.sample import Sample
    from sdtune.stats import Interval

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

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="A.B=C", help="Settings that replace those of the recipe. `sdtune keys` lists them.", show_default=False
    ),
]
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


# ---- commands


@app.command()
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
    run = _run(out or Path("runs") / config.name)
    if fresh:
        demo_run.clear(run)
    with options.screen() as screen:
        screen.say(f"sdtune demo: {demo_run.intention(method)}")
        screen.say("")
        _drive(config, run, screen, options)
        screen.say("")
        _show_comparison(run, (), screen)
        if not (options.as_json or options.quiet):
            demo_run.open_report(run)


@app.command()
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


@app.command()
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
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        from sdtune import distributed

        raise typer.Exit(distributed.launch(devices, shlex.split(options.command)[1:]))
    with options.screen() as screen:
        _drive(config, _run(out or Path("runs") / config.name), screen, options)


@app.command()
def sample(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run, a LoRA or embedding file, a model folder or file, a Hub id, or a recipe (its base model).",
        ),
    ] = "embedded",
    overrides: Overrides = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="What to draw; may be given several times.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file with a prompt on each line.", show_default=False)
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Begin with this picture (image-to-image): sample.image.", show_default=False
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="White in it is painted anew (inpainting): sample.mask.", show_default=False),
    ] = None,
    denoising_strength: Annotated[
        float | None,
        typer.Option(
            metavar="0-1", help="How far from --image: sample.denoising_strength.  [dim]0.75[/dim]", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("samples"),
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Also write <out>-sheet.png: a row per prompt, a column per seed.")
    ] = False,
    checkpoint: Annotated[str, typer.Option(help="Of a run: final, best, or one such as step-000250.")] = "final",
    again: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PNG", help="Draw this picture again, as the text inside it says.", show_default=False
        ),
    ] = None,
    list_schedulers: Annotated[
        bool, typer.Option("--list-schedulers", help="Show the samplers (sample.scheduler), and draw nothing.")
    ] = False,
) -> None:
    """Draw pictures with a run, or with a model as it is.

    The same model, prompt, seed and settings give the same picture
    here, in previews and in comparisons.

    Example  [cyan]sdtune sample runs/demo-lora -p "red apple in comic style"[/cyan]
             [cyan]sdtune sample -p "red apple" sample.seeds='\\[1, 2, 3]' --sheet[/cyan]
             [cyan]sdtune sample -p "green apple" --image a.png --mask where.png[/cyan]
    Writes   a PNG per prompt and seed with its settings inside, and the
             settings as JSON beside it.

    Pictures With --image drawing begins with a picture, and with --mask only
             what is white there is painted anew; the rest stays, byte for
             byte. How far it goes is --denoising-strength; sample.strength is
             the adapter's.
    Again    --from picture.png repeats a picture of sdtune, with the run
             or model named as before; what you set replaces what it says.
             Of web UIs' pictures it takes the settings.
    """
    from sdtune.infotext import toml

    if list_schedulers:
        _show_samplers(options_of(ctx))
        return
    first = source
    source, changes = _with_default(source, overrides, "embedded")
    given = {"image": image, "mask": mask, "denoising_strength": denoising_strength}
    changes += [f"sample.{key}={toml(value)}" for key, value in given.items() if value is not None]
    texts = [*(prompt or ()), *(_lines_of(prompts) if prompts else ())] or None
    template = None
    if again is not None:
        said = ctx.get_parameter_source("source")
        template = _template(again, changes, named=source == first and said is not None and said.name == "COMMANDLINE")
        asked = {change.partition("=")[0] for change in changes}
        changes = [*template.overrides(asked), *changes]
        texts = texts or (None if "sample.prompts" in asked else [template.settings["prompt"]])
    screen = options_of(ctx).screen()
    screen.say(f"drawing with {source}")
    drawn = list["Sample"]()
    from sdtune.sample import save_png

    for i, picture in enumerate(sdtune.sample(source, *changes, prompts=texts, checkpoint=checkpoint)):
        path = out / f"{i:03d}-{_slug(picture.prompt)}-{picture.seed}.png"
        save_png(picture, path)
        if template is not None and not drawn:
            _compare_with(template, picture)
        drawn.append(picture)
        screen.emit({"path": str(path), "prompt": picture.prompt, "seed": picture.seed, "flaw": picture.flaw})
        screen.result(path)
        if picture.flaw:
            tell(f"warning: {path}: {picture.flaw}")
    if sheet and drawn:
        from sdtune.contact import write_sheet

        path = out.with_name(f"{out.name}-sheet.png")
        write_sheet(drawn, path)
        screen.emit({"sheet": str(path)})
        screen.result(path)


@app.command()
def compare(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    overrides: Overrides = None,
    checkpoint: Annotated[str, typer.Option(help="final, best, or one such as step-000250.")] = "final",
) -> None:
    """Set a tuned model against its base, and give a verdict.

    The same prompts and seeds for both, held-out pictures to judge by,
    figures with intervals, and what so few pictures cannot show.

    Example  [cyan]sdtune compare runs/demo-lora[/cyan]
    Writes   comparison/report.html (one file with everything), report.md
             and scores.json into the run. Again: draws only what is new.
    """
    options = options_of(ctx)
    with options.screen() as screen:
        _show_comparison(_run(run), overrides or (), screen, checkpoint)


@app.command()
def evaluate(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A finished run, or a folder of pictures.", show_default=False)
    ],
    overrides: Overrides = None,
    reference: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Real pictures to hold a folder against.", show_default=False)
    ] = None,
) -> None:
    """The figures alone: of a run, or of any folder of pictures.

    Of a run: base, tuned, their difference and real pictures, as
    `sdtune compare` has them. Of a folder: against --reference.

    Example  [cyan]sdtune evaluate runs/demo-lora --json[/cyan]
             [cyan]sdtune evaluate samples --reference embedded:comic[/cyan]
    Writes   of a run, what `sdtune compare` writes; of a folder, nothing.
    """
    run = _run(source)
    with options_of(ctx).screen() as screen:
        if run.exists():
            if reference is not None:
                raise ConfigError("--reference is for folders of pictures; of a run it is the key evaluate.reference")
            scores = _compared(run, overrides or (), screen).scores
        elif reference is None:
            raise ConfigError(
                f"{source}: not a run folder; a folder of pictures needs --reference, real pictures to hold it against"
            )
        else:
            screen.busy(f"looking at {source} and {reference}")
            scores = sdtune.evaluate(source, reference)
    screen.emit(scores.as_dict())
    if not isinstance(screen, console.Json):
        _show_figures(scores)


@app.command()
def doctor(
    ctx: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="Also check this recipe, its model and its pictures.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check whether this machine, and a recipe, are ready.

    Versions, device, memory, disk, write access, models in the cache;
    of a recipe, its keys, pictures and model. Uses no network.

    Example  [cyan]sdtune doctor mine.toml[/cyan]
    Writes   nothing. Exit code 1 if a check fails.
    """
    from sdtune.doctor import checks

    options = options_of(ctx)
    failed = False
    for check in checks(recipe, tuple(overrides or ())):
        failed |= check.status == "fail"
        if options.as_json:
            options.screen().emit(console.record(check))
        elif not (options.quiet and check.status in ("ok", "note")):
            console.finding(check.status, check.name, check.detail, check.remedy)
    if failed:
        raise typer.Exit(1)


@app.command()
def inspect(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|FILE",
            help="A model folder or file, a Hub id in the cache, a run, a recipe, a LoRA file.",
        ),
    ] = "embedded",
    rank: Annotated[int, typer.Option(min=1, help="Count the adapters' parameters at this rank.")] = 16,
    layers: Annotated[
        str | None,
        typer.Option(metavar="SET", help="List the layers of this target set, or of a pattern.", show_default=False),
    ] = None,
) -> None:
    """Show what is inside a model, a LoRA file or a run, and what a recipe would train.

    Of a model: its parts, and the layers that each target set would
    train, in the denoiser and in the text encoders. Of a recipe: how many parameters its method would train, and
    where. Of a LoRA or a run: rank, alpha, base, and what changed most.

    Example  [cyan]sdtune inspect embedded --rank 8[/cyan]
             [cyan]sdtune inspect embedded --layers attention[/cyan]
    Writes   nothing.
    """
    from sdtune import inspection

    options = options_of(ctx)
    if layers is not None:
        found = inspection.target_set(inspection.load(source).denoiser, layers, rank)
        if options.as_json:
            options.screen().emit(console.record(found))
        else:
            print("\n".join(found.layers))
        return
    report = inspection.inspect(source, rank)
    if options.as_json:
        options.screen().emit(console.record(report))
    else:
        _show_report(report)


@app.command()
def keys(
    ctx: typer.Context, prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Only keys that begin so.")] = ""
) -> None:
    """List the keys of a recipe with default, type and meaning.

    Each may stand in a recipe, or on the command line as key=value.

    Example  [cyan]sdtune keys optimizer[/cyan]
    Writes   nothing.
    """
    found = presets.keys(prefix)
    if not found:
        near = sorted({key.name.partition(".")[0] for key in presets.keys("")})
        raise ConfigError(f"{prefix}: no key begins so; parts: {', '.join(near)}")
    options = options_of(ctx)
    if options.as_json:
        options.screen().emit(console.record(found))
    else:
        console.key_list(found)


@app.command()
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

    source = _run(run)
    source.config()  # the error for a folder that is no run
    found = timeline.read(source, columns)
    if found is None:
        raise RunError(f"{run}: has previews of fewer than two steps; train.sample_every says how often they are drawn")
    path = out or source.timeline_file
    write_timeline(found, path)
    screen = options_of(ctx).screen()
    screen.emit({"timeline": str(path), "steps": found.steps})
    screen.result(path)


@app.command()
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
    records = write(_run(run), folder)
    screen = options_of(ctx).screen()
    screen.emit({"folder": str(folder), "records": records})
    screen.rows([("wrote", f"{folder} ({records} records)"), ("next", f"tensorboard --logdir {console.quote(folder)}")])


@app.command()
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

    source, screen = _run(run), options_of(ctx).screen()
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

    if config.model.download:
        os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
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


# ---- what commands share


def _run(path: Path) -> Run:
    from sdtune.runs import Run

    return Run(path.expanduser())


def _with_default(first: str, overrides: Sequence[str] | None, default: str) -> tuple[str, list[str]]:
    """`first` may be left out: then it holds an override."""
    rest = list(overrides or ())
    return (default, [first, *rest]) if "=" in first and not Path(first).exists() else (first, rest)


def _lines_of(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    if found := [line.strip() for line in text.splitlines() if line.strip()]:
        return found
    raise ConfigError(f"{path}: holds no prompt; write one on each line")


def _slug(text: str) -> str:
    words = "".join(c if c.isalnum() and c.isascii() else "-" for c in text.lower())
    return "-".join(filter(None, words.split("-")))[:40].rstrip("-") or "picture"


def _template(path: Path, changes: Sequence[str], *, named: bool) -> Drawn:
    """What `path` says of itself, if it can be repeated with these settings; what cannot is told."""
    from sdtune import infotext

    template = infotext.read(path)
    says, asked = template.settings, {change.partition("=")[0] for change in changes}
    if not named and "tuned" in says:
        raise ConfigError(
            f"{path}: was drawn with {says['tuned']}; name that run or file: sdtune sample RUN --from ..."
        )
    if not named and not (template.ours and says.get("model") == "embedded"):
        # not taken from the text itself: a stranger would choose what is loaded
        raise ConfigError(
            f"{path}: says that its model is {says.get('model', '')[:80]!r}; name it: sdtune sample MODEL --from ..."
        )
    for key in ("image", "mask"):
        if key in says and f"sample.{key}" not in asked:
            raise ConfigError(f"{path}: was drawn from the {key} {says[key]!r}; name the file with --{key}")
    if not template.ours:
        tell(f"note: {path} is of another program: its settings are taken, its noise is another")
    if template.notes:
        tell(f"note: {path}: not taken over: {'; '.join(template.notes)}")
    return template


def _compare_with(template: Drawn, picture: Sample) -> None:
    """Say what of the model or the files differs from what `template` was drawn with."""
    for key in ("model", "tuned", "precision", "image_sha256", "mask_sha256") if template.ours else ():
        before, now = template.settings.get(key, "none"), picture.settings.get(key, "none")
        if before != now:
            tell(f"warning: {key}: {template.path} was drawn with {before}, this is {now}")


def _show_samplers(options: Options) -> None:
    from sdtune.samplers import SAMPLERS

    for name, sampler in SAMPLERS.items() if options.as_json else ():
        row = {"scheduler": name, "title": sampler.title, "good_for": sampler.good_for, "steps": sampler.steps}
        options.screen().emit(row)
    if not options.as_json:
        rows = [(name, sampler.steps, sampler.good_for) for name, sampler in SAMPLERS.items()]
        console.table(("sample.scheduler", "sample.steps", "good for"), rows)


def _compared(run: Run, overrides: Sequence[str], screen: Screen, checkpoint: str = "final") -> Comparison:
    screen.busy("reading the run")
    return sdtune.compare(
        run, *overrides, checkpoint=checkpoint, progress=lambda p: screen.doing(p.what, p.done, p.total)
    )


def _show_comparison(run: Run, overrides: Sequence[str], screen: Screen, checkpoint: str = "final") -> None:
    result = _compared(run, overrides, screen, checkpoint)
    screen.done()
    if result.flawed:
        tell(f"warning: {result.flawed}")
    screen.emit({"report": str(result.report), "scores": result.scores.as_dict()})
    for verdict in result.scores.verdicts:
        screen.verdict(verdict.question, verdict.answer, verdict.because, verdict.good)
    screen.say("")
    screen.result(result.report, "report")


def _show_figures(scores: Scores) -> None:
    from sdtune.evaluate import number

    def cell(interval: Interval | None) -> str:
        if interval is None:
            return ""
        bounds = f" [{number(interval.low)}, {number(interval.high)}]" if math.isfinite(interval.low) else ""
        return number(interval.value) + bounds

    heads = ("figure", "base", "tuned", "difference", "real")
    rows = [(f.label, cell(f.base), cell(f.tuned), cell(f.difference), cell(f.real)) for f in scores.figures]
    shown = [i for i in range(5) if i == 0 or any(row[i] for row in rows)]
    console.table([heads[i] for i in shown], [[row[i] for i in shown] for row in rows])
    notes = [f"{f.label}: {f.note}" for f in scores.figures if f.note]
    for line in ["", *notes, *(limit for limit in scores.limits if limit not in notes)]:
        print(line)


def _show_report(report: Report) -> None:
    from sdtune import inspection

    match report:
        case inspection.ModelReport():
            _show_model(report)
        case inspection.AdapterReport():
            _show_adapter(report)
        case inspection.RecipeReport():
            _show_recipe(report)
        case inspection.WordReport():
            sizes = ", ".join(f"{key} {tokens} x {width}" for key, tokens, width in report.vectors)
            print("\n".join(console.aligned([("embedding", report.path), ("word", report.word), ("vectors", sizes)])))
        case inspection.RunReport():
            config = report.config
            rows = [
                ("run", report.path),
                ("state", report.state),
                ("model", config.model.path),
                ("method", config.method.type),
            ]
            print("\n".join(console.aligned(rows)))
            if report.result is not None:
                print()
                _show_adapter(report.result)


def _show_model(report: ModelReport) -> None:
    rows = [
        ("model", f"{report.source} ({report.family})"),
        ("predicts", f"{report.prediction}, {report.timesteps} timesteps"),
        ("pictures", f"{report.resolution} pixels a side; latents {' x '.join(map(str, report.latent))}"),
        ("text", f"{report.tokens} tokens"),
    ]
    print("\n".join(console.aligned(rows)) + "\n")
    parts = [(p.name, p.kind, f"{p.parameters:,}", f"{p.stored_mb:.1f}") for p in report.parts]
    console.table(("part", "class", "parameters", "MB"), parts, numbers=(2, 3))
    total = next((p.parameters for p in report.parts if p.name == "denoiser"), 1)
    sets = [
        (t.name, str(len(t.layers)), f"{t.parameters:,}", f"{100 * t.parameters / total:.2f} %") for t in report.targets
    ]
    print(f"\nmethod.targets at rank {report.targets[0].rank}")
    console.table(("set", "layers", "parameters", "of the denoiser"), sets, numbers=(1, 2, 3))
    if report.text_targets:
        print(f"\nmethod.text_targets at rank {report.targets[0].rank}, with method.text_encoders")
        sets = [(t.name, t.part, str(len(t.layers)), f"{t.parameters:,}") for t in report.text_targets]
        console.table(("set", "part", "layers", "parameters"), sets, numbers=(2, 3))
    print(
        f"\nlayer names: sdtune inspect {console.quote(report.source.partition('@')[0])} --layers {report.targets[0].name}"
    )


def _show_recipe(report: RecipeReport) -> None:
    share = f"{report.trainable:,}, {100 * report.trainable / report.total:.2f} % of the denoiser's {report.total:,}"
    rows = [("recipe", report.path), ("model", report.model), ("method", report.method), ("trains", share)]
    print("\n".join(console.aligned(rows)) + "\n")
    cells = [(g.part, g.name, str(g.tensors), f"{g.parameters:,}") for g in report.groups[:24]]
    console.table(("part", "where", "tensors", "parameters"), cells, numbers=(2, 3))
    if rest := report.groups[24:]:
        print(f"and {len(rest)} more places, {sum(g.parameters for g in rest):,} parameters")


def _show_adapter(report: AdapterReport) -> None:
    groups = ", ".join(f"{name} {number}" for name, number in sorted(report.groups().items(), key=lambda g: -g[1]))
    about = ", ".join(f"{key} {value}" for key, value in report.about.items())
    rows = [
        ("adapter", report.path),
        ("rank", f"{report.rank}, alpha {report.alpha:g} (scale {report.alpha / report.rank:g})"),
        ("layers", f"{len(report.layers)}: {groups}"),
        ("parameters", f"{report.parameters:,}"),
        ("change", f"{report.norm:.4g} in all (length of the change of the weights)"),
        *([("made by", about)] if about else []),
    ]
    print("\n".join(console.aligned(rows)) + "\n")
    console.table(
        ("most changed layers", "change"), [(name, f"{norm:.4g}") for name, _, norm in report.layers[:8]], numbers=(1,)
    )


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
