"""Checkpoints of a run are models by ids of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdtune.serve import registry
from tests.serve.conftest import App, Live, run
from tests.serve.test_live import pixels


@pytest.fixture
def with_checkpoints(named: Path) -> Path:
    for name in ("best", "step-000250", "other", ".tmp"):
        (named / "lora" / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
    return named


def test_they_are_told_by_the_id_of_their_run_and_their_name(with_checkpoints: Path) -> None:
    known, _ = registry.build([str(with_checkpoints)])
    lora = known.get("lora")
    assert lora
    assert lora.told()["checkpoints"] == ["lora@best", "lora@step-000250"]
    at = known.get("lora@step-000250")
    assert at
    assert (at.id, at.which, at.tuned) == ("lora@step-000250", "step-000250", "lora@step-000250")


@pytest.mark.parametrize(
    "name", ["lora@step-000300", "lora@other", "lora@../full", "lora@", "full@best", "model@best", "@best"]
)
def test_what_is_not_there_is_no_model(with_checkpoints: Path, make_app: Callable[..., App], name: str) -> None:
    known, _ = registry.build([str(with_checkpoints)])
    assert known.get(name) is None
    app = make_app()
    assert run(app.post({"prompt": "x", "model": name})).status_code == 404


@pytest.mark.slow
def test_the_last_one_draws_what_the_result_draws(live: Live) -> None:
    (entry,) = (m for m in live.http.get("/api/models").json()["models"] if m["id"] == "lora")
    last = next(name for name in entry["checkpoints"] if name.endswith("step-000002"))
    job = live.over(live.post(model=last, seeds=[4]))
    (picture,) = job["pictures"]
    assert live.http.get(f"/api/pictures/{picture['id']}").json()["record"]["tuned"] == "lora@step-000002"
    (result,) = live.draw(model="lora", seeds=[4])
    assert (pixels(live.file(picture)) == pixels(result)).all()
