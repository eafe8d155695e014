"""`sdtune data caption`: words for pictures that have none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdtune import console, events
from sdtune.cli_shared import Options, interrupts, options_of, show_downloads, tell

if TYPE_CHECKING:
    from sdtune.captioners import CaptionConfig, Event
    from sdtune.console import Screen

MODEL, WORDS, TOUCH, RUN = "The model", "What it says", "What it may touch", "How it runs"


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
    show_downloads(config.model.download)
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
    from sdtune.data.dataset import read_through
    from sdtune.data.layouts import listed

    root = folder.expanduser()
    there = captioners.pairs(root, config)
    if config.dry_run:
        named = {captioners.name_of(image, root): (image, by) for image, _, by in there}
        there = [(named[name][0], captions, "sdtune") for name, captions in made.items() if name in named]
    page = _page_of(folder)
    unread = read_through(
        write_sheet(there, root, page), lambda done, total: screen.doing("drawing the sheet", done, total)
    )
    screen.done()
    if unread:
        screen.warn(f"not on the sheet, {len(unread)} could not be read: {listed(unread)}")
    screen.emit({"sheet": str(page)})
    screen.result(page, "sheet")
