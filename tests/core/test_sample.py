"""Sampling equals diffusers' pipeline; adapters load there; pictures carry their parameters."""

import json
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sdtune import tuned
from sdtune.config import SampleConfig
from sdtune.errors import ConfigError, ModelError
from sdtune.families.sd1 import Sd1
from sdtune.methods import adapters
from sdtune.methods.full import Full
from sdtune.methods.lora import Lora
from sdtune.methods.lora_file import write_lora
from sdtune.model import Model
from sdtune.sample import denoise, sample, save_png
from sdtune.samplers import SAMPLERS
from tests import tiny

PROMPTS = ("a red dog", "a photo of a blue house")
SCHEDULERS = get_args(get_type_hints(SampleConfig)["scheduler"])


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1_folder(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture
def model(folder: Path) -> Model:
    return Sd1(path=str(folder)).load()


REFERENCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (diffusers.DDPMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpm++2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpm++2m-sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++2m-sde-karras": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
}
"""Samplers as diffusers builds them from the settings in a folder of Stable Diffusion 1.5, which are KEPT."""
KEPT = (
    "beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset", "clip_sample", "set_alpha_to_one"
)  # fmt: skip


def drawn(model: Model, config: SampleConfig) -> NDArray[np.int16]:
    return np.stack([np.asarray(s.image, np.int16) for s in sample(model, config)])


def by_diffusers(folder: Path, config: SampleConfig, adapter: Path | None = None) -> NDArray[np.int16]:
    """The same pictures from StableDiffusionPipeline, one at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionPipeline.from_pretrained(folder)
        if adapter:
            pipe.load_lora_weights(adapter.parent, weight_name=adapter.name)
        reference, own = REFERENCES[config.scheduler]
        schedule = {k: pipe.scheduler.config[k] for k in KEPT}
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    out = []
    for prompt in config.prompts:
        for seed in config.seeds:
            pipe.scheduler = reference.from_config(schedule, **own)
            picture = pipe(
                prompt, negative_prompt=config.negative, num_inference_steps=config.steps, guidance_scale=config.guidance,
                generator=torch.Generator().manual_seed(seed), height=32, width=32, output_type="np",
            ).images[0]  # fmt: skip
            out.append((picture * 255).round().astype(np.int16))
    return np.stack(out)


def test_the_config_knows_each_sampler() -> None:
    assert set(SCHEDULERS) == set(SAMPLERS) == set(REFERENCES)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_equals_diffusers(folder: Path, model: Model, scheduler: str) -> None:
    config = SampleConfig(prompts=PROMPTS, seeds=(3, 4), steps=4, scheduler=scheduler, negative="a cat", guidance=3.0)  # type: ignore[arg-type]
    ours, theirs = drawn(model, config), by_diffusers(folder, config)
    assert abs(ours - theirs).max() <= 1
    assert ours.std() > 5 and abs(ours[0] - ours[1]).max() > 5


def test_without_guidance_it_equals_diffusers_too(folder: Path, model: Model) -> None:
    config = SampleConfig(prompts=PROMPTS, seeds=(1,), steps=3, guidance=1.0)
    assert abs(drawn(model, config) - by_diffusers(folder, config)).max() <= 1


def test_guidance_zero_is_the_negative_prompt_alone(model: Model) -> None:
    asked, negative, seeds, shape = *(model.encode_prompts([p] * 2) for p in PROMPTS), (1, 2), (4, 16, 16)
    zero = denoise(model, SampleConfig(steps=3, guidance=0.0), asked, negative[:1], seeds, shape)
    alone, other = (
        denoise(model, SampleConfig(steps=3, guidance=1.0), c, negative[:1], seeds, shape) for c in (negative, asked)
    )
    torch.testing.assert_close(zero, alone, rtol=1e-5, atol=1e-5)
    assert (zero - other).abs().max() > 1e-3


def test_prompts_and_seeds_given_replace_those_of_the_config(model: Model) -> None:
    config = SampleConfig(prompts=PROMPTS, seeds=(3, 4), steps=1)
    pictures = sample(model, config, prompts=("a sun", "a dog"), seeds=(7, 8))
    assert [(p.prompt, p.seed) for p in pictures] == [("a sun", 7), ("a sun", 8), ("a dog", 7), ("a dog", 8)]
    assert not list(sample(model, config, prompts=()))


def test_a_picture_does_not_depend_on_its_neighbours(model: Model) -> None:
    config = {"steps": 3, "scheduler": "euler-a", "seeds": (5, 6, 7)}
    together = drawn(model, SampleConfig(prompts=PROMPTS, batch_size=8, **config))  # type: ignore[arg-type]
    alone = drawn(model, SampleConfig(prompts=PROMPTS[1:], batch_size=1, **config))  # type: ignore[arg-type]
    assert abs(together[3:] - alone).max() <= 1


def trained(model: Model, method: Lora | Full) -> dict[str, Tensor]:
    """Stand in for a training: move what the method would train. Returns it by name."""
    rng = torch.Generator().manual_seed(1)
    parameters = method.attach(model, seed=0)
    for p in parameters.values():
        p.data += torch.randn(p.shape, generator=rng) * (0.05 if isinstance(method, Full) else 0.3)
    return {name: p.detach() for name, p in parameters.items()}


@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=3, alpha=5.0, targets="many"),
        Lora(rank=2, alpha=3.0, text_encoders=True, text_targets="transformer"),
        Full(),
        Full(text_encoders=(1,)),
    ],
)
def test_what_we_save_gives_our_picture_again(folder: Path, model: Model, tmp_path: Path, method: Lora | Full) -> None:
    config = SampleConfig(prompts=PROMPTS, seeds=(3,), steps=3)
    base = drawn(model, config)
    weights = trained(model, method)
    expected = drawn(model, config)
    path = method.export(model, weights, tmp_path / "final", "mine", {"steps": 1})

    fresh = Sd1(path=str(folder)).load()
    with_it = tuned.load(fresh, tmp_path / "final")
    assert np.array_equal(drawn(fresh, config), expected) and abs(expected - base).max() > 5
    with_it.set_strength(0.0)
    assert np.array_equal(drawn(fresh, config), base), "strength 0 is the base, byte for byte"
    with_it.set_strength(0.5)
    assert abs(drawn(fresh, config) - base).max() > 2
    if isinstance(method, Full):
        before = dict(Sd1(path=str(folder)).load().denoiser.named_parameters())
        for strength in (0.5, 2.0):
            with_it.set_strength(strength)
            for n, p in fresh.denoiser.named_parameters():
                torch.testing.assert_close(p, before[n] + strength * (weights[f"unet.{n}"] - before[n]))
    with_it.close()
    assert np.array_equal(drawn(fresh, config), base) and not list(adapters.adapters_of(fresh.parts))
    if isinstance(method, Lora):
        assert abs(by_diffusers(folder, config, adapter=path) - expected).max() <= 1, "alpha must reach diffusers"


def test_a_denoiser_of_another_model_is_refused(model: Model, tmp_path: Path) -> None:
    tiny.unet(width=24).save_pretrained(tmp_path / "unet")
    with pytest.raises(ModelError, match=r"\d+ of \d+ weights fit .*: it was made from another kind of model"):
        tuned.load(model, tmp_path)


def test_a_folder_without_one_clear_result_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found neither"):
        tuned.load(model, tmp_path)
    for name in ("one", "two"):
        write_lora(tmp_path / f"{name}.safetensors", {"unet.x": {"lora_A": torch.zeros(2, 2)}}, {"unet.x": 1.0}, {})
    with pytest.raises(ModelError, match=r"found \['one.safetensors', 'two.safetensors'\]"):
        tuned.load(model, tmp_path)


def test_an_adapter_of_another_model_is_refused(model: Model, tmp_path: Path) -> None:
    layers = {
        "unet.mid_block.attentions.0.proj_in": {"lora_A": torch.zeros(2, 7, 1, 1), "lora_B": torch.zeros(9, 2, 1, 1)},
        "unet.conv_in": {"lora_A": torch.zeros(2, 4, 3, 3), "lora_B": torch.zeros(16, 2, 1, 1)},
        "text_encoder_2.encoder.layers.0.mlp.fc1": {"lora_A": torch.zeros(2, 4), "lora_B": torch.zeros(4, 2)},
    }
    write_lora(tmp_path / "foreign.safetensors", layers, dict.fromkeys(layers, 1.0), {"base": "another"})
    with pytest.raises(ModelError, match=r"1 of 3 adapted layers fit .*another kind of model \(made for another\)"):
        tuned.load(model, tmp_path / "foreign.safetensors")
    assert not list(adapters.adapters_of(model.parts)), "a file that is refused leaves nothing behind"


@pytest.mark.parametrize("damage", ["text", "nan", "half", "empty"])
def test_a_damaged_adapter_is_one_clear_line(model: Model, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.safetensors"
    if damage == "text":
        path.write_text("hello")
    else:
        name, value = {"nan": ("lora_A", float("nan")), "half": ("lora_A", 1.0), "empty": ("y", 0.0)}[damage]
        layers = {"unet.x": {name: torch.full((2, 2), value)}}
        write_lora(path, {"unet.x": {"lora_A": torch.zeros(2, 2), **layers["unet.x"]}}, {"unet.x": 1.0}, {})
        if damage == "empty":
            save_file({"unet.x.y": torch.zeros(2)}, path)
    says = "cannot be read|x.lora_A holds NaN|x has only one of its two|no keys of the form"
    with pytest.raises(ModelError, match=rf"bad.safetensors: .*({says})") as error:
        tuned.load(model, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", ["width", "height"])
def test_a_size_that_does_not_fit_is_refused(model: Model, side: str) -> None:
    with pytest.raises(ConfigError, match=rf"sample.{side}: 33 is not a multiple of 2"):
        list(sample(model, SampleConfig(prompts=("a",), **{side: 33})))  # type: ignore[arg-type]


def test_png_carries_its_parameters(model: Model, tmp_path: Path) -> None:
    config = SampleConfig(
        prompts=("a réd dog",), negative="blue", seeds=(9,), steps=2, scheduler="ddim", guidance=2.5, width=48, strength=0.5
    )  # fmt: skip
    (picture,) = sample(model, config)
    save_png(picture, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as read:
        text = read.info["parameters"]
        assert np.array_equal(np.asarray(read), np.asarray(picture.image))
        record = json.loads(read.info["sdtune"])
    first, negative, last = text.split("\n")
    assert (first, negative) == ("a réd dog", "Negative prompt: blue")
    name = Path(model.source).name
    assert last == f"Steps: 2, Sampler: DDIM, CFG scale: 2.5, Seed: 9, Size: 48x32, Model: {name}"
    assert str(Path(model.source).parent) not in text + str(record), "a picture that travels tells no path"
    assert record == json.loads((tmp_path / "p.json").read_text())
    assert record == {
        "prompt": "a réd dog", "negative": "blue", "seed": 9, "model": name, "scheduler": "ddim", "steps": 2,
        "guidance": 2.5, "width": 48, "height": 32, "strength": 0.5, "precision": "float32",
    }  # fmt: skip
    assert picture.image.size == (48, 32)
