"""Less memory in drawing: the same pictures where that is promised, near ones from tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sdtune import config as configs
from sdtune.config import SampleConfig
from sdtune.families.attention import BmmAttention, processors
from sdtune.infotext import read
from sdtune.opened import Opened
from sdtune.sample import sample, save_png
from tests.families.common import PROMPTS, drawn, load

FamilyFolder = Callable[[str], Path]
NONE = {"tiling": False, "slicing": False, "attention": False}


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_sliced_pictures_are_those_decoded_one_by_one(folder_of: FamilyFolder, kind: str) -> None:
    model: Any = load(folder_of(kind))
    latents = torch.randn(3, model.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    sizes, inner = list[int](), model.vae._decode

    def counted(z: torch.Tensor, *rest: Any, **more: Any) -> Any:
        sizes.append(len(z))
        return inner(z, *rest, **more)

    model.vae._decode = counted
    alone = torch.cat([model.decode(row) for row in latents.split(1)])
    with model.sparing(**{**NONE, "slicing": True}):
        sliced = model.decode(latents)
    whole = model.decode(latents)
    assert sizes == [1] * 6 + [3], "and the switch is back"
    assert torch.equal(sliced, alone)
    torch.testing.assert_close(sliced, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_attention_head_by_head_predicts_the_same(folder_of: FamilyFolder, kind: str) -> None:
    model = load(folder_of(kind))
    x = torch.randn(2, model.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([3, 700]), model.encode_prompts(PROMPTS)
    with torch.no_grad():
        plain = model.denoise(x, t, cond)
        with model.sparing(**{**NONE, "attention": True}):
            assert list(processors(model.denoiser)) and all(p.by_head for p in processors(model.denoiser))
            torch.testing.assert_close(model.denoise(x, t, cond), plain, rtol=1e-5, atol=1e-6)
    assert not any(p.by_head for p in processors(model.denoiser)) and not BmmAttention.by_head


def test_tiles_are_near_the_whole_picture(tmp_path: Path) -> None:
    model: Any = configs.load(None).model.load()
    config = SampleConfig(prompts=("red apple",), seeds=(1,), steps=3, width=128, height=128)
    whole, tiled = (drawn(model, replace(config, vae_tiling=on)) for on in (False, True))
    gap = abs(whole - tiled)
    assert 0 < gap.mean() < 6 and np.quantile(gap, 0.99) < 60, (gap.mean(), np.quantile(gap, 0.99))
    small = replace(config, width=64, height=64)
    one, other = (drawn(model, replace(small, vae_tiling=on)) for on in (False, True))
    assert np.array_equal(one, other), "one tile holds it all"
    (picture,) = sample(model, replace(config, vae_tiling=True, steps=1))
    save_png(picture, tmp_path / "p.png")
    assert "sample.vae_tiling=true" in read(tmp_path / "p.png").overrides(()), "it changes the picture"


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
@pytest.mark.parametrize(("device", "unload"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_text_encoders_and_vae_leave_while_the_denoiser_works(
    folder_of: FamilyFolder, monkeypatch: pytest.MonkeyPatch, kind: str, device: str, unload: bool
) -> None:
    """`sample.unload` on a CUDA device, which is named here and not used: what is moved lies where it lay."""
    model: Any = load(folder_of(kind))
    config = SampleConfig(prompts=PROMPTS[:1], seeds=(1,), steps=2, scheduler="euler", unload=unload)
    plain = drawn(model, config)
    others: dict[nn.Module, str] = {part: name for name, part in model.parts.items() if part is not model.denoiser}
    others[model.vae] = "vae"
    here, to, moves = set(others.values()), nn.Module.to, list[str]()

    def noted(self: nn.Module, *args: Any) -> nn.Module:
        leaves = args == ("cpu",)  # what comes is told a torch.device
        moves.append(f"{others[self]} {'leaves' if leaves else 'comes'}")
        (here.discard if leaves else here.add)(others[self])
        return to(self, *args)

    monkeypatch.setattr(nn.Module, "to", noted)
    with monkeypatch.context() as named:
        named.setattr(type(model), "device", torch.device(device))
        texts = Opened(model).suit(config)
    at_work = list[set[str]]()
    (picture,) = sample(model, config, texts=texts, on_step=lambda look: at_work.append(set(here)))
    spared = device == "cuda" and unload
    assert at_work == [set() if spared else set(others.values())] * 2 and np.array_equal(
        np.asarray(picture.image), plain[0]
    )
    encoders = [name for name in others.values() if name != "vae"]
    once = [f"{name} {way}" for way in ("comes", "leaves") for name in encoders]
    away = [f"{name} leaves" for name in ("vae", *encoders)]
    # the negative prompt and the prompt are read one after the other, then the picture is decoded
    assert moves == ([*away, *once, *once, "vae comes", "vae leaves"] if spared else [])


def test_all_of_it_together_draws_the_same_picture(folder_of: FamilyFolder) -> None:
    model = load(folder_of("sd1"))
    config = SampleConfig(prompts=PROMPTS, seeds=(1, 2), steps=2)
    spared = replace(config, vae_slicing=True, attention_slicing=True)
    assert abs(drawn(model, config) - drawn(model, spared)).max() <= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inside torch itself
def test_a_compiled_denoiser_draws_the_same_picture(folder_of: FamilyFolder) -> None:
    model = load(folder_of("sd1"))
    config = SampleConfig(prompts=PROMPTS[:1], seeds=(1,), steps=2)
    plain = drawn(model, config)
    Opened(model).suit(replace(config, compile=True))
    assert model.denoiser._compiled_call_impl is not None and abs(drawn(model, config) - plain).max() <= 1
