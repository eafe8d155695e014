"""All that a report of the protocol shows, and what it says in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdtune.judging.scores import Figure, number
from sdtune.metrics.places import Missing
from sdtune.protocol import measures
from sdtune.protocol.choosing import PREFERENCE, choice_of
from sdtune.protocol.measures import told
from sdtune.protocol.pairing import Pairs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Near:
    """A drawn picture, the training picture that is nearest to it, and whether that is nearer than the limit."""

    drawn: Path
    train: Path
    cosine: float
    flagged: bool


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
    nearest: dict[str, list[Near]] = field(default_factory=dict)
    """Of `copies`: the tuned model's pictures that are nearest to a training picture, nearest first."""
    train: str = ""
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
        sound = [f for f in self.figures if told(f) != "not evidence"]
        open_ones = any(told(f) == "cannot tell" and f.better for f in sound)
        for how, names in by.items():
            if names:
                return f"By {names} the tuned model is {how}" + "; the others cannot tell" * open_ones
        if sound and not any(f.better for f in self.figures):
            return "These figures say what the tuning changed, and have no better side"
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
        if "copies" in keys:
            yield "No figure settles whether a picture is a copy, and a copy may be changed enough to escape it: look at the pairs."
        if keys & {"diversity", "vendi"}:
            yield "More varied is not better, and less is not worse: pictures of nothing are the most varied of all."
        if "drift" in keys:
            yield (
                "Drift is meant for captions that the training was not about. It does not say that pictures became worse: take it with "
                "CLIP score and preference of the same pictures."
            )
        if any(key.partition(".")[0] in (*PREFERENCE, "aesthetic") for key in keys):
            yield "Models of preference know a general taste, and are unfit for a style that is meant to be rough."
        if any(f.holm is not None for f in self.figures):
            yield "The figure that was asked for first decides; the p values of the others are corrected for their number (Holm)."
