"""Which layers the named sets find in each kind of denoiser, and where a set would mean something else."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdtune.errors import ConfigError
from sdtune.families.sd1 import Sd1
from sdtune.families.sd3 import Sd3
from sdtune.methods import targets
from sdtune.methods.lora import Lora
from sdtune.model import Model
from tests import tiny
from tests.front.test_recipes import SDXL_STAGES


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Sd3(path=str(tiny.family_folder("sd3-t5", tmp_path_factory.mktemp("sd3") / "model"))).load()


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Sd1(path=str(tiny.sd1_folder(tmp_path_factory.mktemp("sd1") / "model"))).load()


def test_attention_of_sd3_is_that_of_the_prompt_too(sd3: Model) -> None:
    ends = {name.rpartition("attn.")[2] for name in targets.select(sd3.denoiser, "attention") if "attn." in name}
    assert ends >= {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}


def test_sets_that_would_mean_something_else_are_refused(sd3: Model, sd1: Model) -> None:
    with pytest.raises(
        ConfigError, match=r"method\.targets: 'cross-attention' is not there: prompt and picture attend to all"
    ):
        targets.select(sd3.denoiser, "cross-attention")
    for model in (sd1, sd3):
        for wanted in ("style", "content"):
            with pytest.raises(
                ConfigError, match=rf"method\.targets: '{wanted}' is a block of SDXL, and this is another"
            ):
                targets.select(model.denoiser, wanted)


def test_all_text_encoders_are_those_of_clips_kind(sd3: Model) -> None:
    found = {name.partition(".")[0] for name in Lora(text_encoders=True).select(sd3)}
    assert found == {"transformer", "text_encoder", "text_encoder_2"}
    with pytest.raises(ConfigError, match=r"text encoder 3 is a T5, which is not trained; name \[1, 2\]"):
        Lora(text_encoders=(3,)).select(sd3)


@pytest.mark.parametrize(
    ("wanted", "begin", "count"),
    [("style", "up_blocks.0.attentions.1.", 10 * 8), ("content", "up_blocks.0.attentions.0.", 10 * 8)],
)
def test_style_and_content_are_blocks_of_the_true_sdxl(wanted: str, begin: str, count: int) -> None:
    unet = meta_sdxl()
    found = targets.select(unet, wanted)
    assert len(found) == count and all(name.startswith(begin) for name in found)


def test_named_sets_of_the_true_sdxl() -> None:
    unet = meta_sdxl()
    counts = {
        name: len(targets.select(unet, name))
        for name in ("attention", "cross-attention", "transformer", "all-linear", "many")
    }
    assert counts == {"attention": 560, "cross-attention": 280, "transformer": 722, "all-linear": 743, "many": 788}


def meta_sdxl() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(
            **SDXL_STAGES, sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
