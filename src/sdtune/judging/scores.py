"""What is known of a fine-tuning, as plain values: pictures as an encoder sees them, figures, verdicts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sdtune.bands import BandChange
from sdtune.stats import Interval

Array = NDArray[np.float64]
Answer = Literal["yes", "no", "cannot tell"]


@dataclass(frozen=True)
class Seen:
    """Pictures as the scorer sees them."""

    features_ND: Array
    embeds_NE: Array
    asked_N: NDArray[np.int64]
    """Which of the evaluation prompts each picture shows; -1 for none of them."""

    def __len__(self) -> int:
        return len(self.asked_N)


@dataclass(frozen=True)
class Unrelated:
    """What the training was not about, drawn by base and tuned model with the same seeds."""

    prompts: tuple[str, ...]
    texts_PE: Array
    base: Seen
    tuned: Seen


@dataclass(frozen=True)
class Doubles:
    """The same pictures as an encoder sees them that was made to find copies (SSCD, arXiv:2202.10261)."""

    tuned_ND: Array
    train_MD: Array
    reference_HD: Array


@dataclass(frozen=True)
class Evidence:
    """All that the verdicts may use. `texts_PE` are the unit-length embeddings of the P distinct prompts."""

    prompts: tuple[str, ...]
    texts_PE: Array
    base: Seen
    tuned: Seen
    reference: Seen
    """Held-out real pictures of the target."""
    train: Seen | None = None
    control: Seen | None = None
    """Real pictures of the base's own domain."""
    unrelated: Unrelated | None = None
    doubles: Doubles | None = None
    """Of tuned, training and reference pictures, in their order; without them the scorer's own features must do."""


@dataclass(frozen=True)
class Figure:
    """One row of the table: base (floor), tuned, their paired difference, and the same figure of real pictures (ceiling)."""

    key: str
    label: str
    better: Literal["lower", "higher", ""]
    base: Interval | None = None
    tuned: Interval | None = None
    difference: Interval | None = None
    """Tuned minus base, over the same prompts and seeds."""
    real: Interval | None = None
    evidence: bool = True
    """False: shown with its reason, but no verdict rests on it."""
    note: str = ""
    wins: int | None = None
    losses: int | None = None
    holm: float | None = None
    """p of the difference, corrected for all secondary figures that have a better side; None for the primary one and those without."""


QUESTIONS: dict[str, tuple[str, Answer]] = {
    "helped": ("Did it help?", "yes"),
    "moved": ("Moved to the target?", "yes"),
    "content": ("Content kept?", "yes"),
    "away": ("Moved away from the base's own domain?", "yes"),
    "overfit": ("Overfit?", "no"),
    "forgot": ("Forgot other things?", "no"),
    "copied": ("Copied from the training pictures?", "no"),
}
"""All questions in the order of the report, with the answers that one hopes for."""


@dataclass(frozen=True)
class Verdict:
    key: str
    question: str
    answer: Answer
    wish: Answer
    """The answer that one hopes for."""
    because: str
    """In plain words."""
    detail: str = ""
    """The numbers behind it."""
    way: float | None = None
    """Of "moved": the share of the way from the base to real target pictures, where that can be said."""

    @staticmethod
    def on(key: str, answer: Answer, because: str, detail: str = "", way: float | None = None) -> Verdict:
        """The answer to one of QUESTIONS."""
        question, wish = QUESTIONS[key]
        return Verdict(key, question, answer, wish, because, detail, way)

    @property
    def good(self) -> bool | None:
        return None if self.answer == "cannot tell" else self.answer == self.wish


@dataclass(frozen=True)
class Neighbour:
    """The nearest training picture of a drawn one."""

    picture: int
    train: int
    cosine: float
    suspicious: bool
    """Nearer than any held-out real picture is to a training picture, and than SSCD's limit where that looked."""


@dataclass(frozen=True)
class Scores:
    figures: tuple[Figure, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    found: tuple[tuple[float, float], ...] = ()
    """Per picture, base and tuned: was the asked drawing found first (1) or not (0)?"""
    likeness: tuple[tuple[float, float], ...] = ()
    """Per picture, base and tuned: cosine to the prompt."""
    limits: tuple[str, ...] = ()

    def figure(self, key: str) -> Figure | None:
        return next((f for f in self.figures if f.key == key), None)

    def verdict(self, key: str) -> Verdict | None:
        return next((v for v in self.verdicts if v.key == key), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is no number becomes null."""
        plain: dict[str, Any] = _without_nan(dataclasses.asdict(self))
        return plain


@dataclass(frozen=True)
class Validation:
    """The fixed-noise validation losses of a run: steps and (steps, pictures) losses, step 0 first, and the training loss by step."""

    steps: tuple[int, ...] = ()
    losses_SN: Array = field(default_factory=lambda: np.zeros((0, 0)))
    train_steps: tuple[int, ...] = ()
    train_losses: tuple[float, ...] = ()
    bands: tuple[BandChange, ...] = ()
    """From step 0 to the last of `steps`, by bands of timesteps."""


# ---- in words


def number(value: float) -> str:
    """Three significant digits, without an exponent where one can read it."""
    if not math.isfinite(value):
        return "-"
    if value and not 1e-5 <= abs(value) < 1e5:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    """A p value as it is printed."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def change(d: Interval, factor: float = 1.0) -> str:
    """A signed difference with its interval."""
    texts = [f"{'+' if v > 0 else ''}{number(v * factor)}" for v in (d.value, d.low, d.high)]
    return f"{texts[0]}, 95% interval {texts[1]} to {texts[2]}"


def unseen(figure: Figure) -> str:
    """The smallest change that this many prompts would mostly show, in words; nothing where there is none."""
    if not figure.evidence or figure.difference is None or not 0 < figure.difference.detectable < math.inf:
        return ""
    least = figure.difference.detectable
    return f"{100 * least:.0f} points" if figure.key == "found_first" else number(least)


def units_of(figure: Figure) -> str:
    return "pictures" if figure.key == "validation_loss" else "prompts"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
