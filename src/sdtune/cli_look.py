"""The commands that only look: doctor, inspect, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sdtune import console, presets
from sdtune.cli_shared import Overrides, options_of
from sdtune.errors import ConfigError

if TYPE_CHECKING:
    from sdtune.inspection import AdapterReport, ModelReport, RecipeReport, Report


def doctor(
    ctx: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="Also check this recipe, its model and its pictures.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check whether this machine, and a recipe, are ready.

    Versions, device, memory, disk, write access, models in the cache;
    of a recipe, its keys, pictures and model. Uses no network.

    Example  [cyan]sdtune doctor mine.toml[/cyan]
    Writes   nothing. Exit code 1 if a check fails.
    """
    from sdtune.doctor import checks

    options = options_of(ctx)
    failed = False
    for check in checks(recipe, tuple(overrides or ())):
        failed |= check.status == "fail"
        if options.as_json:
            options.screen().emit(console.record(check))
        elif not (options.quiet and check.status in ("ok", "note")):
            console.finding(check.status, check.name, check.detail, check.remedy)
    if failed:
        raise typer.Exit(1)


def inspect(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|FILE",
            help="A model folder or file, a Hub id in the cache, a run, a recipe, a LoRA file.",
        ),
    ] = "embedded",
    rank: Annotated[int, typer.Option(min=1, help="Count the adapters' parameters at this rank.")] = 16,
    layers: Annotated[
        str | None,
        typer.Option(metavar="SET", help="List the layers of this target set, or of a pattern.", show_default=False),
    ] = None,
) -> None:
    """Show what is inside a model, a LoRA file or a run, and what a recipe would train.

    Of a model: its parts, and the layers that each target set would
    train, in the denoiser and in the text encoders. Of a recipe: how many parameters its method would train, and
    where. Of a LoRA or a run: rank, alpha, base, and what changed most.

    Example  [cyan]sdtune inspect embedded --rank 8[/cyan]
             [cyan]sdtune inspect embedded --layers attention[/cyan]
    Writes   nothing.
    """
    from sdtune import inspection

    options = options_of(ctx)
    if layers is not None:
        found = inspection.target_set(inspection.load(source).denoiser, layers, rank)
        if options.as_json:
            options.screen().emit(console.record(found))
        else:
            print("\n".join(found.layers))
        return
    report = inspection.inspect(source, rank)
    if options.as_json:
        options.screen().emit(console.record(report))
    else:
        _show_report(report)


def keys(
    ctx: typer.Context, prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Only keys that begin so.")] = ""
) -> None:
    """List the keys of a recipe with default, type and meaning.

    Each may stand in a recipe, or on the command line as key=value.

    Example  [cyan]sdtune keys optimizer[/cyan]
    Writes   nothing.
    """
    found = presets.keys(prefix)
    if not found:
        near = sorted({key.name.partition(".")[0] for key in presets.keys("")})
        raise ConfigError(f"{prefix}: no key begins so; parts: {', '.join(near)}")
    options = options_of(ctx)
    if options.as_json:
        options.screen().emit(console.record(found))
    else:
        console.key_list(found)


# ---- what they show


def _show_report(report: Report) -> None:
    from sdtune import inspection

    match report:
        case inspection.ModelReport():
            _show_model(report)
        case inspection.AdapterReport():
            _show_adapter(report)
        case inspection.RecipeReport():
            _show_recipe(report)
        case inspection.WordReport():
            sizes = ", ".join(f"{key} {tokens} x {width}" for key, tokens, width in report.vectors)
            print("\n".join(console.aligned([("embedding", report.path), ("word", report.word), ("vectors", sizes)])))
        case inspection.RunReport():
            config = report.config
            rows = [
                ("run", report.path),
                ("state", report.state),
                ("model", config.model.path),
                ("method", config.method.type),
            ]
            print("\n".join(console.aligned(rows)))
            if report.result is not None:
                print()
                _show_adapter(report.result)


def _show_model(report: ModelReport) -> None:
    rows = [
        ("model", f"{report.source} ({report.family})"),
        ("predicts", f"{report.prediction}, {report.timesteps} timesteps"),
        ("pictures", f"{report.resolution} pixels a side; latents {' x '.join(map(str, report.latent))}"),
        ("text", f"{report.tokens} tokens"),
    ]
    print("\n".join(console.aligned(rows)) + "\n")
    parts = [(p.name, p.kind, f"{p.parameters:,}", f"{p.stored_mb:.1f}") for p in report.parts]
    console.table(("part", "class", "parameters", "MB"), parts, numbers=(2, 3))
    total = next((p.parameters for p in report.parts if p.name == "denoiser"), 1)
    sets = [
        (t.name, str(len(t.layers)), f"{t.parameters:,}", f"{100 * t.parameters / total:.2f} %") for t in report.targets
    ]
    print(f"\nmethod.targets at rank {report.targets[0].rank}")
    console.table(("set", "layers", "parameters", "of the denoiser"), sets, numbers=(1, 2, 3))
    if report.text_targets:
        print(f"\nmethod.text_targets at rank {report.targets[0].rank}, with method.text_encoders")
        sets = [(t.name, t.part, str(len(t.layers)), f"{t.parameters:,}") for t in report.text_targets]
        console.table(("set", "part", "layers", "parameters"), sets, numbers=(2, 3))
    print(
        f"\nlayer names: sdtune inspect {console.quote(report.source.partition('@')[0])} --layers {report.targets[0].name}"
    )


def _show_recipe(report: RecipeReport) -> None:
    share = f"{report.trainable:,}, {100 * report.trainable / report.total:.2f} % of the denoiser's {report.total:,}"
    rows = [("recipe", report.path), ("model", report.model), ("method", report.method), ("trains", share)]
    print("\n".join(console.aligned(rows)) + "\n")
    cells = [(g.part, g.name, str(g.tensors), f"{g.parameters:,}") for g in report.groups[:24]]
    console.table(("part", "where", "tensors", "parameters"), cells, numbers=(2, 3))
    if rest := report.groups[24:]:
        print(f"and {len(rest)} more places, {sum(g.parameters for g in rest):,} parameters")


def _show_adapter(report: AdapterReport) -> None:
    groups = ", ".join(f"{name} {number}" for name, number in sorted(report.groups().items(), key=lambda g: -g[1]))
    about = ", ".join(f"{key} {value}" for key, value in report.about.items())
    rows = [
        ("adapter", report.path),
        ("rank", f"{report.rank}, alpha {report.alpha:g} (scale {report.alpha / report.rank:g})"),
        ("layers", f"{len(report.layers)}: {groups}"),
        ("parameters", f"{report.parameters:,}"),
        ("change", f"{report.norm:.4g} in all (length of the change of the weights)"),
        *([("made by", about)] if about else []),
    ]
    print("\n".join(console.aligned(rows)) + "\n")
    console.table(
        ("most changed layers", "change"), [(name, f"{norm:.4g}") for name, _, norm in report.layers[:8]], numbers=(1,)
    )
