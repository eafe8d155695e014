"""`sdtune serve`: the web app, and the APIs of programs."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from sdtune.cli_shared import options_of, tell
from sdtune.errors import ConfigError

DEVICE = re.compile(r"auto|mps|cpu|cuda(:\d{1,3}(,cuda:\d{1,3})*)?")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def serve(
    ctx: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|FOLDER|FILE|MODEL",
            help="Runs, folders of runs, adapter files, models. Unset: the runs below runs/, and --base.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address. Any other than this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 7860,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the token; or set SDTUNE_TOKEN.", show_default=False),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that clients call this server by; several.", show_default=False),
    ] = None,
    base: Annotated[str, typer.Option(metavar="MODEL", help="What adapter files lie on.")] = "embedded",
    runs: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where trainings write; what lies below is listed.")
    ] = Path("runs"),
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Pictures that trainings may use; several.", show_default=False),
    ] = None,
    trainings: Annotated[int, typer.Option(min=1, help="Trainings and evaluations at the same time.")] = 1,
    folder: Annotated[Path, typer.Option(help="Queue, pictures and uploads.")] = Path("served"),
    queue: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs that may wait.")] = 64,
    per_client: Annotated[
        int | None, typer.Option(min=1, help="Of them, jobs of one client.  [dim]all[/dim]", show_default=False)
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto: CUDA, else MPS, else CPU; cuda: all of them; or cuda:0,cuda:1. A worker each.")
    ] = "auto",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that draw, on a CPU.")] = 1,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Pictures drawn at once.  [dim]1 on CPUs, else 8[/dim]", show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of each worker on a CPU.  [dim]all cores, shared[/dim]", show_default=False),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="Original models that stay in memory.")] = 1,
    keep_pictures: Annotated[
        int, typer.Option(min=1, metavar="N", help="Drawn pictures that stay on disk; the oldest go.")
    ] = 10_000,
    pages: Annotated[bool, typer.Option("--pages/--no-pages", help="The web app, or the APIs alone.")] = True,
    drain: Annotated[float, typer.Option(min=0, help="Seconds that a drawing may end in after SIGTERM.")] = 30.0,
) -> None:
    """Draw, train and compare in a browser, or over HTTP.

    A web app, and APIs that OpenAI's and AUTOMATIC1111's clients speak,
    on one port of this machine; a queue that outlives crashes. Models load
    in the background. Requests name models by ids, never by a path;
    /openapi.json describes everything.

    Example  [cyan]sdtune serve runs[/cyan]   and open http://127.0.0.1:7860
             [cyan]curl -s localhost:7860/api/jobs -H 'content-type: application/json' \\
               -d '{"prompt": "a red apple", "seeds": \\[1]}'[/cyan]
             [cyan]sdtune serve runs/a b.safetensors --host 0.0.0.0 --token-file token[/cyan]
             [cyan]sdtune serve --data pictures[/cyan]
    Trains   what POST /api/jobs asks for, on --data and the sets that come
             along; a training goes on when the server ends, and the next
             one finds it.
    Writes   served/: the queue, the pictures (PNG with settings inside, JSON
             beside), uploads, recipes and logs of trainings; --runs: the runs.

    Again    The same command goes on with what waits in the folder. Ctrl-C
             lets the drawing at work end first; a second one does not.
    """
    options = options_of(ctx)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        from sdtune.serve import run
        from sdtune.serve.app import create_app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sdtune serve: needs {error.name}; install the web packages: pip install 'sdtune[serve]'"
        ) from None
    from sdtune.serve import registry as registries
    from sdtune.serve.guard import Rules
    from sdtune.serve.limits import Limits
    from sdtune.serve.setup import Setup
    from sdtune.serve.store import Store, held
    from sdtune.serve.work import Shop

    token = run.token_of(token_file)
    run.check_address(host, token)
    if not DEVICE.fullmatch(device) or len(set(device.split(","))) < device.count(",") + 1:
        raise ConfigError(
            f"--device: {device!r}; auto, cuda, mps, cpu, or CUDA devices such as cuda:0,cuda:1, each once"
        )
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision: {precision!r}; known: {', '.join(PRECISIONS)}")
    address = run.listening(host, port)
    shop = Shop(runs.expanduser(), tuple(data or ()), trainings)
    registry, notes = registries.build(sources or (), base, shop.runs)
    screen = options.screen()
    for note in notes:
        tell(f"note: {note}")
    for entry in registry.entries.values():
        screen.say(f"{entry.id}: {entry.kind}{f' on {entry.base}' if entry.base != entry.id else ''}")
    store = Store(folder.expanduser())
    setup = Setup(registry.dumped(), str(store.folder), device, precision, threads, batch or 0, keep, workers)
    limits = Limits(queue=queue, client=per_client or queue, pictures=keep_pictures)
    rules = Rules(run.hosts(host, allow_host or ()), token, limits)
    with held(store.folder):
        app = create_app(registry, setup, rules, store, shop)
        if pages:
            from sdtune.serve import web

            web.mount(app)
        server = run.Served(app, host, port, drain=drain, say=tell)
        server.run([address])
    raise typer.Exit(run.exit_code(server.signal))
