"""Batches as a function of (seed, k): nothing lost, nothing doubled, rates as asked, resumed exactly."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from sdtune.data import batch as batch_module
from sdtune.data.batch import Batch, ahead, batches, validation_batches
from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.data.dataset import scan_folder
from sdtune.data.frames import Frame
from sdtune.data.index import Index
from sdtune.families.sd1 import Sd1
from sdtune.model import Cond, Latents, Model
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Sd1(path=str(tiny.sd1_folder(tmp_path_factory.mktemp("base") / "model"))).load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    captions: list[str | list[str]] = [[f"{w} one", f"{w} two", f"{w} three"] for w in tiny.WORDS[:7]]
    return tiny.imagefolder(tmp_path_factory.mktemp("data") / "set", captions)


def config_of(folder: Path, dropout: float = 0.1, flip: bool = False) -> DataConfig:
    return DataConfig(
        path=str(folder), cache=str(folder.parent / "cache"), caption_dropout=dropout, flip=flip, crop="random", crops=2
    )


def cache_of(folder: Path, model: Model, config: DataConfig) -> Cache:
    cache = Cache.open(scan_folder(folder, config)[0], model, config, resolution=32)
    for _ in cache.fill():
        pass
    return cache


@pytest.fixture(scope="module")
def cache(folder: Path, model: Model) -> Cache:
    return cache_of(folder, model, config_of(folder, flip=True))


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.latents_BCHW, b.latents_BCHW)
        and torch.equal(a.cond.states_BLD, b.cond.states_BLD)
        and torch.equal(a.weight_B, b.weight_B)
    )


def take(cache: Cache, config: DataConfig, count: int, start: int = 0, seed: int = 5, size: int = 4) -> list[Batch]:
    return list(islice(batches(cache, config, batch_size=size, seed=seed, start=start), count))


def test_repeats_show_a_picture_more_often_in_each_epoch(folder: Path, model: Model) -> None:
    config = config_of(folder)
    examples = [replace(e, repeats=3 if i == 2 else 1) for i, e in enumerate(scan_folder(folder, config)[0])]
    cache = Cache.open(examples, model, config, resolution=32)
    for _ in cache.fill():
        pass
    for epoch in (0, 1):
        seen = [int(b.indices_B) for b in take(cache, config, 9, start=9 * epoch, size=1)]
        assert Counter(seen) == {i: 3 if i == 2 else 1 for i in range(7)}


class Telling(Cache):
    """A cache whose latents say which picture and variant they are, whose text states say which row."""

    def __init__(self, count: int, captions: int, crops: int, flip: bool) -> None:
        self.weights_N = torch.arange(count) / 10
        self.groups, self.crops, self.flips, self.colours = [[torch.arange(count)]], crops, flip, 1
        columns = {
            "example_N": torch.arange(count),
            "first_E1": torch.arange(count + 1) * captions,
            "caption_K": 1 + torch.arange(count * captions),
        }
        self._index = Index(columns, [Frame(8, 8)], {}, {})

    def latents(self, indices_B: Tensor, variant_B: Tensor) -> Latents:
        self.asked = indices_B, variant_B
        mean_BCHW = indices_B.float().view(-1, 1, 1, 1).expand(-1, 4, 8, 8)
        return Latents(mean_BCHW, torch.zeros_like(mean_BCHW))

    def cond(self, rows_B: Tensor) -> Tensor:  # type: ignore[override]
        return rows_B

    def sized(self, cond: Cond, *_: Tensor) -> Cond:
        return cond


def visits(cache: Telling, config: DataConfig, count: int, *, size: int, seed: int = 0, start: int = 0) -> Tensor:
    """Picture, variant, text row and noise of each visit, one row each, over `count` batches."""
    found: list[Tensor] = []
    for b in islice(batches(cache, config, batch_size=size, seed=seed, start=start), count):
        noise_B = b.latents_BCHW[:, 0, 0, 0] - cache.asked[0]
        found.append(torch.stack([*(a.double() for a in cache.asked), b.cond.double(), noise_B.double()], 1))  # type: ignore[attr-defined]
    return torch.cat(found)


@pytest.mark.parametrize("start", [1, 3, 17])
def test_a_start_in_the_middle_is_exactly_what_was_left(start: int, cache: Cache, folder: Path) -> None:
    config = config_of(folder, flip=True)
    whole = take(cache, config, 20)
    assert all(map(same, whole[start:], take(cache, config, 20 - start, start)))
    assert not any(same(a, b) for i, a in enumerate(whole) for b in whole[i + 1 :])


def test_three_resumes_equal_one_run(cache: Cache, folder: Path) -> None:
    config = config_of(folder, flip=True)
    parts: list[Batch] = []
    for length in (3, 1, 8, 4):
        batch_module._order.cache_clear()
        torch.manual_seed(length)  # the global generator has no part in it
        parts += take(cache, config, length, start=len(parts))
    assert all(map(same, parts, take(cache, config, 16)))


def test_a_cache_read_from_disk_gives_the_same_batches(cache: Cache, folder: Path, model: Model) -> None:
    config = config_of(folder, flip=True)
    assert all(map(same, take(cache, config, 5), take(cache_of(folder, model, config), config, 5)))


@pytest.mark.parametrize("count, size", [(7, 4), (7, 7), (5, 12), (1, 3), (6, 1)])
def test_each_epoch_shows_each_picture_once(count: int, size: int) -> None:
    epochs = 12
    order = visits(Telling(count, 2, 1, False), DataConfig(), -(-epochs * count // size), size=size)[:, 0].long()
    shown = [order[e * count : (e + 1) * count].tolist() for e in range(epochs)]
    assert all(sorted(epoch) == list(range(count)) for epoch in shown)
    assert len({tuple(epoch) for epoch in shown}) > (6 if count > 2 else 0)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_groups_come_in_turn_each_at_its_own_pace(size: int) -> None:
    """Three pictures of mine, seven of the class: half of what is shown is mine, and each epoch of either is whole."""
    cache = Telling(10, 1, 1, False)
    cache.groups = [[torch.tensor([0, 4, 9])], [torch.tensor([1, 2, 3, 5, 6, 7, 8])]]
    shown = visits(cache, DataConfig(), -(-84 // size), size=size)[:84, 0].long()
    mine, others = shown[::2].tolist(), shown[1::2].tolist()
    assert all(sorted(mine[i : i + 3]) == [0, 4, 9] for i in range(0, 42, 3))
    assert all(sorted(others[i : i + 7]) == [1, 2, 3, 5, 6, 7, 8] for i in range(0, 42, 7))
    later = visits(cache, DataConfig(), 3, size=size, start=2)[:, 0].long()
    assert torch.equal(later, shown[2 * size : 5 * size])


def test_order_is_that_of_the_stream_not_of_the_batch() -> None:
    """Two half batches show the pictures of one whole batch."""
    cache = Telling(10, 1, 1, False)
    whole, halves = (visits(cache, DataConfig(), n, size=s)[:, 0] for n, s in ((6, 8), (12, 4)))
    assert torch.equal(whole, halves)


def test_seeds_differ() -> None:
    cache = Telling(50, 3, 2, True)
    a, b = (visits(cache, DataConfig(), 10, size=10, seed=s) for s in (0, 1))
    assert ((a == b).double().mean(0) < torch.tensor([0.2, 0.6, 0.2, 0.05])).all()
    assert torch.equal(a, visits(cache, DataConfig(), 10, size=10, seed=0))
    assert len(visits(cache, DataConfig(), 1, size=10, seed=-3)) == 10


def near(share: float, expected: float, n: int) -> bool:
    """Within four standard deviations of a binomial share."""
    return bool(abs(share - expected) <= 4 * (expected * (1 - expected) / n) ** 0.5)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked(rate: float) -> None:
    rows = visits(Telling(20, 3, 1, False), DataConfig(caption_dropout=rate), 250, size=16)[:, 2]
    assert near((rows == 0).double().mean().item(), rate, len(rows))


def test_flips_crops_and_captions_are_drawn_evenly_and_apart() -> None:
    found = visits(Telling(20, 3, 2, True), DataConfig(caption_dropout=0.25), 400, size=16)
    picture, variant, row, noise = found.unbind(1)
    assert all(near((variant == v).double().mean().item(), 1 / 4, len(found)) for v in range(4))
    caption = (row - 1) % 3
    shown = row > 0
    assert all(near((caption[shown] == c).double().mean().item(), 1 / 3, int(shown.sum())) for c in range(3))
    assert ((row[shown] - 1) // 3 == picture[shown]).all()
    for a, b in ((variant >= 2, row == 0), (variant % 2 == 0, variant >= 2), (caption == 0, variant % 2 == 0)):
        together, apart = (a & b).double().mean().item(), a.double().mean().item() * b.double().mean().item()
        assert near(together, apart, len(found))
    assert near(noise.mean().item() / 2 + 0.5, 0.5, len(found))
    assert abs(noise.std().item() - 1) < 0.05


def test_no_mirrored_pictures_unless_asked() -> None:
    assert visits(Telling(9, 1, 2, False), DataConfig(), 50, size=8)[:, 1].unique().tolist() == [0, 1]


def test_a_setting_does_not_shift_the_other_draws() -> None:
    cache = Telling(20, 3, 2, True)
    a, b = (visits(cache, DataConfig(caption_dropout=p), 20, size=8) for p in (0.0, 0.3))
    assert torch.equal(a[:, [0, 1, 3]], b[:, [0, 1, 3]])
    kept = b[:, 2] > 0
    assert torch.equal(a[kept], b[kept])
    plain = visits(Telling(20, 3, 2, False), DataConfig(caption_dropout=0), 20, size=8)
    assert torch.equal(plain[:, [0, 2, 3]], a[:, [0, 2, 3]])


def test_noise_is_new_at_each_visit() -> None:
    noise = visits(Telling(3, 1, 1, False), DataConfig(), 50, size=4)[:, 3]
    assert len(noise.unique()) == len(noise)


def test_weights_follow_their_pictures() -> None:
    cache = Telling(10, 1, 1, False)
    for b in islice(batches(cache, DataConfig(), batch_size=4, seed=0, start=0), 5):
        assert torch.equal(b.weight_B, cache.asked[0] / 10)


def test_batches_hold_what_the_cache_holds(cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture goes with one of its own captions, and its latents are drawn around one of its own views."""
    views = [cache.latents(torch.arange(len(cache)), torch.full((len(cache),), v)) for v in range(4)]
    own = [
        [cache.cond(cache.caption_rows(torch.tensor([i]), torch.tensor([s]))) for s in (0.1, 0.5, 0.9)]
        for i in range(7)
    ]
    monkeypatch.setattr(Latents, "sample", lambda latents, _: latents.mean_BCHW)
    met: Counter[int] = Counter()
    for b in take(cache, config_of(folder, dropout=0.0, flip=True), 14):
        for latents_CHW, states_LD in zip(b.latents_BCHW, b.cond.states_BLD, strict=True):
            distance = torch.stack([(v.mean_BCHW - latents_CHW).square().mean((1, 2, 3)) for v in views]).amin(0)
            picture = int(distance.argmin())
            met[picture] += 1
            assert any(torch.equal(c.states_BLD[0], states_LD) for c in own[picture])
    assert met == dict.fromkeys(range(7), 8)


