"""Tiny real encoders, laid out as the published ones are."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = Path(str(resources.files("sdtune") / "demo/base/tokenizer"))


def words() -> int:
    found: dict[str, int] = json.loads((WORDS / "vocab.json").read_text(encoding="utf-8"))
    return len(found)


def clip(home: Path, name: str = "clip-b32", side: int = 224) -> CLIPModel:
    """A CLIP in `home/name`, with the embedded base's vocabulary."""
    torch.manual_seed(0)
    text = SMALL | {
        "vocab_size": words(),
        "eos_token_id": words() - 1,
        "bos_token_id": words() - 2,
        "pad_token_id": words() - 1,
    }
    config = CLIPConfig(
        text_config=text, vision_config=SMALL | {"image_size": side, "patch_size": side // 2}, projection_dim=8
    )
    model = CLIPModel(config).eval()
    folder = written(model, home / name)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(WORDS / file, folder)
    return model


def dinov2(home: Path, name: str = "dinov2-b14") -> Dinov2Model:
    torch.manual_seed(1)
    model = Dinov2Model(
        Dinov2Config(**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, image_size=224, patch_size=112)
    ).eval()
    written(model, home / name)
    return model


def dino(home: Path) -> ViTModel:
    torch.manual_seed(2)
    model = ViTModel(ViTConfig(**SMALL, image_size=224, patch_size=112), add_pooling_layer=False).eval()
    written(model, home / "dino-s16")
    return model


def sscd(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Weights of the real network by chance, in the published file's name; pictures are shown smaller, which is quicker."""
    from sdtune.metrics.nets.resnet import Sscd
    from sdtune.metrics.registry import ENCODERS

    torch_saved(dict(shaken(Sscd).state_dict()), home / "sscd/sscd_disc_mixup.torchvision.pt")
    spec = ENCODERS["sscd"]
    assert spec.look
    patch.setattr("sdtune.metrics.places.expected_sha256", lambda spec, file: None)
    patch.setitem(ENCODERS, "sscd", dataclasses.replace(spec, look=dataclasses.replace(spec.look, side=64)))


def written(model: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def torch_saved(weights: dict[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)  # noqa: TID251 (published weights have this form)
    return path


def shaken(make: Callable[[], nn.Module]) -> nn.Module:
    """Random weights of the size that keeps signals alive, and batch norms that have counted something."""
    torch.manual_seed(0)
    with torch.device("meta"):
        net = make()
    noise = torch.randn(1 << 16)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        value = noise.repeat(-(-tensor.numel() // len(noise)))[: tensor.numel()].reshape(tensor.shape)
        fan = max(1, tensor.numel() // max(1, tensor.shape[0])) if tensor.ndim > 1 else 100
        value = 1 + 0.3 * value.clamp(-1, 1) if "running_var" in name else value * (2 / fan) ** 0.5
        owner, _, last = name.rpartition(".")
        module = net.get_submodule(owner)
        if name.endswith("num_batches_tracked"):
            module.register_buffer(last, torch.zeros((), dtype=torch.long))
        elif isinstance(tensor, nn.Parameter):
            setattr(module, last, nn.Parameter(value if tensor.ndim > 1 else 1 + value))
        else:
            module.register_buffer(last, value)
    return net.eval().requires_grad_(False)


def image_reward_weights() -> dict[str, Tensor]:
    """Of an ImageReward with two layers on each side, in the names of its own code: 3 heads look and 2 heads read."""
    torch.manual_seed(4)
    seen, read, inner, words = 192, 128, 40, len(wordpieces()) + 2
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, seen), "blip.visual_encoder.pos_embed": (1, 5, seen),
        "blip.visual_encoder.patch_embed.proj": (seen, 3, 112, 112), "blip.visual_encoder.norm": (seen,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (words, read),
        "blip.text_encoder.embeddings.position_embeddings.weight": (64, read), "blip.text_encoder.embeddings.LayerNorm": (read,),
        "blip.vision_proj": (8, seen), "blip.text_proj": (8, read),
    }  # fmt: skip
    for layer in range(2):
        block, text = f"blip.visual_encoder.blocks.{layer}", f"blip.text_encoder.encoder.layer.{layer}"
        shapes |= {
            f"{block}.norm1": (seen,), f"{block}.attn.qkv": (3 * seen, seen), f"{block}.attn.proj": (seen, seen),
            f"{block}.norm2": (seen,), f"{block}.mlp.fc1": (inner, seen), f"{block}.mlp.fc2": (seen, inner),
            f"{text}.intermediate.dense": (inner, read), f"{text}.output.dense": (read, inner), f"{text}.output.LayerNorm": (read,),
        }  # fmt: skip
        for kind, source in (("attention", read), ("crossattention", seen)):
            shapes |= {
                f"{text}.{kind}.self.query": (read, read), f"{text}.{kind}.self.key": (read, source),
                f"{text}.{kind}.self.value": (read, source), f"{text}.{kind}.output.dense": (read, read),
                f"{text}.{kind}.output.LayerNorm": (read,),
            }  # fmt: skip
    widths = (read, 1024, 128, 64, 16, 1)
    shapes |= {f"mlp.layers.{n}": (widths[i + 1], widths[i]) for i, n in enumerate((0, 2, 4, 6, 7))}
    found: dict[str, Tensor] = {"blip.text_encoder.embeddings.position_ids": torch.arange(64)[None]}
    for name, shape in shapes.items():
        spread = 1.2 / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        if name.endswith((".weight", "cls_token", "pos_embed")):
            found[name] = torch.randn(shape) * 0.5
        else:
            found[f"{name}.weight"] = torch.randn(shape) * spread if len(shape) > 1 else 1 + 0.2 * torch.randn(shape)
            found[f"{name}.bias"] = 0.2 * torch.randn(shape[0])
    return found


def wordpieces() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *letters, *(f"##{x}" for x in letters)]


def image_reward(home: Path, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """In `home/imagereward`, under the published names."""
    weights = image_reward_weights()
    torch_saved(weights, home / "imagereward/ImageReward.pt")
    (home / "imagereward/vocab.txt").write_text("\n".join(wordpieces()) + "\n", encoding="utf-8")
    patch.setattr("sdtune.metrics.places.expected_sha256", lambda spec, file: None)
    return weights
