"""Batches without end, each a function of (seed, k) alone: to resume is to begin at another k."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import torch
from torch import Tensor

from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.model import Cond


@dataclass(frozen=True)
class Batch:
    """What a training step reads, on the CPU: latents (B, C, H, W), their text states, their weights (B,).

    `indices_B` says which pictures they are of, by their place in the cache; `mask_B1HW` what each of their places counts
    (None: all count 1).
    """

    latents_BCHW: Tensor
    cond: Cond
    weight_B: Tensor
    indices_B: Tensor
    mask_B1HW: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same, `indices_B` apart, on `device`."""
        mask_B1HW = None if self.mask_B1HW is None else self.mask_B1HW.to(device)
        return Batch(
            self.latents_BCHW.to(device), self.cond.to(device), self.weight_B.to(device), self.indices_B, mask_B1HW
        )


def batches(cache: Cache, config: DataConfig, *, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
    """Batches `start`, `start` + 1, ... of the endless stream; each epoch shows each picture once, newly shuffled.

    With several groups of pictures the stream takes from them in turn, each at its own pace.
    A batch may hold the end of one epoch and the beginning of the next: nothing is dropped or doubled.
    """
    for k in count(start):
        yield _batch(cache, config, batch_size, seed, k)


def validation_batch(cache: Cache) -> Batch:
    """All pictures in order: the latents' mean, the first caption, nothing left to chance."""
    indices_B = torch.arange(len(cache))
    zeros_B = torch.zeros(len(cache))
    latents = cache.latents(indices_B, zeros_B.long())
    cond = cache.sized(cache.cond(cache.caption_rows(indices_B, zeros_B)), indices_B, zeros_B.long())
    cond = cache.with_given(cond, indices_B, zeros_B.long(), zeros_B + 0.25)  # the second of four holes
    return Batch(latents.mean_BCHW, cond, cache.weights_N, indices_B, cache.masks(indices_B, zeros_B.long()))


def _batch(cache: Cache, config: DataConfig, batch_size: int, seed: int, k: int) -> Batch:
    rng = _generator("batch", seed, k)
    indices_B = _in_turn(cache.groups, seed, k * batch_size, batch_size)
    # Always the same draws, used or not: a changed setting does not shift the others.
    caption_B, dropout_B, crop_B, flip_B = torch.rand(4, batch_size, generator=rng)
    rows_B = cache.caption_rows(indices_B, caption_B)
    rows_B[dropout_B < config.caption_dropout] = 0
    variant_B = (crop_B.double() * cache.crops).long()
    if cache.flips:
        variant_B += cache.crops * (flip_B < 0.5)
    latents_BCHW = cache.latents(indices_B, variant_B).sample(rng)
    cond = cache.sized(cache.cond(rows_B), indices_B, variant_B)
    cond = cache.with_given(cond, indices_B, variant_B, torch.rand(batch_size, generator=_generator("hole", seed, k)))
    return Batch(latents_BCHW, cond, cache.weights_N[indices_B], indices_B, cache.masks(indices_B, variant_B))


def _in_turn(groups: Sequence[Tensor], seed: int, start: int, length: int) -> Tensor:
    """Positions start .. start + length of a stream that takes from each group (indices of its pictures) in turn."""
    positions_B = torch.arange(start, start + length)
    indices_B = torch.empty(length, dtype=torch.long)
    for g, group in enumerate(groups):
        mine_B = positions_B % len(groups) == g
        if at := (positions_B[mine_B] // len(groups)).tolist():
            indices_B[mine_B] = group[_indices(len(group), seed + g * 7919, at[0], len(at))]
    return indices_B


def _indices(total: int, seed: int, start: int, length: int) -> Tensor:
    """Positions start .. start + length of the shuffled epochs laid end to end."""
    parts: list[Tensor] = []
    while length:
        epoch, offset = divmod(start, total)
        parts.append(_order(total, seed, epoch)[offset : offset + length])
        start, length = start + len(parts[-1]), length - len(parts[-1])
    return torch.cat(parts)


@lru_cache(maxsize=4)
def _order(total: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(total, generator=_generator("epoch", seed, epoch))


def _generator(purpose: str, seed: int, k: int) -> torch.Generator:
    """A stream of its own for each purpose, seed and k: neighbouring seeds have nothing in common."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{k}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
