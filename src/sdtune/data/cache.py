"""Pictures and captions, encoded once and kept on disk; read from there while training."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sdtune.data import masks
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example
from sdtune.data.filling import Filling, Progress, tables
from sdtune.data.frames import Frame
from sdtune.data.index import Index
from sdtune.data.plan import Plan, plan
from sdtune.data.shards import MISSING, Shards
from sdtune.model import Cond, Latents, Model


class Cache:
    """The latents of all pictures and the text states of all captions, ready to be indexed.

    Keys are hashes of content: bytes of the picture, what is done to it, the encoder's weights and dtype. An edited picture is
    encoded again alone; another VAE finds nothing of this one. Caption row 0 is the empty caption. What is indexed are items: a
    picture in a frame.
    """

    def __init__(self, model: Model, config: DataConfig, *, planned: Plan | None = None) -> None:
        self.notes = list(planned.notes) if planned else []
        self.examples = planned.examples if planned else []
        self._model, self._config, self._plan = model, config, planned
        self._damage = list[str]()
        self._tokens: Callable[[int], Tensor] | None = None
        self._filling = (
            Filling(planned, model, config, self._tables(planned.frames), self.notes, self._damage) if planned else None
        )

    @classmethod
    def open(
        cls,
        examples: Sequence[Example],
        model: Model,
        config: DataConfig,
        *,
        resolution: int | None = None,
        augment: bool = True,
    ) -> Cache:
        """Plan the cache of `examples`; nothing is encoded before `fill`. Raises DataError.

        `resolution` is for configurations that name none; unset, it is the model's. `augment`: as `plan` has it.
        """
        usual = resolution or model.resolution
        return cls(model, config, planned=plan(examples, config, usual=usual, grid=model.grid, augment=augment))

    @classmethod
    def load(cls, path: Path, model: Model, config: DataConfig) -> Cache | None:
        """What `save` wrote, if it is there and all that it names is sound."""
        if (index := Index.load(path)) is None:
            return None
        cache = cls(model, config)
        cache._use(index, cache._tables(index.frames, index.tables))
        if not all(table.is_whole() for table in cache._shards.values()):
            return None
        cache.notes = list(index.facts["notes"])
        return cache

    def save(self, path: Path) -> None:
        """Keep what `fill` has found, so that the next start need not look for it. A cache that cannot be written stays as it is."""
        with suppress(OSError):
            self._index.save(path)

    def missing(self) -> list[tuple[str, int, int]]:
        """What is to be encoded (picture, hole, mask, caption), how many of it, and the bytes that each takes."""
        assert self._filling
        return list(self._filling.missing())

    def fill(self, *, verify: bool = False) -> Generator[Progress, None, None]:
        """Encode what is missing; yields (what, done, total). Stopped anywhere, it goes on there the next time.

        Several processes encode a share each; all have to call it. `verify`: large tables, too, are checked to the last byte.
        """
        assert self._filling
        shards = self._filling.shards
        for table in shards.values():
            table.checked = verify
        self._use((yield from self._filling), shards)
        self.notes = self.notes + self._damage

    def let_go(self) -> None:
        """Forget the examples and their plan, which take more memory than all else, and are of no use after `fill`."""
        self.examples, self._plan, self._filling = [], None, None

    def _tables(self, frames: Sequence[Frame], files: dict[str, list[str]] | None = None) -> dict[str, Shards]:
        return {
            name: Shards(folder, (files or {}).get(name, ()))
            for name, folder in tables(self._model, self._config, frames).items()
        }

    def _use(self, index: Index, shards: dict[str, Shards]) -> None:
        self._index, self._shards = index, shards
        self.frames = index.frames
        self.weights_N, self.frame_N = index["weight_N"], index["frame_N"]
        self.groups = _visits(index)
        """Of each group, for each frame, its items, as often as an epoch shows them."""
        self.crops, self.flips = int(index.facts["crops"]), bool(index.facts["flips"])
        self.colours = int(index.facts["colours"])
        """Variants of each item: cuts; with `flips` all of them mirrored; then all that again in each of the other `colours`."""

    def tokenize(self) -> None:
        """Put the captions' token ids beside their states, for text encoders that are trained. After `fill`, and after a method has
        taught the model new words."""
        self._tokens = lru_cache(2**16)(lambda row: self._model.tokenize([self._index.text(row)])[0])

    def __len__(self) -> int:
        return len(self.weights_N)

    @property
    def pictures(self) -> int:
        """How many there are, in however many frames each."""
        return len(self._index["first_E1"]) - 1

    def name(self, item: int) -> str:
        """The name of an item's file."""
        return Path(self._index.name(int(self._index["example_N"][item]))).name

    def captions(self, item: int) -> tuple[str, ...]:
        start, end = self._index["first_E1"][int(self._index["example_N"][item]) :][:2].tolist()
        return tuple(self._index.text(row) for row in self._index["caption_K"][start:end].tolist())

    def latents(self, indices_B: Tensor, variant_B: Tensor) -> Latents:
        """The distributions of items `indices_B`, all of one frame, each in its variant. After `fill`."""
        row = self._pictures(indices_B).read(self._index["views_NV"][indices_B, variant_B].tolist())
        return Latents(row["mean"].float(), row["logvar"].float())

    def masks(self, indices_B: Tensor, variant_B: Tensor) -> Tensor | None:
        """What each latent of items `indices_B` counts, each in its variant, (B, 1, H, W); None if all count 1. After `fill`.

        Of a picture without a mask all counts 1.
        """
        if "masks_NV" not in self._index:
            return None
        frame, floor = self.frames[self._frame(indices_B)], self._config.mask_floor
        cell, places_B = self._model.downscale, self._index["masks_NV"][indices_B, variant_B]
        out_B1HW = torch.ones(len(indices_B), 1, frame.height // cell, frame.width // cell)
        masked_B = places_B != MISSING
        if masked_B.any():
            mean_B1HW = self._shards[f"masks {frame}"].read(places_B[masked_B].tolist())["mean"]
            mirrored_B = (variant_B[masked_B] // self.crops % (1 + self.flips) == 1).view(-1, 1, 1, 1)
            mean_B1HW = torch.where(mirrored_B, mean_B1HW.flip(-1), mean_B1HW)
            mean_B = self._index["mask_mean_N"][indices_B][masked_B].view(-1, 1, 1, 1)
            out_B1HW[masked_B] = masks.weights(mean_B1HW, floor) / mean_B
        return out_B1HW

    def with_given(self, cond: Cond, indices_B: Tensor, variant_B: Tensor, share_B: Tensor) -> Cond:
        """`cond` with a hole and what is left of each picture, for inpainting models; `share_B` in [0, 1) chooses among the holes."""
        if "left_NVH" not in self._index:
            return cond
        places_BH = self._index["left_NVH"][indices_B, variant_B]
        places_B = places_BH.gather(1, (share_B.double() * places_BH.shape[1]).long()[:, None])[:, 0]
        frame = self.frames[self._frame(indices_B)]
        return replace(cond, given_BCHW=self._shards[f"left {frame}"].read(places_B.tolist())["given"].float())

    def sized(self, cond: Cond, indices_B: Tensor, variant_B: Tensor) -> Cond:
        """`cond` with the sizes and cuts of items `indices_B`, each in its variant, where the model is told them."""
        if "sizes_NV6" not in self._index:
            return cond
        return replace(cond, size_BK=self._index["sizes_NV6"][indices_B, variant_B])

    def caption_rows(self, indices_B: Tensor, share_B: Tensor) -> Tensor:
        """The text row of one caption for each of items `indices_B`; `share_B` in [0, 1) chooses among its captions."""
        examples_B = self._index["example_N"][indices_B].long()
        first_B, end_B = self._index["first_E1"][examples_B], self._index["first_E1"][examples_B + 1]
        chosen_B = first_B + (share_B.double() * (end_B - first_B)).long()
        return self._index["caption_K"][chosen_B].long()

    def cond(self, rows_B: Tensor) -> Cond:
        """The text states of caption rows; row 0 is the empty caption. After `fill`."""
        row = self._shards["captions"].read(self._index["texts_T"][rows_B].tolist())
        cond = Cond(**{name: tensor.float() for name, tensor in row.items()})
        if self._tokens is None:
            return cond
        return replace(cond, tokens_BEL=torch.stack([self._tokens(row) for row in rows_B.tolist()]))

    def has_word(self, word: str) -> bool:
        """Whether a caption holds `word`, in whatever case."""
        return word.lower() in bytes(self._index["text"].numpy()).decode("utf-8", "replace").lower()

    def _frame(self, indices_B: Tensor) -> int:
        return int(self._index["frame_N"][indices_B[0]])

    def _pictures(self, indices_B: Tensor) -> Shards:
        return self._shards[f"pictures {self.frames[self._frame(indices_B)]}"]


def _visits(index: Index) -> list[list[Tensor]]:
    group_N, frame_N, repeats_N = index["group_N"], index["frame_N"], index["repeats_N"].long()
    out = []
    for group in group_N.unique().tolist():
        at = [((group_N == group) & (frame_N == frame)).nonzero().flatten() for frame in range(len(index.frames))]
        out.append([items.repeat_interleave(repeats_N[items]) for items in at])
    return out
