"""The protocol from folders to figures: one encoder after the other is loaded, looks at all pictures, and is let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune.data.images import load_image
from sdtune.errors import ConfigError, EvaluationError
from sdtune.judging.scores import Figure, number
from sdtune.metrics import aesthetic, dino, preference
from sdtune.metrics.clip_score import clip_score
from sdtune.metrics.frechet import MIN_PICTURES
from sdtune.metrics.places import Missing, NotHere
from sdtune.metrics.registry import ENCODERS, METRICS
from sdtune.metrics.vectors import paired_cosine
from sdtune.protocol import measures
from sdtune.protocol.measures import Sides, by_item, told
from sdtune.protocol.pairing import Item, Pairs, pair

if TYPE_CHECKING:
    from sdtune.metrics.encoders import Encoder

Array = NDArray[np.float64]
Told = Callable[[str, int, int], None]

DEFAULT = "lpips,fid,kid,clip"
PER_PICTURE = ("lpips", "clip", "clip-i", "dino", "pickscore", "hpsv2", "aesthetic")
OF_SETS = ("kid", "cmmd", "fid", "fd-dinov2")
LABELS = {
    "lpips": "LPIPS to the real picture", "clip": "CLIP score of picture and caption", "clip-i": "CLIP likeness to the real picture",
    "dino": "DINO likeness to the real picture", "pickscore": "PickScore", "hpsv2": "HPS v2.1", "aesthetic": "Aesthetic rating",
    "kid": "KID to the test folder", "cmmd": "CMMD to the test folder", "fid": "FID to the test folder",
    "fd-dinov2": "Frechet distance by DINOv2",
}  # fmt: skip
SHORT = {
    "lpips": "LPIPS", "clip": "CLIP score", "clip-i": "CLIP likeness", "dino": "DINO likeness", "pickscore": "PickScore",
    "hpsv2": "HPS v2.1", "aesthetic": "aesthetic rating", "kid": "KID", "cmmd": "CMMD", "fid": "FID", "fd-dinov2": "FD-DINOv2",
}  # fmt: skip
NEEDS_CAPTIONS = ("clip", "pickscore", "hpsv2")


@dataclass(frozen=True)
class Choice:
    """A metric with the encoder that it is taken with."""

    metric: str
    encoder: str

    @property
    def key(self) -> str:
        return self.metric if self.encoder == usual(self.metric) else f"{self.metric}:{self.encoder}"

    @property
    def label(self) -> str:
        """Of a row of the table."""
        if self.encoder == usual(self.metric):
            return LABELS[self.metric]
        if self.metric == "fid" and self.encoder == "inception-clean":
            return "FID to the test folder, pictures resized as clean-fid does"
        plain = {"dino": "Likeness to the real picture", "fid": "Frechet distance", "fd-dinov2": "Frechet distance"}
        return f"{plain.get(self.metric, LABELS[self.metric])}, by {self.encoder}"

    @property
    def short(self) -> str:
        """For headings and sentences."""
        if self.encoder == usual(self.metric):
            return SHORT[self.metric]
        plain = {"dino": "likeness", "fid": "Frechet distance", "fd-dinov2": "Frechet distance"}
        return f"{plain.get(self.metric, SHORT[self.metric])} ({self.encoder})"


@dataclass
class Result:
    """All that the report shows."""

    reference: str
    original: str
    tuned: str
    pairs: Pairs
    figures: list[Figure] = field(default_factory=list)
    values: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    """Of figures that have one value a picture: of the original's and the tuned model's, in the order of the items."""
    missing: list[tuple[str, Missing]] = field(default_factory=list)
    """Figures that were left out since an encoder is not here."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Figures that so few pictures cannot give, and why."""
    encoders: list[dict[str, Any]] = field(default_factory=list)
    draws: int = 0
    seed: int = 0
    seconds: float = 0.0

    @property
    def headline(self) -> str:
        """What all figures together say, in a sentence."""
        by = {
            how: measures.words([choice_of(f.key).short for f in self.figures if told(f) == how])
            for how in ("better", "worse")
        }
        if by["better"] and by["worse"]:
            return f"The figures contradict each other: tuned is better by {by['better']}, worse by {by['worse']}"
        open_ones = any(told(f) == "cannot tell" for f in self.figures)
        for how, names in by.items():
            if names:
                return f"By {names} the tuned model is {how}" + "; the others cannot tell" * open_ones
        if open_ones:
            return "These pictures cannot tell whether the tuning helped"
        return f"{len(self.pairs.items)} test pictures are too few to tell whether the tuning helped"

    @property
    def limits(self) -> list[str]:
        """What these figures are not, in words."""
        return [*self._of_number(), *self._of_figures(), *self.pairs.notes]

    def _of_number(self) -> Iterator[str]:
        n = len(self.pairs.items)
        if n < 100:
            yield f"{n} test pictures: differences between models mostly need 100 or more to show."
        if max(len(i.tuned) for i in self.pairs.items) == 1:
            yield "Each caption was drawn once: another seed gives other pictures. Draw four, name them in metadata.jsonl."
        yield "One training is one training: that a recipe is better needs three trainings with other seeds."

    def _of_figures(self) -> Iterator[str]:
        keys = {f.key.partition(":")[0] for f in self.figures}
        if "lpips" in keys:
            figure = next(f for f in self.figures if f.key.startswith("lpips"))
            apart = (
                f" Two different real pictures of this folder are {number(figure.real.value)} apart."
                if figure.real
                else ""
            )
            yield (
                "LPIPS is no accuracy: nobody asked the model to draw the test picture again. Lower may mean nearer, or less varied."
                + apart
            )
        if any(f.holm is not None for f in self.figures):
            yield "The figure that was asked for first decides; the p values of the others are corrected for their number (Holm)."


