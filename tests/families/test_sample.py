"""Each family draws what diffusers' own pipeline draws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from diffusers.models.attention_processor import Attention

from sdtune.config import SampleConfig
from sdtune.errors import ConfigError
from sdtune.families.attention import BmmAttention
from sdtune.families.sd1 import Sd1
from sdtune.sample import sample
from sdtune.samplers import build_scheduler
from tests import tiny
from tests.families.common import PROMPTS, by_diffusers, drawn, load, pipeline

SCHEDULERS = get_args(get_type_hints(SampleConfig)["scheduler"])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", list(tiny.KINDS))
def test_equals_diffusers(folder_of: Callable[[str], Path], kind: str, guidance: float) -> None:
    model, pipe = load(folder_of(kind)), pipeline(folder_of(kind))
    config = SampleConfig(prompts=PROMPTS, seeds=(3,), steps=4, scheduler="euler", negative="a cat", guidance=guidance)
    ours = drawn(model, config)
    assert abs(ours - by_diffusers(pipe, kind, model, config, "a cat")).max() <= 1
    assert ours.std() > 5 and abs(ours[0] - ours[1]).max() > (5 if guidance > 1 else 0)


@pytest.mark.parametrize(("kind", "negative"), [("sdxl", None), ("sdxl-v", ""), ("sd2", None), ("sd3", None)])
def test_the_empty_negative_prompt_is_what_the_model_was_made_with(
    folder_of: Callable[[str], Path], kind: str, negative: str | None
) -> None:
    """SDXL's base was made with zeros (force_zeros_for_empty_prompt), others with the encoded empty prompt."""
    model, pipe = load(folder_of(kind)), pipeline(folder_of(kind))
    config = SampleConfig(prompts=PROMPTS, seeds=(3,), steps=3, scheduler="euler", guidance=4.0)
    assert abs(drawn(model, config) - by_diffusers(pipe, kind, model, config, negative)).max() <= 1
    empty = model.encode_prompts(["", "a dog"])
    assert bool(empty.states_BLD[0].any()) == (kind != "sdxl") and bool(empty.states_BLD[1].any())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_zero_terminal_snr_begins_at_pure_noise(folder_of: Callable[[str], Path], scheduler: str) -> None:
    model = load(folder_of("sdxl-v"))
    config = SampleConfig(prompts=PROMPTS[:1], seeds=(3,), steps=4, scheduler=scheduler)  # type: ignore[arg-type]
    assert float(model.alphas_T[-1]) == 0
    if scheduler in ("pndm", "heun"):
        with pytest.raises(ConfigError, match=rf"'{scheduler}' cannot begin at pure noise"):
            drawn(model, config)
        return
    built = build_scheduler(model, scheduler)
    built.set_timesteps(4)
    assert int(built.timesteps[0]) == 999
    assert 5 < drawn(model, config).std() < 120


def test_only_euler_draws_with_a_flow(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(
        ConfigError, match=r"sample.scheduler: 'dpm\+\+2m' does not draw with a flow model \(sd3\); known: euler"
    ):
        list(sample(load(folder_of("sd3")), SampleConfig(prompts=("a",))))


def test_sizes_fit_the_patches(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"sample.width: 34 is not a multiple of 4, the model's pixels per patch"):
        list(sample(load(folder_of("sd3")), SampleConfig(prompts=("a",), width=34, scheduler="euler")))


def test_sdxl_is_told_size_and_cut(folder_of: Callable[[str], Path]) -> None:
    model, pipe = load(folder_of("sdxl")), pipeline(folder_of("sdxl"))
    x, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    cond = model.encode_prompts(PROMPTS)
    size = torch.tensor([[40.0, 64, 0, 8, 32, 32], [32, 32, 0, 0, 32, 32]])
    states, _, pooled, _ = pipe.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    with torch.no_grad():
        theirs = pipe.unet(x, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": size}).sample
        plain = model.denoise(x, t, cond)
        cut = model.denoise(x, t, type(cond)(cond.states_BLD, cond.pooled_BD, size))
    torch.testing.assert_close(cut, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[0], cut[0], atol=1e-4)
    torch.testing.assert_close(plain[1], cut[1])  # unset: as large as the latents, uncut


@pytest.mark.parametrize("kind", ["sd2", "sdxl", "sd3", "sd3-t5"])
def test_token_ids_give_the_same_prediction_as_states(folder_of: Callable[[str], Path], kind: str) -> None:
    """What training a text encoder reads."""
    model = load(folder_of(kind))
    x, t = (
        torch.randn(2, model.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 700]),
    )
    cond, ids = model.encode_prompts(["a dog", ""]), model.tokenize(["a dog", ""])
    assert ids.shape[:2] == (2, len(model.text_encoders))
    with torch.no_grad():
        states, tokens = (
            model.denoise(x, t, cond),
            model.denoise(x, t, type(cond)(cond.states_BLD[:, :0], tokens_BEL=ids)),
        )
    assert torch.equal(states, tokens)


@pytest.mark.parametrize(("tiles", "dtype"), [(True, torch.bfloat16), (True, torch.float32), (False, torch.bfloat16)])
def test_weights_lie_as_matrix_units_want_them_where_there_are_some(
    tiles: bool, dtype: torch.dtype, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    unet: Any = Sd1(path=str(folder_of("sd1"))).load(device=torch.device("cpu"), dtype=dtype).denoiser
    wanted = tiles and dtype == torch.bfloat16
    kernels = [m.weight for m in unet.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert kernels and all(w.is_contiguous(memory_format=torch.channels_last) == wanted for w in kernels)


def test_upcast_attention_is_kept(folder_of: Callable[[str], Path]) -> None:
    """Stable Diffusion 2.1 asks for scores in fp32: they are too large for fp16."""
    layers = [m for m in load(folder_of("sd2")).denoiser.modules() if isinstance(m, Attention)]
    assert layers and all(m.upcast_attention and isinstance(m.processor, BmmAttention) for m in layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = Attention(32, heads=2, dim_head=16, processor=BmmAttention()), torch.randn(2, 24, 32)
    for weights in (layer.to_q, layer.to_k):
        weights.weight.data *= 800
    layer, finite = layer.half(), []
    for layer.upcast_attention in (True, False):
        finite.append(bool(layer(x.half()).isfinite().all()))
    assert finite == [True, False]


@pytest.mark.parametrize("kind", ["sdxl-v", "sd3"])
def test_latents_and_noise_schedule_equal_diffusers(folder_of: Callable[[str], Path], kind: str) -> None:
    model, pipe = load(folder_of(kind)), pipeline(folder_of(kind))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, posterior, vae = model.encode_images(pixels), pipe.vae.encode(pixels).latent_dist, pipe.vae.config
    torch.testing.assert_close(latents.mean_BCHW, (posterior.mean - (vae.shift_factor or 0)) * vae.scaling_factor)
    torch.testing.assert_close((0.5 * latents.logvar_BCHW).exp(), posterior.std * vae.scaling_factor)
    if kind == "sd3":  # from clean to noise, as the timesteps of the other families
        torch.testing.assert_close(model.sigmas_T, pipe.scheduler.sigmas.flip(0))
        torch.testing.assert_close(model.alphas_T, 1 - model.sigmas_T)
    else:  # but for the last, which samplers cannot divide by
        torch.testing.assert_close(model.alphas_T[:-1] ** 2, pipe.scheduler.alphas_cumprod[:-1])
