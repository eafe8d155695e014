"""Follows a run: every event of its log to one other tool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdtune.errors import ConfigError
from sdtune.events import Event, Failed, Finished, Stopped
from sdtune.follow import Tool
from sdtune.follow.records import Note, Picture, Scalars, records
from sdtune.follow.tail import tail
from sdtune.follow.target import Outcome, Target
from sdtune.runs import Run


@dataclass(frozen=True)
class Sent:
    """What came of following a run."""

    records: int
    """Rows of numbers, pictures and notes."""
    where: str
    view: str
    """The command that shows it."""
    outcome: Outcome


def follow(
    run: Run,
    tool: Tool,
    *,
    out: Path | None = None,
    server: str | None = None,
    wait: bool = True,
    poll_s: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] | None = None,
) -> Sent:
    """Send the run's log to `tool`, in place of what an earlier call sent; with `wait`, until no process trains it any more.

    `out` is the folder to write to, `server` a server to send to instead of writing here. Each `poll_s` seconds, `stop` is asked
    and `progress` is told the number of records so far. Raises RunError if `run` is no run folder, SdtuneError if the tool's
    library is missing.
    """
    target: Target | None = None
    sent, last = 0, None
    try:
        for news in tail(run, wait=wait, poll_s=poll_s, stop=stop):
            if target is None or news.anew:
                if target is not None:
                    target.close("running")
                target = None  # should opening fail, there is nothing to close
                target, sent = _open(run, tool, out, server), 0
            for event in news.events:
                sent, last = sent + _send(target, event, run), event
            target.flush()
            if progress:
                progress(sent)
    finally:
        outcome = _outcome(last)
        if target is not None:
            target.close(outcome)
    assert target is not None
    return Sent(sent, target.where, target.view, outcome)


def _send(target: Target, event: Event, run: Run) -> int:
    """Hand one event on; returns the number of records."""
    found = records(event, run)
    for record in found:
        match record:
            case Scalars():
                target.scalars(record)
            case Picture():
                target.picture(record)
            case Note():
                target.note(record)
    return len(found)


def _outcome(last: Event | None) -> Outcome:
    match last:
        case Finished():
            return "finished"
        case Failed():
            return "failed"
        case Stopped():
            return "stopped"
    return "running"


def _open(run: Run, tool: Tool, out: Path | None, server: str | None) -> Target:
    run.config()  # the error for a folder that is no run
    if server is not None and out is not None:
        raise ConfigError("--out and --server: what is sent to a server is not written here; give one of them")
    match tool:
        case Tool.TENSORBOARD:
            if server is not None:
                raise ConfigError("--server: TensorBoard reads files and has no server to send to; leave it out")
            from sdtune.follow.tensorboard import TensorBoard

            return TensorBoard(run, out)
        case Tool.WANDB:
            from sdtune.follow.wandb import Wandb

            return Wandb(run, out, server)
        case Tool.MLFLOW:
            from sdtune.follow.mlflow import Mlflow

            return Mlflow(run, out, server)
        case Tool.TRACKIO:
            from sdtune.follow.trackio import Trackio

            return Trackio(run, out, server)
