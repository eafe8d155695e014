"""`sdtune data convert` and `sdtune data split`: from one layout to another, and into training, validation and test pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdtune import console, events
from sdtune.cli_shared import Options, interrupts, options_of, show_downloads, tell
from sdtune.errors import ConfigError, SdtuneError

if TYPE_CHECKING:
    from sdtune.console import Screen
    from sdtune.data.config import DataConfig
    from sdtune.data.convert import Opened
    from sdtune.data.split import Divided, Seen
    from sdtune.data.write import Wish, Written

READING, WRITING, DIVIDING = "How the source is read", "How it is written", "What goes where"
OPTIONS = {
    "set data.on_bad=skip": "give --skip-bad", "data.on_bad=skip": "--skip-bad", "data.caption_column": "--caption-column",
    "data.roots": "--root", "data.download=true": "--download", "data.layout": "--layout", "data.mask_path": "--mask-path",
    "data.path": "SOURCE", "data.max_pixels": "max_pixels",
}  # fmt: skip
"""Keys of a recipe, and what these commands have for them."""

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder, a dataset file, a pattern of tar or Parquet files, or hf:owner/name.",
        show_default=False,
    ),
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.", show_default=False)]
LayoutOption = Annotated[
    str, typer.Option(rich_help_panel=READING, help="Like data.layout of a recipe: imagefolder, kohya, arrow, ...")
]
ColumnOption = Annotated[str, typer.Option(rich_help_panel=READING, help="Column of the captions.")]
RootOption = Annotated[
    list[str] | None,
    typer.Option(
        "--root", rich_help_panel=READING, help="Another folder that metadata may point into.", show_default=False
    ),
]
MaskOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=READING, help="Folder of masks, where they do not lie beside the pictures.", show_default=False
    ),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", rich_help_panel=READING, help="Fetch a Hub id that is not in the cache.")
]
SkipOption = Annotated[bool, typer.Option("--skip-bad", rich_help_panel=READING, help="Leave out what cannot be read.")]
LinkOption = Annotated[
    bool,
    typer.Option(
        "--link", rich_help_panel=WRITING, help="Hard links instead of copies: to edit one file is to edit both."
    ),
]


def convert(
    ctx: typer.Context,
    source: SourceArgument,
    out: OutArgument,
    to: Annotated[str, typer.Option(rich_help_panel=WRITING, help="imagefolder or webdataset.")] = "imagefolder",
    link: LinkOption = False,
    shard_mb: Annotated[
        int, typer.Option("--shard-mb", min=1, rich_help_panel=WRITING, help="webdataset: size of a tar file.")
    ] = 256,
    shard_pictures: Annotated[
        int, typer.Option("--shard-pictures", min=1, rich_help_panel=WRITING, help="webdataset: most pictures in one.")
    ] = 10_000,
    layout: LayoutOption = "auto",
    caption_column: ColumnOption = "text",
    root: RootOption = None,
    mask_path: MaskOption = None,
    download: DownloadOption = False,
    skip_bad: SkipOption = False,
) -> None:
    """Write pictures of any layout as an imagefolder or tar files.

    Pictures are copied byte for byte, with captions, masks, splits and the
    other columns of their metadata (authors, licences). What cannot be kept
    is told. The pictures are not decoded; training looks into each.

    Example  [cyan]sdtune data convert kohya-set pictures[/cyan]
             [cyan]sdtune data convert hf:owner/name pictures --download[/cyan]
             [cyan]sdtune data convert pictures shards --to webdataset[/cyan]
    Writes   OUT/ with metadata.jsonl, or with 00000.tar and on; in train/,
             validation/ and test/ where the source has splits.
    Again    OUT appears when all is in it. After a stop the same command
             goes on; when it is done, it does nothing.
    """
    from sdtune.data.convert import convert as begin
    from sdtune.data.write import Wish

    if to == "imagefolder":
        wish = Wish(out, "imagefolder", link)
    elif to == "webdataset":
        wish = Wish(out, "webdataset", link, shard_mb, shard_pictures)
    else:
        raise ConfigError(f"--to: {to!r} is no layout that is written; known: imagefolder, webdataset")
    if to == "webdataset" and link:
        raise ConfigError("--link: has no effect with --to webdataset; leave it out")
    config = _config(source, layout, caption_column, root, mask_path, download, skip_bad)
    options = options_of(ctx)
    with options.screen() as screen, _in_options():
        screen.busy(f"reading {source}")
        _draw(begin(config, wish), wish, screen, options)


def split(
    ctx: typer.Context,
    source: SourceArgument,
    out: OutArgument,
    validation: Annotated[
        float, typer.Option(rich_help_panel=DIVIDING, help="Share of the validation pictures.")
    ] = 0.1,
    test: Annotated[float, typer.Option(rich_help_panel=DIVIDING, help="Share of the test pictures.")] = 0.1,
    group: Annotated[
        str,
        typer.Option(
            metavar="folder|COLUMN|REGEX",
            rich_help_panel=DIVIDING,
            help="Keep together what lies in one folder, has one value in a column of the metadata, or one match in its path.",
            show_default=False,
        ),
    ] = "",
    alike: Annotated[
        bool, typer.Option("--alike/--no-alike", rich_help_panel=DIVIDING, help="Look-alikes stay in one split.")
    ] = True,
    keep_copies: Annotated[
        bool, typer.Option("--keep-copies", rich_help_panel=DIVIDING, help="Keep exact copies, in one split.")
    ] = False,
    seed: Annotated[int, typer.Option(rich_help_panel=DIVIDING, help="Another one is another choice.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go where.")] = False,
    link: LinkOption = False,
    layout: LayoutOption = "auto",
    caption_column: ColumnOption = "text",
    root: RootOption = None,
    mask_path: MaskOption = None,
    download: DownloadOption = False,
    skip_bad: SkipOption = False,
) -> None:
    """Divide pictures into training, validation and test.

    By a hash of their bytes: names and order do not matter, and a picture
    stays in its split when others are added. Exact copies are left out;
    look-alikes and groups are never in two splits. The shares are met on
    average: of few pictures they can be far off, and are told.

    Example  [cyan]sdtune data split pictures divided --dry-run[/cyan]
             [cyan]sdtune data split pictures divided --group author[/cyan]
             [cyan]sdtune data split frames divided --group '^(.*)_\\d+$' --test 0[/cyan]
    Writes   OUT/train/, OUT/validation/ and OUT/test/ with metadata.jsonl;
             training reads the first two and leaves test/ alone.
    Again    as with [cyan]sdtune data convert[/cyan].
    """
    from sdtune.data.split import Rule
    from sdtune.data.split import split as begin
    from sdtune.data.write import Wish

    rule, wish = Rule(validation, test, seed, group, alike, keep_copies), Wish(out, "imagefolder", link)
    config = _config(source, layout, caption_column, root, mask_path, download, skip_bad)
    options = options_of(ctx)
    with options.screen() as screen, _in_options():
        screen.busy(f"reading {source}")
        _draw(begin(config, rule, wish, dry_run=dry_run), wish, screen, options)


def _config(
    source: str, layout: str, column: str, root: list[str] | None, mask_path: str | None, download: bool, skip_bad: bool
) -> DataConfig:
    """The data part of a recipe that says the same. Raises ConfigError."""
    from sdtune import config as configs

    show_downloads(download)
    given: dict[str, object] = {"path": source, "layout": layout, "caption_column": column, "roots": root or []}
    if mask_path:
        given |= {"mask": "files", "mask_path": mask_path}
    try:
        return configs.from_dict(
            {"data": given | {"download": download, "on_bad": "skip" if skip_bad else "fail"}}
        ).data
    except ConfigError as error:
        raise ConfigError(in_options(str(error))) from None


def in_options(text: str) -> str:
    """A message about a recipe's keys, with the options that these commands have for them."""
    for key, option in OPTIONS.items():
        text = text.replace(key, option)
    return text


