"""The commands of published metrics: metrics, protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdtune import console
from sdtune.cli_shared import options_of, tell
from sdtune.errors import ConfigError

if TYPE_CHECKING:
    from sdtune.console import Screen
    from sdtune.protocol import Result

CACHE = "features"
"""The folder in sdtune's cache that keeps what encoders saw."""


def metrics(
    ctx: typer.Context,
    get: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENCODER",
            help="Download the weights of this encoder; may be given several times.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the metrics, and which of their encoders are here.

    Each with what it answers, how many pictures it needs, and the
    network that it looks through. Uses no network without --get.

    Example  [cyan]sdtune metrics[/cyan]
             [cyan]sdtune metrics --get lpips-alex --get clip-l14[/cyan]
    Writes   with --get, into the Hub's cache (HF_HOME), or where a file
             is from elsewhere into SDTUNE_ENCODERS, which is `encoders`
             in sdtune's cache if unset. Whole and checked, or not at all.
    Again    the same command fetches what is missing.

    Offline  copy the published files into SDTUNE_ENCODERS/ENCODER/.
    """
    options = options_of(ctx)
    with options.screen() as screen:
        if get:
            _get(get, screen)
        elif options.as_json:
            screen.emit(_listed())
        else:
            _show_metrics()


def protocol(
    ctx: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE", help="Real test pictures, with captions if there are any.", show_default=False
        ),
    ],
    original: Annotated[
        str, typer.Argument(metavar="ORIGINAL", help="What the original model drew for them.", show_default=False)
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="What the tuned model drew for them.", show_default=False)
    ],
    metrics: Annotated[
        str, typer.Option(metavar="LIST", help="Figures with commas between them, METRIC or METRIC:ENCODER.")
    ] = "lpips,fid,kid,clip",
    train: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The training pictures, in which copies looks.", show_default=False),
    ] = None,
    indicative: Annotated[
        bool,
        typer.Option("--indicative", help="Show Frechet distances of fewer than 2,048 pictures, with their warning."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the report goes; TUNED-protocol if unset.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap draws for the intervals.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Judge two folders of drawn pictures against real test pictures.

    The way many fine-tunings are published (LPIPS and FID on a test
    folder, original against tuned), with the intervals that are left
    out there, and without figures that so few pictures cannot give.

    Pictures belong together by file name, or by the column "reference"
    of a drawn folder's metadata.jsonl, or by caption. Several drawn for
    one real picture (seeds) count as one.

    Example  [cyan]sdtune protocol test drawn/original drawn/tuned[/cyan]
             [cyan]sdtune protocol test a b --metrics kid:shipped[/cyan]
             [cyan]sdtune protocol test a b --metrics copies --train set[/cyan]
    Writes   report.html (one file with everything), report.md and
             scores.json into --out.
    Again    reads from the cache what was seen before.

    Weights  [cyan]sdtune metrics[/cyan] lists what is here and what is to be had.
    """
    from sdtune import protocol as protocols
    from sdtune.files import cache_home

    options = options_of(ctx)
    folder = out or Path(f"{tuned.rstrip('/')}-protocol")
    with options.screen() as screen:
        protocols.check_folder(folder)
        protocols.check_train(protocols.choices(metrics), train)
        screen.busy("pairing the pictures")
        result = protocols.judge(
            reference, original, tuned, metrics=metrics, train=train, indicative=indicative, device=_device(device), draws=draws,
            seed=seed, cache=cache_home() / CACHE, progress=screen.doing,
        )  # fmt: skip
        screen.done()
        page = protocols.write(result, folder)
        _show_result(result, page, screen, options.as_json)


def _device(name: str) -> str:
    from sdtune import devices

    if name not in ("auto", "cuda", "mps", "cpu"):
        raise ConfigError(f"--device: {name!r} is none; auto, cuda, mps or cpu")
    devices.set_up_cpu(None)
    return str(devices.pick(name, "fp32", key="--device")[0])


# ---- what they show


def _get(names: list[str], screen: Screen) -> None:
    from sdtune.metrics import places

    for name in names:
        places.spec_of(name)
    for name in names:
        screen.busy(f"fetching {name}")
        files = places.get(name, told=lambda file, done, total: screen.doing(f"{file} (MB)", done >> 20, total >> 20))
        screen.done()
        screen.emit({"encoder": name, "files": {file: str(path) for file, path in files.items()}})
        folders = dict.fromkeys(str(path.parent) for path in files.values())
        screen.rows([(name, f"here, in {folder}") for folder in folders] or [(name, "comes with sdtune")])


def _listed() -> dict[str, Any]:
    """All metrics and encoders as plain values."""
    from sdtune.metrics import places
    from sdtune.metrics.registry import ENCODERS, METRICS

    here = {name: places.is_here(name) for name in ENCODERS}
    encoders = [
        {
            "name": s.name, "title": s.title, "here": here[s.name], "source": s.source, "size_mb": s.size_mb, "licence": s.licence,
            "look": s.look.words if s.look else None, "dimension": s.dimension or None, "note": s.note,
        }
        for s in ENCODERS.values()
    ]  # fmt: skip
    listed = [
        {
            **console.record(m),
            "encoders": list(m.encoders),
            "ready": any(all(here[e] for e in c.split("+")) for c in m.encoders),
        }
        for m in METRICS.values()
    ]
    return {"home": str(places.home()), "metrics": listed, "encoders": encoders}


def _show_metrics() -> None:
    from sdtune.metrics import places
    from sdtune.metrics.registry import ENCODERS, METRICS

    here = {name: places.is_here(name) for name in ENCODERS}
    rows = []
    for m in METRICS.values():
        ready = next((c for c in m.encoders if all(here[e] for e in c.split("+"))), None)
        state = f"with {ready}" if ready else f"needs {m.encoders[0]}"
        rows.append((m.name, m.answers, f"{m.needs:,}" + "!" * m.refused, m.unit, state))
    console.table(("metric", "answers", "needs", "", "here"), rows, numbers=(2,))
    print("\n!  not shown below that number, unless an indicative one is asked for")
    print()
    cells = [
        (s.name, s.title, "" if not s.size_mb else f"{s.size_mb:,} MB", "yes" if here[s.name] else "no", s.licence)
        for s in ENCODERS.values()
    ]
    console.table(("encoder", "is", "size", "here", "licence"), cells, numbers=(2,))
    print(f"\nto have one: sdtune metrics --get ENCODER, or its published files in {places.home()}/ENCODER/")


def _show_result(result: Result, page: Path, screen: Screen, as_json: bool) -> None:
    from sdtune.protocol.page import notes, record, table_rows

    if as_json:
        screen.emit({"report": str(page), **record(result)})
        return
    if not isinstance(screen, console.Silent):
        screen.say(f"{result.headline}.\n")
        console.table(("figure", "original", "tuned", "difference", "says"), table_rows(result))
        for line in ["", *notes(result), *result.limits]:
            screen.say(line)
    for key, why in result.refused:
        tell(f"warning: {key} is left out: {why}")
    for key, missing in result.missing:
        tell(f"warning: {key} is left out: {missing}")
    screen.result(page, "report")
