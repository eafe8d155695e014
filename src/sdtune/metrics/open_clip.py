"""Weights in open_clip's names as transformers' CLIPModel: the form in which HPS v2 is published.

The two hold the same numbers. open_clip keeps query, key and value in one matrix, and its projections the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdtune.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor

_FIXED = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' own spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TURNED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_PARTS = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)\.(weight|bias)$")
_JOINED = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")
WIDTH_OF_HEADS = 80, 64
"""Of the picture and of the text side of ViT-H/14 (HPS v2, PickScore)."""


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the names and forms of CLIPModel. What is none of CLIP's (masks) is left out."""
    found = {}
    for name, value in weights.items():
        if name in _FIXED:
            found[_FIXED[name]] = value
        elif name in _TURNED:
            found[_TURNED[name]] = value.T.contiguous()
        elif match := _JOINED.match(name):
            side, layer, kind = match.groups()
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                found[f"{_side(side)}.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = piece.contiguous()
        elif match := _BLOCK.match(name):
            side, layer, part, kind = match.groups()
            if part in _PARTS:
                found[f"{_side(side)}.encoder.layers.{layer}.{_PARTS[part]}.{kind}"] = value
    return found


def to_transformers(weights: Mapping[str, Tensor], path: Path, heads: tuple[int, int] | None = None) -> Any:
    """A CLIPModel whose sizes are read from the weights. `heads`: of the picture and text side; unset, those of ViT-H/14's widths.

    Raises EvaluationError for weights that are no CLIP of open_clip, with its plain GELU.
    """
    from transformers import CLIPModel

    found = {k: v.float() for k, v in renamed(weights).items()}
    try:
        model = CLIPModel(_config(found, heads))
        model.load_state_dict(found)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise EvaluationError(f"{path}: is no CLIP in open_clip's names: {str(error).splitlines()[0]}") from None
    return model


def _config(found: Mapping[str, Tensor], heads: tuple[int, int] | None) -> Any:
    from transformers import CLIPConfig

    words = found["text_model.embeddings.token_embedding.weight"]
    places = found["vision_model.embeddings.position_embedding.weight"]
    patch = found["vision_model.embeddings.patch_embedding.weight"]
    seen, read = patch.shape[0], words.shape[1]
    across = round((places.shape[0] - 1) ** 0.5)
    if heads is None:
        heads = seen // WIDTH_OF_HEADS[0], read // WIDTH_OF_HEADS[1]
    text: dict[str, Any] = {
        "vocab_size": words.shape[0], "hidden_size": read, "num_attention_heads": heads[1],
        "max_position_embeddings": found["text_model.embeddings.position_embedding.weight"].shape[0],
        "bos_token_id": words.shape[0] - 2, "eos_token_id": words.shape[0] - 1, "pad_token_id": 0,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "hidden_size": seen, "num_attention_heads": heads[0], "patch_size": patch.shape[-1], "image_size": across * patch.shape[-1],
    }  # fmt: skip
    for side, said in (("text", text), ("vision", vision)):
        layers = {k.split(".")[3] for k in found if k.startswith(f"{side}_model.encoder.layers.")}
        said["num_hidden_layers"], said["hidden_act"] = len(layers), "gelu"
        said["intermediate_size"] = found[f"{side}_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=found["visual_projection.weight"].shape[0])


def _side(visual: str | None) -> str:
    return "vision_model" if visual else "text_model"
