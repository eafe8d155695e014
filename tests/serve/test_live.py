"""The real server with its worker, on a tiny model: what it draws, tells and keeps."""

from __future__ import annotations

import dataclasses
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import sdtune
from sdtune.sample import save_png
from tests import tiny
from tests.serve.conftest import Live

pytestmark = pytest.mark.slow


def by_hand(source: Path, file: Path, *overrides: str, seed: int = 1) -> bytes:
    """The PNG of `sdtune sample` for the same."""
    settings = ("train.precision=fp32", "train.device=cpu", "train.threads=1", "sample.batch_size=1", "sample.steps=2")
    (picture,) = sdtune.sample(source, *settings, *overrides, prompts=["a red apple"], seeds=[seed])
    save_png(picture, file)
    return file.read_bytes()


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def upload(live: Live, image: Image.Image) -> str:
    answer = live.http.post("/api/uploads", content=png(image), headers={"content-type": "image/png"})
    assert answer.status_code == 201
    return str(answer.json()["id"])


# ---- one inference path


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_picture_is_that_of_the_command_line_byte_for_byte(live: Live, runs: Path, tmp_path: Path, name: str) -> None:
    assert live.draw(model=name, seeds=[1]) == [by_hand(runs / name, tmp_path / "a.png")]


def test_the_original_too_whatever_lies_on_it(live: Live, runs: Path, tmp_path: Path) -> None:
    wanted = by_hand(runs.parent / "model", tmp_path / "a.png")
    for name in ("lora", "full"):
        live.draw(model=name, seeds=[2])
        assert live.draw(model="model", seeds=[1]) == [wanted]


def test_between_original_and_tuned(live: Live, runs: Path, tmp_path: Path) -> None:
    wanted = by_hand(runs / "full", tmp_path / "a.png", "sample.strength=0.5")
    assert live.draw(model="full", seeds=[1], strength=0.5) == [wanted]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_both_models_draw_from_the_same_noise(live: Live, name: str) -> None:
    job = live.over(live.post(kind="compare", model=name, seeds=[1, 2]))
    assert [(p["kind"], p["seed"]) for p in job["pictures"]] == [
        ("original", 1),
        ("original", 2),
        ("tuned", 1),
        ("tuned", 2),
    ]
    files = [pixels(live.file(p)) for p in job["pictures"]]
    assert np.array_equal(files[0], pixels(live.draw(model="model", seeds=[1])[0]))
    assert np.array_equal(files[3], pixels(live.draw(model=name, seeds=[2])[0]))
    assert not np.array_equal(files[0], files[2])


def test_an_adapter_on_top_of_an_original(live: Live, runs: Path) -> None:
    stacked = live.draw(model="model", adapters=[{"id": "lora", "strength": 1.0}], seeds=[1])
    assert np.array_equal(pixels(stacked[0]), pixels(live.draw(model="lora", seeds=[1])[0]))


def test_from_a_picture_and_in_a_mask(live: Live, runs: Path, tmp_path: Path) -> None:
    begin = tiny.picture(5)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    names = {"image": upload(live, begin), "mask": upload(live, mask)}
    begin.save(tmp_path / "begin.png")
    wanted = by_hand(runs / "lora", tmp_path / "a.png", f"sample.image={tmp_path / 'begin.png'}")
    drawn = live.draw(kind="img2img", model="lora", seeds=[1], image=names["image"])
    assert np.array_equal(pixels(drawn[0]), pixels(wanted))
    painted = pixels(live.draw(kind="inpaint", model="lora", seeds=[1], **names)[0])
    assert np.array_equal(painted[:, 16:], np.asarray(begin)[:, 16:])
    assert not np.array_equal(painted[:, :16], np.asarray(begin)[:, :16])


def test_no_place_of_this_machine_is_in_a_picture(live: Live, runs: Path) -> None:
    name = upload(live, tiny.picture(5))
    job = live.over(live.post(kind="img2img", model="lora", image=name))
    for told in (json.dumps(job), json.dumps(live.http.get(f"/api/pictures/{job['pictures'][0]['id']}").json())):
        assert str(runs.parent) not in told
    info = Image.open(io.BytesIO(live.file(job["pictures"][0]))).info
    assert str(runs.parent) not in json.dumps(info, default=str)


# ---- F39: many at once


def test_200_requests_at_once_get_what_each_gets_alone(live: Live) -> None:
    seeds = [i % 10 for i in range(200)]

    def ask(seed: int) -> tuple[int, bytes]:
        return seed, live.draw(model=("lora", "model")[seed % 2], seeds=[seed], steps=1, previews=False)[0]

    with ThreadPoolExecutor(200) as many:
        together = list(many.map(ask, seeds))
    alone = dict(map(ask, range(10)))
    assert all(png == alone[seed] for seed, png in together)
    assert len(set(alone.values())) == 10


# ---- events


def test_events_tell_the_whole_way(live: Live) -> None:
    name = live.post(model="lora", seeds=[1, 2], steps=3)
    heard = list(live.events(name))
    kinds = [event for _, event, _ in heard]
    assert kinds[-1] == "done" and kinds.count("picture") == 2
    ids = [int(name.partition("-")[2]) for name, _, _ in heard]
    assert ids == sorted(set(ids))
    step = next(data for _, event, data in heard if event == "step")
    assert step["steps"] == 3 and step["pictures"] == 2
    assert [p["id"] for p in live.job(name)["pictures"]] == [d["id"] for _, e, d in heard if e == "picture"]


