"""`sdtune show`: how a picture comes out of noise, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sdtune
from sdtune.cli_shared import Drawer, Overrides, options_of, with_default


def show(
    ctx: typer.Context,
    source: Drawer = "embedded",
    overrides: Overrides = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="What to draw. Of a run, unset: its first prompt or caption.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the noise. Unset: the first of sample.seeds.", show_default=False)
    ] = None,
    steps_shown: Annotated[int, typer.Option(min=1, max=100, help="So many steps in pictures, evenly.")] = 8,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For the view of training. Unset: a run's first training picture, else the one drawn.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("show.html"),
    checkpoint: Annotated[str, typer.Option(help="Of a run: final, best, or one such as step-000250.")] = "final",
) -> None:
    """Show how a picture comes out of noise, step by step, as a page.

    How the prompt is read, what the model sees and predicts at each
    step, the noise schedule, what guidance does, which word each place
    of the picture looks at, and what training asks of the model.
    Of a run: base and tuned beside each other, and where the attention moved.

    Example  [cyan]sdtune show -p "red apple"[/cyan]
             [cyan]sdtune show runs/demo-lora -p "red apple in comic style" --seed 3[/cyan]
    Writes   show.html, one file that needs nothing else; with --json the
             numbers beside it, in show.json.
    Again    draws anew, and replaces a page of its own, no other file. The
             picture is the one that `sdtune sample` draws.
    """
    from sdtune.show_page import JSON_MARK, check_file, write, write_numbers

    source, changes = with_default(source, overrides, "embedded")
    options = options_of(ctx)
    numbers = out.with_suffix(".json")
    check_file(out)
    if options.as_json:
        check_file(numbers, JSON_MARK)
    with options.screen() as screen:
        screen.busy(f"opening {source}")
        shown = sdtune.show(
            source, *changes, prompt=prompt, seed=seed, checkpoint=checkpoint, steps_shown=steps_shown, picture=picture,
            progress=screen.doing,
        )  # fmt: skip
        write(shown, out)
        if options.as_json:
            write_numbers(shown, numbers)
        screen.done()
    screen.emit({"page": str(out), "numbers": str(numbers), "prompt": shown.prompt, "seed": shown.seed})
    screen.result(out)
