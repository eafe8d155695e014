"""Tiny models of the true classes with random weights, and tiny data sets: made offline, trained instead of mocks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from sdtune.data.cache import Cache
from sdtune.data.plan import Plan

WORDS = ("a", "photo", "of", "red", "blue", "green", "apple", "dog", "cat", "sun", "house", "sks")
MAX_TOKENS = 16


def sd1_folder(
    folder: Path, prediction: Literal["epsilon", "v_prediction"] = "epsilon", *, seed: int = 0, **schedule: Any
) -> Path:
    """`folder` with a Stable Diffusion 1.x pipeline in diffusers layout: 32x32 pixels, 2 pixels per latent, ~0.4 MB."""
    pipe = sd1(prediction, seed=seed, tokenizer_folder=folder.parent / f"{folder.name}-tokenizer", **schedule)
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def sd1(
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    *,
    seed: int = 0,
    tokenizer_folder: Path,
    **schedule: Any,
) -> StableDiffusionPipeline:
    """The pipeline itself. The same seed gives the same weights, whatever was drawn before."""
    words = tokenizer(tokenizer_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"vae": vae(), "text_encoder": text_encoder(words), "unet": unet()}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(
        **{**betas, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **schedule},
        prediction_type=prediction,
    )
    return StableDiffusionPipeline(
        **parts, tokenizer=words, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NO_CHECKER: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def family_folder(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """`folder` with a tiny model of each kind in `KINDS`, in diffusers layout: 32x32 pixels."""
    return pipeline_folder(KINDS[kind], folder, seed=seed)


def pipeline_folder(make: Callable[[Path], DiffusionPipeline], folder: Path, *, seed: int = 0) -> Path:
    """`folder` with the pipeline that `make` makes of a folder for its words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = make(folder.parent / f"{folder.name}-words")
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def sd1_inpainting(words: Path) -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(
        vae=vae(), text_encoder=text_encoder(tokenizer(words)), unet=unet(in_channels=9), tokenizer=tokenizer(words),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1), **NO_CHECKER,
    )  # fmt: skip


def sd2(
    words: Path,
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction",
    make: type[DiffusionPipeline] = StableDiffusionPipeline,
    **settings: Any,
) -> DiffusionPipeline:
    """v-prediction; OpenCLIP's activation and padding with "!"; Linear projections in the U-Net, upcast attention."""
    padded = tokenizer(words, pad_token="!")
    return make(
        vae=vae(), text_encoder=text_encoder(padded, hidden_act="gelu"), tokenizer=padded,
        unet=unet(use_linear_projection=True, upcast_attention=True, **settings),
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction
        ), **NO_CHECKER,
    )  # fmt: skip


def sd2_epsilon(words: Path) -> DiffusionPipeline:
    """As 2-base."""
    return sd2(words, "epsilon")


def sd2_inpainting(words: Path) -> DiffusionPipeline:
    return sd2(words, "epsilon", StableDiffusionInpaintPipeline, in_channels=9)


def sdxl(
    words: Path,
    *,
    empty_is_zeros: bool = True,
    make: type[DiffusionPipeline] = StableDiffusionXLPipeline,
    in_channels: int = 4,
    **schedule: Any,
) -> DiffusionPipeline:
    big = tokenizer(words.with_name(f"{words.name}-2"), pad_token="!")
    return make(
        vae=vae(), text_encoder=text_encoder(tokenizer(words)), text_encoder_2=projected(big, 24, hidden_act="gelu"),
        tokenizer=tokenizer(words), tokenizer_2=big,
        unet=unet(
            16 + 24, in_channels=in_channels, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8, transformer_layers_per_block=(2, 1),
        ),
        scheduler=EulerDiscreteScheduler(**{**BETAS, "steps_offset": 1, "timestep_spacing": "leading", **schedule}),
        force_zeros_for_empty_prompt=empty_is_zeros,
    )  # fmt: skip


def sdxl_inpainting(words: Path) -> DiffusionPipeline:
    return sdxl(words, make=StableDiffusionXLInpaintPipeline, in_channels=9)


