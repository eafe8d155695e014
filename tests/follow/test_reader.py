"""Following a log: what is there, what comes, where it ends, and what happens when it is rewound."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sdtune import config as configs
from sdtune.errors import ConfigError, RunError, SdtuneError
from sdtune.events import Event, Failed, Finished, Noted, Step, Stopped, Warned, to_line
from sdtune.follow import Tool, reader
from sdtune.follow.reader import follow
from sdtune.follow.records import Note, Picture, Scalars
from sdtune.follow.tail import News, tail
from sdtune.follow.target import Outcome, Target, identity
from sdtune.runs import Run

FAST = 0.01


def step(n: int) -> Step:
    return Step(n, 1 / n, 1.0, 1e-3, 0.5)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that somebody trains: this process holds its lock."""
    run = Run(tmp_path / "run")
    run.write_config(configs.load(None, ["name=mine"]))
    hold(run)
    return run


def hold(run: Run) -> None:
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    run.lock_file.write_text(json.dumps(me))


def log(run: Run, *found: Event) -> None:
    for event in found:
        run.log(event)


def after(news: Iterator[News], *actions: Callable[[], object]) -> list[News]:
    """All the news: each action is done once what came before it has been read."""
    seen = []
    for action in (*actions, None):
        for item in news:
            seen.append(item)
            if not item.events and action is not None:
                action()
                break
    return [item for item in seen if item.events]


def test_what_is_there_comes_first_and_then_what_is_logged(run: Run) -> None:
    log(run, step(1), step(2))
    seen = after(
        tail(run, poll_s=FAST), lambda: log(run, step(3)), lambda: log(run, step(4), Finished(4, 1.0, "final"))
    )
    assert [[getattr(e, "step", None) for e in item.events] for item in seen] == [[1, 2], [3], [4, 4]]
    assert not any(item.anew for item in seen)


def test_a_line_is_read_when_it_is_whole(run: Run) -> None:
    line = to_line(Noted("für dich", 1)) + "\n"
    data = line.encode()
    cut = data.index("ü".encode()) + 1  # within a letter

    def write(part: bytes) -> None:
        with run.events_file.open("ab") as file:
            file.write(part)

    write(data[:cut])
    seen = after(tail(run, poll_s=FAST), lambda: write(data[cut:]), run.lock_file.unlink)
    assert [e for item in seen for e in item.events] == list(run.events()) and len(seen) == 1


def test_it_ends_when_nobody_trains_any_more_and_not_before(run: Run) -> None:
    log(run, step(1), Stopped(1))  # an earlier sitting; somebody goes on with it

    def die() -> None:
        log(run, Failed(2, "oh"))
        run.lock_file.unlink()

    seen = after(tail(run, poll_s=FAST), lambda: log(run, step(2)), die)
    assert [type(e) for item in seen for e in item.events] == [Step, Stopped, Step, Failed]


def test_a_dead_process_is_nobody(run: Run) -> None:
    run.lock_file.write_text(json.dumps({"pid": 999999999, "host": socket.gethostname(), "started": 1.0}))
    log(run, step(1))
    assert [len(item.events) for item in tail(run, poll_s=60)] == [1]


def test_without_waiting_it_is_over_at_once(run: Run) -> None:
    assert [item.events for item in tail(run, wait=False)] == [()]
    log(run, step(1))
    assert [len(item.events) for item in tail(run, wait=False)] == [1]


def test_a_rewound_log_is_read_anew(run: Run) -> None:
    """As when the run was stopped, and goes on from a checkpoint before its last steps."""
    log(run, *(step(n) for n in range(1, 6)))

    def go_on() -> None:
        run.rewind_log(3, looked=True)
        log(run, step(4))

    seen = after(tail(run, poll_s=FAST), go_on, lambda: log(run, Finished(4, 1.0, "final")))
    assert [(item.anew, [getattr(e, "step", None) for e in item.events]) for item in seen] == [
        (False, [1, 2, 3, 4, 5]), (True, [1, 2, 3, 4]), (False, [4]),
    ]  # fmt: skip


