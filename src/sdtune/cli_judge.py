"""The commands that judge: compare, evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sdtune
from sdtune import console
from sdtune.cli_shared import Overrides, options_of, run_at, tell
from sdtune.errors import ConfigError
from sdtune.judging import Looker

if TYPE_CHECKING:
    from sdtune.compare import Comparison
    from sdtune.console import Screen
    from sdtune.judging.scores import Scores
    from sdtune.runs import Run
    from sdtune.stats import Interval


def compare(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN ...] [A.B=C ...]",
            help="More runs, for one page of all; and settings that replace those of the first run.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="final, best, or one such as step-000250.")] = "final",
    votes: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Votes from vote.html; may be given several times.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Of several runs: folder of the page.  [dim]comparisons/<names>[/dim]", show_default=False),
    ] = None,
) -> None:
    """Set a tuned model against its base, and give a verdict.

    The same prompts and seeds for both, held-out pictures to judge by,
    figures with intervals, and what so few pictures cannot show.

    Example  [cyan]sdtune compare runs/demo-lora[/cyan]
    Writes   comparison/report.html (one file with everything), report.md
             and scores.json into the run. Again: draws only what is new.
    Votes    comparison/vote.html shows the pairs without saying which
             is which. Send it to people; --votes counts what they save.

    Several  [cyan]sdtune compare runs/a runs/b evaluate.seeds='\\[1, 2]'[/cyan]
             All runs on one page, with the first run's prompts, seeds and
             held-out pictures: which can be told apart, what each cost.
             Runs that differ in train.seed alone are one row. Writes
             comparisons/<names>/index.html; the runs stay as they are.
    """
    from sdtune.judging.votes import keep

    options, source = options_of(ctx), run_at(run)
    overrides = [text for text in more or () if "=" in text]
    if others := [Path(text) for text in more or () if "=" not in text]:
        if checkpoint != "final" or votes:
            raise ConfigError("--checkpoint, --votes: are for one run; several are compared by their results")
        with options.screen() as screen:
            _show_several([source, *map(run_at, others)], overrides, out, screen)
        return
    if out is not None:
        raise ConfigError("--out: is for several runs; the comparison of one lies in its folder")
    source.config()  # the error for a folder that is no run
    for file in votes or ():
        keep(file, source.votes)
    with options.screen() as screen:
        show_comparison(source, overrides, screen, checkpoint)


def evaluate(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A finished run, or a folder of pictures.", show_default=False)
    ],
    overrides: Overrides = None,
    reference: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Real pictures to hold a folder against.", show_default=False)
    ] = None,
    scorer: Annotated[
        Looker,
        typer.Option(
            help="What looks at a folder: published encoders (`sdtune metrics`), the shipped one for drawings of 64 pixels, or what "
            "fits the pictures' size."
        ),
    ] = "auto",
) -> None:
    """The figures alone: of a run, or of any folder of pictures.

    Of a run: base, tuned, their difference and real pictures, as
    `sdtune compare` has them. Of a folder: against --reference.

    Example  [cyan]sdtune evaluate runs/demo-lora --json[/cyan]
             [cyan]sdtune evaluate samples --reference embedded:comic[/cyan]
    Writes   of a run, what `sdtune compare` writes; of a folder, nothing.
    """
    run = run_at(source)
    with options_of(ctx).screen() as screen:
        if run.exists():
            if reference is not None:
                raise ConfigError("--reference is for folders of pictures; of a run it is the key evaluate.reference")
            if scorer != "auto":
                raise ConfigError("--scorer is for folders of pictures; a run's follows from its base model")
            scores = _compared(run, overrides or (), screen).scores
        elif reference is None:
            raise ConfigError(
                f"{source}: not a run folder; a folder of pictures needs --reference, real pictures to hold it against"
            )
        else:
            screen.busy(f"looking at {source} and {reference}")
            scores = sdtune.evaluate(source, reference, scorer=scorer)
    screen.emit(scores.as_dict())
    if not isinstance(screen, console.Json):
        _show_figures(scores)


def sweep(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    overrides: Overrides = None,
    strengths: Annotated[
        list[float] | None,
        typer.Option(
            "--strength", help="Of the adapter; several times.  [dim]0.5 0.75 1 1.25[/dim]", show_default=False
        ),
    ] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint", help="final, best, or as step-000250; several times.  [dim]all[/dim]", show_default=False
        ),
    ] = None,
) -> None:
    """Find the checkpoint and the strength to use.

    Draws the validation prompts with each checkpoint at each strength,
    and sets likeness to the target against what is still drawn. It
    suggests one point; `sdtune compare` judges it on other pictures.

    Example  [cyan]sdtune sweep runs/demo-lora --strength 0.8 --strength 1[/cyan]
    Writes   sweep/report.html (the trade-off, a table, a grid of checkpoint
             by strength) and sweep/sweep.json into the run.
    Again    it draws only what is new. Also of a run that goes on.
    """
    from sdtune import sweep_page

    source, options = run_at(run), options_of(ctx)
    with options.screen() as screen:
        screen.busy("reading the run")
        found = sdtune.sweep(
            source, *(overrides or ()), checkpoints=checkpoints or (), strengths=strengths or (),
            progress=lambda p: screen.doing(p.what, p.done, p.total),
        )  # fmt: skip
        screen.done()
        screen.emit({"report": str(source.sweep / "report.html"), **sweep_page.as_json(found)})
        screen.say(found.rule[0].upper() + found.rule[1:])
        screen.say("")
        screen.result(source.sweep / "report.html", "report")


# ---- what they show


def _compared(run: Run, overrides: Sequence[str], screen: Screen, checkpoint: str = "final") -> Comparison:
    screen.busy("reading the run")
    return sdtune.compare(
        run, *overrides, checkpoint=checkpoint, progress=lambda p: screen.doing(p.what, p.done, p.total)
    )


def show_comparison(run: Run, overrides: Sequence[str], screen: Screen, checkpoint: str = "final") -> None:
    result = _compared(run, overrides, screen, checkpoint)
    screen.done()
    if result.flawed:
        tell(f"warning: {result.flawed}")
    screen.emit({"report": str(result.report), "scores": result.scores.as_dict()})
    for verdict in result.scores.verdicts:
        screen.verdict(verdict.question, verdict.answer, verdict.because, verdict.good)
    screen.say("")
    screen.result(result.report, "report")


def _show_several(runs: Sequence[Run], overrides: Sequence[str], out: Path | None, screen: Screen) -> None:
    from sdtune.experiments.page import SHEET

    screen.busy("reading the runs")
    page, summary = sdtune.compare_runs(
        runs, *overrides, out=out, progress=lambda p: screen.doing(p.what, p.done, p.total)
    )
    screen.done()
    sheet = page.with_name(SHEET)
    screen.emit({"page": str(page), "sheet": str(sheet), "summary": summary})
    if summary:
        screen.say(f"{summary}.")
    screen.result(page, "page")
    screen.say(f"the same pictures side by side  {sheet}")


def _show_figures(scores: Scores) -> None:
    from sdtune.judging.scores import number

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
