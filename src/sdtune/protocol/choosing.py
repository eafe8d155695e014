"""Which figures are asked for, by which encoder, and how rows are called. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sdtune.errors import ConfigError
from sdtune.metrics.registry import ENCODERS, METRICS, Metric

DEFAULT = "lpips,fid,kid,clip"
FRECHET = ("fid", "fd-dinov2")
TO_CAPTIONS = ("clip", "pickscore", "hpsv2", "imagereward")
PREFERENCE = ("pickscore", "hpsv2", "imagereward")
LABELS = {
    "lpips": "LPIPS to the real picture", "clip": "CLIP score of picture and caption", "clip-i": "CLIP likeness to all real pictures",
    "dino": "DINO likeness to all real pictures", "clip-i-own": "CLIP likeness to the real picture",
    "dino-own": "DINO likeness to the real picture", "pickscore": "PickScore", "pickscore.wins": "Win rate by PickScore",
    "hpsv2": "HPS v2.1", "hpsv2.wins": "Win rate by HPS v2.1", "imagereward": "ImageReward",
    "imagereward.wins": "Win rate by ImageReward", "aesthetic": "Aesthetic rating", "kid": "KID to the test folder",
    "cmmd": "CMMD to the test folder", "fid": "FID to the test folder", "fd-dinov2": "Frechet distance by DINOv2",
    "prdc.precision": "Precision: drawn pictures that look real", "prdc.recall": "Recall: real pictures that could be drawn",
    "prdc.density": "Density: how real drawn pictures look", "prdc.coverage": "Coverage: real pictures that a drawn one is near",
    "diversity": "Difference between the seeds of a caption", "vendi": "Vendi score: as how many different pictures they count",
    "copies": "Copies of training pictures", "drift": "Drift from the original's own picture",
}  # fmt: skip
SHORT = {
    "lpips": "LPIPS", "clip": "CLIP score", "clip-i": "CLIP likeness", "dino": "DINO likeness", "clip-i-own": "CLIP likeness by pairs",
    "dino-own": "DINO likeness by pairs", "pickscore": "PickScore", "pickscore.wins": "PickScore's win rate", "hpsv2": "HPS v2.1",
    "hpsv2.wins": "HPS v2.1's win rate", "imagereward": "ImageReward",
    "imagereward.wins": "ImageReward's win rate", "aesthetic": "aesthetic rating", "kid": "KID", "cmmd": "CMMD", "fid": "FID",
    "fd-dinov2": "FD-DINOv2", "prdc.precision": "precision", "prdc.recall": "recall", "prdc.density": "density",
    "prdc.coverage": "coverage", "diversity": "seed difference", "vendi": "Vendi score", "copies": "copies", "drift": "drift",
}  # fmt: skip
_WITHOUT_ENCODER = {
    "dino": ("Likeness to all real pictures", "likeness"), "dino-own": ("Likeness to the real picture", "likeness by pairs"),
    "fid": ("Frechet distance", "Frechet distance"), "fd-dinov2": ("Frechet distance", "Frechet distance"),
}  # fmt: skip
"""Label and short name of those that are called after their encoder, for other ones."""


@dataclass(frozen=True)
class Choice:
    """A metric with the encoder that it is taken with; `part` where it gives several figures."""

    metric: str
    encoder: str
    part: str = ""

    @property
    def name(self) -> str:
        return f"{self.metric}.{self.part}" if self.part else self.metric

    @property
    def key(self) -> str:
        return self.name if self.encoder == usual(self.metric) else f"{self.name}:{self.encoder}"

    @property
    def rule(self) -> Metric:
        """What makes it evidence."""
        return METRICS[self.metric]

    @property
    def label(self) -> str:
        """Of a row of the table."""
        if self.encoder == usual(self.metric):
            return LABELS[self.name]
        if self.metric == "fid" and self.encoder == "inception-clean":
            return "FID to the test folder, pictures resized as clean-fid does"
        return f"{_WITHOUT_ENCODER.get(self.metric, (LABELS[self.name],))[0]}, by {self.encoder}"

    @property
    def short(self) -> str:
        """For headings and sentences."""
        if self.encoder == usual(self.metric):
            return SHORT[self.name]
        return f"{_WITHOUT_ENCODER.get(self.metric, (SHORT[self.name],))[-1]} ({self.encoder})"

    def of(self, part: str) -> Choice:
        """One of its several figures."""
        return Choice(self.metric, self.encoder, part)


def usual(metric: str) -> str:
    """The encoder that a metric is published with."""
    return METRICS[metric].encoders[0].partition("+")[0]


def choice_of(key: str) -> Choice:
    """ "kid:shipped" or "prdc.recall" taken apart."""
    name, _, encoder = key.partition(":")
    metric, _, part = name.partition(".")
    return Choice(metric, encoder or usual(metric), part)


def choices(metrics: str) -> list[Choice]:
    """ "lpips,kid:shipped" as choices. Raises ConfigError for names that are none."""
    found = []
    for text in filter(None, (part.strip() for part in metrics.split(","))):
        if (metric := text.partition(":")[0]) not in METRICS:
            raise ConfigError(f"--metrics: {metric}: no such figure here; possible: {', '.join(METRICS)}")
        choice = choice_of(text)
        if choice.encoder not in (fitting := _fitting(metric)):
            raise ConfigError(f"--metrics: {text}: {metric} is taken with {', '.join(fitting)}")
        found.append(choice)
    if not found:
        raise ConfigError(f"--metrics: names nothing; possible: {', '.join(METRICS)}")
    return list(dict.fromkeys(found))


def _fitting(metric: str) -> list[str]:
    """The encoders that make sense for a figure."""
    perceptual = ["lpips-alex", "lpips-vgg"]
    with_features = [name for name, spec in ENCODERS.items() if spec.dimension and spec.kind != "hpsv2"]
    match metric:
        case "lpips":
            return perceptual
        case "diversity":
            return perceptual + with_features
        case "clip" | "clip-i" | "clip-i-own":
            return ["clip-l14", "clip-b32", "clip-l14-336"]
        case "pickscore" | "hpsv2" | "imagereward":
            return [metric]
        case "aesthetic":
            return ["clip-l14"]
        case "cmmd":
            return ["clip-l14-336", "clip-l14", "clip-b32"]
        case "copies":
            return ["sscd", *(name for name in with_features if name != "sscd")]
        case _:
            return with_features