def test_validation_leaves_nothing_to_chance(folder: Path, model: Model) -> None:
    config = config_of(folder, dropout=1.0, flip=True)
    cache = Cache.open(scan_folder(folder, config)[0], model, config, resolution=32, augment=False)
    for _ in cache.fill():
        pass
    batch = validation_batches(cache)[0]
    assert same(batch, validation_batches(cache)[0])
    first = [e.captions[0] for e in cache.examples]
    assert torch.allclose(batch.cond.states_BLD, model.encode_prompts(first).states_BLD, atol=1e-5)
    mean_BCHW = cache.latents(torch.arange(7), torch.zeros(7, dtype=torch.long)).mean_BCHW
    assert torch.equal(batch.latents_BCHW, mean_BCHW)
    assert batch.weight_B.tolist() == [1.0] * 7


def best_ms(cache: Cache, config: DataConfig, rounds: Sequence[int] = range(5)) -> float:
    stream, times = batches(cache, config, batch_size=16, seed=0, start=0), list[float]()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting for another thread counts as processor time
    next(stream)
    for _ in rounds:
        began = time.process_time()
        for _ in islice(stream, 50):
            pass
        times.append((time.process_time() - began) / 50 * 1000)
    torch.set_num_threads(threads)
    return min(times)


def test_a_batch_costs_a_millisecond(cache: Cache, folder: Path) -> None:
    """16 pictures with latents of 4x16x16, in processor time on one core."""
    assert cache.latents(torch.tensor([0]), torch.tensor([0])).mean_BCHW.shape == (1, 4, 16, 16)
    assert best_ms(cache, config_of(folder, flip=True)) < 2  # on a machine that is busy


def test_what_makes_batches_ahead_has_no_helpers() -> None:
    """With them OpenMP has more threads than cores, and each operation of a step waits for others to wake: 1.6 times its time."""

    def made() -> Iterator[tuple[int, int]]:
        while True:
            torch.ones(1_000_000).exp_()  # large enough to be computed in parallel
            yield torch.get_num_threads(), psutil.Process().num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        torch.ones(1_000_000).exp_()
        threads = psutil.Process().num_threads()
        with closing(ahead(made(), 2)) as stream:
            assert [next(stream) for _ in range(3)] == [(1, threads + 1)] * 3
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
