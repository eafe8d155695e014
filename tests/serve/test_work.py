"""Runs, datasets and the queue of trainings, without a process: ids, refusals, captions, and how logs are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdtune.events import Event, Failed, Finished, Sampled, Saved, Started, Step, Stopped, Validated, to_line
from sdtune.runs import Run
from sdtune.serve import process as processes
from sdtune.serve import registry
from sdtune.serve.foreman import Foreman, Teller
from sdtune.serve.history import History, Runs, picture_path
from sdtune.serve.limits import Limits
from sdtune.serve.scrub import Scrub
from sdtune.serve.views import WorkJob
from sdtune.serve.work import Work
from sdtune.serve.works import Process, Works
from tests.serve.conftest import App, run

MakeApp = Callable[..., App]
TRAIN = {"kind": "train", "config": {"name": "mine", "train": {"steps": 5}}}


def started(step: int = 0, steps: int = 5) -> Started:
    return Started(step, steps, "x", "cpu", "fp32", 1, 2, 3, 4, 5)


def logged(folder: Path, *events: Any) -> Run:
    found = Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(
        "[model]\npath = 'embedded'\n[method]\ntype = 'lora'\nrank = 4\n[train]\nsteps = 5\n"
    )
    found.events_file.write_text("".join(to_line(event) + "\n" for event in events))
    return found


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json().get("error", {}).get("code", "")


# ---- taking


def test_a_training_is_taken_with_the_ids_of_drawings(make_app: MakeApp) -> None:
    app = make_app()

    async def go() -> None:
        answer = await app.post(TRAIN, **{"idempotency-key": "k"})
        assert answer.status_code == 202 and answer.headers["location"] == f"/api/jobs/{answer.json()['id']}"
        told = answer.json()
        assert (told["kind"], told["state"], told["run"], told["ahead"]) == ("train", "queued", "mine", 0)
        assert told["request"] == TRAIN
        same = await app.post(TRAIN, **{"idempotency-key": "k"})
        assert same.status_code == 200 and same.json()["id"] == told["id"]
        other = {"kind": "train", "config": {"name": "other"}}
        assert code(await app.post(other, **{"idempotency-key": "k"})) == (409, "key_reused")
        assert code(await app.post(TRAIN)) == (409, "running")
        assert (await app.client.get(f"/api/jobs/{told['id']}")).json()["run"] == "mine"
        assert [j["id"] for j in (await app.client.get("/api/work")).json()["jobs"]] == [told["id"]]
        assert (await app.client.get("/api/jobs")).json()["jobs"] == []
        view = (await app.client.get("/api/runs/mine")).json()
        assert (view["state"], view["steps"], view["method"]) == ("queued", 5, "lora 16 attention")
        ended = await app.client.delete(f"/api/jobs/{told['id']}")
        assert ended.json()["state"] == "cancelled"
        assert (await app.post(TRAIN)).status_code == 202

    run(go())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"kind": "train"}, (422, "invalid")),
        ({"kind": "train", "config": []}, (422, "invalid")),
        ({"kind": "train", "config": {}, "out": "/tmp/x"}, (422, "invalid")),
        ({"kind": "train", "config": {"plugins": ["evil.py"]}}, (422, "invalid")),
        ({"kind": "train", "config": {"data": {"path": "/etc"}}}, (404, "not_found")),
        ({"kind": "evaluate"}, (422, "invalid")),
        ({"kind": "evaluate", "run": 5}, (422, "invalid")),
        ({"kind": "evaluate", "run": "../lora"}, (404, "not_found")),
        ({"kind": "evaluate", "run": "nope"}, (404, "not_found")),
        ({"kind": "trian", "config": {}}, (422, "invalid")),
    ],
)
def test_what_is_refused(make_app: MakeApp, body: dict[str, Any], expected: tuple[int, str]) -> None:
    app = make_app()
    assert code(run(app.post(body))) == expected
    assert not app.server.work.works.jobs()


def test_the_queue_is_bounded(make_app: MakeApp) -> None:
    app = make_app(Limits(queue=2, client=2))

    async def go() -> None:
        for name in ("a", "b"):
            assert (await app.post({"kind": "train", "config": {"name": name}})).status_code == 202
        full = await app.post({"kind": "train", "config": {"name": "c"}})
        assert code(full) == (429, "queue_full") and full.headers["retry-after"]

    run(go())


def test_a_name_that_is_taken(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    (tmp_path / "runs" / "things").mkdir(parents=True)
    logged(tmp_path / "runs" / "other", started())
    (tmp_path / "runs" / "link").symlink_to(tmp_path)

    async def go() -> None:
        for name in ("things", "other", "link"):
            assert code(await app.post({"kind": "train", "config": {"name": name}})) == (409, "exists")

    run(go())


def test_this_very_run_is_gone_on_with(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    config = app.server.work.read_config(TRAIN["config"])  # type: ignore[arg-type]
    mine = Run(tmp_path / "runs" / "mine")
    mine.write_config(config)
    mine.log(started())

    async def go() -> None:
        assert (await app.client.get("/api/runs/mine")).json()["state"] == "empty"
        assert (await app.post(TRAIN)).status_code == 202
        await app.client.post("/api/runs/mine/stop")
        assert (await app.client.post("/api/runs/mine/go-on")).status_code == 202
        await app.client.post("/api/runs/mine/stop")
        mine.final.mkdir()
        mine.log(Finished(5, 1.0, "final"))
        assert code(await app.post(TRAIN)) == (409, "finished")
        assert code(await app.client.post("/api/runs/mine/go-on")) == (409, "finished")
        assert (await app.post({"kind": "evaluate", "run": "mine"})).status_code == 202

    run(go())


def test_a_run_with_code_of_its_own_is_only_looked_at(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    odd = logged(tmp_path / "runs" / "odd", started(), Step(1, 0.5, 1, 0.1, 1))
    odd.config_file.write_text('plugins = ["evil.py"]\n' + odd.config_file.read_text())
    odd.final.mkdir()

    async def go() -> None:
        assert (await app.client.get("/api/runs/odd")).json()["plugins"] is True
        for answer in (
            await app.client.post("/api/runs/odd/go-on"),
            await app.post({"kind": "evaluate", "run": "odd"}),
        ):
            assert code(answer) == (409, "plugins")

    run(go())


# ---- runs


def test_runs_are_what_lies_below_the_folder_and_what_was_named(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    logged(tmp_path / "runs" / "deep" / "one", started(), Step(1, 0.5, 1, 0.1, 1), Stopped(1))
    logged(tmp_path / "runs" / "bad", started(), Failed(1, f"{tmp_path}/runs/bad/x: no room"))
    logged(tmp_path / "runs" / "with blank", started())

    async def go() -> None:
        views = {v["id"]: v for v in (await app.client.get("/api/runs")).json()["runs"]}
        assert set(views) == {"deep~one", "bad", "lora", "full"}
        assert views["deep~one"]["state"] == "stopped" and views["deep~one"]["loss"] == 0.5
        assert (views["bad"]["state"], views["bad"]["message"]) == ("failed", "runs/bad/x: no room")
        assert views["lora"]["model"] == "lora"
        for name in ("..", "deep", "%2e%2e", "deep~..~..", "nope", "with blank", "x" * 5000):
            assert (await app.client.get(f"/api/runs/{name}")).status_code == 404
        for route in ("curves", "samples", "config", "posted", "log", "report", "vote", "timeline", "events"):
            assert (await app.client.get(f"/api/runs/nope/{route}")).status_code == 404, route
        for verb in ("stop", "go-on", "save", "sample"):
            assert (await app.client.post(f"/api/runs/nope/{verb}")).status_code == 404, verb
            if verb != "go-on":
                assert code(await app.client.post(f"/api/runs/bad/{verb}")) == (409, "not_running")

    run(go())


def test_reports_run_as_strangers_and_load_nothing(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    found = logged(tmp_path / "runs" / "one", started())
    found.comparison.mkdir()
    found.report_file.write_text("<html></html>")
    answer = run(app.client.get("/api/runs/one/report"))
    policy = answer.headers["content-security-policy"]
    assert "sandbox allow-scripts" in policy and "allow-same-origin" not in policy and "default-src 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["content-type"].startswith(
        "text/html"
    )
    assert code(run(app.client.get("/api/runs/one/vote"))) == (404, "not_compared")


@pytest.mark.parametrize(
    "name",
    ["../x", "step-000001-00/../../x", "step-1-0", "step-000001-00.png", "", "step-000001-0a", "step-000001-00\n"],
)
def test_what_is_no_id_of_a_preview_is_no_path(tmp_path: Path, name: str) -> None:
    assert picture_path(Run(tmp_path), name) is None


def test_a_picture_that_the_log_names_elsewhere_is_not_shown(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    (tmp_path / "secret.png").write_bytes(b"x")
    found = logged(
        tmp_path / "runs" / "one",
        started(),
        Sampled(1, "p", 0, "../../secret.png"),
        Sampled(2, "p", 0, "samples/step-000002/00.png"),
    )
    (found.samples / "step-000002").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(found.samples / "step-000002" / "00.png")

    async def go() -> None:
        (shown,) = (await app.client.get("/api/runs/one/samples")).json()["samples"]
        assert shown["id"] == "step-000002-00" and (await app.client.get(shown["href"])).status_code == 200
        assert (await app.client.get("/api/runs/one/samples/step-000003-00")).status_code == 404

    run(go())


def test_a_history_is_read_as_it_grows_and_anew_when_it_is_rewound(tmp_path: Path) -> None:
    steps = [Step(i, float(i), 1, 0.1, 1, time=100.0 + i) for i in range(1, 5001)]
    found = logged(tmp_path, started(steps=10_000), *steps[:10])
    history = History(found)
    history.read()
    assert (history.step, history.loss, history.rate) == (10, 5.5, 1.0)
    more: list[Event] = [Validated(10, 0.5, ()), Validated(20, 0.7, ()), *steps[10:]]
    for event in more:
        found.log(event)
    history.read()
    assert history.step == 5000 and history.best and history.best.step == 10
    curves = history.curves()
    assert len(curves.step) <= 2000 and curves.step[-1] == 5000 and curves.loss[0] == 2.0
    found.rewind_log(7, looked=True)
    history.read()
    assert history.step == 7 and not history.validated
    with found.events_file.open("a") as file:
        file.write('{"event": "FromTheFuture"}\n')
    history.read()
    assert not history.readable and history.step == 7


def test_ids_of_runs_outside_of_the_folder(tmp_path: Path) -> None:
    for place in ("runs/a", "elsewhere/a", "elsewhere/my run"):
        logged(tmp_path / place, started())
    runs = Runs(tmp_path / "runs", [tmp_path / "elsewhere" / "a", tmp_path / "elsewhere" / "my run", tmp_path / "gone"])
    assert set(runs.scan()) == {"a", "a~2", "my-run"}


# ---- events


def told(*events: Any) -> list[tuple[str, dict[str, Any]]]:
    teller = Teller("r")
    return [said for event in events for said in teller.tell(event)]


def test_what_listeners_are_told() -> None:
    said = told(
        started(), Step(1, 0.5, 1, 0.1, 1, time=10.0), Step(2, 0.4, 1, 0.1, 1, time=12.0), Validated(2, 0.3, ()), Validated(3, 0.4, ()),
        Sampled(2, "p", 7, "samples/step-000002/01.png"), Saved(2, "checkpoints/step-000002"), Finished(5, 1.0, "final"),
    )  # fmt: skip
    names = [name for name, _ in said]
    assert names == ["state", "step", "step", "validated", "validated", "sampled", "saved"]
    assert said[2][1] == {"step": 2, "steps": 5, "loss": 0.4, "lr": 0.1, "rate": 0.5, "seconds": 6.0}
    assert [data["best"] for name, data in said if name == "validated"] == [True, False]
    assert said[5][1]["href"] == "/api/runs/r/samples/step-000002-01"


def test_after_a_rewind_nothing_is_told_twice() -> None:
    events = [started(), Validated(2, 0.3, ()), Saved(2, "x")]
    assert len(told(*events, *events)) == 3


def test_of_many_steps_at_once_the_last_is_told(tmp_path: Path) -> None:
    works = Works(tmp_path / "queue.sqlite")
    foreman = Foreman(works, tmp_path, lambda: Scrub({}), lambda run: None)
    job = works.add("train", "r", tmp_path / "r", {}, "me")
    works.start(job.id)
    logged(
        tmp_path / "r",
        started(),
        Step(1, 0.9, 1, 0.1, 1),
        Step(2, 0.8, 1, 0.1, 1),
        Validated(2, 0.3, ()),
        Step(3, 0.7, 1, 0.1, 1),
    )
    works.end(job.id, "done")
    now = works.get(job.id)
    assert now
    said = [(s.event, s.data.get("step")) for s in foreman.log_of(now, tmp_path / "r").said]
    assert [row for row in said if row[0] != "state"] == [("validated", 2), ("step", 3), ("done", None)]
    works.close()


# ---- models


def test_a_run_that_was_trained_can_be_drawn_with(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    server = app.server
    mine = Run(tmp_path / "runs" / "lora")  # a name that is taken
    mine.write_config(server.work.read_config({"name": "lora"}))
    mine.final.mkdir()
    before = len(server.registry.entries)
    new = registry.trained(server.registry, mine)
    assert [(e.id, e.kind) for e in new] == [("embedded", "original"), ("lora-2", "run")]
    server.dispatcher.grow(new)
    assert len(server.registry.entries) == before + 2 and server.registry.first.id != "embedded"
    os.utime(mine.final, (1e9, 1e9))
    (again,) = registry.trained(server.registry, mine)
    assert again.id == "lora-2" and again != new[1]  # so that the worker reads it anew
    server.dispatcher.grow([again])
    assert len(server.registry.entries) == before + 2
    assert server.work._model_of(mine.path) == "lora-2"


# ---- processes


def test_a_process_is_not_taken_for_a_later_one_or_a_dead_one() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "a-word-of-its-own"])
    found = processes.identified(child.pid)
    assert found and processes.lives(found) and processes.named("a-word-of-its-own") == found
    assert not processes.lives(Process(found.pid, found.born - 100))
    child.kill()
    deadline = time.monotonic() + 10
    while processes.lives(found) and time.monotonic() < deadline:  # not waited for: a zombie
        time.sleep(0.01)
    assert not processes.lives(found) and processes.named("a-word-of-its-own") is None
    child.wait()


def test_the_token_does_not_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDTUNE_TOKEN", "a-secret-of-the-server")
    child = processes.start(["--help"], tmp_path / "log")
    environ = Path(f"/proc/{child.pid}/environ")
    if environ.exists():
        assert b"a-secret" not in environ.read_bytes()
        assert os.getsid(child.pid) != os.getsid(0)
    assert child.wait(60) == 0 and "Usage" in (tmp_path / "log").read_text()


class Bench:
    """A foreman whose processes are small."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *script: str) -> None:
        self.folder, self.scripts, self.started = folder, list(script), list[str]()
        self.works = Works(folder / "queue.sqlite")
        self.foreman = self.another()

        def start(arguments: Any, log: Path) -> Any:
            self.started.append(arguments[0])
            with log.open("ab") as out:
                return subprocess.Popen([sys.executable, "-c", self.scripts.pop(0), *arguments], stdout=out, stderr=out)

        monkeypatch.setattr(processes, "start", start)

    def another(self) -> Foreman:
        return Foreman(
            self.works, self.folder / "work", lambda: Scrub({"runs": self.folder / "runs"}), lambda run: "model"
        )

    def add(self, name: str) -> WorkJob:
        job = self.works.add("train", name, self.folder / "runs" / name, {}, "me")
        self.foreman.take(job, "name = 'x'\n")
        return job

    async def over(self, job: WorkJob) -> WorkJob:
        for _ in range(600):
            if (now := self.works.get(job.id)) and now.finished:
                return now
            await _pause()
        raise AssertionError("not over")


