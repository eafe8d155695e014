"""The command line in this process: quicker than one of its own by the seconds that loading torch takes."""

from __future__ import annotations

import contextlib
import io
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from sdtune import cli


class Done(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments: object, folder: Path | None = None) -> Done:
    """`sdtune ARGUMENTS`, in `folder`."""
    out, err, handler = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    place = contextlib.chdir(folder) if folder else contextlib.nullcontext()
    try:
        with place, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            cli.main([*map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert isinstance(end.value.code, int)
    return Done(end.value.code, out.getvalue(), err.getvalue())