def test_a_preview_is_a_small_jpeg(live: Live) -> None:
    import base64

    heard = list(live.events(live.post(model="lora", steps=30, width=64, height=32)))
    shown = [data for _, event, data in heard if event == "preview"]
    assert shown
    image = Image.open(io.BytesIO(base64.b64decode(shown[0]["jpeg"])))
    assert image.format == "JPEG" and image.size == (64, 32)
    assert not [e for _, e, _ in live.events(live.post(model="lora", steps=30, previews=False)) if e == "preview"]


def test_last_event_id_goes_on_behind_it(live: Live) -> None:
    name = live.post(model="lora", seeds=[1, 2, 3])
    heard = list(live.events(name))
    middle = next(i for i, (_, event, _) in enumerate(heard) if event == "picture")
    after = list(live.events(name, headers={"last-event-id": heard[middle][0]}))
    assert [e for _, e, _ in after if e != "step"] == [
        e for _, e, _ in heard[middle + 1 :] if e not in ("step", "preview", "state")
    ]
    for strange in ("", "x", "other-5", "-", f"{heard[0][0].partition('-')[0]}-99999999999999999"):
        assert [e for _, e, _ in live.events(name, headers={"last-event-id": strange})].count("picture") == 3


# ---- F40: cancelled, left


def test_a_running_job_ends_at_its_next_step(live: Live) -> None:
    name = live.post(model="lora", steps=150, seeds=list(range(16)))
    events = live.events(name)
    next(e for e in events if e[1] == "step")
    live.http.delete(f"/api/jobs/{name}")
    assert [e for _, e, _ in events][-1] == "cancelled"
    assert live.job(name)["state"] == "cancelled" and len(live.job(name)["pictures"]) < 16
    assert live.job(live.post(model="lora")) and live.draw(model="lora")  # the next one is right


def test_a_job_ends_with_the_connection_that_it_is_attached_to(live: Live) -> None:
    name = live.post(model="lora", steps=150, seeds=list(range(16)))
    with live.http.stream("GET", f"/api/jobs/{name}/events", params={"attached": True}) as answer:
        next(answer.iter_lines())
    assert live.over(name)["state"] == "cancelled"


# ---- what goes wrong with one, and not with the next


def test_a_request_that_needs_too_much_memory_fails_alone(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sdtune.sample import sample as real
    from sdtune.serve import engine as engines
    from sdtune.serve import registry
    from sdtune.serve.setup import Setup
    from sdtune.serve.wish import Wish

    known, _ = registry.build([str(runs)])
    said = list[dict[str, Any]]()
    setup = Setup(known.dumped(), str(tmp_path), "cpu", "fp32", 1, batch=4)
    engine = engines.Engine(setup, lambda name: False, said.append)

    def short(*args: Any, **options: Any) -> Any:
        if ("greedy", 1) in options["pairs"]:
            raise torch.OutOfMemoryError
        return real(*args, **options)

    monkeypatch.setattr(engines, "sample", short)

    def job(number: int, prompt: str) -> dict[str, Any]:
        wish = Wish.model_validate({"model": "lora", "prompt": prompt, "seeds": [1], "steps": 1}).dumped()
        return {"id": f"{number:032x}", "wish": {**wish, "files": {}}, "numbers": [0]}

    engine.draw([job(1, "a dog"), job(2, "greedy"), job(3, "a cat")])
    ended = {s["job"][-1]: s["event"] for s in said if s["event"] in ("done", "failed")}
    assert ended == {"1": "done", "2": "failed", "3": "done"}
    assert next(s for s in said if s["event"] == "failed")["code"] == "out_of_memory"


def test_pictures_drawn_together_differ_in_a_last_bit_at_most(runs: Path, tmp_path: Path) -> None:
    """Why a CPU's batch is one: with more, 1 of 255 in a few values."""
    from sdtune.sample import sample

    config, opened = sdtune.open_model(runs / "lora", "train.precision=fp32", "train.device=cpu", "sample.steps=2")
    pairs = [("a red apple", 1), ("a blue dog", 2), ("a cat", 3)]

    def drawn(batch: int) -> list[Any]:
        return [
            np.asarray(p.image).astype(int)
            for p in sample(opened.model, dataclasses.replace(config.sample, batch_size=batch), pairs=pairs)
        ]

    assert max(int(abs(a - b).max()) for a, b in zip(drawn(1), drawn(3), strict=True)) <= 1


def test_the_worker_tells_what_it_holds(live: Live) -> None:
    def weights() -> int:
        lines = live.http.get("/metrics").text.splitlines()
        return int(next(line for line in lines if line.startswith("sdtune_weights_bytes")).split()[1])

    live.draw(model="lora")
    with_lora = live.until(weights)
    live.draw(model="full", seeds=[3])
    live.until(lambda: weights() > 1.4 * with_lora)  # the tuned U-Net beside the original's
    assert weights() < 2 * with_lora


def test_a_slow_listener_holds_nobody_up(live: Live) -> None:
    name = live.post(model="lora", steps=20, seeds=[1, 2])
    with httpx.stream("GET", f"{live.http.base_url}/api/jobs/{name}/events", timeout=30) as answer:
        assert live.over(name)["state"] == "done"
        assert "event: done" in "".join(answer.iter_text())
