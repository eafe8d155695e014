"""The process that makes one run of an experiment: `python -m sdtune.experiments.work`, told what to do by its first line of stdin.

A process for each run, so that its peak memory is its own, one that dies takes no other with it, and each device has one. It answers in
JSON lines on stdout. It stops, and saves, on SIGINT and SIGTERM, and when the one that started it is gone (stdin ends).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.errors import ConfigError, SdtuneError
from sdtune.runs import Run

STOPPED = 130
"""Exit code of one that was stopped and has saved."""
Answer = dict[str, Any]


def job(config: RunConfig, run: Run, base: Path, plugins: Path, *, shared: bool, gpu: int | None) -> str:
    """The line that tells a worker what to do. `base` is the folder of shared base pictures, `gpu` the device that it was given."""
    told = {
        "config": configs.to_toml(config), "run": str(run.path), "base": str(base), "plugins": str(plugins), "shared": shared,
        "gpu": gpu,
    }  # fmt: skip
    return json.dumps(told)


def work(told: Mapping[str, Any], stop: Callable[[], bool]) -> Iterator[Answer]:
    """Train the run and compare it, telling how far it is. Ends early, with all saved, when `stop` says so."""
    from sdtune.compare import comparing
    from sdtune.events import Encoding, Event, Finished, Step, Warned
    from sdtune.experiments.measure import Meter
    from sdtune.experiments.shared import base_pictures
    from sdtune.train import train

    config = configs.from_dict(tomllib.loads(told["config"]), folder=Path(told["plugins"]))
    run = Run(Path(told["run"]))
    _check_device(told["gpu"])
    meter = Meter(run, shared=bool(told["shared"]))

    def said(event: Event) -> Answer | None:
        match event:
            case Step():
                return {"what": "step", "done": event.step, "total": config.train.steps}
            case Encoding():
                return {"what": event.words, "done": event.done, "total": event.total}
            case Warned():
                return {"warning": event.message}
            case _:
                return None

    try:
        finished = trained = False
        with closing(train(config, run)) as events:  # type: ignore[type-var]  # a generator
            for event in events:
                finished = isinstance(event, Finished)
                trained |= isinstance(event, Step)
                if (answer := said(event)) is not None:
                    yield answer
                if stop() and not finished:
                    break
        if trained:
            meter.trained()
        if not finished or stop():
            yield {"stopped": True}
            return
        with base_pictures(Path(told["base"]), run, stop) as hear, closing(comparing(run, config)) as parts:
            for part in parts:
                hear(part)
                yield {"what": part.what, "done": part.done, "total": part.total}
                if stop():
                    yield {"stopped": True}
                    return
        yield {"made": True}
    finally:
        meter.close()


def _check_device(gpu: int | None) -> None:
    import torch

    if gpu is not None and not torch.cuda.is_available():
        raise ConfigError(f"--devices: torch sees no CUDA device number {gpu}; ask for fewer, or leave it out")


def main() -> None:
    """Read the job from stdin, work, answer on stdout."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch, args=(stopping,), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not end up among the answers

    def say(answer: Answer) -> None:
        try:
            out.write(json.dumps(answer) + "\n")
            out.flush()
        except BrokenPipeError:  # nobody listens: stop, with all saved
            stopping.set()

    try:
        stopped = False
        for answer in work(told, stopping.is_set):
            stopped |= "stopped" in answer
            say(answer)
    except SdtuneError as error:
        say({"failed": str(error)})
        sys.exit(error.exit_code)
    except Exception as error:  # a fault of ours, or of a plugin: told, and the other runs go on
        say({"failed": f"unexpected {type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        sys.exit(1)
    sys.exit(STOPPED if stopped else 0)


def _watch(stopping: threading.Event) -> None:
    """Whoever started this holds the other end of stdin; when it is gone, so is the reason to work."""
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    stopping.set()


if __name__ == "__main__":
    main()
