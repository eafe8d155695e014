"""On a CUDA device: the same numbers as on the CPU, within the type's rounding; real sizes fit where they should. `make test-gpu`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from sdtune import config as configs
from sdtune.config import RunConfig, SampleConfig
from sdtune.errors import TrainingError
from sdtune.events import Event, Finished, Started, Step, Warned
from sdtune.families.sd1 import Sd1
from sdtune.runs import Run
from sdtune.sample import sample
from sdtune.train import train
from tests import tiny
from tests.methods.test_methods import METHODS as EVERY_METHOD

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
METHODS = {"full": ("method.type=full",), "lora": ("method.rank=4", "method.alpha=8", "method.targets=many")}
NO_EMA = ("train.ema=0",)
FUSED = (*NO_EMA, "train.accumulate=1", "train.max_grad_norm=0", "optimizer.fused_backward=true")
LCM = ("objective.type=consistency", "sample.scheduler=lcm", "sample.steps=2", "sample.guidance=1")
FEATURES = {
    **{f"method {name}": (*settings, "method.dropout=0") if "dropout" in str(settings) else settings
       for name, settings in EVERY_METHOD.items()},
    "adafactor": ("optimizer.type=adafactor",), "lion": ("optimizer.type=lion", "optimizer.lr=1e-4"),
    "prodigy": ("optimizer.type=prodigy", "optimizer.lr=1"), "muon": ("optimizer.type=muon", "method.type=full", "optimizer.lr=1e-4"),
    "adamw-schedulefree": ("optimizer.type=adamw-schedulefree", *NO_EMA),
    "prodigy-schedulefree": ("optimizer.type=prodigy-schedulefree", "optimizer.lr=1", *NO_EMA),
    "fused": (*FUSED, "method.type=full"),
    "unlike noises": ("objective.offset_noise=0.1", "objective.pyramid_noise=0.3", "objective.input_perturbation=0.1"),
    "huber": ("objective.loss=huber", "objective.weighting=debiased", "objective.timesteps=logit-normal"),
    "consistency": LCM, "student": ("method.type=student", "method.size=small", "objective.type=distillation"),
    "words": ("method.type=textual-inversion", 'method.tokens={"<sks>"="dog"}', "method.token_vectors=2"),
    "pivotal": ("method.rank=2", 'method.tokens={"<sks>"="dog"}', "method.text_encoders=true"),
    "masked": ("data.mask=files",), "inpainting": ("model.path={inpainting}",),
    "checkpointing": ("train.gradient_checkpointing=true",), "feed-forward": ("train.gradient_checkpointing=feed-forward",),
    "offload": ("train.offload_activations=true",), "swap": ("train.block_swap=0.6",),
    "swap all int8": ("train.block_swap=1", "method.type=qlora", "method.base=int8"), "stay": ("train.unload=false",),
    "sdxl": ("model.type=sdxl", "model.path={sdxl}", "method.text_encoders=true"), "sd2": ("model.type=sd2", "model.path={sd2}"),
    "sd3": ("model.type=sd3", "model.path={sd3}", "objective.weighting=none", "sample.scheduler=euler"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    tiny.sd1_folder(folder / "model")
    for kind in ("sdxl", "sd2", "sd3"):
        tiny.family_folder(kind, folder / kind)
    tiny.family_folder("sd1-inpainting", folder / "inpainting")
    tiny.imagefolder(folder / "pictures", ["a red apple", "a blue dog", "a green cat", "the sun", "a house", "a <sks>"])
    for picture in (folder / "pictures").glob("*.png"):
        with Image.open(picture) as image:
            values = np.zeros(image.size[::-1], np.uint8)
        values[4:20, 4:24] = 255
        Image.fromarray(values).save(picture.with_name(f"{picture.stem}-masklabel.png"))
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


@pytest.mark.parametrize("feature", list(FEATURES))
def test_each_feature_learns_what_it_learns_on_the_cpu(world: Path, tmp_path: Path, feature: str) -> None:
    """Its previews and its file, too, come to their end; a run stopped there goes on."""
    settings = [text.format(sdxl=world / "sdxl", sd2=world / "sd2", sd3=world / "sd3", inpainting=world / "inpainting")
                if text.startswith("model.path") else text for text in FEATURES[feature]]  # fmt: skip
    settings = ["train.precision=fp32", "train.sample_every=12", "sample.seeds=[0]", *settings]
    found = {}
    for device in (DEVICE, "cpu"):
        run = Run(tmp_path / device)
        first = train(config_of(world, *settings, f"train.device={device}"), run)
        for event in first:
            if isinstance(event, Step) and event.step == 6 and device == DEVICE:
                first.close()  # type: ignore[attr-defined]
        rest = [] if device == "cpu" else list(train(config_of(world, *settings), run))
        assert not rest or isinstance(rest[-1], Finished)
        warned = [
            e.message for e in run.events() if isinstance(e, Warned) and "has no effect on a CPU" not in e.message
        ]
        assert not warned
        found[device] = losses(list(run.events()))
    assert found[DEVICE] == pytest.approx(found["cpu"], rel=2e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["lora", "full", "nf4", "dora"])
def test_half_precision_learns_what_full_precision_learns(
    world: Path, tmp_path: Path, method: str, precision: str
) -> None:
    settings = {**EVERY_METHOD, **METHODS}[method]
    there = list(train(config_of(world, *settings, f"train.precision={precision}"), Run(tmp_path / "there")))
    here = list(train(config_of(world, *settings, "train.precision=fp32"), Run(tmp_path / "here")))
    assert not [e for e in there if isinstance(e, Warned)]
    assert losses(there) == pytest.approx(losses(here), rel=8e-2)


@pytest.mark.parametrize("paged", [False, True])
def test_8_bit_adam_learns_what_adam_learns(world: Path, tmp_path: Path, paged: bool) -> None:
    settings = ("method.type=full", "train.precision=fp32", "optimizer.lr=1e-4")
    eights = ("optimizer.type=adamw8bit", f"optimizer.paged={str(paged).lower()}")
    eight = losses(list(train(config_of(world, *settings, *eights), Run(tmp_path / "eight"))))
    whole = losses(list(train(config_of(world, *settings), Run(tmp_path / "whole"))))
    assert eight == pytest.approx(whole, rel=2e-2) and eight != whole


def test_torchrun_with_one_process_trains_as_without(world: Path, tmp_path: Path) -> None:
    """No group is made for one process: NCCL itself wants two devices, and a test of its own where there are two."""
    (tmp_path / "recipe.toml").write_text(configs.to_toml(config_of(world, "method.type=full", "train.shard=true")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "sdtune", "train"]
    command += [str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    alone = list(train(config_of(world, "method.type=full"), Run(tmp_path / "alone")))
    assert losses(list(Run(tmp_path / "run").events())) == pytest.approx(losses(alone), rel=5e-2)


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


def test_what_is_not_trained_takes_no_memory_of_the_device(world: Path, tmp_path: Path) -> None:
    """The VAE and the text encoder wait elsewhere while steps are taken (`train.unload`)."""
    model = Sd1(path=str(world / "model")).load()
    theirs = sum(p.nbytes for part in (model.vae, *model.text_encoders) for p in part.parameters())  # type: ignore[attr-defined]
    held = {}
    for unload in ("true", "false"):
        torch.cuda.empty_cache()
        events = train(
            config_of(world, *METHODS["lora"], "train.steps=3", f"train.unload={unload}"), Run(tmp_path / unload)
        )
        at = [torch.cuda.memory_allocated() for event in events if isinstance(event, Step)]
        held[unload] = at[-1]
    assert held["false"] - held["true"] > 0.9 * theirs


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
