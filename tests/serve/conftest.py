"""A tiny model with a LoRA run and a full run on it; the app without a worker; and the real server with one."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import sdtune
from sdtune.runs import Run
from sdtune.serve import registry
from sdtune.serve.app import Server, create_app
from sdtune.serve.guard import Rules
from sdtune.serve.limits import Limits
from sdtune.serve.setup import Setup
from sdtune.serve.store import Store
from sdtune.serve.work import Shop

METHODS = {"lora": ("method.targets=attention", "method.rank=2"), "full": ("method.type=full",)}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs `lora` and `full` on one tiny model, each trained for two steps that show."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("served")
    model = tiny.sd1_folder(folder / "model")
    data = tiny.imagefolder(folder / "data", ["a red apple", "a blue dog"])
    for name, method in METHODS.items():
        config = sdtune.load_config(
            None, f"model.path={model}", f"data.path={data}", f"data.cache={folder / 'cache'}", f"name={name}", "train.steps=2",
            "train.batch_size=2", "train.precision=fp32", "train.sample_every=0", "train.validate_every=0", "optimizer.lr=0.05",
            "train.threads=1", *method,
        )  # fmt: skip
        for _ in sdtune.train(config, folder / "runs" / name):
            pass
    return folder / "runs"


# ---- the app alone: nothing draws, jobs wait


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs as far as names go, without weights and without torch."""
    folder = tmp_path_factory.mktemp("named")
    shutil.copytree(
        str(resources.files("sdtune") / "demo" / "base"),
        folder / "model",
        ignore=shutil.ignore_patterns("*.safetensors"),
    )
    for name, method in METHODS.items():
        run = Run(folder / "runs" / name)
        run.write_config(sdtune.load_config(None, f"model.path={folder / 'model'}", f"name={name}", *method))
        run.final.mkdir()
    return folder / "runs"


@dataclass
class App:
    app: FastAPI
    client: httpx.AsyncClient

    @property
    def server(self) -> Server:
        server: Server = self.app.state.server
        return server

    async def post(self, body: object, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        return await self.client.post(
            "/api/jobs", content=content, headers={"content-type": "application/json", **headers}
        )


@pytest.fixture
def make_app(named: Path, tmp_path: Path) -> Callable[..., App]:
    """The app for limits and a token of one's own."""

    def make(limits: Limits | None = None, token: str = "", data: tuple[Path, ...] = (), **headers: str) -> App:
        known, _ = registry.build([str(named)])
        store, rules = Store(tmp_path / "folder"), Rules(token=token, limits=limits or Limits())
        app = create_app(known, Setup(known.dumped(), str(store.folder)), rules, store, Shop(tmp_path / "runs", data))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return App(app, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860", headers=headers))

    return make


def run(work: Any) -> Any:
    """A coroutine to its end."""
    return asyncio.run(work)


# ---- the real server


class Live:
    """`sdtune serve` as a process of its own."""

    def __init__(self, runs: Path, folder: Path, *arguments: str) -> None:
        command = [
            sys.executable,
            "-m",
            "sdtune",
            "serve",
            str(runs),
            "--port",
            "0",
            "--folder",
            str(folder),
            "--precision",
            "fp32",
        ]
        self.log = folder.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--threads", "1", "--device", "cpu", *arguments], stderr=log, stdout=log
            )
        self.address = self._address()
        self.http = httpx.Client(base_url=self.address, timeout=60, limits=httpx.Limits(max_connections=None))

    def _address(self) -> str:
        found: str = self.until(
            lambda: (m := re.search(r"listening on (http://\S+);", self.log.read_text())) and m[1], 120
        )
        return found

    def until(self, found: Callable[[], Any], seconds: float = 60) -> Any:
        """What `found` gives as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := found():
                return value
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s; the log says:\n{self.log.read_text()}")

    def ready(self) -> Live:
        self.until(lambda: self.http.get("/readyz").status_code == 200, 180)
        return self

    def post(self, **wish: Any) -> str:
        answer = self.http.post("/api/jobs", json={"prompt": "a red apple", "steps": 2, **wish})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = self.http.get(f"/api/jobs/{name}").json()
        return told

    def over(self, name: str) -> dict[str, Any]:
        """The job when it has ended."""
        for _ in self.events(name):
            pass
        return self.job(name)

    def draw(self, **wish: Any) -> list[bytes]:
        """The PNG files of a job."""
        job = self.over(self.post(**wish))
        assert job["state"] == "done", job
        return [self.file(p) for p in job["pictures"]]

    def file(self, picture: dict[str, Any]) -> bytes:
        answer = self.http.get(picture["href"])
        assert answer.status_code == 200
        return answer.content

    def events(self, name: str, **options: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(id, event, data), as they come."""
        with self.http.stream("GET", f"/api/jobs/{name}/events", **options) as answer:
            told = dict[str, str]()
            for line in answer.iter_lines():
                if line:
                    key, _, value = line.partition(": ")
                    told[key] = value
                else:
                    if "event" in told:
                        yield told["id"], told["event"], json.loads(told["data"])
                    told = {}

    def worker(self) -> int:
        """The worker's process id."""
        import psutil

        (child,) = self.until(lambda: [c.pid for c in psutil.Process(self.process.pid).children()])
        return int(child)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.http.close()


@contextmanager
def serving(runs: Path, folder: Path, *arguments: str) -> Iterator[Live]:
    live = Live(runs, folder, *arguments)
    try:
        yield live
    finally:
        live.kill()


@pytest.fixture(scope="session")
def live(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests that leave it as it was."""
    with serving(runs, tmp_path_factory.mktemp("live") / "folder", "--queue", "300") as live:
        yield live.ready()
