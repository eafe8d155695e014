"""What the server does with several workers, with mixed batches, and with a folder that fills: on the queue and files alone, no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdtune.errors import SdtuneError
from sdtune.serve import keeping, registry
from sdtune.serve.dispatch import Dispatcher, split
from sdtune.serve.limits import Limits
from sdtune.serve.queue import Job, Queue
from sdtune.serve.registry import Registry
from sdtune.serve.setup import Setup
from sdtune.serve.store import Store, picture_id
from sdtune.serve.wish import Wish
from sdtune.serve.workers import Worker
from tests.serve.conftest import App, run


def wish(**changes: Any) -> dict[str, Any]:
    return Wish.model_validate({"prompt": "a", "seeds": [1], "model": "lora", **changes}).dumped()


# ---- who draws what


class Bench:
    """A dispatcher whose workers are as said, and what each was told to draw."""

    def __init__(self, app: App, *held: list[str]) -> None:
        self.dispatcher: Dispatcher = app.server.dispatcher
        self.queue = self.dispatcher.queue
        self.orders: list[list[dict[str, Any]]] = [[] for _ in held]
        for number, models in enumerate(held):
            worker = Worker(number, lambda: self.dispatcher.setup, self.dispatcher._hear, self.dispatcher._lost)
            worker.ready, worker.about = True, {"device": "cpu", "batch": 1, "models": models, "memory": {}}
            worker.tell = lambda told, n=number: self.orders[n].append(told)  # type: ignore[method-assign, misc]
            self.dispatcher.workers.append(worker)

    def give(self) -> list[list[list[int]]]:
        """The numbers of the pictures that each worker got, order by order."""
        while self.dispatcher._give():
            pass
        return [[o["numbers"] for told in orders for o in told.get("draw", ())] for orders in self.orders]

    def hear(self, worker: int, job: Job, event: str, **more: Any) -> None:
        self.dispatcher._hear(self.dispatcher.workers[worker], {"job": job.id, "event": event, **more})

    def state(self, job: Job) -> str:
        found = self.queue.get(job.id)
        assert found
        return found.state


@pytest.fixture
def bench(make_app: Callable[..., App]) -> Callable[..., Bench]:
    return lambda *held: Bench(make_app(), *held)


def test_both_models_of_a_comparison_are_drawn_at_once_by_two_workers(bench: Callable[..., Bench]) -> None:
    two = bench(["model"], ["model"])
    job = two.queue.add(wish(kind="compare", seeds=[1, 2]), "me")
    assert two.give() == [[[0, 1]], [[2, 3]]]
    two.hear(0, job, "done")
    assert two.state(job) == "running"
    two.hear(1, job, "done")
    assert two.state(job) == "done"


def test_a_job_takes_no_worker_that_another_job_waits_for(bench: Callable[..., Bench]) -> None:
    two = bench(["model"], ["model"])
    for _ in range(2):
        two.queue.add(wish(kind="compare"), "me")
    assert two.give() == [[[0, 1]], [[0, 1]]]


def test_an_idle_worker_with_the_model_is_preferred(bench: Callable[..., Bench]) -> None:
    three = bench([], ["model", "full"], ["model", "lora"])
    three.queue.add(wish(), "me")
    assert three.give() == [[], [], [[0]]]
    three.queue.add(wish(), "me")
    assert three.give() == [[], [[0]], [[0]]]


def test_a_part_that_fails_ends_the_job_and_stops_the_other_part(bench: Callable[..., Bench]) -> None:
    two = bench(["model"], ["model"])
    job = two.queue.add(wish(kind="compare"), "me")
    two.give()
    two.hear(0, job, "failed", code="out_of_memory", message="too little")
    assert two.state(job) == "failed" and two.orders[1][-1] == {"cancel": job.id}
    two.hear(1, job, "cancelled")
    assert two.state(job) == "failed" and not two.dispatcher.running


def test_a_cancelled_job_is_cancelled_though_one_part_was_done(bench: Callable[..., Bench]) -> None:
    two = bench(["model"], ["model"])
    job = two.queue.add(wish(kind="compare"), "me")
    two.give()
    two.hear(0, job, "done")
    two.dispatcher.cancel(job)
    assert two.orders[1][-1] == {"cancel": job.id}
    two.hear(1, job, "cancelled")
    assert two.state(job) == "cancelled"


def test_a_lost_worker_takes_its_own_jobs_alone(bench: Callable[..., Bench]) -> None:
    two = bench(["model"], ["model"])
    jobs = [two.queue.add(wish(), "me") for _ in range(2)]
    two.give()
    two.dispatcher._lost(two.dispatcher.workers[0], "signal 9")
    assert [two.state(job) for job in jobs] == ["failed", "running"]
    assert [row["drawing"] for row in two.dispatcher.status()] == [[], [jobs[1].id]]


def test_further_workers_start_where_the_first_says(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, hired = bench([]), list[str]()
    monkeypatch.setattr(one.dispatcher, "_hire", hired.append)
    up = {"up": True, "device": "cuda", "precision": "float16", "batch": 8, "others": ["cuda:1"]}
    one.dispatcher._hear(one.dispatcher.workers[0], up)
    assert hired == ["cuda:1"]
    assert Setup([], "", "cuda:0,cuda:2").devices == ["cuda:0", "cuda:2"]
    assert Setup([], "", "cpu", workers=2).devices == ["cpu", "cpu"] and Setup([], "", workers=2).devices == ["auto"]


@pytest.mark.parametrize(
    ("count", "parts", "wanted"), [(4, 2, [[0, 1], [2, 3]]), (1, 3, [[0]]), (0, 2, [[]]), (3, 2, [[0, 1], [2]])]
)
def test_pictures_are_split_into_neighbours(count: int, parts: int, wanted: list[list[int]]) -> None:
    assert [list(part) for part in split(range(count), parts)] == wanted


def test_figures_are_of_each_worker(bench: Callable[..., Bench]) -> None:
    from sdtune.serve import metrics

    two = bench(["model"], ["model"])
    two.dispatcher.workers[1].about["memory"] = {"weights": 5, "used": 7}
    text = metrics.text(two.dispatcher, Counter())
    assert 'sdtune_weights_bytes{worker="1",device="cpu"} 5' in text
    assert 'sdtune_worker_ready{worker="0",device="cpu"} 1' in text


# ---- what is kept


class Folder:
    def __init__(self, place: Path) -> None:
        self.store, self.queue = Store(place), Queue(place / "queue.sqlite")

    def job(self, *numbers: int, state: str = "done", seeds: int = 4, **changes: Any) -> Job:
        """A job with some pictures in the table and on the disk."""
        job = self.queue.add(wish(seeds=list(range(seeds)), **changes), "me")
        self.queue.start([job.id])
        for number in numbers:
            self.write(job, number)
            self.queue.add_picture(picture_id(job.id, number), job.id, number, "tuned", {"seed": number})
        if state != "running":
            self.queue.end(job.id, state)  # type: ignore[arg-type]
        return job

    def write(self, job: Job, number: int, *, whole: bool = True) -> Path:
        path = self.store.path(picture_id(job.id, number), "tuned")
        Image.new("RGB", (4, 4)).save(path)
        if whole:
            path.with_suffix(".json").write_text(json.dumps({"seed": number, "tuned": "x"}))
        return path

    def there(self) -> int:
        return len(list(self.store.pictures.glob("*.png")))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "served")


def test_the_oldest_pictures_go_and_the_jobs_that_are_as_old(folder: Folder) -> None:
    old, middle, new = folder.job(0, 1), folder.job(0, 1), folder.job(0, 1)
    keeping.prune(folder.queue, folder.store, 3)
    assert [len(folder.queue.pictures_of(job.id)) for job in (old, middle, new)] == [0, 1, 2] and folder.there() == 3
    assert (
        folder.queue.get(old.id) is None
        and folder.queue.get(middle.id)
        and not list(folder.store.pictures.glob(f"{old.id}*"))
    )


def test_what_an_open_job_needs_stays(folder: Folder) -> None:
    begins, running = folder.job(0), folder.job(0, 1, state="running")
    folder.queue.add(wish(kind="img2img", image=picture_id(begins.id, 0)), "me")
    keeping.prune(folder.queue, folder.store, 1)
    assert folder.there() == 3 and folder.queue.get(running.id)


def test_jobs_without_pictures_do_not_pile_up(folder: Folder) -> None:
    jobs = [folder.job(state="failed") for _ in range(5)]
    keeping.prune(folder.queue, folder.store, 3)
    assert [bool(folder.queue.get(job.id)) for job in jobs] == [False, False, True, True, True]


def test_a_start_takes_up_whole_pictures_that_nobody_heard_of(folder: Folder) -> None:
    job = folder.job(0, state="running")
    folder.write(job, 1)
    folder.write(job, 2, whole=False)  # killed between the picture and its JSON
    assert len(list(keeping.settle(folder.queue, folder.store, 100))) == 1
    assert [(p.number, p.kind) for p in folder.queue.pictures_of(job.id)] == [(0, "tuned"), (1, "tuned")]
    assert folder.there() == 2


def test_a_start_copes_with_files_that_are_gone_and_files_that_are_strange(folder: Folder) -> None:
    job = folder.job(0, 1, state="running")
    folder.store.path(picture_id(job.id, 0), "tuned").unlink()
    (folder.store.pictures / f"{'a' * 32}.png").write_bytes(b"x")
    mine = folder.store.pictures / "mine.png"
    mine.write_bytes(b"x")
    told = list(keeping.settle(folder.queue, folder.store, 100))
    assert [line.split(" of ")[0].split(" are ")[0] for line in told] == ["1 pictures", "1 files were"]
    assert [p.number for p in folder.queue.pictures_of(job.id)] == [1]
    assert folder.there() == 2 and mine.exists()  # what is not named as ours is not touched


def test_the_server_lets_old_pictures_go_as_it_draws(make_app: Callable[..., App]) -> None:
    app = make_app(Limits(pictures=2))
    dispatcher = app.server.dispatcher
    two = Bench(app, ["model"])
    for seed in range(4):
        job = two.queue.add(wish(), "me")
        two.give()
        name = picture_id(job.id, 0)
        Image.new("RGB", (4, 4)).save(dispatcher.store.path(name, "tuned"))
        two.hear(0, job, "picture", id=name, number=0, kind="tuned", record={"seed": seed})
        two.hear(0, job, "done")
        dispatcher._hear(dispatcher.workers[0], {"idle": True, "memory": {}, "models": []})
    assert (
        len(list(dispatcher.store.pictures.glob("*.png"))) == 2 == len(run(app.client.get("/api/jobs")).json()["jobs"])
    )


# ---- F33, F36: what the command line names


def safetensors(
    file: Path, entries: dict[str, tuple[int, ...]], *, header: bytes = b"", size: int | None = None, **metadata: str
) -> Path:
    """A file of zeros in fp16, or of any header."""
    told: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, shape in entries.items():
        count = 2
        for side in shape:
            count *= side
        told[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + count]}
        at += count
    text = header or json.dumps(told).encode()
    file.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + bytes(at))
    return file


LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_" + LAYER.replace(".", "_")
OVERLAP = json.dumps({n: {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]} for n in ("a", "b")}).encode()
WIDE = 128
"""Of that layer in the embedded base."""


@pytest.mark.parametrize(
    ("entries", "options", "says"),
    [
        ({}, {"header": b"{}", "size": 2**63}, "ends too early"),
        ({}, {"header": OVERLAP}, "cannot be read as safetensors"),
        ({}, {"header": b'{"a":' + b" " * (11 * 2**20) + b"1}"}, "header has 11 MB"),
        ({}, {"header": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"}, "cannot be read as safetensors"),
        ({"a": (2, 2), "b": (2, 2), "c": (2,)}, {"note": "<script>alert(1)</script>"}, "none of its 3 keys"),
        ({f"{LAYER}.lora_A.weight": (4, 1280), f"{LAYER}.lora_B.weight": (1280, 4)}, {}, "0 of 1 adapted layers fit embedded"),
        ({"unet.strange.lora_A.weight": (4, 8), "unet.strange.lora_B.weight": (8, 4)}, {}, "0 of 1 adapted layers fit embedded"),
        ({f"{LAYER}.lora_A.weight": (4, WIDE), f"{LAYER}.lora_B.weight": (WIDE, 8)}, {}, "ranks 4 and 8"),
        (
            {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 768)},
            {"sdtune": '{"base": "sd15"}'},
            "0 of 1 adapted layers fit embedded.*made for sd15",
        ),
    ],
)  # fmt: skip
def test_a_file_that_cannot_lie_on_the_base_is_named_with_the_reason(
    tmp_path: Path, entries: dict[str, tuple[int, ...]], options: dict[str, Any], says: str
) -> None:
    import time
    import tracemalloc

    file = safetensors(tmp_path / "bad.safetensors", entries, **options)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(SdtuneError, match=rf"bad\.safetensors: .*{says}") as caught:
        registry.build([str(file)])
    assert "\n" not in str(caught.value) and time.process_time() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("layer", [LAYER, KOHYA])
def test_a_file_that_fits_is_served_and_a_bad_one_beside_it_left_out(tmp_path: Path, layer: str) -> None:
    ends = (".lora_A.weight", ".lora_B.weight") if layer == LAYER else (".lora_down.weight", ".lora_up.weight")
    safetensors(
        tmp_path / "good.safetensors",
        dict(zip((layer + ends[0], layer + ends[1]), ((4, WIDE), (WIDE, 4)), strict=True)),
    )
    safetensors(tmp_path / "bad.safetensors", {}, header=b"{}", size=2**63)
    known, notes = registry.build([str(tmp_path)])
    assert list(known.entries) == ["good", "embedded"]
    (note,) = notes
    assert note.startswith("left out: ") and "bad.safetensors" in note and "ends too early" in note


def test_the_registry_goes_to_a_worker_as_it_is_at_its_start(
    make_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = make_app().server.dispatcher
    monkeypatch.setattr(dispatcher, "_go", lambda work: work.close())
    dispatcher._hire("cpu")
    first = dispatcher.registry.first
    dispatcher.registry.entries["later"] = first
    assert len(dispatcher.workers[0]._setup().entries) == len(dispatcher.registry.entries)
    assert isinstance(dispatcher.registry, Registry)


# ---- F39: more than wait


def test_of_200_at_once_8_wait_and_the_rest_are_refused_at_once(make_app: Callable[..., App]) -> None:
    import asyncio
    import time

    app = make_app(Limits(queue=8))

    async def many() -> tuple[list[int], float]:
        began = time.process_time()
        answers = await asyncio.gather(*(app.post({"prompt": "a"}) for _ in range(200)))
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
        return [answer.status_code for answer in answers], time.process_time() - began

    codes, seconds = run(many())
    assert (codes.count(202), codes.count(429)) == (8, 192)
    assert seconds / 200 < 0.1
