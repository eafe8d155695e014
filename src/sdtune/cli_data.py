"""`sdtune data ...`: from pictures somewhere to a folder that training reads."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdtune import cli_data_caption, cli_data_check, cli_data_encode, cli_data_sets, console, events
from sdtune.cli_shared import Options, interrupts, options_of, tell
from sdtune.errors import DataError

if TYPE_CHECKING:
    from sdtune.console import Screen
    from sdtune.data.collect.gather import Outcome, Wish

app = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    help=(
        "Collect, caption, check, convert, divide and encode the pictures to train on.\n\n"
        "Each command says what it found and writes nothing over what is there."
    ),
)


@app.command()
def collect(
    ctx: typer.Context,
    query: Annotated[
        str,
        typer.Argument(
            metavar="[QUERY]",
            help="What to search for; also the caption where the source has none.",
            show_default=False,
        ),
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
        str,
        typer.Option(
            help="auto: the source's description of each picture where it has one, else the QUERY. query: the QUERY."
            " source: what the source says, if only a title."
        ),
    ] = "auto",
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


app.command()(cli_data_caption.caption)
app.command()(cli_data_check.check)
app.command()(cli_data_sets.convert)
app.command()(cli_data_sets.split)
app.command()(cli_data_encode.encode)
