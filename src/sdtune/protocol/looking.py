"""What one encoder sees of all pictures, and the figures of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune.data.images import load_image
from sdtune.metrics import aesthetic, copying, dino, diversity, preference
from sdtune.metrics.clip_score import clip_score
from sdtune.metrics.places import NotHere
from sdtune.metrics.vectors import paired_cosine
from sdtune.protocol import measures
from sdtune.protocol.choosing import PREFERENCE, TO_CAPTIONS, Choice
from sdtune.protocol.measures import Sides, by_item
from sdtune.protocol.pairing import Item
from sdtune.protocol.results import Near, Result

if TYPE_CHECKING:
    from sdtune.metrics.encoders import Encoder

Array = NDArray[np.float64]
Told = Callable[[str, int, int], None]
Side = Literal["original", "tuned"]
SIDES: tuple[Side, Side] = ("original", "tuned")
NEAREST = 20
"""Pairs of drawn and training pictures to look at."""


@dataclass
class Looking:
    """One encoder's turn."""

    result: Result
    train: Sequence[Path]
    """Training pictures, for `copies`."""
    device: str
    at: Path | None
    cache: Path | None
    progress: Told

    def take(self, name: str, mine: Sequence[Choice]) -> None:
        from sdtune.metrics import encoders

        if name.startswith("lpips"):
            self._perceptual(name, mine)
            return
        if name == "imagereward":
            self._together(name, mine)
            return
        head = None
        if rating := [choice for choice in mine if choice.metric == "aesthetic"]:
            try:
                head = encoders.load_head(at=self.at)
            except NotHere as error:
                self.result.missing += [(choice.key, error.missing) for choice in rating]
                mine = [choice for choice in mine if choice not in rating]
        if not mine:
            return
        self.progress(f"loading {name}", 0, 1)
        encoder = encoders.load(name, self.at, self.device)
        self.result.encoders.append(encoder.record())
        sides = self._sides(encoder)
        for choice in mine:
            match choice.metric:
                case "fid" | "fd-dinov2" | "kid" | "cmmd" | "prdc" | "vendi":
                    self._of_sets(choice, sides)
                case "diversity" | "drift":
                    self._of_seeds(choice, sides)
                case "copies":
                    self._copies(choice, encoder, sides)
                case _:
                    self._each(choice, encoder, sides, head)

    @property
    def _items(self) -> tuple[Item, ...]:
        return self.result.pairs.items

    def _sides(self, encoder: Encoder) -> Sides:
        real = self._features(encoder, [item.real for item in self._items], "real")
        original = self._features(encoder, [p for item in self._items for p in item.original], "original's")
        tuned = self._features(encoder, [p for item in self._items for p in item.tuned], "tuned")
        return Sides(real, original, self._own("original"), tuned, self._own("tuned"))

    def _own(self, side: Side) -> NDArray[np.int64]:
        """For which real picture each drawn one of a side was made."""
        return np.repeat(np.arange(len(self._items)), [len(getattr(item, side)) for item in self._items])

    def _features(self, encoder: Encoder, paths: Sequence[Path], what: str) -> Array:
        from sdtune.metrics import cache

        said = f"{encoder.name}: {what} pictures"
        return cache.features(
            encoder, map(load_image, paths), total=len(paths), folder=self.cache,
            progress=lambda done, total: self.progress(said, done, total),
        )  # fmt: skip

    def _of_sets(self, choice: Choice, sides: Sides) -> None:
        r = self.result
        match choice.metric:
            case "fid" | "fd-dinov2":
                r.figures.append(measures.distance(choice, sides, r.draws, r.seed))
            case "prdc":
                r.figures += measures.prdcs(choice, sides, r.draws, r.seed)
            case "vendi":
                r.figures.append(measures.vendis(choice, sides, r.draws, r.seed))
            case _:
                kernel, factor = measures.kernels(choice.metric)
                r.figures.append(measures.discrepancy(choice, sides, kernel, factor, r.draws, r.seed))

    def _of_seeds(self, choice: Choice, sides: Sides) -> None:
        r = self.result
        if choice.metric == "drift":
            r.figures.append(measures.drifted(choice, sides, r.draws, r.seed))
            return
        original, tuned = (diversity.cosine_diversity(x, own) for x, own in sides.drawn)
        r.figures.append(measures.varied(choice, original, tuned, r.draws, r.seed))

    def _copies(self, choice: Choice, encoder: Encoder, sides: Sides) -> None:
        """The nearest training picture of each drawn one, and the pairs to look at."""
        r = self.result
        train = self._features(encoder, self.train, "training")
        limit = copying.SSCD_LIMIT if encoder.spec.kind == "sscd" else None
        original, tuned, real = (
            copying.copies(x, train, sides.real_ND, limit) for x in (sides.original_ND, sides.tuned_ND, sides.real_ND)
        )
        r.figures.append(measures.copied(choice, sides, (original, tuned), real, r.draws, r.seed))
        drawn = [path for item in self._items for path in item.tuned]
        r.nearest[choice.key] = [
            Near(drawn[i], self.train[tuned.nearest_N[i]], float(tuned.cosine_N[i]), bool(tuned.flagged_N[i]))
            for i in np.argsort(-tuned.cosine_N, kind="stable")[:NEAREST]
        ]

    def _each(
        self, choice: Choice, encoder: Encoder, sides: Sides, head: tuple[Array, float, dict[str, str]] | None
    ) -> None:
        """One value a picture: against its real picture, its caption, or alone."""
        n = len(self._items)
        texts = encoder.texts([item.caption for item in self._items]) if choice.metric in TO_CAPTIONS else None

        def score(x_KD: Array, own: NDArray[np.int64]) -> Array:
            match choice.metric:
                case "clip-i" | "dino":
                    return dino.likeness(x_KD, sides.real_ND)
                case "clip-i-own" | "dino-own":
                    return paired_cosine(x_KD, sides.real_ND[own])
                case "aesthetic":
                    assert head
                    return aesthetic.aesthetic(x_KD, head[0], head[1])
            assert texts is not None
            if choice.metric == "clip":
                return clip_score(x_KD, texts[own])
            if choice.metric == "pickscore":
                return preference.pick_score(x_KD, texts[own], float(getattr(encoder, "logit_scale", 1.0)))
            return 100 * preference.hps_score(x_KD, texts[own])

        original, tuned = (by_item(score(x, own), own, n) for x, own in sides.drawn)
        alike = choice.metric.startswith(("clip-i", "dino"))  # a real picture is no likeness of itself
        real = dino.among(sides.real_ND) if alike else score(sides.real_ND, np.arange(n))
        self._keep(choice, "higher", original, tuned, real)

    def _perceptual(self, name: str, mine: Sequence[Choice]) -> None:
        from sdtune.metrics import cache, encoders

        measure = encoders.load_pairs(name, self.at, self.device)
        self.result.encoders.append(measure.record())
        items, n = self._items, len(self._items)

        def distances(pairs: Sequence[tuple[Path, Path]], what: str) -> Array:
            opened: Iterator[tuple[Image.Image, Image.Image]] = ((load_image(a), load_image(b)) for a, b in pairs)
            said = f"{name}: {what}"
            return cache.distances(
                measure, opened, total=len(pairs), folder=self.cache, progress=lambda d, t: self.progress(said, d, t)
            )

        for choice in mine:
            if choice.metric == "diversity":
                original, tuned = (self._between_seeds(distances, side) for side in SIDES)
                self.result.figures.append(
                    measures.varied(choice, original, tuned, self.result.draws, self.result.seed)
                )
                continue
            found = []
            for side in SIDES:
                both = [(path, item.real) for item in items for path in getattr(item, side)]
                found.append(by_item(distances(both, f"{side} pictures"), self._own(side), n))
            others = [(items[(i + 1) % n].real, items[i].real) for i in range(n)]
            self._keep(choice, "lower", found[0], found[1], distances(others, "real pictures among themselves"))

    def _together(self, name: str, mine: Sequence[Choice]) -> None:
        """Pictures seen together with their captions."""
        from sdtune.metrics import cache, image_reward

        self.progress(f"loading {name}", 0, 1)
        judge = image_reward.load(name, self.at, self.device)
        self.result.encoders.append(judge.record())
        captions = [item.caption for item in self._items]

        def scores(paths: Sequence[Path], own: NDArray[np.int64], what: str) -> Array:
            shown = ((load_image(path), captions[i]) for path, i in zip(paths, own, strict=True))
            said = f"{name}: {what} pictures"
            return cache.scores(
                judge, shown, total=len(paths), folder=self.cache, progress=lambda d, t: self.progress(said, d, t)
            )

        n, found = len(captions), []
        for side in SIDES:
            own, paths = self._own(side), [path for item in self._items for path in getattr(item, side)]
            found.append(by_item(scores(paths, own, "original's" if side == "original" else "tuned"), own, n))
        real = scores([item.real for item in self._items], np.arange(n), "real")
        for choice in mine:
            self._keep(choice, "higher", found[0], found[1], real)

    def _between_seeds(self, distances: Callable[[Sequence[tuple[Path, Path]], str], Array], side: Side) -> Array:
        """The mean distance of all pairs of a caption's pictures, (n,); nan where there is one."""
        own, paths = self._own(side), [path for item in self._items for path in getattr(item, side)]
        first, second = diversity.seed_pairs(own)
        pairs = [(paths[i], paths[j]) for i, j in zip(first, second, strict=True)]
        return diversity.by_prompt(distances(pairs, f"seeds of the {side} pictures"), first, own)

    def _keep(
        self, choice: Choice, better: Literal["lower", "higher"], original: Array, tuned: Array, real: Array
    ) -> None:
        r = self.result
        r.figures.append(measures.each(choice, better, original, tuned, real, r.draws, r.seed))
        r.values[choice.key] = original, tuned
        if choice.metric in PREFERENCE:
            r.figures.append(measures.won(choice, r.figures[-1]))
