"""Inpainting models are trained on holes: their shapes, what is cached of them, and what the U-Net is told."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sdtune import config as configs
from sdtune.data.batch import batches, validation_batches
from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.data.dataset import scan_folder
from sdtune.data.holes import hole
from sdtune.data.images import crop_boxes, load_image, pixels_from, to_frame
from sdtune.events import Encoding, Step
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny


def test_holes_are_varied_and_always_the_same() -> None:
    assert hole((16, 16), "a", 0).all() and hole((16, 16), "a", 4).all()
    shapes = [hole((32, 32), key, n) for key in "abcdefgh" for n in (1, 2, 3, 5, 6, 7)]
    shares = [float(s.mean()) for s in shapes]
    assert all(0.03 < share < 0.75 for share in shares) and max(shares) > 2 * min(shares)
    assert len({s.tobytes() for s in shapes}) == len(shapes)
    assert all(set(np.unique(s)) == {0.0, 1.0} and s.dtype == np.float32 for s in shapes)
    assert np.array_equal(hole((32, 32), "a", 3), hole((32, 32), "a", 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("holes")
    tiny.imagefolder(place / "pictures", ["a dog", "a cat", "a sun"])
    tiny.family_folder("sd1-inpainting", place / "model")
    tiny.sd1_folder(place / "plain")
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return configs.load(None, [f"model.path={folder / 'model'}"]).model.load()


def cache_of(folder: Path, model: Model, **options: object) -> tuple[Cache, DataConfig]:
    config = DataConfig(path=str(folder / "pictures"), cache=str(folder / "cache"), **options)  # type: ignore[arg-type]
    cache = Cache.open(scan_folder(folder / "pictures", config)[0], model, config, resolution=32)
    list(cache.fill())
    return cache, config


def test_what_is_given_is_the_hole_and_the_rest_of_the_picture(folder: Path, model: Model) -> None:
    cache, _ = cache_of(folder, model, flip=True, holes=3)
    picture, variant = torch.tensor([1, 1]), torch.tensor([0, 1])  # as it is, and mirrored
    given = cache.with_given(cache.cond(torch.zeros(2).long()), picture, variant, torch.tensor([0.4, 0.9])).given_BCHW
    assert given is not None and given.shape == (2, 1 + 4, 16, 16)
    image = load_image(cache.examples[1].image)
    square = to_frame(image, (32, 32), box=crop_boxes(image.size, "center", 1, "")[0])
    for n, (number, pixels) in enumerate(((1, square), (2, square[:, ::-1].copy()))):
        mask = torch.from_numpy(hole((16, 16), tiny.planned(cache).views_NV[1][n].key, number))
        assert torch.equal(given[n, 0], mask)
        left = pixels_from([pixels]) * (1 - torch.nn.functional.interpolate(mask[None, None], scale_factor=2))
        torch.testing.assert_close(given[n, 1:], model.encode_images(left).mean_BCHW[0])


def test_the_unet_is_told_what_is_given(folder: Path, model: Model) -> None:
    cache, config = cache_of(folder, model)
    batch = next(batches(cache, config, batch_size=3, seed=0, start=0))
    told: list[torch.Tensor] = []
    handle = model.denoiser.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    x = torch.randn(3, 4, 16, 16)
    model.denoise(x, torch.tensor([5, 5, 5]), batch.cond)
    model.denoise(x, torch.tensor([5, 5, 5]), cache.cond(torch.zeros(3).long()))
    handle.remove()
    assert batch.cond.given_BCHW is not None
    assert torch.equal(told[0], torch.cat([x, batch.cond.given_BCHW], 1))
    assert told[1][:, 4].all(), "without, all is to be painted"


def test_every_visit_draws_a_hole_and_validation_always_the_same(folder: Path, model: Model) -> None:
    cache, config = cache_of(folder, model)
    stream = batches(cache, config, batch_size=3, seed=0, start=0)
    seen = {tuple(m.tolist()) for _ in range(12) for m in next(stream).cond.given_BCHW[:, 0].flatten(1)}  # type: ignore[index]
    assert len(seen) == 1 + 3 * 3, "the whole, and three holes of each of three pictures"
    held_out = validation_batches(cache)[0].cond.given_BCHW
    assert held_out is not None
    keys = [row[0].key for row in tiny.planned(cache).views_NV]
    assert torch.equal(held_out[:, 0], torch.stack([torch.from_numpy(hole((16, 16), key, 1)) for key in keys]))


def test_other_models_are_told_nothing(folder: Path) -> None:
    plain = configs.load(None, [f"model.path={folder / 'plain'}"]).model.load()
    cache, config = cache_of(folder, plain)
    assert next(batches(cache, config, batch_size=3, seed=0, start=0)).cond.given_BCHW is None


def test_it_trains_on_them_and_goes_on_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    config = configs.load(None, [
        f"model.path={folder / 'model'}", f"data.path={folder / 'pictures'}", f"data.cache={tmp_path / 'cache'}",
        "method.rank=2", "train.steps=4", "train.batch_size=2", "train.sample_every=0", "train.validate_every=2",
        "train.precision=fp32", "train.threads=1", "train.device=cpu",
    ])  # fmt: skip
    events = list(train(config, Run(tmp_path / "whole")))
    assert {e.what for e in events if isinstance(e, Encoding)} >= {"holes", "validation holes"}
    half = Run(tmp_path / "half")
    first = train(config, half)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    assert [e.loss for e in train(config, half) if isinstance(e, Step)] == [
        e.loss for e in events if isinstance(e, Step)
    ][2:]
