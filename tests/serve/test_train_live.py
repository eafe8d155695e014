"""Trainings and evaluations by the real server, on a tiny model: they go on without it, and are to the bit those of the command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from sdtune.events import Sampled, Saved, Step
from sdtune.runs import Run
from tests import tiny
from tests.serve.conftest import Live, serving

pytestmark = pytest.mark.slow
CONFIG: dict[str, Any] = {
    "model": {"path": "model"},
    "data": {"path": "pictures", "validation_share": 0.3},
    "method": {"rank": 2, "dropout": 0.2},
    "optimizer": {"lr": 0.01},
    "sample": {"steps": 2, "seeds": [0], "prompts": ["a red apple"]},
    "evaluate": {"max_prompts": 2, "seeds": [1]},
    "train": {
        "steps": 6, "batch_size": 2, "save_every": 4, "validate_every": 3, "sample_every": 3, "threads": 1, "device": "cpu",
        "precision": "fp32", "validation_timesteps": 2,
    },
}  # fmt: skip


def config(name: str, **train: Any) -> dict[str, Any]:
    return {**CONFIG, "name": name, "train": {**CONFIG["train"], **train}}


class Shop:
    """A place with a model and pictures, for servers one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "made"
        tiny.sd1_folder(folder / "model")
        tiny.imagefolder(folder / "pictures", [f"a {colour} dog" for colour in tiny.WORDS[3:9]])

    def server(self) -> Any:
        more = ("--runs", str(self.runs), "--data", str(self.folder / "pictures"))
        return serving(self.folder / "model", self.folder / "folder", *more)

    def run(self, name: str) -> Run:
        return Run(self.runs / name)

    def by_hand(self, live: Live, job: str, name: str) -> Run:
        """The same training by the command line, in one piece."""
        run = self.run(name)
        command = [
            sys.executable,
            "-m",
            "sdtune",
            "train",
            str(self.folder / "folder" / "work" / f"{job}.toml"),
            "--out",
            str(run.path),
        ]
        subprocess.run([*command, f"name={name}"], check=True, stdout=subprocess.DEVNULL)
        return run


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    os.environ["SDTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield Shop(tmp_path_factory.mktemp("shop"))
    del os.environ["SDTUNE_CACHE"]


def post(live: Live, body: dict[str, Any]) -> str:
    answer = live.http.post("/api/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def view(live: Live, run: str) -> dict[str, Any]:
    told: dict[str, Any] = live.http.get(f"/api/runs/{run}").json()
    return told


def weights(run: Run) -> dict[str, bytes]:
    (file,) = run.final.glob("*.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def losses(run: Run) -> list[tuple[int, float, float]]:
    return [(e.step, e.loss, e.grad_norm) for e in run.events() if isinstance(e, Step)]


def process_of(run: Run) -> psutil.Process:
    return psutil.Process(
        next(int(p.pid) for p in psutil.process_iter(["cmdline"]) if str(run.path) in (p.info["cmdline"] or ()))
    )


def test_a_training_is_followed_to_its_end_drawn_with_and_judged(shop: Shop) -> None:
    with shop.server() as live:
        live.ready()
        name = post(live, {"kind": "train", "config": config("first")})
        heard = [(event, data) for _, event, data in live.events(name)]
        kinds = [event for event, _ in heard]
        assert kinds[-1] == "done" and heard[-1][1]["model"] == "first"
        assert {"state", "step", "validated", "sampled", "saved"} <= set(kinds)
        assert str(shop.folder) not in str(heard)
        told = view(live, "first")
        assert (told["state"], told["step"], told["steps"], told["model"], told["job"]) == (
            "finished",
            6,
            6,
            "first",
            name,
        )
        assert live.http.get("/api/runs/first/curves").json()["step"] == [1, 2, 3, 4, 5, 6]
        previews = live.http.get("/api/runs/first/samples").json()["samples"]
        assert [p["step"] for p in previews] == [0, 3, 6]
        assert live.http.get(previews[0]["href"]).content.startswith(b"\x89PNG")
        assert live.http.get("/api/runs/first/timeline").content.startswith(b"\x89PNG")
        assert len(live.draw(model="first", seeds=[1])) == 1
        assert not live.process.poll()

        assert live.http.get("/api/runs/first/report").status_code == 404
        judged = list(live.events(post(live, {"kind": "evaluate", "run": "first"})))[-1]
        assert judged[1] == "done", judged
        report = live.http.get("/api/runs/first/report")
        assert "sandbox" in report.headers["content-security-policy"] and "<html" in report.text
        for page in ("config", "log", "posted"):
            text = live.http.get(f"/api/runs/first/{page}").text
            assert text and str(shop.folder) not in text
        assert live.http.get("/api/runs/first/posted").json()["config"]["data"]["path"] == "pictures"
        again = live.http.post("/api/jobs", json={"kind": "train", "config": config("first")})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "finished")
        alone = shop.by_hand(live, name, "alone")
        assert weights(alone) == weights(shop.run("first")) and losses(alone) == losses(shop.run("first"))


def test_stopped_and_gone_on_with_it_is_the_run_in_one_piece(shop: Shop) -> None:
    run = shop.run("stopped")
    with shop.server() as live:
        name = post(live, {"kind": "train", "config": config("stopped", steps=60, sample_every=0)})
        waiting = post(live, {"kind": "train", "config": config("waiting", steps=2)})
        live.until(lambda: view(live, "stopped")["step"] >= 3)
        assert live.job(waiting)["state"] == "queued" and live.job(waiting)["ahead"] == 0
        assert view(live, "waiting")["state"] == "queued"
        busy = live.http.post(
            "/api/jobs", json={"kind": "train", "config": config("stopped", steps=60, sample_every=0)}
        )
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "running")
        assert live.http.post("/api/runs/stopped/stop").json()["stopping"]
        live.http.post("/api/runs/stopped/stop")  # once more does not hurry it
        assert list(live.events(name))[-1][1] == "cancelled"
        told = view(live, "stopped")
        assert told["state"] == "stopped" and 3 <= told["step"] < 60
        assert list(run.checkpoints.glob(f"step-{told['step']:06d}"))
        going = live.http.post("/api/runs/stopped/go-on")
        assert going.status_code == 202
        assert live.over(waiting)["state"] == "done"
        heard = list(live.events(going.json()["id"]))
        assert heard[-1][1] == "done", live.http.get("/api/runs/stopped/log").text
        alone = shop.by_hand(live, name, "piece")
        assert weights(alone) == weights(run) and losses(alone) == losses(run)


def test_a_training_outlives_the_server_and_the_next_one_finds_it(shop: Shop) -> None:
    run = shop.run("outlives")
    with shop.server() as live:
        name = post(live, {"kind": "train", "config": config("outlives", steps=80, sample_every=0, validate_every=0)})
        waiting = post(live, {"kind": "train", "config": config("patient", steps=2)})
        live.until(lambda: view(live, "outlives")["step"] >= 2)
        os.kill(live.process.pid, signal.SIGKILL)
        live.process.wait()
    process, before = process_of(run), len(losses(run))
    while len(losses(run)) < before + 2:  # without a server
        time.sleep(0.02)
    process.suspend()  # so that it does not end before the next one has come
    with shop.server() as live:
        told = live.job(name)
        process.resume()
        assert told["state"] == "running"
        assert list(live.events(name))[-1][1] == "done"
        assert [s for s, _, _ in losses(run)] == list(range(1, 81))
        assert live.over(waiting)["state"] == "done"
        assert len(live.draw(model="outlives", seeds=[1])) == 1


def test_a_training_that_dies_says_so_and_goes_on_when_asked(shop: Shop) -> None:
    run = shop.run("dies")
    with shop.server() as live:
        name = post(live, {"kind": "train", "config": config("dies", steps=80, sample_every=0, save_every=2)})
        live.until(lambda: view(live, "dies")["step"] >= 5)
        process_of(run).kill()
        assert list(live.events(name))[-1][1] == "error"
        assert "signal 9" in live.job(name)["error"]["message"]
        assert view(live, "dies")["state"] == "failed"
        again = post(live, {"kind": "train", "config": config("dies", steps=80, sample_every=0, save_every=2)})
        heard = [(event, data) for _, event, data in live.events(again)]
        assert heard[-1][0] == "done"
        assert [s for s, _, _ in losses(run)] == list(range(1, 81))


def test_what_is_asked_of_a_running_training(shop: Shop) -> None:
    run = shop.run("asked")
    with shop.server() as live:
        name = post(live, {"kind": "train", "config": config("asked", steps=80, sample_every=0, save_every=1000)})
        refused = live.http.post("/api/runs/first/save")
        assert refused.status_code in (404, 409)
        live.until(lambda: view(live, "asked")["step"] >= 2)
        assert live.http.post("/api/runs/asked/save").status_code == 202
        assert live.http.post("/api/runs/asked/sample").status_code == 202
        live.until(lambda: live.http.get("/api/runs/asked/samples").json()["samples"])
        assert view(live, "asked")["state"] == "running"
        assert list(live.events(name))[-1][1] == "done"
        alone = shop.by_hand(live, name, "unasked")
    steps = [{e.step for e in run.events() if isinstance(e, kind) and e.step < 80} for kind in (Saved, Sampled)]
    assert len(steps[0]) == len(steps[1]) == 1
    assert weights(alone) == weights(run) and losses(alone) == losses(run)


def test_a_training_that_cannot_be_done_fails_with_its_reason(shop: Shop) -> None:
    bad = shop.folder / "bad"
    shutil.copytree(shop.folder / "pictures", bad, dirs_exist_ok=True)
    (bad / "0.png").write_bytes(b"no picture") if (bad / "0.png").exists() else next(bad.glob("*.png")).write_bytes(
        b"no"
    )
    more = ("--runs", str(shop.runs), "--data", str(bad))
    with serving(shop.folder / "model", shop.folder / "other", *more) as live:
        name = post(live, {"kind": "train", "config": {**config("bad"), "data": {"path": "bad"}}})
        job = live.over(name)
        assert job["state"] == "failed" and str(shop.folder) not in str(job)
        report = live.http.get("/api/datasets/bad", timeout=200).json()
        assert report["stops"] and report["findings"]
        asked = {"config": {**config("bad"), "data": {"path": "embedded:comic"}}}
        estimate = live.http.post("/api/estimate", json=asked, timeout=200).json()
        assert estimate["trainable"] and estimate["pictures"] and estimate["weights_mb"] > 0
