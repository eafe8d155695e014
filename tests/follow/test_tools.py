"""The real tools, each where its library is installed: what a run logged is there when it is read back by the tool itself."""

import os
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdtune import config as configs
from sdtune.events import Finished, Sampled, Step, Validated, Warned
from sdtune.follow import Tool
from sdtune.follow.reader import Sent, follow
from sdtune.runs import Run

PROMPT = "a dög / 'with' a hat, and more"
STEPS = range(1, 31)


def need(library: str) -> Any:
    """The library, or a skip that names it. Some of them warn while they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(library, reason=f"{library} is no part of the development tools")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run of 30 steps with two previews and a warning."""
    run = Run(tmp_path / "runs" / "mine")
    run.write_config(configs.load(None, ["name=mine", "optimizer.lr=0.003"]))
    run.write(run.environment_file, "{}")
    run.log(validated(0))
    draw(run, 0)
    for n in STEPS:
        run.log(Step(n, 1 / n, 1.0, 1e-3, 0.5, time=1e9 + n))
    run.log(Warned("a part is dead", 3))
    run.log(validated(30))
    draw(run, 30)
    run.log(Finished(30, 15.0, "final", time=1e9 + 40))
    return run


def validated(step: int) -> Validated:
    low = 0.5 - step / 100
    return Validated(step, low, (low,), (low,) * 3, None, (166, 500, 833), ((low,), (low,), (low,)), time=1e9 + step)


def draw(run: Run, step: int) -> None:
    file = run.samples / f"step-{step:06d}" / "00.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (16, 16), (step, 100, 200)).save(file)
    run.log(Sampled(step, PROMPT, 4, file.relative_to(run.path).as_posix(), time=1e9 + step))


def twice(run: Run, tool: Tool, out: Path | None = None) -> Sent:
    """The second time replaces the first."""
    follow(run, tool, out=out)
    return follow(run, tool, out=out)


def test_tensorboard(run: Run, tmp_path: Path) -> None:
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sent = twice(run, Tool.TENSORBOARD, tmp_path / "tb")
    assert (sent.records, sent.outcome) == (36, "finished") and sent.view == f"tensorboard --logdir {tmp_path / 'tb'}"
    read = EventAccumulator(sent.where)
    read.Reload()
    assert [(s.step, s.value, s.wall_time) for s in read.Scalars("train/loss")] == [
        (n, pytest.approx(1 / n), 1e9 + n) for n in STEPS
    ]
    for name in ("loss", "clean", "middle", "noisy"):
        assert [(s.step, s.value) for s in read.Scalars(f"validation/{name}")] == [(0, 0.5), (30, pytest.approx(0.2))]
    (tag,) = read.Tags()["images"]
    assert tag == f"preview/{PROMPT}/seed 4" and [i.step for i in read.Images(tag)] == [0, 30]
    (warned,) = read.Tensors("warnings/text_summary")
    assert warned.step == 3 and warned.tensor_proto.string_val == [b"a part is dead"]
    assert b"optimizer" in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    need("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")  # what somebody may have set does not count: nobody named a server
    sent = twice(run, Tool.WANDB)
    assert (sent.records, sent.outcome) == (36, "finished")
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    assert sent.where == str(folder) and sent.view.startswith(f"wandb sync {folder}")
    (file,) = folder.glob("*.wandb")
    rows: dict[int, dict[str, Any]] = {}
    records = whole(file)
    for record in records:
        if record.WhichOneof("record_type") == "history":
            found = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            rows.setdefault(int(found["_step"]), {}).update(found)
    assert [float(rows[n]["train/loss"]) for n in STEPS] == pytest.approx([1 / n for n in STEPS])
    assert float(rows[7]["_timestamp"]) == 1e9 + 7
    assert {n: float(r["validation/noisy"]) for n, r in rows.items() if "validation/noisy" in r} == {
        0: 0.5,
        30: pytest.approx(0.2),
    }
    shown = sorted(folder.rglob("*.png"))
    assert {np.asarray(Image.open(p))[0, 0, 0] for p in shown} == {0, 30}
    started = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (started.project, started.display_name) == ("sdtune", "mine")
    assert {"optimizer", "model", "train"} <= {u.key for u in started.config.update}


def whole(file: Path) -> list[Any]:
    """The records of a finished run; W&B's service closes the file a moment after it says so."""
    for _ in range(200):
        records = list(wandb_records(file))
        if any(r.WhichOneof("record_type") == "exit" for r in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} is never finished")


def wandb_records(file: Path) -> Iterator[Any]:
    """W&B's file: LevelDB's log format (blocks of 32 KiB, pieces of records) with a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            return
        whole = (b"" if kind in (1, 2) else whole) + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_a_file(run: Run, tmp_path: Path) -> None:
    need("sqlalchemy")
    need("alembic")
    need("mlflow")
    from mlflow.tracking import MlflowClient

    sent = twice(run, Tool.MLFLOW)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    folder = tmp_path / "runs" / "mlflow"
    assert (sent.records, sent.outcome, sent.where) == (36, "finished", str(folder))
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("sdtune").experiment_id])
    own = found.info.run_id
    assert (found.info.run_name, found.info.status, found.info.end_time) == ("mine", "FINISHED", int((1e9 + 40) * 1000))
    assert found.data.params["optimizer.lr"] == "0.003"
    assert found.data.tags["warning.001"] == "step 3: a part is dead"
    losses = sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(own, "train/loss"))
    assert losses == [(n, 1 / n, int((1e9 + n) * 1000)) for n in STEPS]
    assert {m.step for m in client.get_metric_history(own, "validation/clean")} == {0, 30}
    assert {a.path for a in client.list_artifacts(own)} >= {"config.toml", "environment.json", "images"}
    shown = [p for p in (folder / "artifacts").rglob("*.png") if own in str(p)]
    assert {np.asarray(Image.open(p))[0, 0, 0] for p in shown} == {0, 30}


@pytest.mark.filterwarnings("ignore")
def test_trackio_in_a_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "runs" / "trackio"))  # it is read once, at the first import
    need("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    sent = twice(run, Tool.TRACKIO)
    folder = tmp_path / "runs" / "trackio"
    assert (sent.records, sent.outcome, sent.where) == (36, "finished", str(folder))
    assert SQLiteStorage.get_runs("sdtune") == ["mine"]
    rows = SQLiteStorage.get_logs("sdtune", "mine")
    assert {r["step"]: r["train/loss"] for r in rows if "train/loss" in r} == pytest.approx({n: 1 / n for n in STEPS})
    pictures = [r for r in rows if any(name.startswith("preview/") for name in r)]
    assert [r["step"] for r in pictures] == [0, 30]
    assert SQLiteStorage.get_run_config("sdtune", "mine")["optimizer.lr"] == 0.003
    assert [a["text"] for a in SQLiteStorage.get_alerts("sdtune")] == ["a part is dead"]
    assert capsys.readouterr().out == ""
