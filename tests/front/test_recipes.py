"""Every recipe trains on a tiny model of its family; and those of source projects hold the values that they had there."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.events import Finished, Step, Warned
from sdtune.presets import folder, names, recipe
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny

FILES = sorted(path.name for path in folder().glob("*.toml") if path.name != "sdxl_base.toml")  # which trains nothing
CAPTIONS = ["a <sks> dog", "a <sks>", "the pip", "a red pip", "the <sks>", "pip and <sks>"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    tiny.sd1_folder(root / "sd1")
    for kind in ("sd2", "sdxl-v", "sd3", "sd1-inpainting"):
        tiny.family_folder(kind, root / kind)
    sdxl(root)
    tiny.imagefolder(root / "pictures", CAPTIONS)
    (root / "pictures" / "masks").mkdir()
    for i in range(len(CAPTIONS)):
        values = np.zeros((32, 32), np.uint8)
        values[8:24, 4:24] = 255
        Image.fromarray(values).save(root / "pictures" / "masks" / f"{i:03}.png")
    return root


def sdxl(root: Path) -> None:
    """A tiny SDXL with the stages of the true one, so that `style` and `content` find their blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = tiny.sdxl(root / "words")
        config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
        config |= SDXL_STAGES | {"block_out_channels": (16, 16, 16), "transformer_layers_per_block": 1}
        parts = {**pipe.components, "unet": UNet2DConditionModel(**config)}
        assert isinstance(parts["scheduler"], EulerDiscreteScheduler)
    StableDiffusionXLPipeline(**parts).save_pretrained(root / "sdxl")


SDXL_STAGES: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "layers_per_block": 2,
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def on_tiny(name: str, world: Path) -> RunConfig:
    """The recipe, but for what makes it large."""
    data = tomllib.loads((folder() / name).read_text(encoding="utf-8"))
    family = data["model"].get("type", "sd1")
    family = {"sd15_inpainting.toml": "sd1-inpainting", "sdxl_vpred_lora.toml": "sdxl-v"}.get(name, family)
    data["model"] = {k: v for k, v in data["model"].items() if k not in ("variant", "config", "revision")}
    data["model"] |= {"path": str(world / family)}
    lean = data.get("optimizer", {}).get("weights") == "bf16"
    data["data"] |= {
        "path": str(world / "pictures"), "cache": str(world / "cache"), "resolution": 32, "validation_share": 0,
        "caption_column": "text", "caption_prefix": "", "caption_suffix": "",
    }  # fmt: skip
    data["data"] |= {"class_count": 2} if data["data"].get("class_prompt") else {}
    data["data"].pop("validation", None)
    data["train"] |= {
        "steps": 2, "batch_size": 2, "accumulate": 1, "device": "cpu", "precision": "bf16" if lean else "fp32", "threads": 1,
        "sample_every": 0,
        "validate_every": 0, "result": "last", "patience": 0,
    }  # fmt: skip
    data["sample"] = {**data.get("sample", {}), "steps": 2, "seeds": [0]}
    return configs.from_dict(data)


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_trains(name: str, world: Path, tmp_path: Path) -> None:
    config = on_tiny(name, world)
    events = list(train(config, Run(tmp_path / "run")))
    assert isinstance(events[-1], Finished) and [e.step for e in events if isinstance(e, Step)] == [1, 2]
    assert not [e.message for e in events if isinstance(e, Warned)]
    assert list((tmp_path / "run" / "final").rglob("*.safetensors"))


VALUES: dict[str, dict[str, object]] = {
    "sd14_full_128": {
        "method.type": "full", "data.resolution": 128, "train.batch_size": 1, "train.accumulate": 8, "optimizer.lr": 1e-6,
        "optimizer.weight_decay": 1e-2, "optimizer.schedule": "cosine", "train.max_grad_norm": 5.0,
        "train.gradient_checkpointing": True, "objective.weighting": "none",
    },
    "sd15_full_ema": {
        "method.type": "full", "data.resolution": 512, "train.batch_size": 1, "train.accumulate": 4, "optimizer.lr": 1e-5,
        "data.crop": "center", "data.flip": True, "optimizer.schedule": "constant", "train.max_grad_norm": 1.0,
    },
    "sd14_lora_linear": {"method.type": "lora", "method.rank": 4, "method.alpha": 1.0, "method.targets": "all-linear"},
    "sdxl_qlora_text_many": {"method.type": "qlora", "method.text_encoders": (1, 2), "method.targets": "many"},
    "sdxl_qlora_text_attention": {"method.type": "qlora", "method.text_encoders": (1, 2), "method.targets": "attention"},
    "sdxl_qlora_many": {"method.type": "qlora", "method.text_encoders": False, "method.targets": "many"},
    "sdxl_qlora_attention": {"method.type": "qlora", "method.text_encoders": False, "method.targets": "attention"},
    "sdxl_dora_prodigy": {"method.type": "dora", "optimizer.type": "prodigy"},
    "sdxl_dora_adamw8bit": {"method.type": "dora", "optimizer.type": "adamw8bit"},
    "sdxl_qlora_sparse": {"method.targets": "attention", "method.text_encoders": False, "method.dropout": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", list(VALUES))
def test_a_recipe_of_a_source_project_holds_its_values(name: str) -> None:
    config = configs.load(folder() / f"{name}.toml")
    found = {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in VALUES[name]}
    assert found == VALUES[name]
    if name == "sd15_full_ema":
        assert config.train.ema
    if name == "sd14_full_128":
        assert config.optimizer.warmup > 0


def test_every_preset_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [n for n in names() if f"`{recipe(n).name}`" not in text] == []
