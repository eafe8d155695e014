"""A model in diffusers layout as one file in the layout of Stability's own tools: the key maps turned round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip


def weights(folder: Path, part: str) -> State:
    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


def write(folder: Path, file: Path, kind: str, **marks: Tensor) -> Path:
    """`file` with all parts of the model in `folder` that such files hold, and `marks`."""
    layout: dict[str, Any] = LAYOUTS[kind]
    state: State = {f"first_stage_model.{k}": v for k, v in vae(weights(folder, "vae")).items()}
    for part, (prefix, convert) in layout.items():
        state |= {prefix + k: v for k, v in convert(weights(folder, part)).items()}
    save_file({k: v.contiguous().clone() for k, v in {**state, **marks}.items()}, file)
    return file


def unet(state: State) -> State:
    """For two levels with one layer each, as tiny.unet makes them."""
    names = (
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
        ("down_blocks.0.resnets.0", "input_blocks.1.0"), ("down_blocks.0.attentions.0", "input_blocks.1.1"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"), ("down_blocks.1.resnets.0", "input_blocks.3.0"),
        ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
        ("up_blocks.0.resnets.0", "output_blocks.0.0"), ("up_blocks.0.resnets.1", "output_blocks.1.0"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.1.1.conv"),
        ("up_blocks.1.resnets.0", "output_blocks.2.0"), ("up_blocks.1.attentions.0", "output_blocks.2.1"),
        ("up_blocks.1.resnets.1", "output_blocks.3.0"), ("up_blocks.1.attentions.1", "output_blocks.3.1"),
    )  # fmt: skip
    out = {}
    for key, value in state.items():
        ours, theirs = next((o, t) for o, t in names if key.startswith(o + "."))
        rest = key.removeprefix(ours)
        if ".resnets." in ours:
            rest = next(rest.replace(f".{o}.", f".{t}.") for o, t in RESNET if rest.startswith(f".{o}."))
        out[theirs + rest] = value
    return out


def vae(state: State) -> State:
    """For two levels, as tiny.vae makes them."""
    names = {
        "encoder.down_blocks.0.resnets.": "encoder.down.0.block.", "encoder.down_blocks.1.resnets.": "encoder.down.1.block.",
        "encoder.down_blocks.0.downsamplers.0": "encoder.down.0.downsample",
        "decoder.up_blocks.0.resnets.": "decoder.up.1.block.", "decoder.up_blocks.1.resnets.": "decoder.up.0.block.",
        "decoder.up_blocks.0.upsamplers.0": "decoder.up.1.upsample",
        "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut", "mid_block.attentions.0.": "mid.attn_1.", "group_norm.": "norm.", "to_q.": "q.",
        "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out.",
    }  # fmt: skip
    out = {}
    for key, value in state.items():
        is_matrix = "attentions" in key and value.dim() == 2
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        out[key] = value[:, :, None, None] if is_matrix else value
    return out


def clip(state: State) -> State:
    """transformers' names, which begin with `text_model.` in such files; and position ids, which they hold too."""
    named = {k if k.startswith("text_") else f"text_model.{k}": v for k, v in state.items()}
    return {**named, "text_model.embeddings.position_ids": torch.arange(16)[None]}


