"""What encodes pictures, holes, masks and captions, and keeps them: each entry once, whoever asked for it first."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdtune import distributed
from sdtune.data import archives, masks
from sdtune.data.config import DataConfig
from sdtune.data.frames import Frame
from sdtune.data.holes import hole
from sdtune.data.images import Pixels, decode, pixels_from, read_mask, to_frame
from sdtune.data.index import Index, strings
from sdtune.data.jitter import jittered
from sdtune.data.layouts import listed, plural, shown
from sdtune.data.plan import Plan, View, key_of, told_size
from sdtune.data.shards import MISSING, Row, Shards
from sdtune.errors import DataError
from sdtune.model import Latents, Model

FORMAT = "2"
"""Part of every key. To be changed with anything that changes what is cached for the same picture and settings."""
ENCODE_BATCH = 8
"""Encoded at once, always: a short batch is filled up, since the last bits of a result depend on the batch's size.
What is cached for a picture so depends on the picture alone, and not on where an earlier run was stopped."""
ENCODE_PIXELS = 2**19
"""At once, too: two pictures of 512 x 512, so that a VAE in fp32 fits into small memories."""
SHARD_ENTRIES = 256
SHARD_SECONDS = 20.0
"""A slow encoder loses no more work than this to a crash."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

Progress = tuple[str, int, int]
"""What is encoded, how many are done, of how many."""
E = TypeVar("E")
T = TypeVar("T")
Prepared = Iterator[tuple[list[str], list[T]]]
"""Keys of a few entries, and what was prepared of each."""
Encode = Callable[[Sequence[E], Sequence[T]], list[Row]]
"""Some entries, and what was prepared of them (in threads, ahead of the model) -> their rows."""


def tables(model: Model, config: DataConfig, frames: Sequence[Frame]) -> dict[str, Path]:
    """Name -> folder of all that is kept: rows of one shape, made by the same encoder, lie in one folder."""
    root, kind = config.cache_folder(), "" if config.cache_dtype == "fp32" else f"-{config.cache_dtype}"
    vae, text = (key_of(FORMAT, model.family, p)[:24] for p in (model.vae_fingerprint, model.text_fingerprint))
    chunks = f"-{model.chunks}" if model.chunks > 1 else ""
    out = {"captions": root / f"captions-{text}{chunks}{kind}"}
    for frame in frames:
        out[f"pictures {frame}"] = root / f"pictures-{frame}-{vae}{kind}"
        out[f"left {frame}"] = root / f"left-{frame}-{vae}{kind}"
        out[f"masks {frame}"] = root / f"masks-{frame}-{model.downscale}"
    return out


class _Entry(NamedTuple):
    """One entry to be encoded: a view of a picture, for inpainting models with one of its holes."""

    key: str
    view: View
    hole: int = 0


