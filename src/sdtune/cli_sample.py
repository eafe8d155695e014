"""`sdtune sample`: draw pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sdtune
from sdtune import console
from sdtune.cli_shared import Drawer, Options, Overrides, options_of, tell, with_default
from sdtune.errors import ConfigError

if TYPE_CHECKING:
    from sdtune.asks import Ask
    from sdtune.infotext import Drawn
    from sdtune.sample import Sample


def sample(
    ctx: typer.Context,
    source: Drawer = "embedded",
    overrides: Overrides = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="What to draw; may be given several times.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A prompt on each line (.txt), or rows with settings of their own (.jsonl, .csv, .toml).",
            show_default=False,
        ),
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Draw each combination of the {a|b|c} in prompts, not the letters.")
    ] = False,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A.B=1,2,3",
            help="Draw with each value of a key; up to three: columns, rows, and blocks of a sheet.",
            show_default=False,
        ),
    ] = None,
    at_most: Annotated[int, typer.Option(min=1, help="Pictures of a matrix or grid.")] = 1000,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:0.8]",
            help="One more adapter with its strength, also several: sample.adapters.",
            show_default=False,
        ),
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
             [cyan]sdtune sample -p "{red|green} apple" --matrix[/cyan]
             [cyan]sdtune sample -p "red apple" --grid sample.steps=10,20,50[/cyan]
             [cyan]sdtune sample runs/a -p "red apple" --lora b.safetensors:0.5[/cyan]
    Writes   a PNG per prompt and seed with its settings inside, and the
             settings as JSON beside it; with --sheet or --grid all of
             them on <out>-sheet.png, too.

    Pictures With --image drawing begins with a picture, and with --mask only
             what is white there is painted anew; the rest stays, byte for
             byte. How far it goes is --denoising-strength; sample.strength is
             the adapter's.
    Settings sample.guide.type steers each step by a loss of the picture
             (a colour, a text), sample.prompt_weights=true reads
             (word:1.3), sample.vae_tiling saves memory: sdtune keys sample.
    Again    --from picture.png repeats a picture of sdtune, with the run
             or model named as before; what you set replaces what it says.
             Of web UIs' pictures it takes the settings.
    """
    from sdtune import asks
    from sdtune.asks import Ask
    from sdtune.infotext import toml

    if list_schedulers:
        _show_samplers(options_of(ctx))
        return
    first = source
    source, changes = with_default(source, overrides, "embedded")
    given = {"image": image, "mask": mask, "denoising_strength": denoising_strength}
    changes += [f"sample.{key}={toml(value)}" for key, value in given.items() if value is not None]
    changes += [f"sample.adapters=[{', '.join(map(toml, lora))}]"] if lora else []
    axes = asks.axes(grid or ())
    wanted = [*map(Ask, prompt or ()), *(asks.read(prompts) if prompts else ())] or None
    template = None
    if again is not None:
        said = ctx.get_parameter_source("source")
        template = _template(again, changes, named=source == first and said is not None and said.name == "COMMANDLINE")
        asked = {change.partition("=")[0] for change in changes}
        changes = [*template.overrides(asked), *changes]
        wanted = wanted or (None if "sample.prompts" in asked else [Ask(template.settings["prompt"])])
    _note_letters(wanted, changes, matrix=matrix)
    screen = options_of(ctx).screen()
    screen.say(f"drawing with {source}")
    drawn = list["Sample"]()
    from sdtune.sample import save_png

    pictures = sdtune.sample(
        source, *changes, prompts=wanted, checkpoint=checkpoint, grid=axes, matrix=matrix, most=at_most, say=tell
    )
    for i, picture in enumerate(pictures):
        path = out / f"{i:03d}-{_slug(picture.prompt)}-{picture.seed}.png"
        save_png(picture, path)
        if template is not None and not drawn:
            _compare_with(template, picture)
        drawn.append(picture)
        screen.emit({"path": str(path), "prompt": picture.prompt, "seed": picture.seed, "flaw": picture.flaw})
        screen.result(path)
        if picture.flaw:
            tell(f"warning: {path}: {picture.flaw}")
    if (sheet or axes) and drawn:
        from sdtune.contact import write_grid, write_sheet

        path = out.with_name(f"{out.name}-sheet.png")
        (write_grid if axes else write_sheet)(drawn, path)
        screen.emit({"sheet": str(path)})
        screen.result(path)


# ---- what it is asked for


def _note_letters(wanted: Sequence[Ask] | None, changes: Sequence[str], *, matrix: bool) -> None:
    """Say it where somebody meant weights or wildcards and none are read."""
    from sdtune.asks import combinations
    from sdtune.emphasis import looks_weighted

    prompts = [ask.prompt for ask in wanted or ()]
    weights = any(change.startswith("sample.prompt_weights=") for change in changes)
    if found := next((prompt for prompt in prompts if looks_weighted(prompt) and not weights), None):
        tell(
            f"note: {found[:60]!r}: its brackets are read as letters; sample.prompt_weights=true reads them as weights"
        )
    if found := next((prompt for prompt in prompts if combinations(prompt) > 1 and not matrix), None):
        tell(f"note: {found[:60]!r}: its braces are read as letters; --matrix draws each combination")


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
    if "adapters" in says and "sample.adapters" not in asked:
        names = " ".join(f"--lora {row['name']}:{row['strength']:g}" for row in says["adapters"])
        raise ConfigError(f"{path}: was drawn with further adapters; name their files: {names}")
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
    for key in ("model", "tuned", "precision", "adapters", "image_sha256", "mask_sha256") if template.ours else ():
        before, now = (_told(said.settings.get(key, "none")) for said in (template, picture))
        if before != now:
            tell(f"warning: {key}: {template.path} was drawn with {before}, this is {now}")


def _told(value: object) -> str:
    """Of adapters, each with its strength and the beginning of its hash."""
    if isinstance(value, list):
        return ", ".join(f"{row['name']}:{row['strength']:g} ({row['sha256'][:10]})" for row in value)
    return str(value)


def _show_samplers(options: Options) -> None:
    from sdtune.samplers import SAMPLERS

    for name, sampler in SAMPLERS.items() if options.as_json else ():
        row = {"scheduler": name, "title": sampler.title, "good_for": sampler.good_for, "steps": sampler.steps}
        options.screen().emit(row)
    if not options.as_json:
        rows = [(name, sampler.steps, sampler.good_for) for name, sampler in SAMPLERS.items()]
        console.table(("sample.scheduler", "sample.steps", "good for"), rows)
