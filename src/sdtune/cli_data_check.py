"""`sdtune data check`: what training would say of pictures and captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdtune import console, events
from sdtune.cli_shared import interrupts, options_of, tell
from sdtune.errors import DataError

if TYPE_CHECKING:
    from sdtune.config import RunConfig
    from sdtune.console import Screen
    from sdtune.data.check.report import Report

LONG = 240
"""Longer lines are cut in the terminal."""
FEW = 3
"""Names of each kind in the table; the page and the JSON have all."""


def check(
    ctx: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|FOLDER",
            help="A recipe, or whatever data.path may be.  [dim]data.path of the settings[/dim]",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A.B=C",
            help="Settings that replace those of the recipe, such as data.crop=pad.",
            show_default=False,
        ),
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD",
            help="A word that every caption should have; may be given several times.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read headers, captions and names alone: seconds for 100,000 pictures.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything as JSON.", show_default=False)
    ] = None,
) -> None:
    """Look through the pictures and captions as training would.

    Damaged, mislabelled and odd files, missing and overlong captions,
    copies and look-alikes, leaks into the validation, small and cropped
    pictures. What is done about each kind is a key of the recipe, such
    as data.on.near_copies=skip. No weights are loaded.

    Example  [cyan]sdtune data check pictures --trigger sks --html check.html[/cyan]
             [cyan]sdtune data check mine.toml data.on_bad=skip[/cyan]
             [cyan]sdtune data check pictures --quick[/cyan]
    Writes   nothing but --html and --json-file. Exit code 3 if training
             would stop.
    Again    the same command; its own files are replaced, no others.
    """
    from sdtune.data.check import page, report

    options = options_of(ctx)
    for path, refuse in ((html, page.check_file), (json_file, report.check_file)):
        if path:
            refuse(path)  # rather than after a long look
    with options.screen() as screen, interrupts(lambda: screen.stopping("nothing is written")) as caught:
        found = _examine(source, overrides or [], trigger or [], screen, caught, quick=quick)
        if isinstance(screen, console.Json):
            screen.emit(report.as_json(found))
        elif not options.quiet or found.stopping:
            _show_check(found, screen)
        if html:
            for done, total in page.write(found, html):
                _advance("drawing the page", done, total, screen, caught)
            screen.done()
            screen.result(html, "page")
        if json_file:
            report.write(found, json_file)
            screen.result(json_file, "json")
    if found.stopping:
        tell(f"error: {found.label}: {found.headline[0].lower()}{found.headline[1:]}")
        raise typer.Exit(DataError.exit_code)


def _examine(
    source: str | None, overrides: list[str], words: list[str], screen: Screen, caught: list[int], *, quick: bool
) -> Report:
    """Read everything (the headers, if it is to be `quick`), with a bar."""
    from sdtune import pictures
    from sdtune.data.check.report import examine
    from sdtune.data.layouts import listed

    config = _config_of(source, overrides)
    screen.busy(f"looking through {config.data.label}")
    reading = pictures.reading(config)
    survey = pictures.survey(
        config, reading, lambda done, total: _advance("reading", done, total, screen, caught), quick=quick
    )
    report = examine(
        survey, reading.fit, words=pictures.trigger_words(config, words), batch=config.train.batch_size, quick=quick
    )
    screen.done()
    fit, model = reading.fit, config.model.path
    rows = [("pictures", f"{report.train} to train on, {report.validation} held out ({report.label})")]
    if fit.tokens:
        sides = " and ".join(map(str, fit.resolutions)) or "?"
        rows.append(("model", f"{model}: {sides} pixels, captions of {fit.tokens.max_tokens} tokens"))
    rows += [("note", f"captions are not counted: {reading.unknown}")] if reading.unknown else []
    if report.frames:
        rows.append(
            ("frames", listed([f"{row.frame}: {row.count} ({row.cropped:.0%} cut away)" for row in report.frames]))
        )
    if report.left_out:
        rows.append(("note", f"{report.left_out} too small for their frame are left out (data.enlarge=false)"))
    if config.model == type(config.model)():
        rows.append(("note", "measured by the model that comes with sdtune; a recipe or model.path=... names yours"))
    screen.rows([*rows, *(("note", note) for note in report.notes)])
    return report


def _config_of(source: str | None, overrides: list[str]) -> RunConfig:
    """The configuration that the command line means. Raises ConfigError."""
    import json

    from sdtune import config as configs

    if source is None or ("=" in source and not Path(source).exists()):
        return configs.load(None, [*([source] if source else []), *overrides])
    if _is_recipe(Path(source)):
        return configs.load(source, overrides)
    return configs.load(None, [f"data.path={json.dumps(source, ensure_ascii=False)}", *overrides])


def _is_recipe(path: Path) -> bool:
    """A TOML file that is no data set of kohya's scripts; or one that is not there, which loading says."""
    import tomllib

    if path.suffix != ".toml":
        return False
    try:
        return "datasets" not in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True


def _advance(what: str, done: int, total: int, screen: Screen, caught: list[int]) -> None:
    """Draw how far it is; leaves after a Ctrl-C or SIGTERM."""
    if caught:
        screen.done()
        raise typer.Exit(128 + caught[0])
    screen.doing(what if total else events.LISTING, done, total)


def _show_check(report: Report, screen: Screen) -> None:
    from sdtune.data.layouts import listed

    rows = [
        (row.kind.name, str(len(row.faults)), row.policy, listed([f.where for f in row.faults], FEW), row.kind.remedy)
        for row in report.rows
    ]
    if rows:
        screen.say("")
        console.table(("kind", "", "policy", "where", "remedy"), rows, (1,))
        screen.say("")
        for row in report.rows:
            if row.policy == "fail" or row.kind.name == "long_caption":
                for fault in row.faults[:FEW]:
                    text = f"{row.kind.name}: {fault}"
                    screen.say(text if len(text) <= LONG else f"{text[:LONG]} ...")
    screen.rows([(f"with {t.word!r}", f"{t.having} of {report.train} pictures") for t in report.triggers])
    screen.say(report.headline)
