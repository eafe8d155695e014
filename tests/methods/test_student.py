"""A smaller student: the blocks it keeps, that it takes the denoiser's place and leaves it again, and that it learns from its teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from sdtune import config as configs
from sdtune import tuned
from sdtune.config import RunConfig, SampleConfig
from sdtune.distillation import Distillation, DistillationConfig, outputs, stages
from sdtune.errors import ConfigError, ModelError
from sdtune.events import Step, Warned
from sdtune.methods.smaller import settings, smaller
from sdtune.methods.student import Student
from sdtune.model import Cond, Model, Teacher
from sdtune.runs import Run
from sdtune.sample import sample
from sdtune.train import train
from tests import tiny
from tests.families import common
from tests.families.common import by_diffusers, pipeline


def unet(**settings: object) -> UNet2DConditionModel:
    """Of Stable Diffusion 1.5's build: four stages, two layers each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(**{
            "sample_size": 16, "block_out_channels": (8, 16, 32, 32), "layers_per_block": 2, "cross_attention_dim": 16,
            "attention_head_dim": 2, "norm_num_groups": 4, **settings,
        })  # fmt: skip


@pytest.mark.parametrize(("size", "gone"), [("base", 0), ("small", 0), ("tiny", 1)])
def test_the_student_is_made_of_the_teachers_blocks(size: str, gone: int) -> None:
    teacher = unet()
    student = smaller(teacher, size)
    assert isinstance(student, UNet2DConditionModel)
    own, theirs = student.state_dict(), teacher.state_dict()
    for name, value in own.items():
        origin = name
        if name.startswith("up_blocks."):
            stage, kind, number, *rest = name.split(".")[1:]
            number = {"0": "0", "1": "2"}[number] if kind in ("resnets", "attentions") else number
            origin = ".".join(["up_blocks", str(int(stage) + gone), kind, number, *rest])
        assert torch.equal(value, theirs[origin]), name
    assert (student.mid_block is None) == (size != "base") and len(student.down_blocks) == 4 - gone
    assert [len(b.resnets) for b in student.down_blocks] == [1] * (4 - gone)
    assert [len(b.resnets) for b in student.up_blocks] == [2] * (4 - gone)
    x, t, states = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 16)
    assert student(x, t, states).sample.shape == x.shape
    assert sum(v.numel() for v in own.values()) < sum(v.numel() for v in theirs.values())


def test_it_is_as_small_as_it_says_of_stable_diffusion() -> None:
    with torch.device("meta"):
        whole = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        config = {k: v for k, v in whole.config.items() if k[0] != "_"}
        students = [UNet2DConditionModel.from_config(settings(config, size)) for size in ("base", "small", "tiny")]
    count = [round(sum(p.numel() for p in m.parameters()) / 1e6) for m in (whole, *students)]
    assert count == [860, 579, 482, 323]


def test_what_cannot_be_made_smaller_is_refused() -> None:
    with pytest.raises(ConfigError, match="'base' takes layers away, and each stage has one only; take 'small'"):
        smaller(unet(layers_per_block=1), "base")
    with pytest.raises(ConfigError, match="'tiny' needs two innermost stages of one width"):
        smaller(unet(block_out_channels=(8, 16, 16, 32)), "tiny")
    with pytest.raises(ConfigError, match="different numbers of layers"):
        smaller(unet(layers_per_block=(1, 2, 2, 2)), "base")
    with pytest.raises(ConfigError, match="'student' takes blocks out of a U-Net, and this model has a Linear"):
        smaller(torch.nn.Linear(2, 2), "base")


@pytest.mark.parametrize(("size", "count"), [("base", 9), ("small", 8), ("tiny", 5)])
def test_stages_of_the_same_place_give_the_same_shapes(size: str, count: int) -> None:
    teacher = unet()
    student = smaller(teacher, size)
    pairs = stages(teacher, student)
    x, t, states = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 16)
    with outputs([a for a, _ in pairs]) as theirs, outputs([b for _, b in pairs]) as own, torch.no_grad():
        teacher(x, t, states)
        student(x, t, states)
    assert len(theirs) == len(own) == count
    assert [a.shape for a in theirs] == [b.shape for b in own]
    assert not teacher._forward_hooks and not any(m._forward_hooks for m in teacher.modules())


