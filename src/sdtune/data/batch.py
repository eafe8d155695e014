"""Batches without end, each a function of (seed, k) alone: to resume is to begin at another k."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.model import Cond

T = TypeVar("T")


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
    Where there are several frames a batch is of one frame (and group): see `turns`.
    """
    for k in count(start):
        yield _batch(cache, config, batch_size, seed, k)


def ahead(stream: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items; a thread of its own, in which torch has no helpers, makes the next `depth` meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        _without_helpers(pool)
        begun = deque(pool.submit(next, stream) for _ in range(depth))
        try:
            while True:
                item = begun.popleft().result()
                begun.append(pool.submit(next, stream))
                yield item
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _without_helpers(pool: ThreadPoolExecutor) -> None:
    """Let torch compute in one thread when the one thread of `pool` asks.

    Each thread that computes in parallel gets helpers of its own from OpenMP. Once there are more of all than cores, none waits awake
    for its next work any more: each of a training step's operations then begins with waking them (1.6 times the time on two cores).
    """
    threads = torch.get_num_threads()
    pool.submit(torch.get_num_threads).result()  # the first time a thread asks, it takes the number of the process
    pool.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)  # also the number of the process, which the last line changed


def validation_batches(cache: Cache) -> list[Batch]:
    """All pictures in order, those of one frame together: the latents' mean, the first caption, nothing left to chance."""
    frame_N = cache.frame_N
    return [_validation_batch(cache, (frame_N == frame).nonzero().flatten()) for frame in frame_N.unique().tolist()]


def _validation_batch(cache: Cache, indices_B: Tensor) -> Batch:
    zeros_B = torch.zeros(len(indices_B))
    variant_B = zeros_B.long()
    latents = cache.latents(indices_B, variant_B)
    cond = cache.sized(cache.cond(cache.caption_rows(indices_B, zeros_B)), indices_B, variant_B)
    cond = cache.with_given(cond, indices_B, variant_B, zeros_B + 0.25)  # the second of four holes
    return Batch(latents.mean_BCHW, cond, cache.weights_N[indices_B], indices_B, cache.masks(indices_B, variant_B))


def _batch(cache: Cache, config: DataConfig, batch_size: int, seed: int, k: int) -> Batch:
    rng = _generator("batch", seed, k)
    indices_B = _chosen(cache.groups, seed, k, batch_size)
    # Always the same draws, used or not: a changed setting does not shift the others.
    caption_B, dropout_B, crop_B, flip_B = torch.rand(4, batch_size, generator=rng)
    rows_B = cache.caption_rows(indices_B, caption_B)
    rows_B[dropout_B < config.caption_dropout] = 0
    variant_B = (crop_B.double() * cache.crops).long()
    if cache.flips:
        variant_B += cache.crops * (flip_B < 0.5)
    if cache.colours > 1:
        colours_B = torch.rand(batch_size, generator=_generator("colours", seed, k))
        variant_B += cache.crops * (1 + cache.flips) * (colours_B.double() * cache.colours).long()
    latents_BCHW = cache.latents(indices_B, variant_B).sample(rng)
    cond = cache.sized(cache.cond(rows_B), indices_B, variant_B)
    cond = cache.with_given(cond, indices_B, variant_B, torch.rand(batch_size, generator=_generator("hole", seed, k)))
    return Batch(latents_BCHW, cond, cache.weights_N[indices_B], indices_B, cache.masks(indices_B, variant_B))


def _chosen(groups: Sequence[Sequence[Tensor]], seed: int, k: int, batch_size: int) -> Tensor:
    """The items of batch `k`. `groups` holds, of each group and frame, the items as often as an epoch shows them."""
    if len(groups[0]) == 1:
        return _in_turn([frames[0] for frames in groups], seed, k * batch_size, batch_size)
    k, g = divmod(k, len(groups))
    sizes, seed = tuple(map(len, groups[g])), seed + g * 7919
    round_, at = divmod(k, sum(sizes))
    frames_R, nths_R = turns(sizes, batch_size, seed, round_)
    frame, nth = int(frames_R[at]), int(nths_R[at])
    return groups[g][frame][_indices(sizes[frame], seed + frame * 104_729, nth * batch_size, batch_size)]


@lru_cache(maxsize=4)
def turns(
    sizes: tuple[int, ...], batch_size: int, seed: int, round_: int
) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """For each batch of a round, whose frame it is, and the how manieth batch of that frame, counted from the beginning of all.

    A round is as many batches as there are visits in an epoch, `sizes` of them in each frame, and has one batch of a frame for each
    visit: so over a round every picture is shown `batch_size` times, whatever frame it has and however few share it. The round is
    `batch_size` epochs, each with its share of every frame's batches, to one more or less, in random order.
    """
    labels_R = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)
    rng = np.random.default_rng(int.from_bytes(_digest("turns", seed, round_)))
    # every batch_size-th label has each frame's share of an epoch, since they are sorted
    frames_R = np.concatenate([rng.permutation(labels_R[epoch::batch_size]) for epoch in range(batch_size)])
    order_R = np.argsort(frames_R, kind="stable")
    nths_R = np.empty(len(frames_R), np.int64)
    nths_R[order_R] = np.concatenate([np.arange(size) + round_ * size for size in sizes])
    return frames_R, nths_R


def _in_turn(groups: Sequence[Tensor], seed: int, start: int, length: int) -> Tensor:
    """Positions start .. start + length of a stream that takes from each group (items of its pictures) in turn."""
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


@lru_cache(maxsize=64)
def _order(total: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(total, generator=_generator("epoch", seed, epoch))


def _generator(purpose: str, seed: int, k: int) -> torch.Generator:
    """A stream of its own for each purpose, seed and k: neighbouring seeds have nothing in common."""
    return torch.Generator().manual_seed(int.from_bytes(_digest(purpose, seed, k)[:7]))


def _digest(purpose: str, seed: int, k: int) -> bytes:
    return hashlib.sha256(f"{purpose}/{seed}/{k}".encode()).digest()
