"""DreamBooth's prior preservation: class pictures are drawn once by the base, shown in turn with mine, and weighed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.errors import DataError
from sdtune.events import Encoding, Finished, Started, Step, Warned
from sdtune.runs import Run
from sdtune.sample import sample
from sdtune.train import train
from tests import tiny
from tests.core.test_distributed import start


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    tiny.sd1_folder(folder / "model")
    (folder / "mine").mkdir()
    for i in range(4):
        tiny.picture(i).save(folder / "mine" / f"{i}.png")
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    settings = (
        f"model.path={world / 'model'}", f"data.path={world / 'mine'}", f"data.cache={world / 'cache'}", "data.validation_share=0",
        "data.caption_prefix=a photo of sks dog", "data.class_prompt=a dog", "data.class_count=3", "data.caption_dropout=0",
        "train.steps=2", "train.batch_size=4", "train.sample_every=0", "train.device=cpu", "train.precision=fp32", "train.threads=1",
        "sample.steps=2", "method.rank=2", "sample.guidance=2",
    )  # fmt: skip
    return configs.load(None, [*settings, *overrides])


def test_the_base_draws_the_class_once(world: Path, tmp_path: Path) -> None:
    config = config_of(world)
    events = list(train(config, Run(tmp_path / "a")))
    drawn = [(e.done, e.total) for e in events if isinstance(e, Encoding) and e.what == "class pictures"]
    assert drawn == [(1, 3), (2, 3), (3, 3)]
    assert next(e.pictures for e in events if isinstance(e, Started)) == 7
    (folder,) = (world / "cache").glob("class-*")
    base = sample(config.model.load(), config.sample, prompts=["a dog"], seeds=range(3))
    for picture, file in zip(base, sorted(folder.glob("*.png")), strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(picture.image)), "the untouched base drew it"
    (folder / "00001.png").unlink()
    again = list(train(config, Run(tmp_path / "b")))
    assert [e.done for e in again if isinstance(e, Encoding) and e.what == "class pictures"] == [3], (
        "only what is missing"
    )
    assert [e.loss for e in again if isinstance(e, Step)] == [e.loss for e in events if isinstance(e, Step)]


def test_own_class_pictures_keep_the_class_prompt_and_the_weight_counts(world: Path, tmp_path: Path) -> None:
    """With a weight of zero a step's loss is that of my pictures alone; the order of the stream says which these are."""
    folder = tiny.imagefolder(tmp_path / "class", ["a cat", "the sun"], seed=50)
    config = config_of(world, f"data.class_path={folder}", "data.prior_weight=0")
    with_prior = [e.loss for e in train(config, Run(tmp_path / "a")) if isinstance(e, Step)]
    heavier = config_of(world, f"data.class_path={folder}", "data.prior_weight=3")
    thrice = [e.loss for e in train(heavier, Run(tmp_path / "b")) if isinstance(e, Step)]
    once = [
        e.loss for e in train(config_of(world, f"data.class_path={folder}"), Run(tmp_path / "c")) if isinstance(e, Step)
    ]
    assert thrice[0] - with_prior[0] == pytest.approx(3 * (once[0] - with_prior[0]), rel=1e-4)
    assert 0.1 * once[0] < with_prior[0] < 0.9 * once[0]


def test_a_folder_without_class_pictures_is_told(world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures here"):
        list(train(config_of(world, f"data.class_path={tmp_path / 'empty'}"), Run(tmp_path / "run")))


def test_without_a_class_prompt_nothing_changes(world: Path, tmp_path: Path) -> None:
    config = config_of(world)
    plain = configs.from_dict(
        {**configs.to_dict(config), "data": {**configs.to_dict(config)["data"], "class_prompt": None}}
    )
    events = list(train(plain, Run(tmp_path / "a")))
    assert isinstance(events[-1], Finished) and next(e.pictures for e in events if isinstance(e, Started)) == 4


def losses(run: Run) -> list[float]:
    return [e.loss for e in run.events() if isinstance(e, Step)]


def result(run: Run) -> dict[str, torch.Tensor]:
    return load_file(next(run.final.glob("*.safetensors")))


def test_it_goes_on_bit_by_bit(world: Path, tmp_path: Path) -> None:
    """Also where the class pictures that were drawn at the beginning are gone: they are drawn again."""
    config = config_of(world, "train.steps=4", "data.prior_weight=0.7", "optimizer.lr=1e-2")
    straight, stopped = Run(tmp_path / "straight"), Run(tmp_path / "stopped")
    list(train(config, straight))
    first = train(config, stopped)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    (folder,) = (world / "cache").glob("class-*")
    (folder / "00002.png").unlink()
    again = list(train(config, stopped))
    assert next(e.step for e in again if isinstance(e, Started)) == 2
    assert not [e for e in again if isinstance(e, Warned)], "the pictures are the same ones"
    assert losses(stopped) == losses(straight)
    assert all(torch.equal(value, result(straight)[name]) for name, value in result(stopped).items())


@pytest.mark.slow
def test_two_processes_train_what_one_trains(world: Path, tmp_path: Path) -> None:
    """The first draws the class pictures, and encodes; the second waits for them. Batches are shared unevenly."""
    own = (f"data.cache={tmp_path / 'cache'}", "train.batch_size=3", "optimizer.lr=1e-2", "data.prior_weight=0.7")
    config, together, alone = config_of(world, *own), Run(tmp_path / "together"), Run(tmp_path / "alone")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(configs.to_toml(config), encoding="utf-8")
    with start(recipe, together, 2) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    (folder,) = (tmp_path / "cache").glob("class-*")
    assert len(list(folder.glob("*.png"))) == 3
    list(train(config_of(world, *own, f"data.cache={tmp_path / 'another'}"), alone))
    (again,) = (tmp_path / "another").glob("class-*")
    for one, other in zip(sorted(folder.glob("*.png")), sorted(again.glob("*.png")), strict=True):
        assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    for name, weight in result(alone).items():
        torch.testing.assert_close(result(together)[name], weight, rtol=1e-3, atol=1e-5)