def usual(metric: str) -> str:
    """The encoder that a metric is published with."""
    return METRICS[metric].encoders[0].partition("+")[0]


def choice_of(key: str) -> Choice:
    """ "kid:shipped" taken apart."""
    metric, _, encoder = key.partition(":")
    return Choice(metric, encoder or usual(metric))


def choices(metrics: str) -> list[Choice]:
    """ "lpips,kid:shipped" as choices. Raises ConfigError for names that are none."""
    found = []
    for text in filter(None, (part.strip() for part in metrics.split(","))):
        if (metric := text.partition(":")[0]) not in PER_PICTURE + OF_SETS:
            raise ConfigError(f"--metrics: {metric}: no such figure here; possible: {', '.join(PER_PICTURE + OF_SETS)}")
        choice = choice_of(text)
        if choice.encoder not in (fitting := _fitting(metric)):
            raise ConfigError(f"--metrics: {text}: {metric} is taken with {', '.join(fitting)}")
        found.append(choice)
    if not found:
        raise ConfigError(f"--metrics: names nothing; possible: {', '.join(PER_PICTURE + OF_SETS)}")
    return list(dict.fromkeys(found))


def _fitting(metric: str) -> list[str]:
    """The encoders that make sense for a figure."""
    with_features = [name for name, spec in ENCODERS.items() if spec.dimension and spec.kind != "hpsv2"]
    match metric:
        case "lpips":
            return ["lpips-alex", "lpips-vgg"]
        case "clip" | "clip-i":
            return ["clip-l14", "clip-b32", "clip-l14-336"]
        case "pickscore" | "hpsv2":
            return [metric]
        case "aesthetic":
            return ["clip-l14"]
        case "cmmd":
            return ["clip-l14-336", "clip-l14", "clip-b32"]
        case _:
            return with_features


def judge(
    reference: str | Path, original: str | Path, tuned: str | Path, *, metrics: str = DEFAULT, indicative: bool = False,
    device: str = "cpu", draws: int = 2000, seed: int = 0, at: Path | None = None, cache: Path | None = None,
    progress: Told | None = None,
) -> Result:  # fmt: skip
    """Judge two folders of drawn pictures against the real ones of a third.

    `at`: where encoders lie (places.home); `cache`: the folder of features, None for none. A figure whose encoder is not here is left out
    and said so. Raises ConfigError, DataError, and EvaluationError where not one figure is left.
    """
    began, wanted = time.monotonic(), choices(metrics)
    result = Result(str(reference), str(original), str(tuned), pair(reference, original, tuned), draws=draws, seed=seed)
    todo = [choice for choice in wanted if _allowed(choice, result, indicative)]
    for encoder in dict.fromkeys(choice.encoder for choice in todo):
        mine = [choice for choice in todo if choice.encoder == encoder]
        look = _Looking(result, device, at, cache, progress or (lambda what, done, total: None))
        try:
            look.take(encoder, mine)
        except NotHere as error:
            result.missing += [(choice.key, error.missing) for choice in mine]
    order = [choice.key for choice in wanted]
    result.figures.sort(key=lambda figure: order.index(figure.key))
    result.figures = measures.corrected(result.figures, order[0])
    if not result.figures:
        reasons = [f"{key}: {why}" for key, why in result.refused] + [f"{key}: {why}" for key, why in result.missing]
        raise EvaluationError("nothing is left to be measured\n  " + "\n  ".join(dict.fromkeys(reasons)))
    result.seconds = time.monotonic() - began
    return result


