"""Frames of about one area, and which picture gets which."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sdtune.data.batch import _chosen, turns, validation_batches
from sdtune.data.batch import batches as stream_of
from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.data.dataset import scan_folder
from sdtune.data.frames import Frame, Frames, cropped, family, scale, step_of
from sdtune.errors import ConfigError, DataError
from sdtune.families.sd1 import Sd1
from sdtune.model import Model
from tests import tiny

SDXL = """
512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472 704x1408 704x1344 768x1344 768x1280 832x1216
832x1152 896x1152 896x1088 960x1088 960x1024 1024x1024 1024x960 1088x960 1088x896 1152x896 1152x832 1216x832 1280x768 1344x768
1344x704 1408x704 1472x704 1536x640 1600x640 1664x576 1728x576 1792x576 1856x512 1920x512 1984x512 2048x512
"""
"""The sizes that SDXL was trained at: arXiv:2307.01952, appendix I."""


def frames(resolution: int = 512, grid: int = 8, **options: Any) -> Frames:
    return Frames(resolution, DataConfig(buckets=True, **options), grid=grid)


def test_at_1024_they_are_those_of_sdxl() -> None:
    assert set(map(str, family(1024, 64))) == set(SDXL.split())


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        (512, "512x512 256x960 256x1024 320x768 384x640 448x576 576x448 640x384 768x320 960x256 1024x256"),
        (
            768,
            (
                "768x768 384x1408 384x1472 384x1536 448x1216 448x1280 512x1088 512x1152 576x960 576x1024 640x832 640x896 704x768 704x832 "
                "768x704 832x640 832x704 896x640 960x576 1024x576 1088x512 1152x512 1216x448 1280x448 1408x384 1472x384 1536x384"
            ),
        ),
    ],
)
def test_at_512_and_768_they_are_these(resolution: int, sizes: str) -> None:
    assert set(map(str, family(resolution, 64))) == set(sizes.split())


@pytest.mark.parametrize("resolution", [64, 512, 768, 1024])
def test_the_square_is_one_and_no_area_is_larger(resolution: int) -> None:
    found = family(resolution, step_of(resolution, 8))
    assert found[0] == Frame(resolution, resolution) and len(set(found)) == len(found) >= 10
    assert all(0.9 * resolution**2 <= frame.pixels <= resolution**2 for frame in found)
    assert {Frame(f.height, f.width) for f in found} == set(found)


def test_steps() -> None:
    assert [step_of(side, 8) for side in (64, 256, 512, 1024)] == [8, 32, 64, 64]
    assert step_of(520, 8) == 64 and step_of(32, 8) == 8 and step_of(512, 8, 32) == 32
    with pytest.raises(DataError, match=r"data\.bucket_step: 20 is no multiple of 8"):
        step_of(512, 8, 20)
    with pytest.raises(ConfigError, match=r"data\.bucket_step: has an effect only with data\.buckets=true"):
        DataConfig(bucket_step=64)


@pytest.mark.parametrize(
    ("size", "frame"),
    [
        ((600, 600), (512, 512)), ((6000, 4000), (640, 384)), ((4000, 6000), (384, 640)), ((1920, 1080), (640, 384)),
        ((9000, 1000), (1024, 256)),
    ],
)  # fmt: skip
def test_a_picture_gets_the_frame_nearest_in_proportions(size: tuple[int, int], frame: tuple[int, int]) -> None:
    assert frames().of(size) == frame


def test_less_is_cut_away_than_from_squares() -> None:
    for width in range(512, 2048, 64):
        size = (width, 512)
        frame = frames().of(size)
        assert frame and cropped(size, frame) <= cropped(size, Frame(512, 512))
    assert cropped((1024, 512), Frame(512, 512)) == pytest.approx(0.5) and cropped((512, 512), Frame(512, 512)) == 0
    assert scale((256, 512), Frame(512, 512)) == 2


def test_small_pictures_keep_their_size_where_nothing_is_enlarged() -> None:
    assert frames(enlarge=True).of((300, 300)) == (512, 512)
    assert frames(enlarge=False).of((300, 300)) == (256, 256)
    assert frames(enlarge=False).of((512, 512)) == (512, 512)
    assert frames(enlarge=False).of((200, 200)) is None, "less than a quarter of the area"
    assert frames(enlarge=False).of((700, 300)) == (640, 256)
    assert frames(enlarge=False).of((9000, 300)) == (1024, 256), "long enough for a frame of the family"
    square = Frames(512, DataConfig(enlarge=False), grid=8)
    assert square.of((511, 600)) is None and square.of((512, 600)) == (512, 512)
    for size in ((400, 300), (333, 900), (513, 400)):
        own = frames(enlarge=False).of(size)
        assert own is None or scale(size, own) <= 1


# ---- turns


@pytest.mark.parametrize(("sizes", "batch"), [((3, 10, 1), 4), ((1, 7), 8), ((5,), 2), ((2, 0, 3), 16), ((40, 60), 1)])
def test_over_a_round_each_picture_is_shown_equally_often(sizes: tuple[int, ...], batch: int) -> None:
    """Whatever frame it has, and also where the frame has one picture, or fewer than a batch."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = [[torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)]]
    rounds, total = 3, sum(sizes)
    met = Counter(i for k in range(rounds * total) for i in _chosen(groups, 5, k, batch).tolist())
    if len(sizes) > 1:
        assert met == dict.fromkeys(range(total), rounds * batch)
    for k in range(total):
        frame = {
            next(f for f, s in enumerate(starts) if s <= i < s + sizes[f])
            for i in _chosen(groups, 5, k, batch).tolist()
        }
        assert len(frame) == 1, "a batch is of one frame"


