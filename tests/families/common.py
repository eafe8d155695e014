"""What the tests of the families share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from sdtune import config as configs
from sdtune.config import SampleConfig
from sdtune.families import recognise
from sdtune.model import Model
from sdtune.sample import sample
from sdtune.samplers import build_scheduler

Pictures = NDArray[np.int16]
PROMPTS = ("a red dog", "a photo of a blue house")
OWN_SCHEDULER = ("sdxl-v", "sd3", "sd3-t5")
"""Kinds whose folder names the very sampler that we build for the model; the others are given ours."""


def load(path: Path, *overrides: str) -> Model:
    """The model at `path`, whatever its family."""
    return configs.load(None, [f"model.path={path}", f"model.type={recognise(str(path))}", *overrides]).model.load()


def pipeline(folder: Path, adapter: Path | None = None) -> Any:
    """diffusers' own pipeline of the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lacking = {} if has_t5(folder) else {"text_encoder_3": None, "tokenizer_3": None}
        pipe = DiffusionPipeline.from_pretrained(folder, **lacking)
        if adapter:
            pipe.load_lora_weights(adapter.parent, weight_name=adapter.name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def has_t5(folder: Path) -> bool:
    """Or is of a family that never has."""
    return not (folder / "transformer").exists() or (folder / "text_encoder_3").exists()


def drawn(model: Model, config: SampleConfig) -> Pictures:
    return np.stack([np.asarray(s.image, np.int16) for s in sample(model, config)])


def by_diffusers(pipe: Any, kind: str, model: Model, config: SampleConfig, negative: str | None) -> Pictures:
    """The same pictures from diffusers' pipeline, one at a time."""
    return np.stack(
        [one(pipe, kind, model, config, negative, prompt, seed) for prompt in config.prompts for seed in config.seeds]
    )


def one(
    pipe: Any, kind: str, model: Model, config: SampleConfig, negative: str | None, prompt: str, seed: int
) -> Pictures:
    if kind not in OWN_SCHEDULER:
        pipe.scheduler = build_scheduler(model, config.scheduler)
    more: dict[str, Any] = {}
    if kind.endswith("-inpainting"):  # a white mask; what is left of the picture is grey, its latents without chance
        grey = model.encode_images(torch.zeros(1, 3, 32, 32)).mean_BCHW
        more = {"image": Image.new("RGB", (32, 32)), "mask_image": Image.new("L", (32, 32), 255), "strength": 1.0}
        more["masked_image_latents"] = grey
    picture = pipe(
        prompt, negative_prompt=negative, num_inference_steps=config.steps, guidance_scale=config.guidance,
        generator=torch.Generator().manual_seed(seed), height=32, width=32, output_type="np", **more,
    ).images[0]  # fmt: skip
    rounded: Pictures = (picture * 255).round().astype(np.int16)
    return rounded


def pictures(folder: Path, captions: Sequence[str]) -> Path:
    """`folder` with pictures of 40 x 36, so that something is cut off, and their captions."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, caption in enumerate(captions):
        Image.fromarray(rng.integers(0, 255, (36, 40, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder
