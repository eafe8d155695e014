"""Loading Stable Diffusion 1.x: what is read, what is refused, in one line each."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from sdtune.errors import ModelError
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
    cond = model.encode_prompts(["a red dog", ""])
    states, _ = pipe.encode_prompt(["a red dog", ""], "cpu", 1, False)
    torch.testing.assert_close(cond.states_BLD, states)
    t = torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(model.denoise(x, t, cond), pipe.unet(x, t, states).sample, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.decode(x), pipe.vae.decode(x / scale).sample.clamp(-1, 1))
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(model.alphas_T**2, schedule.alphas_cumprod)
    assert (model.resolution, model.downscale, model.max_tokens, model.prediction) == (32, 2, 16, "epsilon")


def test_the_fingerprint_follows_the_weights_that_the_cache_depends_on(folder: Path, copy: Path) -> None:
    first = Sd1(path=str(folder)).load().fingerprint
    assert Sd1(path=str(copy)).load().fingerprint == first
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.bias"] += 1e-3
    save_file(weights, file)
    assert Sd1(path=str(copy)).load().fingerprint != first


def edit_index(folder: Path, **parts: object) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


def test_a_class_of_another_kind_is_refused_before_anything_is_imported(copy: Path) -> None:
    edit_index(copy, unet=["os", "system"])
    with pytest.raises(ModelError, match=r"names \['os', 'system'\] as unet; sd1 needs UNet2DConditionModel"):
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


def test_damaged_weights_are_named(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"unet: conv_in.weight holds NaN"):
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
