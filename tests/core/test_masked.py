"""Training on a part of each picture, end to end on a tiny model: what is left out is not learned, and all else holds as ever."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from sdtune import config as configs
from sdtune import validation
from sdtune.config import RunConfig
from sdtune.data.batch import validation_batches
from sdtune.data.cache import Cache
from sdtune.data.dataset import scan
from sdtune.events import Event, Noted, Step, Validated, Warned
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny

SETTINGS = (
    "data.mask=files", "train.steps=6", "train.batch_size=3", "train.accumulate=2", "train.save_every=3", "train.validate_every=3",
    "train.sample_every=0", "train.validation_timesteps=2", "train.ema=0.9", "train.precision=fp32", "train.threads=1",
    "train.device=cpu", "method.rank=2", "method.targets=many", "optimizer.lr=1e-2", "data.validation_share=0.3",
    "data.crop=random", "data.crops=2", "data.flip=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, ten captioned pictures of which eight have masks, a cache."""
    folder = tmp_path_factory.mktemp("world")
    tiny.sd1_folder(folder / "model")
    (folder / "pictures").mkdir()
    for i in range(10):
        tiny.picture(i, (40, 32)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"a photo of a {'red' if i % 2 else 'blue'} dog")
        if i < 8:
            mask(folder / "pictures" / f"{i}-masklabel.png", 8 + i)
    return folder


def mask(path: Path, left: int, right: int = 36) -> None:
    """White from column `left` to `right`."""
    values = np.zeros((32, 40), np.uint8)
    values[:, left:right] = 255
    Image.fromarray(values).save(path)


def config_of(world: Path, *overrides: str) -> RunConfig:
    paths = (f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}")
    return configs.load(None, [*paths, *SETTINGS, *overrides])


def run_all(config: RunConfig, run: Run) -> list[Event]:
    return list(train(config, run))


def losses(events: list[Event] | Run) -> list[float]:
    return [e.loss for e in (events.events() if isinstance(events, Run) else events) if isinstance(e, Step)]


def validated(events: list[Event]) -> list[tuple[float, ...]]:
    return [e.per_picture for e in events if isinstance(e, Validated)]


def final(run: Run) -> dict[str, Tensor]:
    return load_file(next(run.final.glob("*.safetensors")))


@pytest.fixture(scope="module")
def straight(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("straight") / "run")
    run_all(config_of(world), run)
    return run


def test_masks_are_told_and_change_the_loss_alone(straight: Run, world: Path, tmp_path: Path) -> None:
    events = list(straight.events())
    noted = [e.message for e in events if isinstance(e, Noted)]
    assert any(text.startswith("8 of 10 pictures have a mask (-masklabel.png); what counts is ") for text in noted)
    assert "2 pictures without a mask, counted in full: 8.png, 9.png" in noted
    plain = run_all(config_of(world, "data.mask=none"), Run(tmp_path / "plain"))
    assert not np.isclose(losses(events), losses(plain), rtol=1e-4).any()
    masked = [e.mask is not None for e in scan(config_of(world).data).validation]
    base, base_plain = validated(events)[0], validated(plain)[0]
    assert True in masked and [a != b for a, b in zip(base, base_plain, strict=True)] == masked, "at step 0, too"


def test_white_masks_train_the_same_to_the_last_bit(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "pictures", tmp_path / "white")
    for i in range(8):
        mask(tmp_path / "white" / f"{i}-masklabel.png", 0, 40)
    plain, white = Run(tmp_path / "a"), Run(tmp_path / "b")
    options = (f"data.path={tmp_path / 'white'}",)
    a = run_all(config_of(world, *options, "data.mask=none"), plain)
    b = run_all(config_of(world, *options, "data.mask_floor=0.3"), white)
    assert losses(a) == losses(b) and validated(a) == validated(b)
    assert all(torch.equal(w, final(white)[name]) for name, w in final(plain).items())


