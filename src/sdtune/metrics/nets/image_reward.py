"""The network of ImageReward (arXiv:2304.05977): a BLIP whose text side looks at the picture, and linear layers on its first token.

The published file has the names of BLIP's own code. transformers has the same network under other names, and nothing but names differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sdtune.errors import EvaluationError

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of rewards, as published: a score is (reward - MEAN) / STD."""
HEAD = (0, 2, 4, 6, 7)
"""The numbers of the head's linear layers in the file. Between the others stood dropouts; there is no activation."""
WIDTH_OF_HEADS = 64
"""Of attention, on both sides."""

_VISION, _TEXT, _MLP = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
_FIXED = {
    "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight", "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight", "norm.bias": "post_layernorm.bias",
}  # fmt: skip
_PARTS = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)$")


class ImageReward(nn.Module):
    """Scores of pictures for their prompts."""

    def __init__(self, vision: Any, text: Any, head: nn.Sequential) -> None:
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    @property
    def words(self) -> int:
        """That the text side knows, BLIP's two marks included."""
        return int(self.text.get_input_embeddings().num_embeddings)

    def forward(self, pixels_B3HW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """(B,). `mask_BT`: 1 where there is a token of the prompt, 0 where it is filled up."""
        patches_BPD = self.vision(pixel_values=pixels_B3HW).last_hidden_state
        seen_BTD = self.text(
            input_ids=ids_BT, attention_mask=mask_BT, encoder_hidden_states=patches_BPD
        ).last_hidden_state
        reward_B: Tensor = self.head(seen_BTD[:, 0])[:, 0]
        return (reward_B - MEAN) / STD


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the names of `ImageReward`. BLIP's projections, which the score does not use, and what counts places are left out."""
    found = {}
    for name, value in weights.items():
        if name.startswith(_VISION):
            if new := _of_vision(name.removeprefix(_VISION)):
                found[f"vision.{new}"] = value
        elif name.startswith(_TEXT):
            if value.is_floating_point():
                found[f"text.{name.removeprefix(_TEXT)}"] = value
        elif name.startswith(_MLP):
            number, _, kind = name.removeprefix(_MLP).partition(".")
            if number.isdecimal() and int(number) in HEAD:
                found[f"head.{HEAD.index(int(number))}.{kind}"] = value
    return found


def filled(weights: Mapping[str, Tensor], path: Path, width_of_heads: int = WIDTH_OF_HEADS) -> ImageReward:
    """The network of a file's weights; its sizes are read from them. Raises EvaluationError for weights of anything else."""
    found = {k: v.float() for k, v in renamed(weights).items()}
    try:
        vision, text, head = _made(found, width_of_heads)
        net = ImageReward(vision, text, head)
        lacking, other = net.load_state_dict(found, strict=False)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise EvaluationError(
            f"{path}: is no ImageReward: {' '.join(str(error).split())[:200]}; fetch it again"
        ) from None
    if wrong := [*lacking, *other]:
        raise EvaluationError(
            f"{path}: is no ImageReward: {len(lacking)} weights are missing and {len(other)} are strange, such as {wrong[0]}"
        )
    return net


def _of_vision(name: str) -> str | None:
    if match := _BLOCK.match(name):
        layer, part, kind = match.groups()
        return f"encoder.layers.{layer}.{_PARTS[part]}.{kind}" if part in _PARTS else None
    return _FIXED.get(name)


def _made(found: Mapping[str, Tensor], width_of_heads: int) -> tuple[Any, Any, nn.Sequential]:
    """The three parts, still without their weights."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    patch, places = (found[f"vision.embeddings.{name}"] for name in ("patch_embedding.weight", "position_embedding"))
    words, rows = (found[f"text.embeddings.{name}_embeddings.weight"] for name in ("word", "position"))
    seen, read = patch.shape[0], words.shape[1]
    vision: dict[str, Any] = {
        "hidden_size": seen, "num_attention_heads": seen // width_of_heads, "layer_norm_eps": 1e-6, "patch_size": patch.shape[-1],
        "image_size": round((places.shape[1] - 1) ** 0.5) * patch.shape[-1], "num_hidden_layers": _layers(found, "vision.encoder.layers."),
        "intermediate_size": found["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
    }  # fmt: skip
    text: dict[str, Any] = {
        "hidden_size": read, "num_attention_heads": read // width_of_heads, "layer_norm_eps": 1e-12, "encoder_hidden_size": seen,
        "vocab_size": words.shape[0], "max_position_embeddings": rows.shape[0], "num_hidden_layers": _layers(found, "text.encoder.layer."),
        "intermediate_size": found["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "is_decoder": True,  # this gives the layers that look at the picture; attention goes both ways all the same
    }  # fmt: skip
    shapes = [found[f"head.{i}.weight"].shape for i in range(len(HEAD))]
    # Only eager attention: transformers adds the mask to the scores, which must be numbers.
    return (
        BlipVisionModel(BlipVisionConfig(**vision, attn_implementation="eager")),
        BlipTextModel(BlipTextConfig(**text, attn_implementation="eager"), add_pooling_layer=False),
        nn.Sequential(*(nn.Linear(into, out) for out, into in shapes)),
    )


def _layers(found: Mapping[str, Tensor], start: str) -> int:
    return len({name.removeprefix(start).partition(".")[0] for name in found if name.startswith(start)})
