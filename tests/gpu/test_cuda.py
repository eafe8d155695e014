"""On a CUDA device: the same numbers as on the CPU, within the type's rounding; real sizes fit where they should. `make test-gpu`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from sdtune import config as configs
from sdtune.config import RunConfig, SampleConfig
from sdtune.errors import TrainingError
from sdtune.events import Event, Finished, Started, Step
from sdtune.families.sd1 import Sd1
from sdtune.runs import Run
from sdtune.sample import sample
from sdtune.train import train
from tests import tiny

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
METHODS = {"full": ("method.type=full",), "lora": ("method.rank=4", "method.alpha=8", "method.targets=many")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "pictures", ["a red apple", "a blue dog", "a green cat", "the sun", "a house", "sks"])
    return folder


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def config_of(world: Path, *overrides: str) -> RunConfig:
    settings = (
        f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}", "data.validation_share=0.34",
        "train.steps=12", "train.batch_size=3", "train.accumulate=2", "train.ema=0.9", "train.save_every=4", "train.validate_every=4",
        "train.sample_every=0", "sample.steps=2", "optimizer.lr=1e-3", "train.validation_timesteps=2", f"train.device={DEVICE}",
    )  # fmt: skip
    return configs.load(None, [*settings, *overrides])


def losses(events: list[Event]) -> list[float]:
    return [e.loss for e in events if isinstance(e, Step)]


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 5e-2)])
def test_it_learns_what_the_cpu_learns(
    world: Path, tmp_path: Path, method: str, precision: str, tolerance: float
) -> None:
    there = list(train(config_of(world, *METHODS[method], f"train.precision={precision}"), Run(tmp_path / "there")))
    here = list(train(config_of(world, *METHODS[method], "train.precision=fp32", "train.device=cpu"), Run(tmp_path / "here")))  # fmt: skip
    (started,) = (e for e in there if isinstance(e, Started))
    assert started.device.startswith(DEVICE)
    assert isinstance(there[-1], Finished)
    assert losses(there) == pytest.approx(losses(here), rel=tolerance)


def test_it_resumes(world: Path, tmp_path: Path) -> None:
    config = config_of(world, *METHODS["lora"], "train.precision=fp32")
    straight, events = list(train(config, Run(tmp_path / "straight"))), train(config, Run(tmp_path / "stopped"))
    next(e for e in events if isinstance(e, Step) and e.step == 5)
    events.close()  # type: ignore[attr-defined]
    again = list(train(config, Run(tmp_path / "stopped")))
    assert losses(again) == pytest.approx(losses(straight)[5:], rel=1e-3)


def test_it_draws_what_the_cpu_draws(world: Path) -> None:
    options = SampleConfig(prompts=("a red apple",), seeds=(1, 2), steps=6)
    there, here = (list(sample(Sd1(path=str(world / "model")).load(device=d), options)) for d in (DEVICE, "cpu"))
    for a, b in zip(there, here, strict=True):
        assert np.abs(np.asarray(a.image, float) - np.asarray(b.image, float)).mean() < 2


def test_too_little_memory_is_one_error_with_remedies(world: Path, tmp_path: Path) -> None:
    held = torch.empty(1, device=DEVICE)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(TrainingError, match=r"out of memory with batches of 6; try: halve train.batch_size"):
            list(train(config_of(world, "train.batch_size=6", "method.type=full"), Run(tmp_path / "run")))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        del held


@pytest.mark.parametrize(("checkpointing", "limit"), [(True, 2.3), (False, 3.0)])
def test_sd15_lora_at_512_fits(
    world: Path, tmp_path: Path, checkpointing: bool, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion 1.5's U-Net (random weights) with the tiny VAE and text encoder, rank 16, batch 1, bf16: GiB allocated."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=16, attention_head_dim=8)
    assert sum(p.numel() for p in unet.parameters()) > 8.0e8
    unet = unet.to_empty(device="cpu")
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.02)
    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", lambda *_, **__: unet)
    torch.cuda.reset_peak_memory_stats()
    settings = (
        "data.resolution=128", "train.batch_size=1", "train.accumulate=1", "train.steps=3", "method.rank=16", "train.ema=0",
        "train.precision=bf16", "data.validation_share=0", f"train.gradient_checkpointing={str(checkpointing).lower()}",
    )  # fmt: skip
    list(train(config_of(world, *settings), Run(tmp_path / "run")))
    assert torch.cuda.max_memory_allocated() / 2**30 < limit