@pytest.mark.parametrize("stops", [(2,), (3, 5)])
def test_a_resumed_run_is_bit_identical(straight: Run, world: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    run = Run(tmp_path / "run")
    for step in stops:
        events: Iterator[Event] = train(config_of(world), run)
        next(e for e in events if isinstance(e, Step) and e.step == step)
        events.close()  # type: ignore[attr-defined]
    again = run_all(config_of(world), run)
    assert not [e for e in again if isinstance(e, Warned)]
    assert losses(run) == losses(straight)
    assert validated(list(run.events())) == validated(list(straight.events()))
    assert all(torch.equal(w, final(run)[name]) for name, w in final(straight).items())


@pytest.mark.slow
def test_several_processes_train_what_one_trains(straight: Run, world: Path, tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.toml", Run(tmp_path / "run")
    recipe.write_text(configs.to_toml(config_of(world)))
    command = [sys.executable, "-m", "sdtune", "train", str(recipe), "--out", str(run.path), "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(run) == pytest.approx(losses(straight), rel=1e-5)
    for mine, theirs in zip(validated(list(run.events())), validated(list(straight.events())), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, weight in final(straight).items():
        torch.testing.assert_close(final(run)[name], weight, rtol=1e-3, atol=1e-5)


def test_an_edited_mask_is_named_and_taken(straight: Run, world: Path, tmp_path: Path) -> None:
    pictures, run = tmp_path / "pictures", Run(tmp_path / "run")
    shutil.copytree(world / "pictures", pictures)
    config = config_of(world, f"data.path={pictures}")
    events: Iterator[Event] = train(config, run)
    next(e for e in events if isinstance(e, Step) and e.step == 3)
    events.close()  # type: ignore[attr-defined]
    (split,) = (n for n, files in json.loads(run.data_file.read_text()).items() if "0.png" in files)
    for i in range(8):
        mask(pictures / f"{i}-masklabel.png", 20 + i)
    (warned,) = (e.message for e in run_all(config, run) if isinstance(e, Warned))
    assert warned.endswith("8 pictures with another mask than before: 0.png, 1.png, 2.png, 3.png, 4.png and 3 more")
    assert losses(run)[:3] == losses(straight)[:3] and split in ("train", "validation")
    assert not np.isclose(losses(run)[3:], losses(straight)[3:], rtol=1e-5).any()


# ---- what it is for


@pytest.fixture
def walled(tmp_path: Path) -> Path:
    """Four pictures, each with something else on the same striped wall, and masks of what is not the wall."""
    root = tmp_path / "walled"
    root.mkdir()
    wall = np.indices((32, 32)).sum(0) // 4 % 2 * 255
    for i in range(4):
        values = np.stack([wall, wall * 0, 255 - wall], -1).astype(np.uint8)
        values[:, 16:] = np.asarray(tiny.picture(i, (16, 32)))
        Image.fromarray(values).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text("a dog")
        side = np.zeros((32, 32), np.uint8)
        side[:, 16:] = 255
        Image.fromarray(side).save(root / f"{i}-masklabel.png")
    return root


def test_the_subject_is_learned_and_the_wall_is_not(world: Path, walled: Path, tmp_path: Path) -> None:
    """The same short training with masks and without, judged on both halves."""
    settings = (
        f"model.path={world / 'model'}", f"data.path={walled}", f"data.cache={world / 'cache'}", "data.validation_share=0",
        "data.caption_dropout=0", "method.type=full", "optimizer.lr=4e-3", "train.steps=40", "train.batch_size=4", "train.sample_every=0",
        "train.precision=fp32", "train.device=cpu", "train.threads=1",
    )  # fmt: skip
    found = {}
    for name, own in (("plain", ()), ("masked", ("data.mask=files", "data.mask_floor=0"))):
        run = Run(tmp_path / name)
        run_all(configs.load(None, [*settings, *own]), run)
        model = configs.load(None, settings).model.load()
        model.denoiser.load_state_dict(load_file(next(run.final.rglob("*.safetensors"))))
        found[name] = errors_of(model, walled, world)
    assert found["masked"][0] < 0.95 * found["plain"][0], "nothing is spent on the wall"
    assert found["plain"][1] < 0.6 * found["masked"][1], "which is not learned"


def errors_of(model: Model, pictures: Path, world: Path) -> tuple[float, float]:
    """The mean error of the right halves, where the subject is, and that of the left."""
    config = config_of(world, f"data.path={pictures}", "data.mask=none", "data.validation_share=0", "data.crop=center")
    cache = Cache.open(scan(config.data).train, model, config.data, resolution=32, augment=False)
    list(cache.fill())
    batch, objective = validation_batches(cache)[0], config.objective.build(model)
    right_B1HW = (torch.arange(16) >= 8).float().expand(4, 1, 16, 16)
    errors = []
    for part in (right_B1HW, 1 - right_B1HW):
        judged = replace(batch, mask_B1HW=2 * part)
        errors.append(float(validation.losses(model, objective, judged, timesteps=4).mean()))
    return errors[0], errors[1]
