"""The process that draws: `python -m sdtune.serve.worker`, one for a device. It is told what to do in JSON lines on stdin, and answers
in JSON lines on stdout. When stdin ends the server is gone, and so is the reason to draw."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any

from sdtune.errors import SdtuneError


def main() -> None:
    """Read the setup, load the first model, draw until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # of a terminal's Ctrl-C or a service's stop: the server says when
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    lock = threading.Lock()

    def say(answer: dict[str, Any]) -> None:
        try:
            with lock:
                out.write(json.dumps(answer) + "\n")
                out.flush()
        except OSError:
            os._exit(0)

    inbox = queue.SimpleQueue[dict[str, Any]]()
    cancelled = set[str]()
    setup = json.loads(sys.stdin.readline())
    threading.Thread(target=_listen, args=(inbox, cancelled), daemon=True).start()
    try:
        from sdtune.serve.engine import Engine
        from sdtune.serve.setup import Setup

        engine = Engine(Setup(**setup), cancelled.__contains__, say)
        say(
            {
                "up": True,
                "device": str(engine.device),
                "precision": str(engine.dtype).removeprefix("torch."),
                "batch": engine.batch,
                "others": engine.others,
            }
        )
        try:
            engine.suit(engine.registry.first)
        except SdtuneError as error:  # others may do; each job on it says so again
            say({"warning": f"{engine.registry.first.id}: {error}"})
        say({"ready": True, "memory": engine.memory(), "models": engine.models})
        while True:
            told = inbox.get()
            if "entries" in told:
                engine.grow(told["entries"])
                continue
            jobs = told["draw"]
            engine.draw(jobs)
            cancelled.clear()  # of what it was drawing: the next is sent when this is told
            say({"idle": True, "memory": engine.memory(), "models": engine.models})
    except Exception as error:
        say({"broken": str(error) if isinstance(error, SdtuneError) else f"unexpected {type(error).__name__}: {error}"})
        traceback.print_exc()
        os._exit(1)


def _listen(inbox: queue.SimpleQueue[dict[str, Any]], cancelled: set[str]) -> None:
    for line in sys.stdin:
        told = json.loads(line)
        if "cancel" in told:
            cancelled.add(told["cancel"])
        else:
            inbox.put(told)
    os._exit(0)


if __name__ == "__main__":
    main()