def sdxl_v(words: Path) -> DiffusionPipeline:
    """v-prediction with zero terminal SNR."""
    return sdxl(
        words,
        empty_is_zeros=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def sd3(words: Path, *, t5: bool = False, channels: int = 8, **settings: Any) -> StableDiffusion3Pipeline:
    small, big = tokenizer(words), tokenizer(words.with_name(f"{words.name}-2"), pad_token="!")
    first = projected(small, 16)
    nn.init.eye_(first.text_projection.weight)  # as in SD 3
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=channels, out_channels=channels, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=40,
            pos_embed_max_size=16, **settings,
        ),
        vae=vae(latent_channels=channels, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=first, text_encoder_2=projected(big, 24, hidden_act="gelu"), tokenizer=small, tokenizer_2=big,
        text_encoder_3=t5_encoder() if t5 else None, tokenizer_3=t5_tokenizer() if t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def sd3_t5(words: Path) -> StableDiffusion3Pipeline:
    """With what 3.5 adds, too."""
    return sd3(words, t5=True, qk_norm="rms_norm", dual_attention_layers=(0,))


def sd3_inpaintable(words: Path) -> StableDiffusion3Pipeline:
    """diffusers' inpainting takes 16 channels, as the real one has, and no other number."""
    return sd3(words, channels=16)


def flux(words: Path, *, told_guidance: bool = True, **schedule: Any) -> FluxPipeline:
    """Of the family that examples/plugins/flux.py brings, and so none of `KINDS`."""
    small = tokenizer(words)
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=40, pooled_projection_dim=16, guidance_embeds=told_guidance, axes_dims_rope=(2, 2, 4),
        ),
        vae=vae(latent_channels=16, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder(small), tokenizer=small, text_encoder_2=t5_encoder(), tokenizer_2=t5_tokenizer(24),
        scheduler=FlowMatchEulerDiscreteScheduler(**schedule),
    )  # fmt: skip


KINDS: dict[str, Callable[[Path], DiffusionPipeline]] = {
    "sd1-inpainting": sd1_inpainting, "sd2": sd2, "sd2-epsilon": sd2_epsilon, "sd2-inpainting": sd2_inpainting,
    "sdxl": sdxl, "sdxl-inpainting": sdxl_inpainting, "sdxl-v": sdxl_v, "sd3": sd3, "sd3-t5": sd3_t5,
}  # fmt: skip


def tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A byte-level CLIP tokenizer in which each of `WORDS` is one token; anything else is spelt letter by letter."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges, tokens = list[str](), dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (merge := f"{parts[0]} {parts[1]}") not in merges:
                merges.append(merge)
            parts[:2] = [parts[0] + parts[1]]
            tokens[parts[0]] = None
    vocab = {
        token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])
    }  # "!" is 0, as in CLIP's own
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    made: CLIPTokenizer = CLIPTokenizer.from_pretrained(
        folder, model_max_length=MAX_TOKENS, pad_token=pad_token, **marks
    )
    return made


def text_encoder(words: CLIPTokenizer, width: int = 16, **settings: Any) -> CLIPTextModel:
    return CLIPTextModel(text_config(words, width, **settings))


def projected(words: CLIPTokenizer, width: int, **settings: Any) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(text_config(words, width, **settings))


def text_config(words: CLIPTokenizer, width: int, **settings: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS, projection_dim=width,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, **settings,
    )  # fmt: skip


def t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=40, d_model=40, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    )


def t5_tokenizer(max_tokens: int = 512) -> T5Tokenizer:
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((f"\u2581{w}", -1.0) for w in WORDS),
    ]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_tokens)


def vae(**settings: Any) -> AutoencoderKL:
    common: dict[str, Any] = {"latent_channels": 4, "norm_num_groups": 4, "sample_size": 32, **settings}
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, **common,
    )  # fmt: skip


def unet(width: int = 16, **settings: Any) -> UNet2DConditionModel:
    common: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        **settings,
    }
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, **common,
    )  # fmt: skip


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A smooth picture, different for each seed and nowhere symmetric; `size` is width and height."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def imagefolder(folder: Path, captions: Sequence[str | list[str]], *, seed: int = 0) -> Path:
    """`folder` with 32x32 pictures 000.png, 001.png, ... and their captions in metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": f"{i:03}.png", "text": caption} for i, caption in enumerate(captions)]
    for i, row in enumerate(rows):
        picture(seed + i).save(folder / str(row["file_name"]))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def planned(cache: Cache) -> Plan:
    """What a cache that was opened is to hold."""
    assert cache._plan
    return cache._plan
