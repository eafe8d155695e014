"""`sdtune data ...`: from pictures somewhere to a folder that training reads."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdtune import cli_data_encode, cli_data_sets, console, events
from sdtune.cli_shared import Options, interrupts, options_of, tell
from sdtune.errors import DataError

if TYPE_CHECKING:
    from sdtune.captioners import CaptionConfig, Event
    from sdtune.config import RunConfig
    from sdtune.console import Screen
    from sdtune.data.check.report import Report
    from sdtune.data.collect.gather import Outcome, Wish

app = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    help=(
        "Collect, caption, check, convert, divide and encode the pictures to train on.\n\n"
        "Each command says what it found and writes nothing over what is there."
    ),
)
app.command()(cli_data_sets.convert)
app.command()(cli_data_sets.split)
app.command()(cli_data_encode.encode)


@app.command()
def collect(
    ctx: typer.Context,
    query: Annotated[
        str, typer.Argument(metavar="[QUERY]", help="What to search for; also the caption.", show_default=False)
    ] = "",
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            "-s",
            help="openverse, commons, unsplash, flickr, a file with addresses, or the folder of the Unsplash Lite dataset;"
            " may be given several times.  [dim]openverse[/dim]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to fill.")] = Path("pictures"),
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures that the folder shall have of this search.  [dim]100; all of a file or folder[/dim]",
            show_default=False,
        ),
    ] = None,
    licence: Annotated[
        str,
        typer.Option(help="any, cc0, by, by-sa, commercial, modification or free (commercial and modification)."),
    ] = "any",
    min_side: Annotated[int, typer.Option(min=0, help="Leave pictures whose shorter side has fewer pixels.")] = 0,
    captions: Annotated[
        str, typer.Option(help="query: the QUERY. source: what the source says of each picture.")
    ] = "query",
    max_mb: Annotated[int, typer.Option(min=1, help="Leave files that are larger.")] = 30,
    alike: Annotated[
        int,
        typer.Option(min=-1, max=16, help="Bits of 64 that look-alikes may differ in; -1 leaves only the same files."),
    ] = 4,
    contact: Annotated[
        str, typer.Option(help="Your e-mail or page, told to the servers; Wikimedia wants one.", show_default=False)
    ] = "",
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed or was left before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be fetched.")] = False,
) -> None:
    """Fetch pictures with their authors and licences.

    Searches, fetches, looks into each file, and leaves copies and
    look-alikes. unsplash needs UNSPLASH_ACCESS_KEY and flickr
    FLICKR_API_KEY, in the environment or in a file .env here.

    Example  [cyan]sdtune data collect "red apple" -s openverse -s commons --licence by[/cyan]
    Writes   pictures/ with metadata.jsonl, which training reads, and
             LICENSES.md: who made what, and under which licence.
    Again    the same command goes on, and fetches nothing twice.
    """
    from sdtune.data.collect.gather import MB, Wish

    options = options_of(ctx)
    wish = Wish(query.strip(), limit, min_side, max_mb * MB, captions, retry, alike)
    names = list(dict.fromkeys(source or ["openverse"]))
    with options.screen() as screen:
        _collect(wish, names, licence, contact, out, dry_run, screen, options)


def _collect(
    wish: Wish, names: list[str], licence: str, contact: str, out: Path, dry_run: bool, screen: Screen, options: Options
) -> None:
    """Fetch and draw. The first Ctrl-C or SIGTERM ends it after the picture at hand, the second leaves at once."""
    from sdtune.data.collect import gather
    from sdtune.data.collect.fetch import Client
    from sdtune.data.collect.sources import source as named

    tally = _Tally()
    with interrupts(lambda: screen.stopping("what is there is kept")) as caught:
        client = Client(contact, stop=lambda: bool(caught))
        sources = [named(name, client, wish.query, licence) for name in names]
        for notice in filter(None, (s.notice for s in sources)):
            tell(f"warning: {notice}")
        screen.busy(f"searching in {', '.join(names)}")
        total = gather.expected(wish, sources)
        begun = gather.preview(wish, sources, out) if dry_run else gather.collect(wish, sources, out, client)
        with closing(begun) as outcomes:
            for outcome in outcomes:
                tally.take(outcome, total, screen, dry_run)
                if caught:
                    break
        screen.done()
    tally.tell(out, screen, dry_run)
    if caught:
        tell(f"go on with: {options.command}")
        raise typer.Exit(128 + caught[0])
    if tally.ended:
        raise DataError(f"{'; '.join(tally.ended)}; what is there is kept, and the same command goes on")


@dataclass
class _Tally:
    """What became of the pictures of one `collect`, told as it comes and in the end."""

    counts: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)

    def take(self, outcome: Outcome, total: int, screen: Screen, dry_run: bool) -> None:
        self.counts[outcome.what] += 1
        screen.emit(events.record(outcome))
        found = outcome.found
        if outcome.what == "ended":
            self.ended.append(f"{outcome.source}: {outcome.why}")
        elif found and outcome.what == "failed":
            screen.say(f"failed: {found.key}: {outcome.why}")
        elif found and dry_run and outcome.what == "kept":
            size = f"{found.width}x{found.height}" if found.width and found.height else "size unknown"
            by = f"by {found.author}" if found.author else "author unknown"
            screen.say("  ".join([found.source, found.licence.name, size, by, found.title or "no title", found.url]))
        if total and outcome.done:
            screen.doing("looking through" if dry_run else "fetching", outcome.done, total)

    def tell(self, out: Path, screen: Screen, dry_run: bool) -> None:
        new, there, left, failed = (self.counts[what] for what in ("kept", "there", "left", "failed"))
        screen.emit(
            {"folder": str(out), "new": new, "there": there, "left": left, "failed": failed, "dry_run": dry_run}
        )
        if dry_run:
            screen.rows([("would fetch", _plural(new, "picture")), ("wrote", "nothing")])
            return
        rows = [("new", _plural(new, "picture"))]
        rows += [("there", f"{there} of those found, from before")] if there else []
        rows += [("left", f"{left}: too small, look-alikes, or left before")] if left else []
        rows += [("failed", f"{failed}; the same command with --retry tries them again")] if failed else []
        if not self.counts:
            rows.append(("note", "nothing was found, or the folder has all that --limit allows"))
        screen.rows(
            [*rows, ("licences", str(out / "LICENSES.md")), ("next", f"a recipe with data.path={console.quote(out)}")]
        )
        if new:
            screen.result(out)


def _plural(number: int, name: str) -> str:
    from sdtune.data.layouts import plural  # with numpy, which --help does without

    return plural(number, name)


# ---- caption

MODEL, WORDS, TOUCH, RUN = "The model", "What it says", "What it may touch", "How it runs"


@app.command()
def caption(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of pictures.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(
            rich_help_panel=MODEL,
            help="blip: a sentence. florence2: a sentence or a paragraph. wd14: Danbooru's tags.",
        ),
    ] = "blip",
    path: Annotated[
        str | None,
        typer.Option(metavar="ID|FOLDER", rich_help_panel=MODEL, help="A Hub id, or a folder.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(rich_help_panel=MODEL, help="Commit, tag or branch of a Hub id.", show_default=False),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", rich_help_panel=MODEL, help="Fetch a Hub id that is not in the cache.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=WORDS,
            help="blip: how it begins. florence2: caption, detailed-caption or more-detailed-caption.",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(rich_help_panel=WORDS, help="The longest caption.", show_default=False)
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option(rich_help_panel=WORDS, help="Weighed against each other; 1 is fastest.", show_default=False),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(rich_help_panel=WORDS, help="wd14: of general tags.", show_default=False)
    ] = None,
    character_threshold: Annotated[
        float | None, typer.Option(rich_help_panel=WORDS, help="wd14: of characters' names.", show_default=False)
    ] = None,
    prefix: Annotated[str, typer.Option(rich_help_panel=WORDS, help="Put before each.", show_default=False)] = "",
    suffix: Annotated[str, typer.Option(rich_help_panel=WORDS, help="Put behind each.", show_default=False)] = "",
    blacklist: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORDS",
            rich_help_panel=WORDS,
            help="Phrases or tags to take out, with commas between them.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=TOUCH,
            help="sidecar (.txt files) or metadata (metadata.jsonl).  [dim]what is there, else sidecar[/dim]",
            show_default=False,
        ),
    ] = None,
    column: Annotated[str, typer.Option(rich_help_panel=TOUCH, help="The caption's key in metadata.jsonl.")] = "text",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=TOUCH, help="Replace captions that people wrote.")
    ] = False,
    append: Annotated[
        bool, typer.Option("--append", rich_help_panel=TOUCH, help="Add to captions that people wrote.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", rich_help_panel=TOUCH, help="Make those anew that sdtune wrote.")
    ] = False,
    batch_size: Annotated[int, typer.Option(rich_help_panel=RUN, help="Pictures at once.")] = 8,
    device: Annotated[str, typer.Option(rich_help_panel=RUN, help="auto, cuda, mps or cpu.")] = "auto",
    precision: Annotated[str, typer.Option(rich_help_panel=RUN, help="auto, fp32 or bf16.")] = "auto",
    sheet: Annotated[
        bool,
        typer.Option("--sheet", rich_help_panel=RUN, help="Also write <FOLDER>-captions.html, to look at."),
    ] = False,
    dry_run: Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=RUN, help="Show N captions, write none.", show_default=False),
    ] = None,
) -> None:
    """Write captions for the pictures of a folder.

    What people wrote stays, and so does what sdtune wrote and somebody
    has edited since: .sdtune-captions.json in the folder tells which.

    Example  [cyan]sdtune data caption pictures --dry-run 5[/cyan]
             [cyan]sdtune data caption pictures --blacklist "arafed, a photo of"[/cyan]
             [cyan]sdtune data caption pictures --model wd14 --prefix "sks,"[/cyan]
    Writes   a.txt beside a.png, or metadata.jsonl if the folder has one,
             as they come.
    Again    the same command goes on with what has no caption yet.
    """
    from sdtune import captioners
    from sdtune.captioners.sheet import check_page

    options = options_of(ctx)
    phrases = tuple(filter(None, (phrase.strip() for words in blacklist or () for phrase in words.split(","))))
    config = captioners.from_options(
        model,
        {
            "path": path, "revision": revision, "download": download or None, "prompt": prompt, "max_tokens": max_tokens,
            "beams": beams, "threshold": threshold, "character_threshold": character_threshold,
        },
        {
            "write": write, "column": column, "overwrite": overwrite, "append": append, "again": again, "prefix": prefix,
            "suffix": suffix, "blacklist": phrases, "batch_size": batch_size, "device": device, "precision": precision,
            "dry_run": dry_run,
        },
    )  # fmt: skip
    with options.screen() as screen:
        if sheet:
            check_page(_page_of(folder))  # rather than after hours
        shown = _caption(folder, config, screen, options)
        if sheet:
            _write_captions_sheet(folder, config, shown, screen)


def _caption(folder: Path, config: CaptionConfig, screen: Screen, options: Options) -> dict[str, tuple[str, ...]]:
    """Caption and draw; gives the captions of this run. The first Ctrl-C or SIGTERM ends the batch, the second leaves at once."""
    from sdtune import captioners

    made: dict[str, tuple[str, ...]] = {}
    finished, writes = False, not config.dry_run
    if config.model.download:
        os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    with interrupts(lambda: screen.stopping("the batch ends" + " and is written" * writes)) as caught:
        begun = captioners.caption(folder, config)
        try:
            for event in begun:
                screen.emit(events.record(event))
                _draw(event, config, screen)
                finished = isinstance(event, captioners.Finished)
                if isinstance(event, captioners.Captioned):
                    made[event.picture] = event.captions
                if caught:
                    break
        finally:
            begun.close()
            screen.done()
    if caught and not finished:
        screen.say("stopped; what was captioned is written" if writes else "stopped; a dry run: nothing is written")
        tell(f"go on with: {options.command}")
        raise typer.Exit(128 + caught[0])
    return made


def _draw(event: Event, config: CaptionConfig, screen: Screen) -> None:
    from sdtune import captioners
    from sdtune.data.layouts import plural

    match event:
        case captioners.Opened():
            screen.rows(_opening(event, config))
            if event.todo:
                screen.busy(f"loading {config.model.path}")
        case captioners.Loaded():
            screen.rows([("device", f"{event.device}, {event.precision}")])
        case captioners.LeftOut():
            screen.warn(f"{event.where}: {event.what}")
        case captioners.Captioned() if config.dry_run:
            screen.say(f"{event.picture}: {' | '.join(event.captions)}")
        case captioners.Captioned():
            speed = f"{event.per_second:.2g} pictures/s"
            screen.doing("captioning", event.done, event.total, speed)
        case captioners.Finished():
            screen.done()
            left = f", {event.left_out} left out" if event.left_out else ""
            dry = " (a dry run: nothing is written)" if config.dry_run else ""
            screen.say(f"{plural(event.captioned, 'caption')} in {console.duration(event.seconds)}{left}{dry}")


def _opening(event: object, config: CaptionConfig) -> list[tuple[str, str]]:
    from sdtune import captioners
    from sdtune.data.layouts import plural

    assert isinstance(event, captioners.Opened)
    where = ".txt files" if event.write == "sidecar" else "metadata.jsonl"
    rows = [
        ("folder", f"{event.folder}: {plural(event.pictures, 'picture')}, captions in {where}"),
        ("to do", f"{event.todo}, with {config.model.type} ({config.model.path})"),
    ]
    if event.human:
        rows.append(("kept", f"{event.human} by people (--append adds to them, --overwrite replaces them)"))
    if event.ours:
        rows.append(("kept", f"{event.ours} by sdtune (--again makes them anew)"))
    return rows + [("note", note) for note in event.notes]


def _page_of(folder: Path) -> Path:
    root = folder.expanduser().resolve()
    return root.with_name(f"{root.name}-captions.html")


def _write_captions_sheet(
    folder: Path, config: CaptionConfig, made: dict[str, tuple[str, ...]], screen: Screen
) -> None:
    """All pictures of the folder with their captions, or those of a dry run."""
    from sdtune import captioners
    from sdtune.captioners.sheet import write_sheet

    root = folder.expanduser()
    there = captioners.pairs(root, config)
    if config.dry_run:
        named = {captioners.name_of(image, root): (image, by) for image, _, by in there}
        there = [(named[name][0], captions, "sdtune") for name, captions in made.items() if name in named]
    page = _page_of(folder)
    for done, total in write_sheet(there, root, page):
        screen.doing("drawing the sheet", done, total)
    screen.done()
    screen.emit({"sheet": str(page)})
    screen.result(page, "sheet")


# ---- check

LONG = 240
"""Longer lines are cut in the terminal."""
FEW = 3
"""Names of each kind in the table; the page and the JSON have all."""


@app.command()
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
    screen.doing(what, done, total)


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
