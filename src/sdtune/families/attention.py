"""What makes a U-Net quick on CPUs: attention as two matrix products, and the order of numbers that matrix units want."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class BmmAttention:
    """diffusers' attention without torch's flash kernel, whose bf16 backward pass is slow on CPUs. Same mathematics.

    An attention processor of diffusers: `module.set_attn_processor(BmmAttention())`. Serves self- and cross-attention
    of the Stable Diffusion U-Nets (no masks, no spatial norm, residual added by the caller).
    """

    by_head = False
    """Whether the scores of one head are held at a time."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        assert attention_mask is None
        x_BLD, context_BMD = hidden_states, hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = attn.heads
        q, k, v = (
            _split(f(x), heads) for f, x in ((attn.to_q, x_BLD), (attn.to_k, context_BMD), (attn.to_v, context_BMD))
        )
        if attn.upcast_attention:  # of Stable Diffusion 2.1: its scores are too large for half precision
            q, k = q.float(), k.float()
        if self.by_head:
            rows = zip(q.split(1), k.split(1), v.split(1), strict=True)
            out = torch.cat([_attend(*row, attn.scale) for row in rows])
        else:
            out = _attend(q, k, v, attn.scale)
        B, L = x_BLD.shape[:2]
        out_BLD = out.view(B, heads, L, -1).transpose(1, 2).reshape(B, L, -1)
        result: Tensor = attn.to_out[1](attn.to_out[0](out_BLD))
        return result


def _attend(q_NLd: Tensor, k_NMd: Tensor, v_NMd: Tensor, scale: float) -> Tensor:
    """Of N = B * heads rows each by itself: (N, L, d)."""
    empty = q_NLd.new_empty(1, 1, 1).expand(len(q_NLd), q_NLd.shape[1], k_NMd.shape[1])
    scores_NLM = torch.baddbmm(empty, q_NLd, k_NMd.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(scores_NLM.softmax(-1).to(v_NMd.dtype), v_NMd)


def processors(denoiser: Any) -> Iterator[BmmAttention]:
    """Those of a denoiser."""
    found = {id(p): p for m in denoiser.modules() if isinstance(p := getattr(m, "processor", None), BmmAttention)}
    yield from found.values()


def suit_to_cpu(unet: Any) -> None:
    """Prepare diffusers' U-Net for a CPU. With matrix units (AMX) convolutions are quicker where the channels of a place lie side by
    side, and nothing has to be moved for the transformers; with vector units alone they are slower so."""
    unet.set_attn_processor(BmmAttention())
    if unet.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        unet.to(memory_format=torch.channels_last)


def _split(x_BLD: Tensor, heads: int) -> Tensor:
    """(B, L, heads * d) -> (B * heads, L, d)."""
    B, L, D = x_BLD.shape
    return x_BLD.view(B, L, heads, D // heads).transpose(1, 2).reshape(B * heads, L, D // heads)