async def _pause() -> None:
    import asyncio

    await asyncio.sleep(0.02)


def test_one_after_the_other_and_each_says_why_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = "import pathlib, sys; p = pathlib.Path(sys.argv[-1]); (p / 'final').mkdir(parents=True)"
    die = f"print('error: {tmp_path}/runs/b: the disk is full'); raise SystemExit(5)"
    bench = Bench(tmp_path, monkeypatch, finish, die, "import os; print('step 3', flush=True); os.kill(os.getpid(), 9)")

    async def go() -> None:
        jobs = [bench.add(name) for name in ("a", "b", "c")]
        await bench.foreman.start()
        ended = [await bench.over(job) for job in jobs]
        assert [job.state for job in ended] == ["done", "failed", "failed"]
        assert ended[1].error == {"code": "failed", "message": "runs/b: the disk is full"}
        assert "signal 9" in str(ended[2].error) and "step 3" in str(ended[2].error)
        assert all(x.finished <= y.started for x, y in pairwise(ended) if x.finished and y.started)
        last = [said async for said in bench.foreman.log_of(ended[0], tmp_path / "runs" / "a").listen()][-1]
        assert last and last.event == "done" and last.data["model"] == "model"
        await bench.foreman.stop()

    run(go())
    bench.works.close()


def test_what_an_earlier_server_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = "import pathlib, sys; p = pathlib.Path(sys.argv[-1]); (p / 'final').mkdir(parents=True)"
    bench = Bench(tmp_path, monkeypatch, finish)
    running, lost, never = (bench.add(name) for name in ("running", "lost", "never"))
    for job in (running, lost, never):
        bench.works.start(job.id)
    recipe = str(bench.foreman.recipe(running.id))  # its number was not written down yet
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", recipe], stdin=subprocess.PIPE)
    bench.works.keep_process(lost.id, Process(child.pid, 1.0))
    (tmp_path / "work" / f"{lost.id}.log").write_text("what it said last\n")

    async def go() -> None:
        await bench.foreman.start()
        assert (found := bench.works.process(running.id)) and found.pid == child.pid
        assert (await bench.over(lost)).error == {"code": "failed", "message": "what it said last"}
        assert (now := bench.works.get(never.id)) and now.state == "queued"
        assert (now := bench.works.get(running.id)) and now.state == "running"
        logged(tmp_path / "runs" / "running", started(), Finished(5, 1.0, "final", time=time.time())).final.mkdir()
        child.communicate()
        assert (await bench.over(running)).state == "done"
        assert (await bench.over(never)).state == "done" and bench.started == ["train"]
        await bench.foreman.stop()

    run(go())
    bench.works.close()


