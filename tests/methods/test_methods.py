"""Every method, through the real loop on a tiny model: it trains, resumes bit by bit, and its file gives its picture again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from sdtune import config as configs
from sdtune import tuned
from sdtune.config import RunConfig, SampleConfig
from sdtune.errors import ConfigError, ModelError
from sdtune.events import Event, Step, Warned
from sdtune.families.sd1 import Sd1
from sdtune.families.sd1_model import Sd1Model
from sdtune.methods.adapters import adapters_of
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.sample import sample
from sdtune.state import State
from sdtune.train import train
from tests import tiny
from tests.families import common

SETTINGS = (
    "train.steps=4", "train.batch_size=2", "train.save_every=100", "train.validate_every=0", "train.sample_every=0",
    'sample.prompts=["a red dog"]', "sample.seeds=[1]", "sample.steps=2",
    "train.precision=fp32", "train.threads=1", "train.device=cpu", "optimizer.lr=1e-2", "optimizer.schedule=constant",
)  # fmt: skip
METHODS = {
    "lora": ("method.rank=2", "method.alpha=3"),
    "lora-patterns": (
        "method.rank=2", 'method.rank_pattern={"*.attn2.*"=3, "*.to_out.0"=1}', 'method.alpha_pattern={"*.to_k"=4.5}',
        "method.rslora=true", "method.init=gaussian", "method.dropout=0.5",
    ),
    "pissa": ("method.rank=2", "method.alpha=5", "method.init=pissa"),
    "olora": ("method.rank=2", "method.init=olora", "method.targets=many"),
    "text": ("method.rank=2", "method.alpha=5", "method.text_encoders=true", "method.text_targets=transformer"),
    "full-text": ("method.type=full", "method.text_encoders=[1]", "optimizer.lr=1e-3"),
    "dora": ("method.type=dora", "method.rank=2", "method.alpha=3", "method.targets=many", "method.text_encoders=[1]"),
    "loha": (
        "method.type=loha", "method.rank=2", "method.alpha=3", "method.targets=many", "method.text_encoders=true",
        "method.dropout=0.3",
    ),
    "lokr": ("method.type=lokr", "method.factor=4", "method.targets=many", "method.text_encoders=true"),
    "lokr-thin": ("method.type=lokr", "method.factor=2", "method.rank=2", "method.alpha=0.7", "method.targets=many"),
    "oft": ("method.type=oft", "method.block=4", "method.targets=many", "method.text_encoders=true"),
    "nf4": ("method.type=qlora", "method.rank=2", "method.targets=many"),
    "nf4-double-dora": ("method.type=qlora", "method.rank=2", "method.dora=true", "method.double_quant=true"),
    "int8": ("method.type=qlora", "method.rank=2", "method.base=int8", "method.text_encoders=true"),
    "fp8": ("method.type=qlora", "method.rank=2", "method.base=fp8", "method.targets=transformer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "pictures", ["a red dog", "a blue house", "the sun", "a green cat"])
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    paths = (f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}")
    return configs.load(None, [*paths, *SETTINGS, *overrides])


def drawn(model: Model) -> NDArray[np.int16]:
    (picture,) = sample(model, SampleConfig(prompts=("a red dog",), seeds=(1,), steps=2))
    return np.asarray(picture.image, np.int16)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_from_end_to_end(name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, straight = config_of(world, *METHODS[name], "train.sample_every=4"), Run(tmp_path / "straight")
    events = list(train(config, straight))
    assert not [e for e in events if isinstance(e, Warned)], "did it train? says nothing"
    assert configs.load(straight.path / "config.toml") == config

    stopped = Run(tmp_path / "stopped")
    first: Iterator[Event] = train(config, stopped)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    again = list(train(config, stopped))
    assert [e.loss for e in again if isinstance(e, Step)] == [e.loss for e in events if isinstance(e, Step)][2:]
    files = sorted(p.relative_to(straight.path) for p in straight.final.rglob("*.safetensors"))
    assert files
    for file in files:
        a, b = load_file(straight.path / file), load_file(stopped.path / file)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

    given_away = [p for p in straight.final.rglob("*") if p.is_file()]
    assert not [p for p in given_away if str(world).encode() in p.read_bytes()], (
        "the result does not name the base's folder"
    )

    model = config.model.load()
    base = drawn(model)
    on_top = tuned.of_run(model, straight)
    expected = drawn(model)
    assert abs(expected - base).max() > 2
    if config.method.type != "qlora":  # whose previews are drawn on the quantised base
        with Image.open(straight.samples / "step-000004" / "00.png") as preview:
            assert np.array_equal(np.asarray(preview), expected), "the file gives the picture of the training itself"
    on_top.set_strength(0.0)
    assert np.array_equal(drawn(model), base), "strength 0 is the base, byte for byte"
    on_top.set_strength(0.5)
    assert not np.array_equal(drawn(model), base) and not np.array_equal(drawn(model), expected)
    on_top.close()
    assert np.array_equal(drawn(model), base)
    tuned.of_run(model, straight, "step-000004")
    assert np.array_equal(drawn(model), expected), "the checkpoint is what the file is"


def test_diffusers_draws_with_a_fully_trained_text_encoder(world: Path, tmp_path: Path) -> None:
    """The folders of the U-Net and of the text encoder, each put into the pipeline of the base."""
    run = Run(tmp_path / "run")
    list(train(config_of(world, *METHODS["full-text"], "train.steps=2", "optimizer.lr=1e-2"), run))
    config = SampleConfig(
        prompts=("a red dog",), seeds=(1,), steps=3, scheduler="euler", guidance=3.0, negative="a cat"
    )
    model, pipe = config_of(world).model.load(), common.pipeline(world / "model")
    tuned.of_run(model, run)
    expected = common.drawn(model, config)
    pipe.unet = type(pipe.unet).from_pretrained(run.final / "unet").eval()
    half = common.by_diffusers(pipe, "sd1", model, config, "a cat")
    pipe.text_encoder = type(pipe.text_encoder).from_pretrained(run.final / "text_encoder").eval()
    whole = common.by_diffusers(pipe, "sd1", model, config, "a cat")
    assert abs(whole - expected).max() <= 1 and abs(half - whole).max() > 2, "the text encoder counts for the picture"


def test_in_bf16_text_encoders_stay_fp32_and_train(world: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    events = list(train(config_of(world, *METHODS["text"], "train.precision=bf16"), run))
    assert not [e for e in events if isinstance(e, Warned)]
    (file,) = run.final.glob("*.safetensors")
    moved = {name.partition(".")[0] for name, value in load_file(file).items() if "lora_B" in name and value.any()}
    assert moved == {"unet", "text_encoder"}


def test_gradient_checkpointing_reaches_text_encoders(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def spied(self: State, training: bool) -> None:
        seen.append(any(getattr(m, "gradient_checkpointing", False) for m in self.model.text_encoders[0].modules()))
        mode(self, training)

    mode = State.train_mode
    monkeypatch.setattr(State, "train_mode", spied)
    losses = {}
    for on in (True, False):
        config = config_of(world, *METHODS["text"], f"train.gradient_checkpointing={str(on).lower()}")
        losses[on] = [e.loss for e in train(config, Run(tmp_path / str(on))) if isinstance(e, Step)]
        assert set(seen) == {on}
        seen.clear()
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_text_encoders_drop_out_in_training_alone(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[tuple[bool, bool]] = []
    denoise = Sd1Model.denoise

    def spied(self: Sd1Model, *args: Any) -> torch.Tensor:
        modes.append((torch.is_grad_enabled(), self.text_encoders[0].training and self.denoiser.training))
        return denoise(self, *args)

    monkeypatch.setattr(Sd1Model, "denoise", spied)
    overrides = ("data.validation_share=0.5", "train.validate_every=2", "train.validation_timesteps=1")
    list(train(config_of(world, *METHODS["text"], *overrides), Run(tmp_path / "run")))
    assert set(modes) == {(True, True), (False, False)}


def test_a_text_encoder_that_is_not_there_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.text_encoders: there is no text encoder 2; .* has 1 text encoder$"):
        list(train(config_of(world, "method.text_encoders=[1, 2]"), Run(tmp_path / "run")))


def test_a_checkpoint_of_another_model_is_refused(world: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    list(train(config_of(world, *METHODS["lora"], "train.steps=1"), run))
    other = Sd1().load()
    with pytest.raises(ModelError, match="does not fit embedded"):
        tuned.of_run(other, run, "step-000001")
    assert not list(adapters_of(other.parts))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_merged_weights_draw_the_same(world: Path, order: torch.memory_format) -> None:
    """Also where weights lie as matrix units want them (`suit_to_cpu`)."""
    for overrides in (METHODS["dora"], METHODS["lokr"], METHODS["oft"], METHODS["pissa"]):
        config = config_of(world, *overrides)
        model = config.model.load()
        model.denoiser.to(memory_format=order)  # type: ignore[call-overload]
        rng = torch.Generator().manual_seed(0)
        for p in config.method.attach(model, seed=0).values():
            p.data += torch.randn(p.shape, generator=rng) * 0.1
        expected = drawn(model)
        config.method.merge(model)  # type: ignore[union-attr]
        assert abs(drawn(model) - expected).max() <= 2
        assert not list(adapters_of(model.parts))
