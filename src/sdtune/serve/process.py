"""Commands of sdtune as processes that outlive the server, and how they are found again. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from sdtune.serve.works import Process

SECRETS = ("SDTUNE_TOKEN",)
"""Of the server's environment, what its commands need not know."""


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`sdtune ARGUMENTS` in a session of its own, so that no Ctrl-C or end of the server reaches it; what it says goes behind `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "sdtune", *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env={**environment(), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip


def environment() -> dict[str, str]:
    """The server's own without what it keeps to itself."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def identified(pid: int) -> Process | None:
    """None if it is gone already."""
    try:
        return Process(pid, psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def lives(process: Process) -> bool:
    """Not if it has ended and nobody has asked how, as it is with the children of a server that was killed."""
    try:
        found = psutil.Process(process.pid)
        return abs(found.create_time() - process.born) < 1 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def stop(process: Process) -> None:
    """What Ctrl-C does: a training ends its step and saves."""
    if lives(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


def named(word: str) -> Process | None:
    """The process of this user that has `word` on its command line."""
    for found in psutil.process_iter(["cmdline", "create_time", "status"]):
        if word in (found.info["cmdline"] or ()) and found.info["status"] != psutil.STATUS_ZOMBIE:
            return Process(found.pid, found.info["create_time"])
    return None
