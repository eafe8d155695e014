"""The methods on SDXL and its two text encoders: trained, gone on with, taken off, and drawn by diffusers from their files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdtune import config as configs
from sdtune import tuned
from sdtune.config import RunConfig, SampleConfig
from sdtune.events import Event, Step, Warned
from sdtune.methods import files
from sdtune.methods.adapters import adapters_of
from sdtune.methods.dora import Dora
from sdtune.methods.loha import Loha
from sdtune.methods.lora import Lora
from sdtune.methods.lycoris_file import flat_name
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny
from tests.families.common import by_diffusers, drawn, pipeline

SETTINGS = (
    "model.type=sdxl", "train.steps=3", "train.batch_size=2", "train.save_every=100", "train.validate_every=0", "train.sample_every=3",
    'sample.prompts=["a red dog"]', "sample.seeds=[1]", "sample.steps=1", "sample.guidance=3", "train.precision=fp32",
    "train.threads=1", "train.device=cpu", "optimizer.lr=1e-2", "optimizer.schedule=constant",
)  # fmt: skip
DRAWING = SampleConfig(prompts=("a red dog",), seeds=(1,), steps=1, guidance=3.0)
SHARP = replace(DRAWING, steps=3, scheduler="euler", negative="a cat")
"""Against diffusers: more steps, and a negative prompt that is encoded."""
METHODS = {
    "lora of the second": ("method.rank=2", "method.alpha=4", "method.text_encoders=[2]"),
    "lora of both": ("method.rank=2", "method.alpha=4", "method.text_encoders=[1, 2]", "method.text_targets=transformer"),
    "dora": ("method.type=dora", "method.rank=2", "method.alpha=4", "method.text_encoders=[1, 2]"),
    "int8": ("method.type=qlora", "method.base=int8", "method.rank=2", "method.alpha=4", "method.text_encoders=[1, 2]"),
    "loha": ("method.type=loha", "method.rank=2", "method.alpha=4", "method.text_encoders=[1, 2]"),
    "full": ("method.type=full", "method.text_encoders=[1, 2]", "optimizer.lr=1e-3"),
}  # fmt: skip
TRAINED = {"lora of the second": {"unet", "text_encoder_2"}}
QUICK = ("lora of both", "full")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    tiny.family_folder("sdxl", folder / "model")
    tiny.imagefolder(folder / "pictures", ["a red dog", "a blue house", "the sun", "a green cat"])
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    paths = (f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}")
    return configs.load(None, [*paths, *SETTINGS, *overrides])


def load(world: Path) -> Model:
    return config_of(world).model.load()


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_a_method_from_end_to_end(name: str, world: Path, tmp_path: Path) -> None:
    config, straight, stopped = config_of(world, *METHODS[name]), Run(tmp_path / "straight"), Run(tmp_path / "stopped")
    events = list(train(config, straight))
    assert not [e for e in events if isinstance(e, Warned)], "did it train? says nothing"
    first: Iterator[Event] = train(config, stopped)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    again = list(train(config, stopped))
    assert [e.loss for e in again if isinstance(e, Step)] == [e.loss for e in events if isinstance(e, Step)][2:]
    paths = sorted(p.relative_to(straight.path) for p in straight.final.rglob("*.safetensors"))
    assert len(paths) == (3 if name == "full" else 1)
    for path in paths:
        one, other = load_file(straight.path / path), load_file(stopped.path / path)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)

    model = load(world)
    before = {n: p.clone() for part, root in model.parts.items() for n, p in named(part, root)}
    base = drawn(model, DRAWING)
    on_top = tuned.of_run(model, straight)
    expected = drawn(model, DRAWING)
    assert abs(expected - base).max() > 2
    trained = changed(model, before) if name == "full" else {n.partition(".")[0] for n, _ in adapters_of(model.parts)}
    assert trained == TRAINED.get(name, {"unet", "text_encoder", "text_encoder_2"})
    if name != "int8":  # whose previews are drawn on the quantised base
        with Image.open(straight.samples / "step-000003" / "00.png") as preview:
            assert np.array_equal(np.asarray(preview), expected[0]), "the file gives the picture of the training itself"
    on_top.set_strength(0.0)
    assert np.array_equal(drawn(model, DRAWING), base)
    on_top.close()
    assert not changed(model, before) and np.array_equal(drawn(model, DRAWING), base), "the base, byte for byte"
    tuned.of_run(model, straight, "step-000003")
    assert np.array_equal(drawn(model, DRAWING), expected), "the checkpoint is what the file is"


def named(part: str, root: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((f"{part}.{n}", p.detach()) for n, p in root.named_parameters())


def changed(model: Model, before: dict[str, torch.Tensor]) -> set[str]:
    """The parts of which a weight is not what it was. The names are the same."""
    now = {n: p for part, root in model.parts.items() for n, p in named(part, root)}
    assert now.keys() == before.keys()
    return {n.partition(".")[0] for n, p in now.items() if not torch.equal(p, before[n])}


def test_parts_have_learning_rates_of_their_own(world: Path, tmp_path: Path) -> None:
    """Adam's first step moves each weight by its learning rate: a tenth for the second text encoder, next to nothing for the first."""
    options = ("method.rank=2", "method.text_encoders=true", "train.steps=1", "train.sample_every=0")
    adam = ("optimizer.eps=1e-30", "optimizer.weight_decay=0", "train.max_grad_norm=0")
    scale = 'optimizer.lr_scale={"text_encoder_2.*" = 0.1, "text_encoder.*" = 1e-6}'
    far = {"unet": 1e-2, "text_encoder": 1e-8, "text_encoder_2": 1e-3}
    moved = dict[str, dict[str, torch.Tensor]]()
    for name, more in (("same", ()), ("own", (scale,))):
        run = Run(tmp_path / name)
        list(train(config_of(world, *options, *adam, *more), run))
        moved[name] = {k: v for k, v in load_file(next(run.final.glob("*.safetensors"))).items() if "lora_B" in k}
    assert {key.partition(".")[0] for key in moved["own"]} == far.keys()
    for key, value in moved["own"].items():
        part = key.partition(".")[0]
        torch.testing.assert_close(value, moved["same"][key] * (far[part] / 1e-2), rtol=1e-4, atol=0)
        torch.testing.assert_close(value.abs(), torch.full_like(value, far[part]), rtol=1e-4, atol=0)


