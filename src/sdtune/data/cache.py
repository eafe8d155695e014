"""Pictures and captions, encoded once and kept: in memory while training, on disk between runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdtune.data import archives, masks
from sdtune.data.caption import cut_off
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example
from sdtune.data.holes import hole
from sdtune.data.images import Box, Pixels, crop_boxes, decode, pixels_from, read_mask, to_square
from sdtune.data.layouts import listed, plural, shown
from sdtune.data.shards import Row, Shards
from sdtune.errors import DataError
from sdtune.model import Cond, Latents, Model

FORMAT = "1"
"""Part of every key. To be changed with anything that changes what is cached for the same picture and settings."""
ENCODE_BATCH = 8
"""Encoded at once, always: a short batch is filled up, since the last bits of a result depend on the batch's size.
What is cached for a picture so depends on the picture alone, and not on where an earlier run was stopped."""
ENCODE_PIXELS = 2**19
"""At once, too: two pictures of 512 x 512, so that a VAE in fp32 fits into small memories."""
SHARD_ENTRIES = 256
SHARD_SECONDS = 20.0
"""A slow encoder loses no more work than this to a crash."""

Encode = Callable[[Sequence[str]], list[Row]]


class View(NamedTuple):
    """One picture as it is encoded: which part of it, mirrored or not."""

    example: int
    box: Box
    mirrored: bool
    key: str


class Cache:
    """The latents of all pictures and the text states of all captions, ready to be indexed.

    Keys are hashes of content: bytes of the picture, what is done to it, the encoders' weights and dtype. An edited
    picture is encoded again alone; another VAE finds nothing of this one. Text row 0 is the empty caption.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        model: Model,
        config: DataConfig,
        resolution: int,
        augment: bool,
    ) -> None:
        self.examples, self.resolution, self.notes = list(examples), resolution, list[str]()
        self.weights_N = torch.tensor([e.weight for e in self.examples])
        group_N = torch.tensor([e.group for e in self.examples])
        repeats_N = torch.tensor([e.repeats for e in self.examples])
        places = [(group_N == g).nonzero().flatten() for g in sorted(set(group_N.tolist()))]
        self.groups = [at.repeat_interleave(repeats_N[at]) for at in places]
        """The pictures of each group by their place, as often as an epoch shows them."""
        self._model, self._config = model, config
        self._crop = config.crop if augment or config.crop != "random" else "center"
        self._flip = config.flip and augment
        self._views_NV, self._texts = self._plan_views(), self._plan_texts()
        encoder = _key(FORMAT, model.family, str(model.max_tokens), model.fingerprint)[:24]
        self._at_once = max(1, min(ENCODE_BATCH, ENCODE_PIXELS // resolution**2))
        folder = config.cache_folder()
        self._pictures = Shards(folder / f"pictures-{resolution}-{encoder}")
        self._captions = Shards(folder / f"captions-{encoder}")
        self._mask_means = Shards(folder / f"masks-{resolution}-{model.downscale}")
        self._masks_M1HW: Tensor | None = None
        self._left = Shards(folder / f"left-{resolution}-{encoder}")
        self._given_RHCHW: Tensor | None = None
        self._latents: Latents | None = None
        self._cond: Cond | None = None

    @classmethod
    def open(
        cls,
        examples: Sequence[Example],
        model: Model,
        config: DataConfig,
        *,
        resolution: int,
        augment: bool = True,
    ) -> Cache:
        """Plan the cache of `examples`; nothing is encoded before `fill`. Raises DataError.

        Without `augment` (validation) each picture has one view: not mirrored, cut in its centre instead of anywhere.
        """
        if resolution % model.grid:
            unit = "latent" if model.patch == 1 else "patch"
            raise DataError(f"data.resolution: {resolution} is no multiple of {model.grid}, the pixels per {unit}")
        cache = cls(examples, model, config, resolution, augment)
        cache.notes += [*cache._small_notes(), *cache._long_notes()]
        return cache

    def fill(self) -> Generator[tuple[str, int, int], None, None]:
        """Encode what is missing; yields (what, done, total). Stopped anywhere, it goes on there the next time."""
        views = {view.key: view for row in self._views_NV for view in row}
        rows = yield from self._complete(
            "pictures", self._pictures, list(views), self._encode_views(views), self._at_once
        )
        if views:
            mean_BCHW, logvar_BCHW = (torch.stack([rows[k][name] for k in views]) for name in ("mean", "logvar"))
            self._latents = Latents(mean_BCHW, logvar_BCHW)
        if self._model.inpaints:
            yield from self._fill_given(views)
        if any(example.mask for example in self.examples):
            yield from self._fill_masks()
        texts = {_key("caption", text): text for text in self._texts}
        rows = yield from self._complete(
            "captions", self._captions, list(texts), self._encode_texts(texts), ENCODE_BATCH
        )
        names = rows[next(iter(texts))].keys()
        self._cond = Cond(**{name: torch.stack([rows[k][name] for k in texts]) for name in names})

    def tokenize(self) -> None:
        """Put the captions' token ids beside their states, for text encoders that are trained. After `fill`, and after a method has
        taught the model new words."""
        assert self._cond is not None, "fill the cache first"
        self._cond = replace(self._cond, tokens_BEL=self._model.tokenize(self._texts))

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def crops(self) -> int:
        """Different cuts of each picture. Variant v of a picture is its cut v % crops, mirrored if v >= crops."""
        return len(self._views_NV[0]) // (1 + self._flip) if self._views_NV else 1

    @property
    def flips(self) -> bool:
        """Whether mirrored pictures are there."""
        return self._flip

    def captions(self, index: int) -> tuple[str, ...]:
        return self.examples[index].captions

    def latents(self, indices_B: Tensor, variant_B: Tensor) -> Latents:
        """The distributions of pictures `indices_B`, each in its variant. After `fill`."""
        assert self._latents is not None, "fill the cache first"
        rows_B = self._view_rows_NV[indices_B, variant_B]
        return Latents(self._latents.mean_BCHW[rows_B], self._latents.logvar_BCHW[rows_B])

    def masks(self, indices_B: Tensor, variant_B: Tensor) -> Tensor | None:
        """What each latent of pictures `indices_B` counts, each in its variant, (B, 1, H, W); None if all count 1. After `fill`."""
        return None if self._masks_M1HW is None else self._masks_M1HW[self._mask_rows_NV[indices_B, variant_B]]

    def with_given(self, cond: Cond, indices_B: Tensor, variant_B: Tensor, share_B: Tensor) -> Cond:
        """`cond` with a hole and what is left of each picture, for inpainting models; `share_B` in [0, 1) chooses among the holes."""
        if self._given_RHCHW is None:
            return cond
        rows_B, hole_B = self._view_rows_NV[indices_B, variant_B], (share_B * self._config.holes).long()
        return replace(cond, given_BCHW=self._given_RHCHW[rows_B, hole_B])

    def cond(self, rows_B: Tensor) -> Cond:
        """The text states of rows that `caption_rows` gave; row 0 is the empty caption. After `fill`."""
        assert self._cond is not None, "fill the cache first"
        return self._cond[rows_B]

    def sized(self, cond: Cond, indices_B: Tensor, variant_B: Tensor) -> Cond:
        """`cond` with the size and the cut of each picture, where the model is told them."""
        return replace(cond, size_BK=self._sizes_NVK[indices_B, variant_B]) if self._model.sized else cond

    def caption_rows(self, indices_B: Tensor, share_B: Tensor) -> Tensor:
        """Rows of one caption for each picture: `share_B` in [0, 1) chooses among several."""
        choice_B = (share_B * self._caption_counts_N[indices_B]).long()
        return self._caption_rows_NK[indices_B, choice_B]

    @property
    def empty_cond(self) -> Cond:
        """The text states of the empty caption, one row."""
        return self.cond(torch.zeros(1, dtype=torch.long))

    # ---- what is to be encoded

    def _plan_views(self) -> list[list[View]]:
        views_NV = []
        for i, example in enumerate(self.examples):
            digest = example.digest or _digest(_bytes(example.image))
            boxes = crop_boxes(example.size, self._crop, self._config.crops, digest)
            how = f"{self.resolution}/{self._crop == 'pad'}/{self._config.background}"
            views_NV.append(
                [
                    View(i, box, mirrored, _key(digest, how, *map(str, box), str(mirrored)))
                    for mirrored in ((False, True) if self._flip else (False,))
                    for box in boxes
                ]
            )
        self._sizes_NVK = torch.tensor([[self._size(v) for v in row] for row in views_NV], dtype=torch.float32)
        rows = {key: n for n, key in enumerate(dict.fromkeys(v.key for row in views_NV for v in row))}
        self._view_rows_NV = torch.tensor([[rows[v.key] for v in row] for row in views_NV], dtype=torch.long)
        return views_NV

    def _size(self, view: View) -> tuple[float, ...]:
        """Height, width before; top, left of the cut after scaling; height, width after: what SDXL is told (arXiv:2307.01952, 2.2)."""
        (width, height), (left, top, right, _) = self.examples[view.example].size, view.box
        scale = self.resolution / (right - left)
        cut_left = width - right if view.mirrored else left
        return (height, width, round(top * scale), round(cut_left * scale), self.resolution, self.resolution)

    def _plan_texts(self) -> list[str]:
        texts = list(dict.fromkeys(["", *(c for e in self.examples for c in e.captions)]))
        rows = {text: n for n, text in enumerate(texts)}
        most = max((len(e.captions) for e in self.examples), default=0)
        padded = [[rows[c] for c in e.captions] + [0] * (most - len(e.captions)) for e in self.examples]
        self._caption_rows_NK = torch.tensor(padded, dtype=torch.long)
        self._caption_counts_N = torch.tensor([len(e.captions) for e in self.examples], dtype=torch.float64)
        return texts

    def _small_notes(self) -> Iterator[str]:
        if small := [shown(Path(e.image.name)) for e in self.examples if min(e.size) < self.resolution]:
            yield f"{plural(len(small), 'picture')} smaller than {self.resolution} pixels, enlarged: {listed(small)}"
        if long := [shown(Path(e.image.name)) for e in self.examples if max(e.size) > 3 * min(e.size)]:
            lost = {"squash": "squashed", "pad": "mostly background"}.get(self._crop, "mostly cut away")
            yield f"{plural(len(long), 'picture')} more than three times as long as wide, {lost}: {listed(long)}"

    def _long_notes(self) -> Iterator[str]:
        count, limit = self._model.token_counts, self._model.max_tokens
        if long := [t for t, n in zip(self._texts, count(self._texts), strict=True) if n > limit]:
            yield (
                f"{plural(len(long), 'caption')} of more than the {limit} tokens that the text encoder reads; "
                f"of the first, this is cut off: {cut_off(long[0], count, limit)!r}"
            )

    # ---- encoding

    def _complete(
        self, what: str, shards: Shards, keys: list[str], encode: Encode, size: int
    ) -> Generator[tuple[str, int, int], None, dict[str, Row]]:
        """The rows of `keys`: read what is there, encode and keep the rest."""
        rows, notes = shards.read(keys)
        self.notes += notes
        missing, fresh, kept_at = [k for k in keys if k not in rows], dict[str, Row](), time.monotonic()
        yield what, len(rows), len(keys)
        try:
            for at in range(0, len(missing), size):
                chunk = missing[at : at + size]
                fresh |= zip(chunk, encode(chunk), strict=True)
                if len(fresh) >= SHARD_ENTRIES or time.monotonic() - kept_at > SHARD_SECONDS:
                    shards.write(fresh)
                    rows.update(fresh)
                    fresh, kept_at = {}, time.monotonic()
                yield what, len(rows) + len(fresh), len(keys)
        finally:  # also when the caller stops here
            shards.write(fresh)
        return rows | fresh

    def _encode_views(self, views: Mapping[str, View]) -> Encode:
        def encode(keys: Sequence[str]) -> list[Row]:
            squares = [self._square(views[k]) for k in keys]
            latents = self._model.encode_images(pixels_from(squares + squares[-1:] * (self._at_once - len(squares))))
            means, logvars = latents.mean_BCHW[: len(keys)].cpu(), latents.logvar_BCHW[: len(keys)].cpu()
            for key, mean, logvar in zip(keys, means, logvars, strict=True):
                if not (mean + logvar).isfinite().all():
                    bad = self.examples[views[key].example].image
                    raise DataError(
                        f"{shown(bad)}: the VAE makes NaN or infinity of it; take one that is made for fp32"
                    )
            return [{"mean": m, "logvar": v} for m, v in zip(means, logvars, strict=True)]

        return encode

    def _fill_given(self, views: Mapping[str, View]) -> Generator[tuple[str, int, int], None, None]:
        """Holes of all views, and the latents of what they leave: (views, holes, 1 + C, H, W)."""
        side, count = self.resolution // self._model.downscale, self._config.holes
        shapes = {_key("hole", key, str(n)): hole(side, key, n) for key in views for n in range(count)}
        owners = {_key("hole", key, str(n)): key for key in views for n in range(count)}

        def encode(keys: Sequence[str]) -> list[Row]:
            squares = pixels_from([self._square(views[owners[k]]) for k in keys])
            cells = torch.from_numpy(np.stack([shapes[k] for k in keys]))[:, None]
            holes = cells.repeat_interleave(self._model.downscale, 2).repeat_interleave(self._model.downscale, 3)
            grey = squares * (1 - holes)
            filled = torch.cat([grey, grey[-1:].expand(self._at_once - len(keys), -1, -1, -1)])
            return [{"mean": m} for m in self._model.encode_images(filled).mean_BCHW[: len(keys)].cpu()]

        rows = yield from self._complete("holes", self._left, list(shapes), encode, self._at_once)
        if shapes:
            given = [torch.cat([torch.from_numpy(shape)[None], rows[key]["mean"]]) for key, shape in shapes.items()]
            self._given_RHCHW = torch.stack(given).unflatten(0, (len(views), count))

    def _fill_masks(self) -> Generator[tuple[str, int, int], None, None]:
        """The weights of all masked views, a row each; row 0 is for pictures without a mask."""
        views = {self._mask_key(v): v for row in self._views_NV for v in row if self.examples[v.example].mask}
        rows = yield from self._complete(
            "masks", self._mask_means, list(views), self._encode_masks(views), ENCODE_BATCH
        )
        side, config, lost = self.resolution // self._model.downscale, self._config, list[str]()
        weights, count = [torch.ones(1, 1, side, side)], 1
        self._mask_rows_NV = torch.zeros(len(self), len(self._views_NV[0]), dtype=torch.long)
        for n, views_V in enumerate(self._views_NV):
            if self.examples[n].mask:
                means = [rows[self._mask_key(v)]["mean"] for v in views_V]
                masks_V1HW = torch.stack([m.flip(-1) if v.mirrored else m for m, v in zip(means, views_V, strict=True)])
                self._mask_rows_NV[n] = torch.arange(count, count := count + len(views_V))
                weights.append(masks.weights(masks_V1HW, config.mask_floor, normalize=config.mask_normalize))
                lost += [] if masks_V1HW.any() else [shown(Path(self.examples[n].image.name))]
        self._masks_M1HW = torch.cat(weights)
        if lost:
            self.notes.append(
                f"{plural(len(lost), 'picture')} cut so that nothing is left of what its mask lets count: {listed(lost)}"
            )

    def _encode_masks(self, views: Mapping[str, View]) -> Encode:
        return lambda keys: [{"mean": self._mask_mean(views[k])} for k in keys]

    def _mask_mean(self, view: View) -> Tensor:
        example = self.examples[view.example]
        assert example.mask
        data = _unchanged(example.mask, example.mask_digest)
        mask_HW = read_mask(data, opacity=example.mask == example.image, max_pixels=self._config.max_pixels)
        cell, pad = self._model.downscale, self._crop == "pad"
        return torch.from_numpy(masks.to_latents(mask_HW, self.resolution, cell, box=view.box, pad=pad))

    def _mask_key(self, view: View) -> str:
        example = self.examples[view.example]
        how = f"{self.resolution}/{self._model.downscale}/{self._crop == 'pad'}/{example.mask == example.image}"
        return _key("mask", FORMAT, example.mask_digest, how, *map(str, view.box))

    def _encode_texts(self, texts: Mapping[str, str]) -> Encode:
        def encode(keys: Sequence[str]) -> list[Row]:
            cond = self._model.encode_prompts([texts[k] for k in keys] + [""] * (ENCODE_BATCH - len(keys)))
            tensors = {name: tensor.cpu() for name, tensor in cond.tensors().items()}
            return [{name: tensor[i] for name, tensor in tensors.items()} for i in range(len(keys))]

        return encode

    def _square(self, view: View) -> Pixels:
        example, config = self.examples[view.example], self._config
        data = _unchanged(example.image, example.digest)
        try:
            im = decode(data, background=config.background, max_pixels=config.max_pixels)
        except DataError as error:
            raise DataError(f"{shown(example.image)}: {error}") from None
        square = to_square(im, self.resolution, box=view.box, pad=self._crop == "pad", background=config.background)
        return np.ascontiguousarray(square[:, ::-1]) if view.mirrored else square


def _unchanged(path: Path, digest: str) -> bytes:
    """The bytes of a file that had `digest` when it was checked."""
    data = _bytes(path)
    if digest and _digest(data) != digest:
        raise DataError(f"{shown(path)}: changed while it was being read; start again")
    return data


def _bytes(path: Path) -> bytes:
    try:
        return archives.read_bytes(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: {(error.strerror or 'cannot be read').lower()}") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