class _in_options:
    """Errors are told with options for keys."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SdtuneError):
            raise type(error)(in_options(str(error))) from error


def _draw(begun: Iterator[Opened | Seen | Divided | Written], wish: Wish, screen: Screen, options: Options) -> None:
    """Write and draw. The first Ctrl-C or SIGTERM ends it after the picture at hand, the second leaves at once."""
    from sdtune.data.convert import Opened
    from sdtune.data.split import Divided, Seen
    from sdtune.data.write import Written

    last: object = None
    ended = False
    with interrupts(lambda: screen.stopping("what is written is kept for the same command")) as caught, closing(begun):  # type: ignore[type-var]
        for event in begun:
            last = event
            match event:
                case Seen(done=done, total=total):
                    screen.doing("looking", done, total)
                case Opened() | Divided():
                    screen.done()
                    screen.emit(events.record(event))
                    _tell(event, screen)
                case Written(done=done, total=total, already=False):
                    screen.doing("writing", done, total)
            if caught:
                break
        else:
            ended = True
    screen.done()
    if not ended:
        tell(f"go on with: {options.command}")
        raise typer.Exit(128 + caught[0])
    if isinstance(last, Written):
        screen.emit(events.record(last))
        _summary(last, wish, screen)
    else:
        screen.rows([("wrote", "nothing (--dry-run)")])


def _tell(event: Opened | Divided, screen: Screen) -> None:
    from sdtune.data.convert import Opened

    notes = [("note", in_options(note)) for note in event.notes]
    if isinstance(event, Opened):
        parts = [f"{n} in {split}/" for split, n in event.pictures.items() if split]
        screen.rows(
            [("source", event.source), ("pictures", ", ".join([str(sum(event.pictures.values())), *parts])), *notes]
        )
        return
    pictures = sum(share.pictures for share in event.shares)
    copies = [("copies", f"{event.copies} exact")] if event.copies else []
    screen.rows([("source", event.source), ("pictures", str(pictures)), *copies, *notes])
    for line in console.columns(_table(event), (1, 2, 3, 4)):
        screen.say(line)
    if lacking := [f"{share.split}/" for share in event.shares if not share.pictures]:
        screen.warn(f"no picture for {', '.join(lacking)}: too few for that share; another --seed or a larger share")


def _table(event: Divided) -> list[list[str]]:
    rows = [["split", "pictures", "share", "wanted", "groups"]]
    return rows + [[s.split, str(s.pictures), f"{s.share:.1%}", f"{s.wanted:.1%}", str(s.groups)] for s in event.shares]


def _summary(written: Written, wish: Wish, screen: Screen) -> None:
    if written.already:
        screen.rows([("there", f"all {written.total} from before; nothing was to do")])
    else:
        linked = f", {written.linked} of the files linked" if written.linked else ""
        kept = f", {written.kept} of the files from a run that was stopped" if written.kept else ""
        size = console.megabytes(written.bytes / 2**20)
        screen.rows([("wrote", f"{written.total} pictures, {size}{linked}{kept}")])
    screen.rows([("next", f"a recipe with data.path={console.quote(wish.out)}")])
    screen.result(wish.out)
