"""`sdtune data ...`: from pictures somewhere to a folder that training reads."""

from __future__ import annotations

import typer

app = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    help=(
        "Collect, caption, check, split and convert the pictures to train on.\n\n"
        "Each command says what it found and writes nothing over what is there."
    ),
)