class Filling:
    """Iterating over it encodes what is missing of a plan; its end gives the index."""

    def __init__(
        self,
        planned: Plan,
        model: Model,
        config: DataConfig,
        shards: dict[str, Shards],
        notes: list[str],
        damage: list[str],
    ) -> None:
        """What is found out is put into `notes`; what was damaged, and is not any more, into `damage`."""
        self._plan, self._model, self._config, self.shards = planned, model, config, shards
        self._notes, self._damage = notes, damage
        self._asked: dict[Path, tuple[tuple[object, ...], list[int]]] = {}
        self._views_NV, self._pad = planned.views_NV, config.crop == "pad"
        # Views of one picture come one after the other: whoever asks first decodes it, the other threads wait.
        self._image, self._locks = lru_cache(16)(self._decoded), [Lock() for _ in range(16)]

    def __iter__(self) -> Generator[Progress, None, Index]:
        planned = self._plan
        columns = {
            "weight_N": self._of_items([e.weight for e in planned.examples], torch.float32),
            "repeats_N": self._of_items([e.repeats for e in planned.examples], torch.int32),
            "group_N": self._of_items([e.group for e in planned.examples], torch.int8),
            "frame_N": torch.tensor([row[0].frame for row in self._views_NV], dtype=torch.int16),
            "example_N": torch.tensor([row[0].example for row in self._views_NV], dtype=torch.int32),
            "first_E1": torch.tensor([0, *map(len, planned.captions_N)]).cumsum(0),
            "caption_K": torch.tensor([row for rows in planned.captions_N for row in rows], dtype=torch.int32),
            **strings("text", planned.texts), **strings("name", [str(e.image) for e in planned.examples]),
        }  # fmt: skip
        columns["views_NV"] = yield from self._pictures()
        if self._model.inpaints:
            columns["left_NVH"] = yield from self._holes()
        if any(example.mask for example in planned.examples):
            columns["masks_NV"] = yield from self._masks()
            columns["mask_mean_N"] = self._mask_means(columns["masks_NV"])
        if self._model.sized:
            columns["sizes_NV6"] = self._columns(lambda view: told_size(planned, view), torch.float32)
        columns["texts_T"] = yield from self._captions()
        facts = {"crops": planned.crops, "flips": planned.flips, "colours": planned.colours, "notes": self._notes}
        return Index(columns, planned.frames, {name: shards.files for name, shards in self.shards.items()}, facts)

    def missing(self) -> Iterator[tuple[str, int, int]]:
        """As `Cache.missing`."""
        width, channels = torch.finfo(DTYPES[self._config.cache_dtype]).bits // 8, self._model.latent_channels
        kinds = [("picture", "pictures", self._picture_entries(), 2 * channels * width)]
        kinds += [("hole", "left", self._hole_entries(), (1 + channels) * width)] if self._model.inpaints else []
        kinds += [("mask", "masks", self._mask_entries(), 4)]
        for what, table, entries, cell in kinds:
            for number, mine in _of_frame(entries).items():
                frame = self._plan.frames[number]
                count = self._absent(self.shards[f"{table} {frame}"], list(mine))
                yield what, count, cell * frame.pixels // self._model.downscale**2
        texts = [key_of("caption", text) for text in self._plan.texts]
        if count := self._absent(self.shards["captions"], texts):
            states = self._model.encode_prompts([""]).tensors().values()
            yield "caption", count, width * sum(tensor[0].numel() for tensor in states)

    def _absent(self, shards: Shards, keys: Sequence[str]) -> int:
        return self._located(shards, keys).count(MISSING)

    def _located(self, shards: Shards, keys: Sequence[str]) -> list[int]:
        """Where `keys` are. `missing` asks first, and what it was told holds as long as no file has come or gone."""
        now = (shards.checked, *sorted(shards.folder.glob("*.safetensors")))
        if now != self._asked.get(shards.folder, ((), []))[0]:
            places, notes = shards.locate(keys)
            self._damage += notes
            self._asked[shards.folder] = (shards.checked, *sorted(shards.folder.glob("*.safetensors"))), places
        return self._asked[shards.folder][1]

    def _of_items(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """What holds for an example, for each of its items."""
        return torch.tensor([values[row[0].example] for row in self._views_NV], dtype=dtype)

    def _columns(self, value: Callable[[View], Any], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor([[value(view) for view in row] for row in self._views_NV], dtype=dtype)

    # ---- what each table holds

    def _pictures(self) -> Generator[Progress, None, Tensor]:
        entries = self._picture_entries()
        places = yield from self._by_frame("pictures", "pictures", entries, self._pixels, self._encode_pictures)
        return self._columns(lambda view: places[view.key])

    def _picture_entries(self) -> list[_Entry]:
        return [_Entry(view.key, view) for view in self._plan.views]

    def _encode_pictures(self, entries: Sequence[_Entry], pictures: Sequence[Pixels]) -> list[Row]:
        latents = self._encoded(entries, pixels_from(pictures))
        for entry, mean, logvar in zip(entries, latents.mean_BCHW, latents.logvar_BCHW, strict=False):
            if not (mean + logvar).isfinite().all():
                bad = self._plan.examples[entry.view.example].image
                raise DataError(f"{shown(bad)}: the VAE makes NaN or infinity of it; take one that is made for fp32")
        pairs = zip(latents.mean_BCHW, latents.logvar_BCHW, strict=True)
        return [{"mean": self._kept(mean), "logvar": self._kept(logvar)} for mean, logvar in pairs]

    def _encoded(self, entries: Sequence[_Entry], pixels_BCHW: Tensor) -> Latents:
        """The latents of a batch, filled up with copies of its last picture while it is encoded."""
        more = self._at_once(entries[0].view) - len(entries)
        latents = self._model.encode_images(torch.cat([pixels_BCHW, pixels_BCHW[-1:].expand(more, -1, -1, -1)]))
        return Latents(latents.mean_BCHW[: len(entries)].cpu(), latents.logvar_BCHW[: len(entries)].cpu())

    def _holes(self) -> Generator[Progress, None, Tensor]:
        """Holes of all views, and the latents of what they leave: 1 + C channels."""
        places = yield from self._by_frame("holes", "left", self._hole_entries(), self._pixels, self._encode_holes)
        return self._columns(lambda view: [places[_hole_key(view, n)] for n in range(self._config.holes)])

    def _hole_entries(self) -> list[_Entry]:
        return [_Entry(_hole_key(view, n), view, n) for view in self._plan.views for n in range(self._config.holes)]

    def _encode_holes(self, entries: Sequence[_Entry], pictures: Sequence[Pixels]) -> list[Row]:
        frame, cell = self._plan.frames[entries[0].view.frame], self._model.downscale
        shape = frame.height // cell, frame.width // cell
        shapes_B1hw = torch.from_numpy(np.stack([hole(shape, e.view.key, e.hole) for e in entries]))[:, None]
        holes_B1HW = shapes_B1hw.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
        left = self._encoded(entries, pixels_from(pictures) * (1 - holes_B1HW)).mean_BCHW
        return [{"given": self._kept(torch.cat(pair))} for pair in zip(shapes_B1hw, left, strict=True)]

    def _masks(self) -> Generator[Progress, None, Tensor]:
        places = yield from self._by_frame("masks", "masks", self._mask_entries(), self._mask_mean, _encode_masks)
        return self._columns(lambda view: places.get(self._mask_key(view), MISSING))

    def _mask_entries(self) -> list[_Entry]:
        masked = (view for view in self._plan.views if self._plan.examples[view.example].mask)
        return [_Entry(self._mask_key(view), view) for view in masked]

    def _mask_means(self, places_NV: Tensor) -> Tensor:
        """What the weights of each item are divided by, (N,)."""
        means, lost = torch.ones(len(places_NV)), list[str]()
        for n, row in enumerate(self._views_NV):
            example = self._plan.examples[row[0].example]
            if not example.mask:
                continue
            frame = self._plan.frames[row[0].frame]
            mask_V1HW = self.shards[f"masks {frame}"].read(places_NV[n].tolist())["mean"]
            means[n] = masks.mean_weight(mask_V1HW, self._config.mask_floor, normalize=self._config.mask_normalize)
            lost += [] if mask_V1HW.any() else [shown(Path(example.image.name))]
        if lost:
            self._notes.append(
                f"{plural(len(lost), 'picture')} cut so that nothing is left of what its mask lets count: {listed(lost)}"
            )
        return means

    def _captions(self) -> Generator[Progress, None, Tensor]:
        texts = {key_of("caption", text): text for text in self._plan.texts}

        def encode(_: Sequence[str], these: Sequence[str]) -> list[Row]:
            cond = self._model.encode_prompts([*these, *[""] * (ENCODE_BATCH - len(these))])
            states = {name: tensor[: len(these)].cpu() for name, tensor in cond.tensors().items()}
            return [{name: self._kept(tensor[i]) for name, tensor in states.items()} for i in range(len(these))]

        done = _Done("captions", len(texts))
        places = yield from self._complete(
            done, self.shards["captions"], texts, lambda chunks: _as_they_are(chunks, texts), encode, ENCODE_BATCH
        )
        return torch.tensor([places[key] for key in texts])

    # ---- how it is filled

    def _by_frame(
        self, what: str, table: str, entries: Sequence[_Entry], prepare: Callable[[View], T], encode: Encode[_Entry, T]
    ) -> Generator[Progress, None, dict[str, int]]:
        """The place of each entry; those of one frame are encoded together."""
        of_frame, by_key = _of_frame(entries), {entry.key: entry for entry in entries}

        def ahead(chunks: Sequence[list[str]]) -> Prepared[T]:
            return _ahead(chunks, lambda key: prepare(by_key[key].view))

        done, places = _Done(what, sum(map(len, of_frame.values()))), dict[str, int]()
        for number, mine in of_frame.items():
            shards, size = (
                self.shards[f"{table} {self._plan.frames[number]}"],
                self._at_once(next(iter(mine.values())).view),
            )
            places |= yield from self._complete(done, shards, mine, ahead, encode, size)
        return places

    def _complete(
        self,
        done: _Done,
        shards: Shards,
        entries: Mapping[str, E],
        prepared: Callable[[Sequence[list[str]]], Prepared[T]],
        encode: Encode[E, T],
        size: int,
    ) -> Generator[Progress, None, dict[str, int]]:
        """The place of each entry: find what is there, encode the rest and keep it.

        Several processes take a share each of what is missing, and look again. What then is missing, since another run wrote or took
        away something while they looked, each encodes for itself.
        """
        keys, counted = list(entries), 0
        for again in itertools.count():
            located = zip(keys, self._located(shards, keys), strict=True)
            places = {key: place for key, place in located if place != MISSING}
            yield done.more(len(places) - counted)
            missing = [key for key in keys if key not in places]
            if not distributed.any_of(bool(missing)):  # asked when all have looked, and before one of them writes
                return places
            chunks = [missing[at : at + size] for at in range(0, len(missing), size)]
            mine = chunks if again else chunks[distributed.rank() :: distributed.size()]
            made = yield from self._encode(done, shards, prepared(mine), entries, encode)
            if distributed.size() == 1:
                return places | made
            counted = len(places) + len(made)
            distributed.wait()
        raise AssertionError

    def _encode(
        self,
        done: _Done,
        shards: Shards,
        prepared: Prepared[T],
        entries: Mapping[str, E],
        encode: Encode[E, T],
    ) -> Generator[Progress, None, dict[str, int]]:
        """Encode and keep all of `prepared`; gives their places."""
        places, fresh, kept_at = dict[str, int](), dict[str, Row](), time.monotonic()
        try:
            for chunk, these in prepared:
                fresh |= zip(chunk, encode([entries[key] for key in chunk], these), strict=True)
                if len(fresh) >= SHARD_ENTRIES or time.monotonic() - kept_at > SHARD_SECONDS:
                    places |= zip(fresh, shards.write(fresh), strict=True)
                    fresh, kept_at = {}, time.monotonic()
                yield done.more(len(chunk))
        finally:  # also when the caller stops here
            places |= zip(fresh, shards.write(fresh), strict=True)
        return places

    def _at_once(self, view: View) -> int:
        return max(1, min(ENCODE_BATCH, ENCODE_PIXELS // self._plan.frames[view.frame].pixels))

    def _kept(self, value: Tensor) -> Tensor:
        """As it is kept. Raises DataError for what `data.cache_dtype` cannot hold."""
        kept = value.to(DTYPES[self._config.cache_dtype]) if value.is_floating_point() else value
        if kept.is_floating_point() and not kept.isfinite().all() and value.isfinite().all():
            raise DataError('data.cache_dtype: "fp16" cannot hold what this model\'s encoder gives; use "fp32"')
        return kept

    # ---- pictures

    def _decoded(self, example: int) -> Image.Image:
        image, config = self._plan.examples[example].image, self._config
        data = _unchanged(image, self._plan.examples[example].digest)
        try:
            return decode(data, background=config.background, max_pixels=config.max_pixels)
        except DataError as error:
            raise DataError(f"{shown(image)}: {error}") from None

    def _pixels(self, view: View) -> Pixels:
        frame = self._plan.frames[view.frame]
        with self._locks[view.example % len(self._locks)]:
            image = self._image(view.example)
        pixels = to_frame(image, frame, box=view.box, pad=self._pad, background=self._config.background)
        digest = self._plan.examples[view.example].digest
        pixels = jittered(pixels, self._config.jitter, digest, view.colours)
        return np.ascontiguousarray(pixels[:, ::-1]) if view.mirrored else pixels

    def _mask_mean(self, view: View) -> Tensor:
        example = self._plan.examples[view.example]
        assert example.mask
        data = _unchanged(example.mask, example.mask_digest)
        mask_HW = read_mask(data, opacity=example.mask == example.image, max_pixels=self._config.max_pixels)
        frame, cell = self._plan.frames[view.frame], self._model.downscale
        return torch.from_numpy(masks.to_latents(mask_HW, frame, cell, box=view.box, pad=self._pad))

    def _mask_key(self, view: View) -> str:
        """Mirrored or not: it is mirrored when it is read."""
        example = self._plan.examples[view.example]
        how = f"{self._plan.frames[view.frame]}/{self._model.downscale}/{self._pad}/{example.mask == example.image}"
        return key_of("mask", FORMAT, example.mask_digest, how, *map(str, view.box))


class _Done:
    """Counts what is done of a table's entries."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._done, self._total = what, 0, total

    def more(self, count: int) -> Progress:
        self._done += count
        return self._what, self._done, self._total


def _encode_masks(entries: Sequence[_Entry], means: Sequence[Tensor]) -> list[Row]:
    return [{"mean": mean} for mean in means]


def _of_frame(entries: Sequence[_Entry]) -> dict[int, dict[str, _Entry]]:
    """Frame -> key -> entry, each key once."""
    of_frame: dict[int, dict[str, _Entry]] = {}
    for entry in entries:
        of_frame.setdefault(entry.view.frame, {})[entry.key] = entry
    return of_frame


def _hole_key(view: View, number: int) -> str:
    return key_of("hole", view.key, str(number))


def _as_they_are(chunks: Sequence[list[str]], entries: Mapping[str, E]) -> Prepared[E]:
    """Each chunk with its entries, which need no preparing."""
    return ((chunk, [entries[key] for key in chunk]) for chunk in chunks)


def _ahead(chunks: Sequence[list[str]], prepare: Callable[[str], T]) -> Prepared[T]:
    """Each chunk with what `prepare` makes of its keys; several threads prepare the next chunk meanwhile."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        begun = [pool.submit(prepare, key) for key in chunks[0]] if chunks else []
        for n, chunk in enumerate(chunks):
            now, begun = begun, [pool.submit(prepare, key) for key in (chunks[n + 1] if n + 1 < len(chunks) else ())]
            try:
                yield chunk, [future.result() for future in now]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _unchanged(path: Path, digest: str) -> bytes:
    """The bytes of a file that had `digest` when it was checked."""
    try:
        data = archives.read_bytes(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: {(error.strerror or 'cannot be read').lower()}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{shown(path)}: changed while it was being read; start again")
    return data