def test_each_epoch_has_each_frames_share() -> None:
    sizes, batch = (30, 50, 20), 5
    frames_R, nths_R = turns(sizes, batch, 1, 2)
    for epoch in range(batch):
        counts = Counter(frames_R[epoch * 20 : (epoch + 1) * 20].tolist())
        assert all(abs(counts[f] - size / batch) < 1 for f, size in enumerate(sizes))
    for f, size in enumerate(sizes):
        assert nths_R[frames_R == f].tolist() == list(range(2 * size, 3 * size)), "each batch of a frame once, in order"
    again = turns.__wrapped__(sizes, batch, 1, 2)
    other = turns(sizes, batch, 2, 2)
    assert (again[0] == frames_R).all() and (other[0] != frames_R).any()


def test_two_groups_of_frames_come_in_turn() -> None:
    groups = [[torch.tensor([0, 1]), torch.tensor([2])], [torch.tensor([3]), torch.tensor([4, 5])]]
    for k in range(24):
        assert set(_chosen(groups, 0, k, 2).tolist()) <= ({0, 1, 2} if k % 2 == 0 else {3, 4, 5})
    assert Counter(i for k in range(24) for i in _chosen(groups, 0, k, 2).tolist()) == dict.fromkeys(range(6), 8)


# ---- in the cache, and in training


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Sd1(path=str(tiny.sd1_folder(tmp_path_factory.mktemp("base") / "model"))).load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    for i, size in enumerate([(64, 64), (96, 64), (64, 96), (90, 66), (128, 64), (300, 60)]):
        tiny.picture(i, size).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {tiny.WORDS[i]}")
    return folder


def filled(
    folder: Path, model: Model, tmp_path: Path, augment: bool = True, **options: Any
) -> tuple[Cache, DataConfig]:
    config = DataConfig(path=str(folder), **{"resolution": 32, "cache": str(tmp_path / "cache"), **options})
    cache = Cache.open(scan_folder(folder, config)[0], model, config, augment=augment)
    for _ in cache.fill():
        pass
    return cache, config


