"""Tiny models of the true classes with random weights, and tiny data sets: made offline, trained instead of mocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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


def tokenizer(folder: Path) -> CLIPTokenizer:
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
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    made: CLIPTokenizer = CLIPTokenizer.from_pretrained(
        folder, model_max_length=MAX_TOKENS, pad_token="<|endoftext|>", **marks
    )
    return made


def text_encoder(words: CLIPTokenizer, width: int = 16) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=MAX_TOKENS, projection_dim=width,
            bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        )
    )  # fmt: skip


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def unet(width: int = 16) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, attention_head_dim=2, norm_num_groups=4,
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
