"""Published encoders as the scorer of a comparison: for every base that the shipped one does not know.

Two of them look at each picture: one for distances (DINOv2 where it is here, which agrees best with people: arXiv:2306.04675, else
CLIP), and a CLIP for what a picture shows. What else is here (preference models, the aesthetic head) adds its figures.
Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics import aesthetic, cache, encoders, image_reward, preference
from sdtune.metrics.places import Missing, NotHere, is_here, locate, missing_for
from sdtune.metrics.registry import METRICS, encoders_of

if TYPE_CHECKING:
    from PIL import Image

    from sdtune.metrics.encoders import ClipEncoder, Encoder

Array = NDArray[np.float64]
WORDS, PICTURES = ("clip-l14", "clip-b32"), ("dinov2-b14", "dinov2-l14")
EXTRAS = ("pickscore", "hpsv2", "imagereward", "aesthetic")
"""Metrics beyond what the panel itself sees."""
TASTE = "people's general taste, learnt from their choices"


class Opinion(NamedTuple):
    """What one model thinks of each picture, and what it would be called in a table."""

    key: str
    label: str
    note: str
    needs: int
    """Prompts that make it evidence."""
    record: dict[str, Any]
    """What a result must say of the model."""
    values_N: Array


@dataclass(frozen=True)
class Panel:
    """`pictures` gives the features, `words` the embeddings that prompts are compared with; both see each picture once."""

    pictures: Encoder
    words: Encoder
    side: int
    """Of real pictures that are shown to it, in pixels: that of the drawn ones."""
    folder: Path | None = None
    """Where what was seen is kept."""

    @staticmethod
    def here(side: int, *, device: str = "cpu", folder: Path | None = None, at: Path | None = None) -> Panel | None:
        """What can be made of the encoders on this machine; None without a CLIP."""
        words = next((name for name in WORDS if is_here(name, at)), None)
        if words is None:
            return None
        pictures = next((name for name in PICTURES if is_here(name, at)), words)
        loaded = {name: encoders.load(name, at, device) for name in dict.fromkeys((pictures, words))}
        return Panel(loaded[pictures], loaded[words], side, folder)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.pictures.fingerprint}/{self.words.fingerprint}".encode()).hexdigest()

    @property
    def title(self) -> str:
        if self.pictures is self.words:
            return self.words.spec.title
        return f"{self.pictures.spec.title} (distances) and {self.words.spec.title} (what is shown)"

    def records(self) -> list[dict[str, Any]]:
        """What a result must say of its encoders."""
        return [e.record() for e in dict.fromkeys((self.pictures, self.words))]

    def see(self, images: Iterable[Image.Image]) -> tuple[Array, Array]:
        """Features (N, D) and unit-length embeddings (N, E) of the pictures."""
        pictures = list(images)
        embeds = cache.features(self.words, pictures, folder=self.folder)
        if self.pictures is self.words:
            return embeds, embeds
        return cache.features(self.pictures, pictures, folder=self.folder), embeds

    def texts(self, prompts: Sequence[str]) -> Array:
        """Unit-length embeddings of the prompts, (N, E)."""
        return self.words.texts(prompts)


def missing() -> list[Missing]:
    """What the panel lacks: nothing if it can be made."""
    found = []
    for names in (WORDS, PICTURES):
        if any(is_here(name) for name in names):
            continue
        try:
            locate(names[0])
        except NotHere as error:
            found.append(error.missing)
    return found


def copy_finder(*, device: str = "cpu", at: Path | None = None) -> Encoder | None:
    """SSCD, which was made to find copies; None where it is not here."""
    return encoders.load("sscd", at, device) if is_here("sscd", at) else None


def left_out() -> list[str]:
    """The extra metrics whose encoders are not here, in words with how to get them."""
    absent = {metric: missing_for(metric) for metric in EXTRAS}
    try:
        locate("sscd")
    except NotHere as error:
        absent["copies by SSCD"] = [error.missing]
    return [
        f"{metric} ({'; '.join(dict.fromkeys(m.remedy for m in lacks))})" for metric, lacks in absent.items() if lacks
    ]


def opinions(
    images: Sequence[Image.Image], prompts: Sequence[str], *, device: str = "cpu", folder: Path | None = None, at: Path | None = None
) -> Iterator[Opinion]:  # fmt: skip
    """What the preference models and the aesthetic head that are here think of pictures of these prompts, one a picture."""
    distinct = list(dict.fromkeys(prompts))
    number = np.array([distinct.index(p) for p in prompts])
    for name, label in (("pickscore", "PickScore"), ("hpsv2", "HPS v2.1")):
        if is_here(name, at):
            judge: ClipEncoder = encoders.load(name, at, device)  # type: ignore[assignment]
            embeds, texts = cache.features(judge, images, folder=folder), judge.texts(distinct)[number]
            score = (
                preference.pick_score(embeds, texts, judge.logit_scale)
                if name == "pickscore"
                else preference.hps_score(embeds, texts)
            )
            yield Opinion(name, label, TASTE, METRICS[name].needs, judge.record(), score)
    if is_here("imagereward", at):
        together = image_reward.load(at=at, device=device)
        score = cache.scores(together, zip(images, prompts, strict=True), total=len(images), folder=folder)
        yield Opinion("imagereward", "ImageReward", TASTE, METRICS["imagereward"].needs, together.record(), score)
    if all(is_here(part, at) for part in encoders_of(METRICS["aesthetic"])):
        clip, metric = encoders.load("clip-l14", at, device), METRICS["aesthetic"]
        weight, bias, sha256 = encoders.load_head("aesthetic", at)
        score = aesthetic.aesthetic(cache.features(clip, images, folder=folder), weight, bias)
        record = {"encoder": "aesthetic", "title": "LAION aesthetic head", "sha256": sha256, "on": clip.record()}
        yield Opinion("aesthetic", "Aesthetic score", metric.note, metric.needs, record, score)