# ---- datasets


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (300, 20 + i), (i * 50, 0, 0)).save(folder / f"{i}.png")
    (folder / "0.txt").write_text("a red dog\na dog\n")
    return folder


async def put(app: App, dataset: str, n: int, **body: Any) -> Any:
    headers = {"content-type": "application/json"}
    return await app.client.put(
        f"/api/datasets/{dataset}/pictures/{n}/caption", content=json.dumps(body), headers=headers
    )


def test_pictures_and_captions_of_a_folder(make_app: MakeApp, pictures: Path) -> None:
    app = make_app(data=(pictures,))

    async def go() -> None:
        known = (await app.client.get("/api/datasets")).json()["datasets"]
        assert [d["id"] for d in known][:2] == ["pictures", "embedded:comic"]
        assert [d["writable"] for d in known][:2] == [True, False]
        answer = (await app.client.get("/api/datasets/pictures/pictures?offset=0&limit=2")).json()
        assert answer["total"] == 3 and [p["captions"] for p in answer["pictures"]] == [["a red dog", "a dog"], []]
        small = await app.client.get(answer["pictures"][0]["href"] + "?side=64")
        assert small.headers["content-type"] == "image/png" and len(small.content) < 1000
        written = await put(app, "pictures", 1, captions=[" a blue dog "], name="1.png")
        assert written.json()["captions"] == ["a blue dog"] and written.json()["by"] == "human"
        assert (pictures / "1.txt").read_text() == "a blue dog\n"
        assert code(await put(app, "pictures", 1, captions=["x"], name="2.png")) == (409, "changed")
        for wrong in (["a\nb"], ["x" * 5000], [1], ["x"] * 51, "x", ["\0"]):
            assert (await put(app, "pictures", 1, captions=wrong)).status_code == 422
        assert (await put(app, "pictures", 1, captions=["x"], path="/etc")).status_code == 422
        assert (await put(app, "pictures", 9, captions=["x"])).status_code == 404
        assert (await put(app, "pictures", -1, captions=["x"])).status_code == 404
        assert code(await put(app, "embedded:comic", 0, captions=["x"])) == (403, "read_only")
        assert code(await put(app, "nope", 0, captions=["x"])) == (404, "not_found")
        for route in ("", "/pictures", "/pictures/0/thumbnail"):
            assert (await app.client.get(f"/api/datasets/..%2f..{route}")).status_code == 404
        assert (pictures / "1.txt").read_text() == "a blue dog\n"

    run(go())


