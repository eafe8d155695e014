"""kill -9 and SIGTERM on real processes: no finished picture and no waiting job is lost."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from PIL import Image

from sdtune.serve.queue import TRIES, Queue
from tests.serve.conftest import Live, serving

LONG = {"model": "lora", "steps": 40, "seeds": list(range(16)), "previews": False}
SHORT = {"model": "lora", "steps": 1, "seeds": [1], "previews": False}


def whole(live: Live, name: str) -> list[bytes]:
    """The pictures of a job, each of which opens to its end."""
    files = [live.file(p) for p in live.job(name)["pictures"]]
    for file in files:
        Image.open(io.BytesIO(file)).load()
    return files


def after_two(live: Live, name: str) -> None:
    live.until(lambda: len(live.job(name)["pictures"]) >= 2, 200)


@pytest.mark.slow
def test_a_killed_worker_fails_its_job_and_nothing_else(runs: Path, tmp_path: Path) -> None:
    with serving(runs, tmp_path / "folder") as live:
        live.ready()
        name, later = live.post(**LONG), live.post(**SHORT)
        after_two(live, name)
        os.kill(live.worker(), signal.SIGKILL)
        job = live.over(name)
        assert (
            job["state"] == "failed" and job["error"]["code"] == "worker_died" and "signal 9" in job["error"]["message"]
        )
        assert len(whole(live, name)) == len(job["pictures"]) >= 2
        assert live.over(later)["state"] == "done"
        assert len(whole(live, later)) == 1
        assert live.job(name)["state"] == "failed"  # tried once


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was(runs: Path, tmp_path: Path) -> None:
    with serving(runs, tmp_path / "folder") as live:
        live.ready()
        name, later = live.post(**LONG), live.post(**SHORT)
        after_two(live, name)
        before = {p["id"]: live.file(p) for p in live.job(name)["pictures"]}
        worker = live.worker()
        live.kill()
        live.until(lambda: not _alive(worker))  # nobody is left who draws for nobody
    with serving(runs, tmp_path / "folder") as live:
        assert live.job(name)["state"] in ("queued", "running") and live.job(later)["state"] == "queued"
        assert {p["id"] for p in live.job(name)["pictures"]} >= set(before)
        assert (live.over(name)["error"], live.over(later)["error"]) == (None, None)
        assert len(whole(live, name)) == 16 == len({p["number"] for p in live.job(name)["pictures"]})
        assert {p["id"]: live.file(p) for p in live.job(name)["pictures"] if p["id"] in before} == before
        assert len(list((tmp_path / "folder" / "pictures").glob("*.png"))) == 17  # none twice, none half
        assert [event for _, event, _ in live.events(name)].count("picture") == 16


@pytest.mark.slow
def test_sigterm_lets_the_drawing_end_and_keeps_the_rest(runs: Path, tmp_path: Path) -> None:
    with serving(runs, tmp_path / "folder", "--drain", "60") as live:
        live.ready()
        name, later = live.post(**{**LONG, "seeds": [0, 1, 2]}), live.post(**SHORT)
        live.until(lambda: live.job(name)["state"] == "running")
        live.process.send_signal(signal.SIGTERM)
        live.until(lambda: live.http.post("/api/jobs", json={"prompt": "a"}).status_code == 503)
        assert live.http.get("/readyz").status_code == 503
        assert live.process.wait(60) == 143
    queue = Queue(tmp_path / "folder" / "queue.sqlite")
    assert [queue.get(n).state for n in (name, later)] == ["done", "queued"]  # type: ignore[union-attr]
    queue.close()


@pytest.mark.slow
def test_a_drawing_that_takes_longer_waits_for_the_next_start(runs: Path, tmp_path: Path) -> None:
    with serving(runs, tmp_path / "folder", "--drain", "0.2") as live:
        live.ready()
        name = live.post(**LONG)
        after_two(live, name)
        events = live.events(name)
        next(events)
        live.process.send_signal(signal.SIGTERM)
        assert [e for _, e, _ in events][-1] == "restart"
        assert live.process.wait(10) == 143
    queue = Queue(tmp_path / "folder" / "queue.sqlite")
    (job,) = queue.jobs()
    assert job.state == "queued" and job.tries == 0 and len(queue.pictures_of(name)) >= 2
    queue.close()


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# ---- the queue itself


def test_what_was_running_waits_again_in_its_place(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q.sqlite")
    names = [queue.add({"n": i}, "me").id for i in range(3)]
    queue.start(names[:1])
    again = Queue(tmp_path / "q.sqlite")
    assert again.recover() == []
    assert [job.id for job in again.waiting()] == names
    assert [again.ahead(job) for job in again.waiting()] == [0, 1, 2]


def test_a_job_that_the_server_dies_of_is_given_up(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q.sqlite")
    name = queue.add({}, "me").id
    lost = list[list[str]]()
    for _ in range(TRIES):
        queue.start([name])
        lost.append(queue.recover())
    assert lost == [[], [], [name]]
    job = queue.get(name)
    assert job and job.state == "failed" and job.error and job.error["code"] == "crashed"


def test_an_ended_job_does_not_end_twice(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q.sqlite")
    name = queue.add({}, "me").id
    assert queue.end(name, "cancelled")
    assert not queue.end(name, "done")
    queue.start([name])
    assert queue.get(name).state == "cancelled"  # type: ignore[union-attr]


def test_a_key_is_one_clients(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q.sqlite")
    queue.add({}, "me", "k")
    queue.add({}, "you", "k")
    with pytest.raises(sqlite3.IntegrityError):
        queue.add({}, "me", "k")


def test_what_agrees_is_drawn_together(tmp_path: Path) -> None:
    from sdtune.serve.dispatch import together
    from sdtune.serve.wish import Wish

    queue = Queue(tmp_path / "q.sqlite")

    def add(**changes: object) -> int:
        wish = Wish.model_validate({"prompt": "a", "seeds": [1], "model": "m", **changes})
        return queue.add(json.loads(wish.model_dump_json()), "me").number

    first = add()
    add(steps=3)
    second, third = add(prompt="b", previews=False), add(seeds=[2, 3])
    add(kind="compare")
    add(model="n")
    assert [j.number for j in together(queue.waiting(), 4)] == [first, second, third]
    assert [j.number for j in together(queue.waiting(), 3)] == [first, second]
    assert [j.number for j in together(queue.waiting(), 1)] == [first]
    queue.start([job.id for job in queue.waiting() if job.number == first])
    queue.put_back(queue.jobs(("running",))[0].id, alone=True)
    assert [j.number for j in together(queue.waiting(), 8)] == [first]