def open_clip(state: State) -> State:
    """With one layer more than transformers' module keeps, as SD 2's files have."""
    out: State = {"logit_scale": torch.ones(())}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        if ".q_proj." in key:
            parts = [state[k] for k in state if k.endswith(key.replace("q_proj", "k_proj"))]
            parts = [value, *parts, *(state[k] for k in state if k.endswith(key.replace("q_proj", "v_proj")))]
            value, key = torch.cat(parts), key.replace(".q_proj.", ".in_proj_")
        elif ".k_proj." in key or ".v_proj." in key:
            continue
        for ours, theirs in (
            ("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
            (".fc1.", ".c_fc."), (".fc2.", ".c_proj."), (".self_attn", ".attn"), ("final_layer_norm", "ln_final"),
            ("embeddings.token_embedding", "token_embedding"), ("embeddings.position_embedding.weight", "positional_embedding"),
        ):  # fmt: skip
            key = key.replace(ours, theirs)
        out["text_projection" if key == "text_projection.weight" else key] = (
            value.T if key == "text_projection.weight" else value
        )
    last = {k: v for k, v in out.items() if k.startswith("transformer.resblocks.1.")}
    return out | {k.replace("resblocks.1.", "resblocks.2."): v for k, v in last.items()}


def transformer(state: State) -> State:
    """SD 3's. Its last block and its end keep scale and shift the other way round."""
    out: State = {}
    names = {
        "pos_embed.pos_embed": "pos_embed", "pos_embed.proj.": "x_embedder.proj.",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        ".attn2.to_out.0.": ".x_block.attn2.proj.", ".attn2.norm_": ".x_block.attn2.ln_", ".attn.norm_added_": ".context_block.attn.ln_",
        ".attn.norm_": ".x_block.attn.ln_", "transformer_blocks.": "joint_blocks.", ".attn.to_out.0.": ".x_block.attn.proj.",
        ".attn.to_add_out.": ".context_block.attn.proj.", ".norm1.linear.": ".x_block.adaLN_modulation.1.",
        ".norm1_context.linear.": ".context_block.adaLN_modulation.1.", ".ff.net.0.proj.": ".x_block.mlp.fc1.",
        ".ff.net.2.": ".x_block.mlp.fc2.", ".ff_context.net.0.proj.": ".context_block.mlp.fc1.",
        ".ff_context.net.2.": ".context_block.mlp.fc2.", "norm_out.linear.": "final_layer.adaLN_modulation.1.",
        "proj_out.": "final_layer.linear.",
    }  # fmt: skip
    for key, value in state.items():
        if any(mark in key for mark in (".to_k.", ".to_v.", ".add_k_proj.", ".add_v_proj.")):
            continue
        if ".to_q." in key:
            value = torch.cat([state[key.replace("to_q", f"to_{n}")] for n in "qkv"])
            key = key.replace(".attn.to_q.", ".x_block.attn.qkv.").replace(".attn2.to_q.", ".x_block.attn2.qkv.")
        elif ".add_q_proj." in key:
            value = torch.cat([state[key.replace("add_q", f"add_{n}")] for n in "qkv"])
            key = key.replace(".attn.add_q_proj.", ".context_block.attn.qkv.")
        elif key.startswith(("norm_out.", "transformer_blocks.1.norm1_context.")):
            value = torch.cat(value.chunk(2)[::-1])
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        out[key] = value
    return out


LAYOUTS: dict[str, dict[str, Any]] = {
    "sd1": {"unet": ("model.diffusion_model.", unet), "text_encoder": ("cond_stage_model.transformer.", clip)},
    "sd2": {"unet": ("model.diffusion_model.", unet), "text_encoder": ("cond_stage_model.model.", open_clip)},
    "sdxl": {
        "unet": ("model.diffusion_model.", unet),
        "text_encoder": ("conditioner.embedders.0.transformer.", clip),
        "text_encoder_2": ("conditioner.embedders.1.model.", open_clip),
    },
    "sd3": {
        "transformer": ("model.diffusion_model.", transformer),
        "text_encoder": ("text_encoders.clip_l.transformer.", clip),
        "text_encoder_2": ("text_encoders.clip_g.transformer.", clip),
    },
    "sd3-t5": {
        "transformer": ("model.diffusion_model.", transformer),
        "text_encoder": ("text_encoders.clip_l.transformer.", clip),
        "text_encoder_2": ("text_encoders.clip_g.transformer.", clip),
        "text_encoder_3": ("text_encoders.t5xxl.transformer.", lambda state: state),
    },
}
