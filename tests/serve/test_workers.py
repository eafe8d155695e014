"""Two workers for real, and originals and tuned ones in one batch."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdtune.serve import engine as engines
from sdtune.serve import registry
from sdtune.serve.setup import Setup
from sdtune.serve.store import Store, picture_id
from sdtune.serve.wish import Wish
from tests.serve.conftest import Live, serving
from tests.serve.test_faults import LONG, after_two, whole
from tests.serve.test_live import pixels

pytestmark = pytest.mark.slow


def figures(live: Live, name: str) -> list[int]:
    """Of each worker."""
    lines = live.http.get("/metrics").text.splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(f"sdtune_{name}{{")]


def workers(live: Live) -> list[int]:
    """Process ids of the two, in the order of their numbers."""
    import psutil

    def found() -> list[int]:
        return [child.pid for child in psutil.Process(live.process.pid).children()]

    live.until(lambda: figures(live, "worker_ready") == [1, 1], 200)
    return found()


def test_two_workers_draw_the_same_and_one_outlives_the_other(runs: Path, tmp_path: Path) -> None:
    with serving(runs, tmp_path / "folder", "--workers", "2") as live:
        first, second = workers(live)
        alone = {seed: live.draw(model="lora", seeds=[seed])[0] for seed in range(4)}  # by whichever is preferred
        split = live.over(live.post(model="lora", seeds=[0, 1, 2, 3]))
        assert [live.file(p) for p in split["pictures"]] == list(alone.values())
        job = live.over(live.post(kind="compare", model="full", seeds=[1]))
        assert [p["kind"] for p in job["pictures"]] == ["original", "tuned"]
        original, tuned = (live.file(p) for p in job["pictures"])
        assert np.array_equal(
            pixels(original), pixels(live.draw(model="model", seeds=[1])[0])
        )  # its record says strength 0
        assert tuned == live.draw(model="full", seeds=[1])[0]

        names = [live.post(**{**LONG, "steps": 150, "seeds": list(range(n, n + 16))}) for n in (0, 16)]
        for name in names:
            after_two(live, name)
        os.kill(first, signal.SIGKILL)
        jobs = [live.over(name) for name in names]
        assert sorted(job["state"] for job in jobs) == ["done", "failed"]
        assert all(len(whole(live, name)) >= 2 for name in names)
        assert second in workers(live) and sorted(figures(live, "worker_restarts_total")) == [0, 1]
        assert live.draw(model="lora", seeds=[2])[0] == alone[2]


def test_originals_and_tuned_ones_in_one_batch_are_those_drawn_apart(runs: Path, tmp_path: Path) -> None:
    """But for rounding: as with any batch, 1 of 255 in a few values."""
    known, _ = registry.build([str(runs)])
    batches = list[int]()

    def drawn(batch: int, jobs: int) -> list[Any]:
        said = list[dict[str, Any]]()
        setup = Setup(known.dumped(), str(tmp_path / str(batch)), "cpu", "fp32", 1, batch=batch)
        engine = engines.Engine(setup, lambda name: False, said.append)
        looked = engines._Drawing.looked

        def counted(drawing: Any, look: Any) -> None:
            batches.append(len(look.x_BCHW))
            looked(drawing, look)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engines._Drawing, "looked", counted)
            usual = {"kind": "compare", "model": "lora", "steps": 3, "strength": 0.7}
            asked = [{**usual, "prompt": f"a dog {i}", "seeds": [i, i + 1]} for i in range(jobs)]
            made = [Wish.model_validate(one).dumped() for one in asked]
            engine.draw(
                [{"id": f"{i:032x}", "wish": {**w, "files": {}}, "numbers": [0, 1, 2, 3]} for i, w in enumerate(made)]
            )
        assert [s["event"] for s in said if s["event"] in ("done", "failed")] == ["done"] * jobs, said
        told = {(s["job"], s["number"]): s for s in said if s["event"] == "picture"}
        assert [told[f"{0:032x}", n]["record"]["strength"] for n in range(4)] == [0.0, 0.0, 0.7, 0.7]
        assert "tuned" in told[f"{0:032x}", 2]["record"] and "tuned" not in told[f"{0:032x}", 0]["record"]
        store = Store(tmp_path / str(batch))
        return [pixels(store.path(picture_id(*key), "tuned").read_bytes()) for key in sorted(told)]

    apart, mixed = drawn(1, 2), drawn(8, 2)
    assert set(batches) == {1, 8}
    assert max(int(abs(a - b).max()) for a, b in zip(apart, mixed, strict=True)) <= 1
    assert not np.array_equal(mixed[0], mixed[2])  # and the adapter does act


def test_a_job_on_an_adapter_that_cannot_be_read_fails_alone_and_says_why(runs: Path, tmp_path: Path) -> None:
    known, _ = registry.build([str(runs)])
    rows = known.dumped()
    (tmp_path / "other.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")  # it was sound when the server started
    rows.append(
        {**rows[0], "id": "other", "kind": "adapter", "method": "", "place": str(tmp_path / "other.safetensors")}
    )
    said = list[dict[str, Any]]()
    engine = engines.Engine(Setup(rows, str(tmp_path / "served"), "cpu", "fp32", 1), lambda name: False, said.append)
    for number, model in enumerate(("other", "lora")):
        made = Wish.model_validate({"model": model, "prompt": "a dog", "seeds": [1], "steps": 1}).dumped()
        engine.draw([{"id": f"{number:032x}", "wish": {**made, "files": {}}, "numbers": [0]}])
    failed, *rest = [s for s in said if s["event"] in ("done", "failed")]
    assert (
        failed["code"] == "model_failed"
        and failed["message"].startswith("other: ")
        and str(tmp_path) not in failed["message"]
    )
    assert [s["event"] for s in rest] == ["done"]


def test_what_is_kept_of_prompts_has_an_end(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sdtune
    from sdtune import texts

    monkeypatch.setattr(texts, "KEPT", 3)
    _, opened = sdtune.open_model(runs / "lora", "train.precision=fp32", "train.device=cpu")
    known = texts.Texts(opened.model)
    before = known.encode(["a dog"], 1).states_BLD
    for number in range(5):
        known.encode([f"a dog {number}"], known.chunks([f"a dog {number}"]))
    assert len(known._known) == len(known._needed) == 3 and ("a dog", 1) not in known._known
    assert (known.encode(["a dog"], 1).states_BLD == before).all()