class Net(torch.nn.Module):
    """Two stages and no middle, short enough for arithmetic by hand."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.down_blocks = torch.nn.ModuleList([Times(factor)])
        self.up_blocks = torch.nn.ModuleList([Times(factor + 1)])

    def forward(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        y: Tensor = self.up_blocks[0](self.down_blocks[0](x_BCHW)[0])
        return y


class Times(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x * self.factor, None


class Last(Net):
    def forward(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        y: Tensor = super().forward(x_BCHW, t_B, cond)[0]
        return y


def test_the_loss_by_hand() -> None:
    teacher, student = Last(1.0), Last(0.5)
    ones = torch.ones(10) * 0.5**0.5
    options = DistillationConfig(weighting="none", task=2.0, output=3.0, features=5.0)
    ours = Distillation(
        ones, ones, "epsilon", options, Teacher(torch.no_grad()(teacher), teacher), tuple(stages(teacher, student))
    )
    x0, cond = torch.randn(2, 4, 3, 3), Cond(torch.zeros(2, 1, 1))
    loss = ours(student, x0, cond, torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(1)
    torch.randint(10, (2,), generator=rng)
    noise = torch.randn(x0.shape, generator=rng)
    x = 0.5**0.5 * (x0 + noise)

    def mean(e: Tensor) -> Tensor:
        return e.square().mean((1, 2, 3))

    expected = (
        2 * mean(0.75 * x - noise) + 3 * mean(0.75 * x - 2 * x) + 5 * (mean(0.5 * x - x) + mean(0.75 * x - 2 * x))
    )
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert all(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in teacher.parameters())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "pictures", ["a red dog", "a blue house", "the sun", "a green cat"])
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    return configs.load(None, [
        f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}",
        "method.type=student", "objective.type=distillation", "train.steps=4", "train.batch_size=2", "train.validate_every=2",
        "train.sample_every=4", "sample.prompts=['a red dog']", "sample.seeds=[1]", "sample.steps=2", "train.precision=fp32",
        "train.threads=1", "train.device=cpu", "optimizer.lr=1e-3", "optimizer.schedule=constant", *overrides,
    ])  # fmt: skip


def drawn(model: Model) -> NDArray[np.int16]:
    (picture,) = sample(model, SampleConfig(prompts=("a red dog",), seeds=(1,), steps=2))
    return np.asarray(picture.image, np.int16)


def test_diffusers_draws_with_the_students_folder(world: Path, tmp_path: Path) -> None:
    """Put into the pipeline of the model that it was made from, as the docs show."""
    run = Run(tmp_path / "run")
    settings = ("train.steps=2", "train.validate_every=0", "train.sample_every=0")
    list(train(config_of(world, *settings), run))
    config = SampleConfig(
        prompts=("a red dog",), seeds=(1,), steps=3, scheduler="euler", guidance=3.0, negative="a cat"
    )
    model, pipe = config_of(world).model.load(), pipeline(world / "model")
    base = common.drawn(model, config)
    tuned.of_run(model, run)
    expected = common.drawn(model, config)
    pipe.unet = UNet2DConditionModel.from_pretrained(run.final / "unet").eval()
    assert pipe.unet.mid_block is None
    assert abs(by_diffusers(pipe, "sd1", model, config, "a cat") - expected).max() <= 1
    assert abs(expected - base).max() > 8


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_student_from_end_to_end(checkpointing: bool, world: Path, tmp_path: Path) -> None:
    config = config_of(world, f"train.gradient_checkpointing={str(checkpointing).lower()}")
    run, half = Run(tmp_path / "run"), Run(tmp_path / "half")
    events = list(train(config, run))
    assert not [e for e in events if isinstance(e, Warned)]
    losses = [e.loss for e in events if isinstance(e, Step)]
    first = train(config, half)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    assert [e.loss for e in train(config, half) if isinstance(e, Step)] == losses[2:]
    assert json.loads((run.final / "unet" / "config.json").read_text())["mid_block_type"] is None

    model = config.model.load()
    whole, base = model.denoiser, drawn(model)
    on_top = tuned.of_run(model, run)
    expected = drawn(model)
    assert model.denoiser is not whole and abs(expected - base).max() > 2
    with pytest.raises(ConfigError, match=r"sample.strength: 0.5: a network of another shape is there or not"):
        on_top.set_strength(0.5)
    on_top.close()
    assert model.denoiser is whole and np.array_equal(drawn(model), base)
    tuned.of_run(model, run, "step-000004")
    assert np.array_equal(drawn(model), expected), "the checkpoint is what the folder is"


def test_attach_and_detach_are_inverse(world: Path) -> None:
    model = config_of(world).model.load()
    whole, before = model.denoiser, drawn(model)
    names = Student().attach(model, seed=0)
    assert model.denoiser is not whole and set(names) == {f"unet.{n}" for n, _ in model.denoiser.named_parameters()}
    Student().detach(model)
    assert model.denoiser is whole and model.original is None and np.array_equal(drawn(model), before)


def test_a_student_of_another_model_is_refused(world: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    list(train(config_of(world, "train.steps=1", "train.validate_every=0"), run))
    with pytest.raises(ModelError, match=r"\d+ of \d+ weights fit embedded: it was made from another kind of model"):
        tuned.of_run(configs.load().model.load(), run)
    settings = run.final / "unet" / "config.json"
    told = json.loads(settings.read_text())
    smaller_one = UNet2DConditionModel.from_config({**told, "cross_attention_dim": 24})
    smaller_one.save_pretrained(tmp_path / "unet")
    with pytest.raises(ModelError, match=r"cross_attention_dim is 24, the base's 16; it was made from another model"):
        tuned.load(config_of(world).model.load(), tmp_path)
    (run.final / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="cannot be read as a U-Net"):
        tuned.of_run(config_of(world).model.load(), run)


def test_the_student_comes_nearer_to_its_teacher(world: Path, tmp_path: Path) -> None:
    config = config_of(
        world,
        "objective.task=0",
        "train.steps=40",
        "train.validate_every=0",
        "train.sample_every=0",
        "optimizer.lr=3e-3",
    )
    losses = [e.loss for e in train(config, Run(tmp_path / "run")) if isinstance(e, Step)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