def test_rows_of_metadata_keep_what_else_they_say(make_app: MakeApp, pictures: Path) -> None:
    (pictures / "0.txt").unlink()
    rows = [{"file_name": f"{i}.png", "text": f"dog {i}", "licence": "mine"} for i in range(3)]
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    app = make_app(data=(pictures,))

    async def go() -> None:
        assert (await put(app, "pictures", 1, captions=["ein Hündchen", "two"])).status_code == 200
        lines = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines() if line]
        assert lines == [rows[0], {**rows[1], "text": ["ein Hündchen", "two"]}, rows[2]]
        assert not list(pictures.glob("*.txt"))

    run(go())


def test_shipped_sets_have_pictures_with_captions(make_app: MakeApp) -> None:
    answer = run(make_app().client.get("/api/datasets/embedded:comic/pictures")).json()
    assert answer["total"] > 20 and all(p["captions"] for p in answer["pictures"])


# ---- configs


def test_schema_presets_and_check(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()

    async def go() -> None:
        schema = await app.client.get("/api/schema")
        assert "plugins" not in schema.json()["properties"] and str(tmp_path.parent) not in schema.text
        found = (await app.client.get("/api/presets")).json()["presets"]
        assert found[0]["fits"] and found[0]["purpose"]
        headers = {"content-type": "application/json"}
        good = await app.client.post("/api/check", content=json.dumps({"config": found[0]["config"]}), headers=headers)
        assert good.json() == {"fits": True}
        bad = await app.client.post(
            "/api/check", content=json.dumps({"config": {"train": {"steps": 0}}}), headers=headers
        )
        assert bad.status_code == 422 and bad.json()["error"]["field"] == "train.steps"
        assert (await app.client.post("/api/estimate", content=b"{}", headers=headers)).status_code == 422
        assert (await app.client.post("/api/estimate", content=b"{}")).status_code == 415

    run(go())


def test_no_torch_in_the_server() -> None:
    probe = "import sys, sdtune.serve.app, sdtune.serve.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_everything_of_the_interface_is_there() -> None:
    assert {name for name in dir(Work) if not name.startswith("_")} >= {
        "train",
        "evaluate",
        "told",
        "log_of",
        "write_captions",
        "estimate",
    }
