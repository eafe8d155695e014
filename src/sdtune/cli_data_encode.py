"""`sdtune data encode`: everything that training does before its first step."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdtune import console, events
from sdtune.cli_shared import Options, interrupts, on_devices, options_of, show_downloads, tell

if TYPE_CHECKING:
    from sdtune.config import RunConfig
    from sdtune.console import Screen


def encode(
    ctx: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="The recipe that is to be trained.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="A.B=C", help="Settings that replace those of the recipe.", show_default=False),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="So many processes, one to a device of this machine.")] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all that is there, too, and encode again what is damaged.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much is to be encoded.")] = False,
) -> None:
    """Encode the pictures and captions of a recipe.

    Training does the same before its first step. Do it before, where
    the data is large, on several devices, or on a cheaper machine.

    Example  [cyan]sdtune data encode mine.toml --dry-run[/cyan]
             [cyan]sdtune data encode mine.toml --devices 4[/cyan]
    Writes   into the cache (data.cache), about 0.4 MB for a picture of
             512 pixels with its caption, 1.2 MB at SDXL's 1024; half of
             it with data.cache_dtype="fp16".
    Again    the same command encodes what is new, edited or damaged.

    Machines torchrun --nproc-per-node 4 -m sdtune data encode ...
    """
    from sdtune import config as configs

    options = options_of(ctx)
    config = configs.load(recipe, overrides or ())
    on_devices(devices, options)
    show_downloads(config.model.download, config.data.download)
    with options.screen() as screen:
        _encode(config, screen, options, verify=verify, dry_run=dry_run)


def _encode(config: RunConfig, screen: Screen, options: Options, *, verify: bool, dry_run: bool) -> None:
    """Encode and draw. The first Ctrl-C or SIGTERM ends it after the batch at hand, the second leaves at once."""
    from sdtune.data.layouts import plural
    from sdtune.encode import encode as begin

    finished = False
    with interrupts(lambda: screen.stopping("what is encoded is kept")) as caught:
        screen.busy("looking at the pictures")
        with closing(begin(config, verify=verify, dry_run=dry_run)) as happening:
            for event in happening:
                screen.emit(events.record(event))
                match event:
                    case events.Encoding():
                        screen.doing(event.words, event.done, event.total)
                    case events.Noted():
                        screen.say(event.message)
                    case events.Warned():
                        screen.warn(event.message)
                    case events.Encoded():
                        finished = True
                        screen.done()
                        held_out = f" and {event.validation_pictures} held out" if event.validation_pictures else ""
                        screen.say(
                            f"{plural(event.pictures, 'picture')}{held_out}, encoded in {event.cache} "
                            f"({console.duration(event.seconds)})"
                        )
                if caught:
                    break
        screen.done()
    if caught and not finished:
        tell(f"go on with: {options.command}")
        raise typer.Exit(128 + caught[0])