# ---- files


def exported(model: Model, method: Any, to: Path) -> Path:
    """Attach, move everything as a training would, write the file; the adapters stay on."""
    rng = torch.Generator().manual_seed(1)
    parameters = method.attach(model, seed=0)
    for name, p in parameters.items():
        p.data += torch.randn(p.shape, generator=rng) * (0.1 if "magnitude" in name else 0.2)
    values: Path = method.export(model, {n: p.detach() for n, p in parameters.items()}, to, "mine", {"family": "sdxl"})
    return values


@pytest.mark.parametrize("kind", [Lora, Dora])
def test_diffusers_loads_both_text_encoders_and_draws_our_picture(
    kind: type[Lora | Dora], world: Path, tmp_path: Path
) -> None:
    model = load(world)
    base = drawn(model, SHARP)
    path = exported(model, kind(rank=2, alpha=5, text_encoders=True, text_targets="transformer"), tmp_path)
    expected = drawn(model, SHARP)
    parts = {key.partition(".")[0] for key in load_file(path)}
    assert parts == {"unet", "text_encoder", "text_encoder_2"}
    fresh = load(world)
    tuned.load(fresh, path)
    assert np.array_equal(drawn(fresh, SHARP), expected)
    pipe = pipeline(world / "model", path)
    assert abs(by_diffusers(pipe, "sdxl", model, SHARP, "a cat") - expected).max() <= 1
    assert abs(expected - base).max() > 8
    for part in ("text_encoder", "text_encoder_2"):  # each counts for the picture: none was overlooked on both sides
        for name, adapter in adapters_of({part: fresh.parts[part]}):
            assert adapter.strength == 1.0, name
            adapter.strength = 0.0
        assert abs(drawn(fresh, SHARP) - expected).max() > 2, part
        for _, adapter in adapters_of({part: fresh.parts[part]}):
            adapter.strength = 1.0