class Told(Target):
    """Remembers what it was told."""

    made: list["Told"] = []  # noqa: RUF012 (emptied by the fixture)

    def __init__(self) -> None:
        self.where, self.view, self.heard = "here", "look", list[object]()
        self.made.append(self)

    def scalars(self, record: Scalars) -> None:
        self.heard.append(record.step)

    def picture(self, record: Picture) -> None:
        self.heard.append(record.name)

    def note(self, record: Note) -> None:
        self.heard.append(record.text)

    def flush(self) -> None:
        self.heard.append("flush")

    def close(self, outcome: Outcome) -> None:
        self.heard.append(outcome)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    Told.made.clear()
    monkeypatch.setattr(reader, "_open", lambda *_: Told())
    return Told.made


@pytest.mark.parametrize(
    "last, outcome",
    [
        (Finished(2, 1.0, "final"), "finished"),
        (Failed(2, "oh"), "failed"),
        (Stopped(2), "stopped"),
        (step(3), "running"),
    ],
)
def test_a_tool_hears_all_in_order_and_how_it_ended(run: Run, told: list[Told], last: Event, outcome: Outcome) -> None:
    log(run, step(1), Warned("careful", 1), step(2), last)
    sent = follow(run, Tool.WANDB, wait=False)
    heard: dict[str, list[object]] = {"finished": [2], "failed": ["oh"], "running": [3]}
    more = heard.get(outcome, [])
    assert [t.heard for t in told] == [[1, "careful", 2, *more, "flush", outcome]]
    assert (sent.records, sent.outcome, sent.where, sent.view) == (3 + len(more), outcome, "here", "look")


def test_a_rewound_log_is_told_to_a_fresh_one(run: Run, told: list[Told]) -> None:
    log(run, step(1), step(2))

    def train() -> None:
        while not told or told[0].heard[-1:] != ["flush"]:
            time.sleep(FAST)
        run.rewind_log(1, looked=True)
        log(run, step(2), step(3), Finished(3, 1.0, "final"))

    trainer = threading.Thread(target=train)
    trainer.start()
    sent = follow(run, Tool.WANDB, poll_s=FAST)
    trainer.join()
    first, *others = told
    assert first.heard[:2] == [1, 2] and first.heard[-1] == "running"
    assert [x for x in others[-1].heard if x != "flush"] == [1, 2, 3, 3, "finished"]
    assert sent.records == 4


def test_stopping_it_sends_what_is_there_and_leaves_the_run_alone(run: Run, told: list[Told]) -> None:
    log(run, step(1))
    asked = iter([False, True])
    assert follow(run, Tool.WANDB, poll_s=FAST, stop=lambda: next(asked)).outcome == "running"
    assert told[0].heard == [1, "flush", "flush", "running"] and run.living()


def test_what_fails_on_the_way_still_closes_the_tool(
    run: Run, told: list[Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    log(run, step(1), Warned("careful", 1))
    monkeypatch.setattr(Told, "note", lambda self, record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        follow(run, Tool.WANDB, wait=False)
    assert told[0].heard == [1, "running"]


def test_a_run_has_an_identity_of_its_own(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    other.write_config(configs.load(None, ["name=mine"]))
    assert identity(run) == identity(Run(run.path)) and identity(run).startswith("mine-")
    assert identity(run) != identity(other)
    run.write_config(configs.load(None, ["name=a.b+c"]))
    assert set(identity(run)) <= set("abcdef0123456789-")


def test_what_cannot_be_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        follow(Run(tmp_path / "nowhere"), Tool.TENSORBOARD)
    with pytest.raises(ConfigError, match="no server"):
        follow(run, Tool.TENSORBOARD, server="http://there")
    with pytest.raises(ConfigError, match="--out and --server"):
        follow(run, Tool.MLFLOW, server="http://there", out=tmp_path)


@pytest.mark.parametrize(
    "tool, library, remedy",
    [
        (Tool.TENSORBOARD, "torch.utils.tensorboard", "pip install 'sdtune[tensorboard]'"),
        (Tool.WANDB, "wandb", "pip install 'sdtune[wandb]'"),
        (Tool.MLFLOW, "mlflow.tracking", "pip install 'sdtune[mlflow]'"),
        (Tool.MLFLOW, "sqlalchemy", "pip install 'sdtune[mlflow]'"),
        (Tool.TRACKIO, "trackio", "pip install --no-deps trackio"),
    ],
)
def test_a_missing_library_is_one_line_with_its_remedy(
    run: Run, tool: Tool, library: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(SdtuneError, match=f"^{tool} is not installed: ") as error:
        follow(run, tool, wait=False)
    assert remedy in str(error.value) and "\n" not in str(error.value)