def _allowed(choice: Choice, result: Result, indicative: bool) -> bool:
    n = len(result.pairs.items)
    if choice.metric in ("fid", "fd-dinov2") and n < MIN_PICTURES and not indicative:
        why = (
            f"{n} pictures: a Frechet distance needs {MIN_PICTURES:,}, its bias is of the size of its value (arXiv:1911.07023); "
            "--indicative shows it with that warning, KID has no such bias"
        )
        result.refused.append((choice.key, why))
        return False
    if choice.metric in NEEDS_CAPTIONS and not result.pairs.captions:
        result.refused.append((choice.key, f"not every picture of {result.reference} has a caption"))
        return False
    return True


@dataclass
class _Looking:
    """One encoder's turn."""

    result: Result
    device: str
    at: Path | None
    cache: Path | None
    progress: Told

    def take(self, name: str, mine: Sequence[Choice]) -> None:
        from sdtune.metrics import encoders

        if name.startswith("lpips"):
            self._perceptual(name, mine)
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
            if choice.metric in OF_SETS:
                self._of_sets(choice, sides)
            else:
                self._each(choice, encoder, sides, head)

    @property
    def _items(self) -> tuple[Item, ...]:
        return self.result.pairs.items

    def _sides(self, encoder: Encoder) -> Sides:
        real = self._features(encoder, [item.real for item in self._items], "real")
        original = self._features(encoder, [p for item in self._items for p in item.original], "original's")
        tuned = self._features(encoder, [p for item in self._items for p in item.tuned], "tuned")
        return Sides(real, original, self._own("original"), tuned, self._own("tuned"))

    def _own(self, side: Literal["original", "tuned"]) -> NDArray[np.int64]:
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
        if choice.metric in ("fid", "fd-dinov2"):
            r.figures.append(measures.distance(choice.key, choice.label, sides, r.draws, r.seed))
            return
        kernel, factor = measures.kernels(choice.metric)
        r.figures.append(measures.discrepancy(choice.key, choice.label, sides, kernel, factor, r.draws, r.seed))

    def _each(
        self, choice: Choice, encoder: Encoder, sides: Sides, head: tuple[Array, float, dict[str, str]] | None
    ) -> None:
        """One value a picture: against its real picture, its caption, or alone."""
        n = len(self._items)
        texts = encoder.texts([item.caption for item in self._items]) if choice.metric in NEEDS_CAPTIONS else None

        def score(x_KD: Array, own: NDArray[np.int64]) -> Array:
            match choice.metric:
                case "clip-i" | "dino":
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
        alike = choice.metric in ("clip-i", "dino")
        real = dino.among(sides.real_ND) if alike else score(sides.real_ND, np.arange(n))
        self._keep(choice, "higher", original, tuned, real)

    def _perceptual(self, name: str, mine: Sequence[Choice]) -> None:
        from sdtune.metrics import cache, encoders

        measure = encoders.load_pairs(name, self.at, self.device)
        self.result.encoders.append(measure.record())
        items, n = self._items, len(self._items)

        def distances(pairs: Iterator[tuple[Path, Path]], total: int, what: str) -> Array:
            opened: Iterator[tuple[Image.Image, Image.Image]] = ((load_image(a), load_image(b)) for a, b in pairs)
            said = f"{name}: {what}"
            return cache.distances(
                measure, opened, total=total, folder=self.cache, progress=lambda d, t: self.progress(said, d, t)
            )

        found = []
        for side, what in (("original", "original's pictures"), ("tuned", "tuned pictures")):
            both = [(path, item.real) for item in items for path in getattr(item, side)]
            own = np.repeat(np.arange(n), [len(getattr(item, side)) for item in items])
            found.append(by_item(distances(iter(both), len(both), what), own, n))
        others = ((items[(i + 1) % n].real, items[i].real) for i in range(n))
        real = distances(others, n, "real pictures among themselves")
        for choice in mine:
            self._keep(choice, "lower", found[0], found[1], real)

    def _keep(
        self, choice: Choice, better: Literal["lower", "higher"], original: Array, tuned: Array, real: Array
    ) -> None:
        r = self.result
        r.figures.append(measures.each(choice.key, choice.label, better, original, tuned, real, r.draws, r.seed))
        r.values[choice.key] = original, tuned
