"""Loading Stable Diffusion 1.x: what is read, what is refused, in one line each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from sdtune.errors import ModelError
from sdtune.families import settings
from sdtune.families.sd1 import Sd1
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1_folder(tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_parts_equal_diffusers_own(folder: Path) -> None:
    model, pipe = Sd1(path=str(folder)).load(), StableDiffusionPipeline.from_pretrained(folder)
    rng = torch.Generator().manual_seed(0)
    pixels, x = torch.rand(2, 3, 32, 32, generator=rng) * 2 - 1, torch.randn(2, 4, 16, 16, generator=rng)
    latents, posterior = model.encode_images(pixels), pipe.vae.encode(pixels).latent_dist
    scale = pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents.mean_BCHW, posterior.mean * scale)
    torch.testing.assert_close((0.5 * latents.logvar_BCHW).exp(), posterior.std * scale)
    drawn, theirs = (torch.Generator().manual_seed(4) for _ in range(2))
    torch.testing.assert_close(latents.sample(drawn), posterior.sample(theirs) * scale)
    cond = model.encode_prompts(["a red dog", ""])
    states, _ = pipe.encode_prompt(["a red dog", ""], "cpu", 1, False)
    torch.testing.assert_close(cond.states_BLD, states)
    assert torch.equal(cond[torch.tensor([1, 0, 0])].states_BLD, cond.states_BLD[[1, 0, 0]])
    t = torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(model.denoise(x, t, cond), pipe.unet(x, t, states).sample, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.decode(x), pipe.vae.decode(x / scale).sample.clamp(-1, 1))
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(model.alphas_T**2, schedule.alphas_cumprod)
    torch.testing.assert_close(model.sigmas_T**2, 1 - schedule.alphas_cumprod)
    assert (model.resolution, model.downscale, model.max_tokens, model.prediction) == (32, 2, 16, "epsilon")
    for part in (model.denoiser, *model.text_encoders):
        assert not part.training and not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize(
    ("part", "file", "name"),
    [
        ("vae", "diffusion_pytorch_model.safetensors", "encoder.conv_in.bias"),
        ("text_encoder", "model.safetensors", None),
    ],
)
def test_the_fingerprint_follows_the_weights_that_the_cache_depends_on(
    folder: Path, copy: Path, part: str, file: str, name: str | None
) -> None:
    first = Sd1(path=str(folder)).load().fingerprint
    assert Sd1(path=str(copy)).load().fingerprint == first
    weights = load_file(copy / part / file)
    weights[name or next(n for n in weights if n.endswith("final_layer_norm.bias"))] += 1e-3
    save_file(weights, copy / part / file, {"format": "pt"})
    assert Sd1(path=str(copy)).load().fingerprint != first


def test_counted_with_and_without_weights_is_the_same(folder: Path) -> None:
    """The scan before training counts by the settings alone."""
    model, texts = Sd1(path=str(folder)).load(), ["", "a dog", "a dog " * 20]
    for chunks in (1, 3):
        model.chunks, words = chunks, settings.words(folder, chunks)
        assert words.token_counts(texts) == model.token_counts(texts) == [2, 4, 42]
        assert words.max_tokens == model.max_tokens == 14 * chunks + 2


def test_the_fingerprint_is_that_of_an_unused_tokenizer(folder: Path) -> None:
    """A tokenizer keeps how it was told to cut and pad at its last call."""
    fresh, used = Sd1(path=str(folder)).load(), Sd1(path=str(folder)).load()
    used.tokenize(["a dog"])
    assert used.text_fingerprint == fresh.text_fingerprint


def test_the_fingerprint_follows_settings_too(folder: Path, copy: Path) -> None:
    file = copy / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 0.5}))
    assert Sd1(path=str(copy)).load().fingerprint != Sd1(path=str(folder)).load().fingerprint


def test_a_long_prompt_is_cut_and_counted_whole(folder: Path) -> None:
    model = Sd1(path=str(folder)).load()
    long = " ".join(["dog"] * 40)
    assert model.token_counts([long, "a dog"]) == [42, 4]
    assert torch.equal(model.encode_prompts([long]).states_BLD, model.encode_prompts([long + " cat"]).states_BLD)


def test_the_schedule_is_that_of_the_folder(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "beta_start": 0.001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "num_train_timesteps": 50,
    }
    path = tiny.sd1_folder(tmp_path / "m", "v_prediction", rescale_betas_zero_snr=True, **settings)
    model = Sd1(path=str(path)).load()
    expected = DDPMScheduler(rescale_betas_zero_snr=True, **settings).alphas_cumprod
    torch.testing.assert_close(model.alphas_T**2, expected)
    assert model.prediction == "v" and model.alphas_T[-1] < 1e-3


def edit_index(folder: Path, **parts: object) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_class_of_another_kind_is_refused_before_anything_is_imported(copy: Path, part: str) -> None:
    edit_index(copy, **{part: ["os", "system"]})
    with pytest.raises(ModelError, match=rf"names \['os', 'system'\] as {part}; sd1 needs \w+"):
        Sd1(path=str(copy)).load()


def test_a_fast_tokenizer_is_one_of_ours(copy: Path) -> None:
    edit_index(copy, tokenizer=["transformers", "CLIPTokenizerFast"])
    assert Sd1(path=str(copy)).load().max_tokens == 16


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_not_opened(copy: Path, part: str) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(file), file.with_name(name))  # noqa: TID251 (the pickle that must not be read)
    file.unlink()
    with pytest.raises(ModelError, match="cannot be read as Stable Diffusion"):
        Sd1(path=str(copy)).load()


def test_an_unknown_prediction_is_refused(copy: Path) -> None:
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(ModelError, match="prediction_type 'sample' of DDIMScheduler is not supported"):
        Sd1(path=str(copy)).load()


def test_parts_that_do_not_belong_together_are_refused(copy: Path) -> None:
    tiny.unet(width=24).save_pretrained(copy / "unet")
    with pytest.raises(ModelError, match="expects text states of width 24, the text encoder gives 16"):
        Sd1(path=str(copy)).load()


def test_sdxl_is_refused(copy: Path) -> None:
    edit_index(copy, text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(ModelError, match=r'is SDXL, the recipe says sd1; set model.type="sdxl"'):
        Sd1(path=str(copy)).load()


def test_a_missing_part_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    with pytest.raises(ModelError, match="the folder vae/ is missing"):
        Sd1(path=str(copy)).load()


def test_a_missing_noise_schedule_is_named(copy: Path) -> None:
    (copy / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"scheduler/scheduler_config.json is missing or damaged"):
        Sd1(path=str(copy)).load()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_named(copy: Path, part: str) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("bias"))
    weights[name][0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{part}: .*bias holds NaN"):
        Sd1(path=str(copy)).load()


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_no_safetensors_is_one_line(copy: Path, content: bytes) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as Stable Diffusion") as error:
        Sd1(path=str(copy)).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("./nowhere", "no such folder"),
        ("some/where/else", "no such folder"),
        ("owner/name", "nor in the local Hub cache; set model.download=true"),
        ("x/model.ckpt", "pickled checkpoints are not opened"),
    ],
)
def test_a_model_that_is_not_there(path: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Sd1(path=path).load()


def test_a_hub_id_is_found_in_the_local_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cached = tmp_path / "models--owner--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert Sd1(path="owner/name").load().source == f"owner/name@{commit}"
