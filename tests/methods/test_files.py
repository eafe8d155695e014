"""Adapter files: other tools load ours and draw our picture; we read theirs; what does not fit is refused."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from sdtune import inspection, tuned
from sdtune.config import SampleConfig
from sdtune.errors import ModelError
from sdtune.families.sd1 import Sd1
from sdtune.methods import files
from sdtune.methods.adapter_method import AdapterMethod
from sdtune.methods.adapters import Adapter, adapters_of
from sdtune.methods.dora import Dora
from sdtune.methods.loha import Loha
from sdtune.methods.lokr import Lokr
from sdtune.methods.lora import Lora
from sdtune.methods.oft import Oft
from sdtune.methods.qlora import Qlora
from sdtune.methods.together import Sum
from sdtune.model import Model
from sdtune.sample import sample
from sdtune.samplers import build_scheduler
from tests import tiny

CONFIG = SampleConfig(prompts=("a red dog",), seeds=(3,), steps=3, guidance=3.0)
BOTH = {"text_encoders": True, "text_targets": "transformer"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1_folder(tmp_path_factory.mktemp("files") / "model")


@pytest.fixture
def model(folder: Path) -> Model:
    return Sd1(path=str(folder)).load()


def pipeline(folder: Path) -> StableDiffusionPipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(model: Model) -> NDArray[np.int16]:
    (picture,) = sample(model, CONFIG)
    return np.asarray(picture.image, np.int16)


def by_diffusers(pipe: StableDiffusionPipeline, model: Model) -> NDArray[np.int16]:
    pipe.unet.eval()
    pipe.text_encoder.eval()
    pipe.scheduler = build_scheduler(model, CONFIG.scheduler)
    picture = pipe(
        CONFIG.prompts[0], negative_prompt="", num_inference_steps=CONFIG.steps, guidance_scale=CONFIG.guidance,
        generator=torch.Generator().manual_seed(CONFIG.seeds[0]), height=32, width=32, output_type="np",
    ).images[0]  # fmt: skip
    return (picture * 255).round().astype(np.int16)  # type: ignore[no-any-return]


def exported(model: Model, method: AdapterMethod, to: Path) -> Path:
    """Attach, move everything as a training would, write the file; the adapters stay on."""
    rng = torch.Generator().manual_seed(1)
    parameters = method.attach(model, seed=0)
    for name, p in parameters.items():
        p.data += torch.randn(p.shape, generator=rng) * (0.1 if "magnitude" in name else 0.2)
    return method.export(model, {n: p.detach() for n, p in parameters.items()}, to, "mine", {"base": "tiny"})


@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=2, alpha=5, **BOTH),  # type: ignore[arg-type]
        Lora(rank=2, rank_pattern={"*.attn2.*": 3, "fc1": 4}, alpha_pattern={"*.to_q": 7}, rslora=True, **BOTH),  # type: ignore[arg-type]
        Lora(rank=2, alpha=3, init="pissa", targets="many"),
        Lora(rank=2, init="olora"),
        Dora(rank=2, alpha=5, targets="many", **BOTH),  # type: ignore[arg-type]
        Qlora(rank=2, alpha=5),
        Qlora(rank=2, dora=True, base="int8"),
    ],
    ids=["lora", "patterns", "pissa", "olora", "dora", "qlora", "qdora"],
)
def test_diffusers_loads_it_and_draws_our_picture(
    folder: Path, model: Model, tmp_path: Path, method: AdapterMethod
) -> None:
    path = exported(model, method, tmp_path)
    fresh = Sd1(path=str(folder)).load()
    base = drawn(fresh)
    tuned.load(fresh, path)
    expected = drawn(fresh)
    assert abs(expected - base).max() > 8
    if not isinstance(method, Qlora):
        assert np.array_equal(drawn(model), expected)
    pipe = pipeline(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(tmp_path, weight_name=path.name)
    assert abs(by_diffusers(pipe, model) - expected).max() <= 1


@pytest.mark.parametrize(
    "method",
    [
        Loha(rank=2, alpha=3, targets="many", **BOTH),  # type: ignore[arg-type]
        Lokr(factor=4, targets="many", **BOTH),  # type: ignore[arg-type]
        Lokr(factor=2, rank=2, alpha=0.7, targets=("*",)),
        Lokr(factor=64, rank=1, targets=("*",)),
        Oft(block=4, targets=("*",), **BOTH),  # type: ignore[arg-type]
    ],
    ids=["loha", "lokr", "lokr-thin", "lokr-large", "oft"],
)
def test_lycoris_loads_it_and_changes_the_weights_alike(
    folder: Path, model: Model, tmp_path: Path, method: AdapterMethod
) -> None:
    from lycoris import create_lycoris_from_weights
    from lycoris.wrapper import LycorisNetwork

    path = exported(model, method, tmp_path)
    raw, pipe = load_file(path), pipeline(folder)
    before = LycorisNetwork.LORA_PREFIX
    theirs = dict[str, Any]()
    try:
        for prefix, part, root in (
            ("lora_unet", "unet", pipe.unet),
            ("lora_te_text_model", "text_encoder", pipe.text_encoder),
        ):
            LycorisNetwork.apply_preset({"lora_prefix": prefix})
            network, _ = create_lycoris_from_weights(1.0, "", root, weights_sd=dict(raw))
            names = {f"{prefix}_{n}".replace(".", "_"): f"{part}.{n}" for n, _ in root.named_modules() if n}
            theirs |= {names[x.lora_name]: x for x in network.loras}
    finally:
        LycorisNetwork.apply_preset({"lora_prefix": before})
    ours = dict(adapters_of(model.parts))
    assert theirs.keys() == ours.keys(), "it loads every layer"
    rng = torch.Generator().manual_seed(0)
    for name, adapter in ours.items():
        b = adapter.base
        shape = (2, b.in_channels, 6, 6) if isinstance(b, torch.nn.Conv2d) else (2, 3, b.in_features)
        x = torch.randn(*shape, generator=rng)
        with torch.no_grad():
            assert not torch.allclose(adapter(x), b(x), atol=1e-3)
            torch.testing.assert_close(theirs[name](x), adapter(x), rtol=1e-4, atol=1e-4)
    fresh = Sd1(path=str(folder)).load()
    tuned.load(fresh, path)
    assert np.array_equal(drawn(model), drawn(fresh))
    report = inspection.inspect_adapter(path)
    assert len(report.layers) == len(ours) and report.norm > 0


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_file_that_diffusers_wrote_is_read(
    folder: Path, model: Model, tmp_path: Path, old_names: bool, use_dora: bool
) -> None:
    pipe = pipeline(folder)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "conv1"], use_dora=use_dora))
    pipe.text_encoder.add_adapter(LoraConfig(r=3, lora_alpha=4, target_modules=["q_proj"], use_rslora=True))
    rng = torch.Generator().manual_seed(0)
    for root in (pipe.unet, pipe.text_encoder):
        for name, p in root.named_parameters():
            if "lora_" in name:
                p.data += torch.randn(p.shape, generator=rng) * 0.2
    states = {
        part: get_peft_model_state_dict(root)
        for part, root in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder))
    }
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"],
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["default"].to_dict(),
    )  # fmt: skip
    path = tmp_path / "pytorch_lora_weights.safetensors"
    if old_names:  # as before transformers 5
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        raw = {k.replace("text_encoder.", "text_encoder.text_model."): v for k, v in load_file(path).items()}
        assert any("text_model" in k for k in raw)
        save_file(raw, path, metadata)
    tuned.load(model, path)
    assert abs(by_diffusers(pipe, model) - drawn(model)).max() <= 1


def test_a_lora_by_kohyas_names_is_read(model: Model, folder: Path, tmp_path: Path) -> None:
    path = exported(model, Dora(rank=2, alpha=5, targets="many", **BOTH), tmp_path)  # type: ignore[arg-type]
    from sdtune.methods.lycoris_file import flat_name

    raw = {}
    found = files.read(path)
    for name, tensors in found.layers.items():
        key = flat_name(name, numbered=False)
        raw[f"{key}.lora_down.weight"], raw[f"{key}.lora_up.weight"] = tensors["lora_A"], tensors["lora_B"]
        magnitude = tensors["lora_magnitude_vector"].flatten()
        raw[f"{key}.dora_scale"] = magnitude.view(-1, *(1 for _ in tensors["lora_A"].shape[1:]))
        raw[f"{key}.alpha"] = torch.tensor(5.0)
    assert any(key.startswith("lora_te_text_model_encoder_layers_0_self_attn_q_proj") for key in raw)
    save_file({k: v.contiguous() for k, v in raw.items()}, tmp_path / "kohya.safetensors")
    fresh = Sd1(path=str(folder)).load()
    tuned.load(fresh, tmp_path / "kohya.safetensors")
    assert np.array_equal(drawn(fresh), drawn(model))


def test_half_of_a_file_that_fits_is_refused_with_counts(model: Model, folder: Path, tmp_path: Path) -> None:
    path = exported(model, Loha(rank=2), tmp_path)
    raw = load_file(path)
    flat = sorted({k.partition(".")[0] for k in raw})
    renamed = {k.replace(flat[0], flat[0] + "_more"): v for k, v in raw.items()}
    save_file(renamed, path)
    fresh = Sd1(path=str(folder)).load()
    with pytest.raises(ModelError, match=rf"{len(flat) - 1} of {len(flat)} adapted layers fit"):
        tuned.load(fresh, path)
    assert not list(adapters_of(fresh.parts))


def test_a_second_adapter_is_refused_before_it_is_put_on(model: Model, folder: Path, tmp_path: Path) -> None:
    path = exported(model, Lora(rank=2), tmp_path)
    with pytest.raises(ModelError, match=r"an adapter on .* already; close it first"):
        tuned.load(model, path)


def test_two_text_encoders_have_kohyas_numbers() -> None:
    from sdtune.methods.lycoris_file import flat_name

    layer = "encoder.layers.0.self_attn.q_proj"
    assert flat_name(f"text_encoder.{layer}", numbered=True).startswith("lora_te1_text_model_encoder_layers_0")
    assert flat_name(f"text_encoder_2.text_model.{layer}", numbered=True).startswith("lora_te2_text_model_encoder")
    assert flat_name(f"text_encoder.{layer}", numbered=False).startswith("lora_te_text_model_encoder_layers_0")
    assert flat_name("unet.up_blocks.0.x", numbered=True) == "lora_unet_up_blocks_0_x"


def test_every_kind_of_layer_has_a_maker() -> None:
    def kinds(cls: Any) -> set[type]:
        return {cls, *(k for c in cls.__subclasses__() for k in kinds(c))}

    ours = {
        k for k in kinds(Adapter) if k.__module__.startswith("sdtune.") and k is not Sum
    }  # a sum is of several files
    assert len(ours) == 6  # Adapter, LowRank, Dora, Hadamard, Kronecker, Orthogonal
    assert len(files.MAKERS) == 4  # LowRank makes Dora, too
