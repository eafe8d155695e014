"""Features are taken once: by content, whole, by several processes, and whatever happens to the file."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sdtune.errors import EvaluationError
from sdtune.metrics import cache, encoders
from sdtune.metrics.looks import Look, Pixels
from sdtune.metrics.nets import trunks
from sdtune.metrics.registry import ENCODERS, Spec

Array = NDArray[np.float64]
SPEC = Spec("counting", "mean colours", "vit", (), 1, "", Look(8, "squash", "bicubic", (0.0,) * 3, (1.0,) * 3), 3)


class Counting(encoders.Encoder):
    """Mean colours; counts the pictures it looks at, and has memory for `most` at once."""

    def __init__(self, version: str = "1", most: int = 100) -> None:
        super().__init__(SPEC, "cpu", {"w": version})
        self.looked, self.most, self.batches = 0, most, list[int]()

    def prepare(self, image: Image.Image) -> Pixels:
        assert SPEC.look
        return SPEC.look(image)

    def encode(self, pictures: Sequence[Pixels]) -> Array:
        self.batches.append(len(pictures))
        if len(pictures) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.looked += len(pictures)
        return np.asarray(np.stack(pictures).mean((2, 3)), np.float64)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)) for _ in range(count)]


def test_a_picture_is_looked_at_once(tmp_path: Path) -> None:
    encoder, images = Counting(), pictures(5)
    first = cache.features(encoder, iter(images), folder=tmp_path)
    assert encoder.looked == 5
    images[2].save(tmp_path / "other.png")  # another name, the same pixels
    with Image.open(tmp_path / "other.png") as again:
        more = cache.features(encoder, [again, *pictures(1, seed=1), images[0]], folder=tmp_path)
    assert encoder.looked == 6
    assert np.array_equal(more[[0, 2]], first[[2, 0]])
    assert np.array_equal(cache.features(Counting(), images), first)  # without a folder
    assert first.dtype == np.float64 and first.shape == (5, 3)


def test_equal_pictures_of_a_batch_are_looked_at_once(tmp_path: Path) -> None:
    encoder, (image,) = Counting(), pictures(1)
    assert len(cache.features(encoder, [image] * 7, folder=tmp_path)) == 7 and encoder.looked == 1


def test_no_pictures() -> None:
    assert cache.features(Counting(), []).shape == (0, 3)


def test_another_encoder_finds_nothing(tmp_path: Path) -> None:
    cache.features(Counting("1"), pictures(3), folder=tmp_path)
    other = Counting("2")
    cache.features(other, pictures(3), folder=tmp_path)
    assert other.looked == 3


def test_size_is_part_of_the_key() -> None:
    flat = Image.new("RGB", (4, 6), "red")
    assert cache.key_of(flat) != cache.key_of(flat.resize((6, 4)))
    assert cache.key_of(flat) == cache.key_of(flat.convert("RGBA").convert("RGB"))


@pytest.mark.parametrize("damage", ["garbage", "cut", "row"])
def test_damage_is_computed_again(tmp_path: Path, damage: str) -> None:
    images = pictures(4)
    expected = cache.features(Counting(), images, folder=tmp_path)
    file = tmp_path / "counting.sqlite"
    if damage == "garbage":
        file.write_bytes(b"no database at all" * 1000)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        with sqlite3.connect(file) as db:
            db.execute("update features set data = zeroblob(24) where key = ?", (cache.key_of(images[1]),))
        db.close()
    encoder = Counting()
    assert np.array_equal(cache.features(encoder, images, folder=tmp_path), expected)
    assert encoder.looked == (1 if damage == "row" else 4)
    again = Counting()
    assert np.array_equal(cache.features(again, images, folder=tmp_path), expected) and again.looked == 0


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    encoder = Counting()
    assert len(cache.features(encoder, pictures(2), folder=tmp_path / "file")) == 2 and encoder.looked == 2


def fill(folder: Path, seed: int) -> None:
    cache.features(Counting(), pictures(150, seed), folder=folder, batch=5)


def test_several_processes_fill_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(tmp_path, seed)) for seed in (0, 1, 0)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    encoder = Counting()
    cache.features(encoder, pictures(150, 0) + pictures(150, 1), folder=tmp_path)
    assert encoder.looked == 0


def test_the_batch_is_halved_where_memory_does_not_suffice() -> None:
    encoder = Counting(most=3)
    assert np.array_equal(cache.features(encoder, pictures(10), batch=10), cache.features(Counting(), pictures(10)))
    assert encoder.batches == [10, 5, 2, 2, 2, 2, 2] and encoder.looked == 10
    with pytest.raises(EvaluationError, match=r"counting: not enough memory for one picture.*--device cpu"):
        cache.features(Counting(most=0), pictures(2))


def test_other_errors_are_told_as_they_are() -> None:
    class Broken(Counting):
        def encode(self, pictures: Sequence[Pixels]) -> Array:
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        cache.features(Broken(), pictures(2))


def test_progress_counts_pictures(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    cache.features(
        Counting(), iter(pictures(5)), total=5, batch=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_pairs_are_kept_too_and_may_differ_in_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = [torch.rand(c) for c in (64, 192, 384, 256, 256)]
    measure = encoders.Perceptual(ENCODERS["lpips-alex"], "cpu", {"a": "1"}, trunks.alexnet(), weights)
    rng = np.random.default_rng(0)
    sizes = ((40, 32), (32, 32), (40, 32))
    pairs = [tuple(Image.fromarray(rng.integers(0, 256, (*s, 3), np.uint8)) for _ in "ab") for s in sizes]
    both = [(a, b) for a, b in pairs]
    found = cache.distances(measure, iter(both), folder=tmp_path)
    alone = [float(measure.distances([measure.prepare(a, b)])[0]) for a, b in both]
    assert found == pytest.approx(alone, rel=1e-5)
    measure.distances = None  # type: ignore[assignment,method-assign]  # nothing is left to be looked at
    assert np.array_equal(cache.distances(measure, both, folder=tmp_path), found)
