"""Training in frames of several sizes, each family: batches, masks, holes, what SDXL is told, and going on bit by bit."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.data.batch import batches
from sdtune.data.masks import LABEL
from sdtune.encode import encoded, look
from sdtune.events import Event, Finished, Started, Step, Validated, Warned
from sdtune.families import recognise
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny

T = TypeVar("T")
SIZES = [(96, 64), (64, 96), (64, 64), (70, 64), (128, 64), (64, 128), (90, 64), (64, 90)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many proportions, some with masks, with tags for captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate(SIZES):
        tiny.picture(i, size).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{tiny.WORDS[i]}, red, dog, house")
        if i % 2:
            mask = np.zeros(size[::-1], np.uint8)
            mask[: size[1] // 2] = 255
            Image.fromarray(mask).save(folder / f"{i}{LABEL}.png")
    return folder


def config_of(kind: str, pictures: Path, tmp_path: Path, *overrides: str) -> RunConfig:
    model = tmp_path / "model"
    if not model.exists():
        tiny.family_folder(kind, model)
    own = [
        f"model.path={model}", f"model.type={recognise(str(model))}", f"data.path={pictures}", f"data.cache={tmp_path / 'cache'}",
        "data.buckets=true", "data.resolution=32", "data.flip=true", "data.jitter=0.1", "data.shuffle_tags=true", "data.mask=files",
        "data.validation_share=0.4", "train.steps=6", "train.batch_size=2", "train.accumulate=2", "train.validate_every=3",
        "train.sample_every=0", "train.precision=fp32", "train.device=cpu", "train.threads=1", "optimizer.lr=1e-2", "method.rank=2",
    ]  # fmt: skip
    return configs.load(None, [*own, *overrides])


@pytest.mark.parametrize("kind", ["sd1-inpainting", "sdxl", "sd3"])
def test_it_trains_and_goes_on_bit_by_bit(kind: str, pictures: Path, tmp_path: Path) -> None:
    config = config_of(kind, pictures, tmp_path)
    straight, broken = Run(tmp_path / "straight"), Run(tmp_path / "broken")
    events = list(train(config, straight))
    assert isinstance(events[-1], Finished)
    (started,) = (e for e in events if isinstance(e, Started))
    validated = [e for e in events if isinstance(e, Validated)]
    assert started.validation_pictures == 3 and all(len(e.per_picture) == 3 for e in validated) and len(validated) == 3
    assert all("did not move" not in e.message for e in events if isinstance(e, Warned))
    parts = train(config, broken)
    next(e for e in parts if isinstance(e, Step) and e.step == 4)
    parts.close()  # type: ignore[attr-defined]
    list(train(config, broken))
    one, two = (load_file(next(run.final.glob("*.safetensors"))) for run in (straight, broken))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [e.loss for e in straight.events() if isinstance(e, Step)] == [
        e.loss for e in broken.events() if isinstance(e, Step)
    ]


def ended(events: Generator[Event, None, T]) -> T:
    """What a generator gives at its end."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            value: T = end.value
            return value


@pytest.mark.parametrize("kind", ["sd1-inpainting", "sdxl"])
def test_all_parts_of_a_batch_have_its_frame(kind: str, pictures: Path, tmp_path: Path) -> None:
    config = config_of(kind, pictures, tmp_path)
    model = config.model.load(device="cpu", dtype=torch.float32)
    known, splits = ended(look(config))
    cache, _ = ended(encoded(known, splits, model, config))
    shapes, masked = set(), 0
    for _, batch in zip(range(20), batches(cache, config.data, batch_size=2, seed=0, start=0), strict=False):
        height, width = batch.latents_BCHW.shape[2:]
        shapes.add((height, width))
        assert batch.mask_B1HW is not None and batch.mask_B1HW.shape == (2, 1, height, width)
        masked += int((batch.mask_B1HW.amin((1, 2, 3)) < batch.mask_B1HW.amax((1, 2, 3))).sum())
        if kind == "sdxl":
            assert batch.cond.size_BK is not None
            side = model.downscale
            assert batch.cond.size_BK[:, 4:].tolist() == [[height * side, width * side]] * 2
            sizes = {SIZES[int(Path(cache.name(i)).stem)] for i in batch.indices_B.tolist()}
            assert {(int(w), int(h)) for h, w in batch.cond.size_BK[:, :2].tolist()} == sizes
        else:
            assert batch.cond.given_BCHW is not None and batch.cond.given_BCHW.shape[2:] == (height, width)
    assert len(shapes) > 2 and masked