def test_each_batch_has_the_shape_of_its_frame(folder: Path, model: Model, tmp_path: Path) -> None:
    cache, config = filled(folder, model, tmp_path, buckets=True, flip=True)
    assert len(cache.frames) > 2
    met = Counter[int]()
    stream = stream_of(cache, config, batch_size=4, seed=0, start=0)
    for _ in range(18):
        batch = next(stream)
        (frame,) = {cache.frames[i] for i in cache.frame_N[batch.indices_B].tolist()}
        shape = (frame.height // model.downscale, frame.width // model.downscale)
        assert batch.latents_BCHW.shape[2:] == shape
        met.update(batch.indices_B.tolist())
    assert met == dict.fromkeys(range(6), 12)
    assert max(f.width / f.height for f in cache.frames) > 3, "the long one is not cut to a square"


def test_what_is_encoded_is_the_picture_in_its_frame(folder: Path, model: Model, tmp_path: Path) -> None:
    from sdtune.data.images import crop_boxes, load_image, pixels_from, to_frame

    cache, _ = filled(folder, model, tmp_path, buckets=True)
    for item, example in enumerate(cache.examples):
        frame = cache.frames[int(cache.frame_N[item])]
        (box,) = crop_boxes(example.size, "center", 1, "", frame)
        direct = model.encode_images(pixels_from([to_frame(load_image(example.image), frame, box=box)]))
        kept = cache.latents(torch.tensor([item]), torch.tensor([0]))
        torch.testing.assert_close(kept.mean_BCHW, direct.mean_BCHW, atol=1e-5, rtol=1e-4)
        assert abs(math.log((box[2] - box[0]) / (box[3] - box[1]) / (frame.width / frame.height))) < 0.05


def test_several_resolutions(folder: Path, model: Model, tmp_path: Path) -> None:
    """Each picture once an epoch at each; validation at the first alone."""
    cache, config = filled(folder, model, tmp_path, resolution=(32, 64))
    assert [f.width for f in cache.frames] == [32, 64] and len(cache) == 12 and cache.pictures == 6
    sides = Counter[int]()
    for _, batch in zip(range(24), stream_of(cache, config, batch_size=2, seed=0, start=0), strict=False):
        sides[batch.latents_BCHW.shape[-1] * model.downscale] += 1
    assert sides == {32: 12, 64: 12}
    held_out, _ = filled(folder, model, tmp_path, resolution=(32, 64), augment=False)
    (batch,) = validation_batches(held_out)
    assert batch.latents_BCHW.shape[-1] * model.downscale == 32 and len(batch.indices_B) == 6


def test_pictures_that_are_left_out_are_told(folder: Path, model: Model, tmp_path: Path) -> None:
    cache, _ = filled(folder, model, tmp_path, resolution=64, enlarge=False)
    assert cache.notes == ["1 picture smaller than 64 pixels, left out (data.enlarge=false): 5.png"] and len(cache) == 5
    with pytest.raises(
        DataError, match=r"6 pictures, and all are smaller than data\.resolution=256 .* lower the resolution"
    ):
        filled(folder, model, tmp_path, resolution=256, enlarge=False)
    with pytest.raises(DataError, match=r"data\.resolution: 33 is no multiple of 2"):
        filled(folder, model, tmp_path, resolution=33)


def test_colours_are_variants_beside_cuts_and_mirrors(folder: Path, model: Model, tmp_path: Path) -> None:
    cache, config = filled(folder, model, tmp_path, crop="random", crops=2, flip=True, jitter=0.2, jitters=3)
    means = [cache.latents(torch.arange(6), torch.full((6,), v)).mean_BCHW for v in range(12)]
    assert all(not torch.equal(means[a], means[b]) for a in range(12) for b in range(a))
    plain, _ = filled(folder, model, tmp_path, crop="random", crops=2, flip=True)
    for v in range(4):
        assert torch.equal(means[v], plain.latents(torch.arange(6), torch.full((6,), v)).mean_BCHW), (
            "the first as it is"
        )
    met = set()
    torch.manual_seed(0)
    for _, batch in zip(range(60), stream_of(cache, config, batch_size=6, seed=0, start=0), strict=False):
        for i, latents in zip(batch.indices_B.tolist(), batch.latents_BCHW, strict=True):
            met.add((i, int(torch.stack([(m[i] - latents).square().mean() for m in means]).argmin())))
    assert len(met) > 60
