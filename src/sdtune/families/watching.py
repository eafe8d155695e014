"""Where the picture looks in the prompt: attention maps, taken beside the computation, which they leave as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Watch:
    """Collects what the layers of a denoiser that read the prompt attend to.

    Each place of the picture spreads an attention of 1 over the tokens (softmax of q k^T / sqrt(d), arXiv:1706.03762). What is
    kept of a look is the mean over heads and layers, the small grids of deep layers enlarged to the finest one (as DAAM does,
    arXiv:2210.04885). Only the last picture of a batch is watched: under guidance the one that reads the prompt.
    """

    def __init__(self) -> None:
        self.layers = 0
        """Layers that are watched."""
        self._size = (1, 1)
        self._maps: list[Tensor] = []

    def take(self) -> Tensor | None:
        """The maps since the last call, (tokens, height, width) in fp32 on the CPU. None if no layer has read the prompt."""
        maps, self._maps = self._maps, []
        if not maps:
            return None
        finest = max(tuple(m_LHW.shape[1:]) for m_LHW in maps)
        enlarged = [
            m_LHW if m_LHW.shape[1:] == finest else F.interpolate(m_LHW[None], finest, mode="bilinear")[0]
            for m_LHW in maps
        ]
        return torch.stack(enlarged).mean(0).cpu()

    def _begin(self, denoiser: nn.Module, args: tuple[Any, ...]) -> None:
        """Latents are about to be looked at: of what size?"""
        self._size = args[0].shape[2:]

    @torch.no_grad()
    def _cross(self, attn: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """A layer of a U-Net: places ask, tokens answer."""
        x_BLD = args[0] if args else given["hidden_states"]
        context_BMD = args[1] if len(args) > 1 else given.get("encoder_hidden_states")
        if context_BMD is None:
            return
        q, k = _heads(attn.to_q(x_BLD[-1:]), attn.heads), _heads(attn.to_k(context_BMD[-1:]), attn.heads)
        self._keep((q @ k.transpose(1, 2) * attn.scale).softmax(-1), q.shape[1])

    @torch.no_grad()
    def _joint(self, attn: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """A layer of a transformer in which places and tokens attend to all (arXiv:2403.03206): what places give to tokens."""
        x_BLD = args[0] if args else given["hidden_states"]
        context_BMD = args[1] if len(args) > 1 else given.get("encoder_hidden_states")
        if context_BMD is None:
            return
        asked = ((attn.to_q, attn.norm_q, x_BLD), (attn.to_k, attn.norm_k, x_BLD))
        q, own = (_normed(norm, _heads(layer(states[-1:]), attn.heads)) for layer, norm, states in asked)
        text = _normed(attn.norm_added_k, _heads(attn.add_k_proj(context_BMD[-1:]), attn.heads))
        keys = torch.cat([own, text], 1)
        scores = q @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])
        self._keep(scores.softmax(-1)[:, :, own.shape[1] :], q.shape[1])

    def _keep(self, share_NLM: Tensor, places: int) -> None:
        height, width = _grid(places, *self._size)
        self._maps.append(share_NLM.mean(0).T.reshape(-1, height, width))


@contextmanager
def watched(denoiser: nn.Module) -> Iterator[Watch]:
    """Inside, the attention of `denoiser` to its prompt is collected. Its output stays the same, byte for byte."""
    watch = Watch()
    hooks = [denoiser.register_forward_pre_hook(watch._begin)]
    for module in denoiser.modules():
        joint = getattr(module, "add_k_proj", None) is not None
        if joint or getattr(module, "is_cross_attention", False):
            hooks.append(module.register_forward_pre_hook(watch._joint if joint else watch._cross, with_kwargs=True))
    watch.layers = len(hooks) - 1
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def _heads(x_1LD: Tensor, heads: int) -> Tensor:
    """(1, L, heads * d) -> (heads, L, d) in fp32."""
    _, L, D = x_1LD.shape
    return x_1LD.float().view(L, heads, D // heads).transpose(0, 1)


def _normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x.to(next(norm.parameters(), x).dtype)).float()


def _grid(places: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of so many places: the latents' grid, halved until it fits (rounded up, as the U-Net's convolutions do)."""
    while height * width > places:
        height, width = (height + 1) // 2, (width + 1) // 2
    assert height * width == places, f"{places} places are no halving of the latents"
    return height, width