def test_diffusers_draws_with_the_folders_of_a_full_training(world: Path, tmp_path: Path) -> None:
    """A U-Net and both text encoders, put into the pipeline of the base."""
    run = Run(tmp_path / "run")
    list(train(config_of(world, *METHODS["full"], "train.sample_every=0", "optimizer.lr=1e-2"), run))
    model = load(world)
    base = drawn(model, SHARP)
    tuned.of_run(model, run)
    expected = drawn(model, SHARP)
    pipe = pipeline(world / "model")
    plain = by_diffusers(pipe, "sdxl", model, SHARP, "a cat")
    for part in ("unet", "text_encoder", "text_encoder_2"):
        setattr(pipe, part, type(getattr(pipe, part)).from_pretrained(run.final / part).eval())
        drawn_now = by_diffusers(pipe, "sdxl", model, SHARP, "a cat")
        assert abs(drawn_now - plain).max() > 2, f"{part} counts for the picture"
        plain = drawn_now
    assert abs(plain - expected).max() <= 1 and abs(expected - base).max() > 8


def test_lycoris_reads_both_text_encoders_by_their_numbers(world: Path, tmp_path: Path) -> None:
    from lycoris import create_lycoris_from_weights
    from lycoris.wrapper import LycorisNetwork

    model = load(world)
    path = exported(model, Loha(rank=2, alpha=3, text_encoders=True), tmp_path)
    prefixes = {"lora_unet": "unet", "lora_te1_text_model": "text_encoder", "lora_te2": "text_encoder_2"}
    raw = load_file(path)
    assert all(sum(key.startswith(f"{prefix}_") for key in raw) for prefix in prefixes)
    assert all(key.startswith(tuple(prefixes)) for key in raw)
    theirs, before = dict[str, Any](), LycorisNetwork.LORA_PREFIX
    bare = load(world).parts
    try:
        for prefix, part in prefixes.items():
            LycorisNetwork.apply_preset({"lora_prefix": prefix})
            network, _ = create_lycoris_from_weights(1.0, "", bare[part], weights_sd=dict(raw))
            names = {f"{prefix}_{n}".replace(".", "_"): f"{part}.{n}" for n, _ in bare[part].named_modules() if n}
            theirs |= {names[x.lora_name]: x for x in network.loras}
    finally:
        LycorisNetwork.apply_preset({"lora_prefix": before})
    ours = dict(adapters_of(model.parts))
    assert theirs.keys() == ours.keys(), "it loads every layer"
    for name, adapter in ours.items():
        x = torch.randn(2, 3, adapter.base.weight.shape[1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(theirs[name](x), adapter(x), rtol=1e-4, atol=1e-4)
    fresh = load(world)
    tuned.load(fresh, path)
    assert np.array_equal(drawn(fresh, SHARP), drawn(model, SHARP))


def test_a_lora_by_kohyas_names_is_read_in_both_text_encoders(world: Path, tmp_path: Path) -> None:
    model = load(world)
    path = exported(model, Lora(rank=2, alpha=5, text_encoders=True), tmp_path)
    raw = dict[str, torch.Tensor]()
    for name, tensors in files.read(path).layers.items():
        key = flat_name(name, numbered=True)
        raw |= {f"{key}.lora_down.weight": tensors["lora_A"], f"{key}.lora_up.weight": tensors["lora_B"]}
        raw[f"{key}.alpha"] = torch.tensor(5.0)
    assert {key.partition("_text_model")[0] for key in raw if "_te" in key} >= {"lora_te1", "lora_te2"}
    save_file({k: v.contiguous() for k, v in raw.items()}, tmp_path / "kohya.safetensors")
    fresh = load(world)
    tuned.load(fresh, tmp_path / "kohya.safetensors")
    assert np.array_equal(drawn(fresh, SHARP), drawn(model, SHARP))
