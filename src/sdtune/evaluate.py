"""Pictures to figures, figures to verdicts.

Base and tuned pictures share prompts and seeds, in the same order. The prompt is the unit of all intervals: the seeds of a
prompt stay together, and base and tuned are drawn together, so differences are paired. The held-out real pictures are
drawn again as well, since they too are a sample; one whose caption is among the prompts goes with that prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sdtune import stats
from sdtune.bands import BandChange
from sdtune.errors import EvaluationError
from sdtune.metrics import content, diversity, frechet, kid, nearest
from sdtune.stats import Interval

if TYPE_CHECKING:
    from PIL import Image

    from sdtune.metrics.features import Scorer

Array = NDArray[np.float64]
Answer = Literal["yes", "no", "cannot tell"]

MOVED_SHARE = 0.1
"""A movement below this share of the way from the base to real target pictures is called none."""
CONTENT_BOUND = 0.1
"""Content is kept if at most this share of the pictures stopped showing what was asked."""
SCORER_FLOOR = 0.5
"""Content is judged only where the scorer finds at least this share of real target pictures (and of the base's) by their captions."""
OVERFIT_SHARE = 0.1
"""Overfit: more than this share of the gain in validation loss was lost again after the best step."""
COPY_LIMIT = 0.2
"""Copied: more than this share of the prompts gives pictures nearer to a training picture than any held-out real one is."""
MIN_PROMPTS = stats.MIN_UNITS


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
    """Nearer than any held-out real picture is to a training picture."""


@dataclass(frozen=True)
class Scores:
    figures: tuple[Figure, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    found: tuple[tuple[float, float], ...] = ()
    """Per picture, base and tuned: was the asked drawing found first (1) or not (0)?"""
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


def see(scorer: Scorer, images: Iterable[Image.Image], captions: Sequence[str], prompts: Sequence[str]) -> Seen:
    """Look at pictures. `captions` has one a picture; those that are not among `prompts` count as none."""
    features, embeds = scorer.see(images)
    number = {p: i for i, p in enumerate(prompts)}
    return Seen(features, embeds, np.array([number.get(c, -1) for c in captions], np.int64))


def evaluate(
    images: Sequence[Image.Image],
    reference: Sequence[Image.Image],
    *,
    prompts: Sequence[str] | None = None,
    scorer: Scorer | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Scores:
    """Figures of one set of pictures against real ones; with `prompts`, one a picture, content as well.

    Raises EvaluationError where nothing can be measured.
    """
    if len(images) < 2 or len(reference) < 2:
        counts = f"{len(images)} pictures against {len(reference)}"
        raise EvaluationError(f"{counts}: at least 2 of each are needed, {kid.MIN_PICTURES} for evidence")
    if prompts is not None and len(prompts) != len(images):
        raise EvaluationError(f"prompts: {len(prompts)} for {len(images)} pictures; give one a picture")
    if scorer is None:
        from sdtune.metrics.features import Scorer

        scorer = Scorer.load()
    asked = list(prompts) if prompts else [f"picture {i}" for i in range(len(images))]
    distinct = tuple(dict.fromkeys(asked))
    seen = see(scorer, images, asked, distinct)
    real = see(scorer, reference, [""] * len(reference), distinct)
    texts = (
        scorer.texts(content.strip_shared(distinct)) if prompts else np.zeros((len(distinct), seen.embeds_NE.shape[1]))
    )
    evidence = Evidence(distinct, texts, seen, seen, real)
    rows = [_kid_figure("kid_target", "KID to the reference", "lower", evidence, real, None, draws, seed)]
    rows.append(_frechet_figure("fd_target", "Frechet distance to the reference", "lower", evidence, real, None))
    if prompts:
        rows += _content_figures(evidence, draws, seed)[:2]
    return Scores(tuple(dataclasses.replace(r, base=None, difference=None, wins=None, losses=None) for r in rows))


def judge(evidence: Evidence, validation: Validation, *, primary: str, draws: int = 2000, seed: int = 0) -> Scores:
    """Everything that the shipped scorer and the validation losses tell about one fine-tuning."""
    e = evidence
    figures = [
        _kid_figure("kid_target", "KID to held-out target pictures", "lower", e, e.reference, e.train, draws, seed),
        _frechet_figure("fd_target", "Frechet distance to held-out target pictures", "lower", e, e.reference, e.train),
        *_content_figures(e, draws, seed),
        _diversity_figure(e, draws, seed),
    ]
    if e.control is not None:
        away = "the base's own domain"
        figures.append(_kid_figure("kid_control", f"KID to {away}", "higher", e, e.control, e.reference, draws, seed))
        figures.append(
            _frechet_figure("fd_control", f"Frechet distance to {away}", "higher", e, e.control, e.reference)
        )
    figures += validation_figures(validation, draws, seed)
    neighbours, copy = _copying(e)
    moved = next((f for f in figures if f.key == ("kid_target" if primary == "kid" else primary)), None)
    verdicts = [
        moved_verdict(moved),
        content_verdict(next(f for f in figures if f.key == "found_first")),
        away_verdict(next((f for f in figures if f.key == "kid_control"), None)),
        overfit_verdict(validation, draws, seed),
        copy,
    ]
    found = tuple(zip(*(map(float, _found(e, s)) for s in (e.base, e.tuned)), strict=True))
    return Scores(tuple(figures), tuple(verdicts), neighbours, found, tuple(_limits(figures)))


def judge_without_scorer(validation: Validation, why: str, *, primary: str, draws: int = 2000, seed: int = 0) -> Scores:
    """What is left where the shipped scorer does not fit the pictures: the validation loss. Everything else cannot be told."""
    figures = validation_figures(validation, draws, seed)
    moved = next((f for f in figures if f.key == primary), None)
    verdicts = (
        moved_verdict(moved) if moved else Verdict("moved", MOVED, "cannot tell", "yes", UNFIT),
        Verdict("content", CONTENT, "cannot tell", "yes", UNFIT),
        Verdict("away", AWAY, "cannot tell", "yes", UNFIT),
        overfit_verdict(validation, draws, seed),
        Verdict("copied", COPIED, "cannot tell", "no", UNFIT),
    )
    return Scores(tuple(figures), verdicts, limits=(why,))


# ---- figures


def _clusters(e: Evidence, other: Seen) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cluster of each picture of `other`, and the stratum of each cluster: prompts first, then real pictures of no prompt."""
    alone = other.asked_N < 0
    cluster_M = np.where(alone, len(e.prompts) + np.cumsum(alone) - 1, other.asked_N)
    strata = np.concatenate([np.zeros(len(e.prompts), np.int64), np.ones(int(alone.sum()), np.int64)])
    return cluster_M, strata


def _kid_figure(
    key: str,
    label: str,
    better: Literal["lower", "higher"],
    e: Evidence,
    to: Seen,
    real: Seen | None,
    draws: int,
    seed: int,
) -> Figure:
    """KID of base and tuned pictures to `to`, drawn again together; `real` against `to` is the yardstick."""
    cluster_M, strata = _clusters(e, to)
    weights_WC = stats.resample(strata, draws, seed)
    n = len(e.prompts)
    estimates = [
        kid.ClusteredKid(s.features_ND, s.asked_N, to.features_ND, cluster_M, len(strata)) for s in (e.base, e.tuned)
    ]
    (base, base_W), (tuned, tuned_W) = ((float(k()[0]), k(weights_WC)) for k in estimates)
    few = min(len(e.base), len(to))
    sound = few >= kid.MIN_PICTURES and n >= MIN_PROMPTS
    why = f"{len(e.base)} pictures of {n} prompts against {len(to)} real ones"
    return Figure(
        key, label, better,
        base=stats.interval(base, base_W, n),
        tuned=stats.interval(tuned, tuned_W, n),
        difference=stats.interval(tuned - base, tuned_W - base_W, n),
        real=_kid_of_real(real, to, draws, seed) if real is not None and len(real) > 1 else None,
        evidence=sound,
        note=why if sound else f"not evidence: {why}; at least {kid.MIN_PICTURES} of each and {MIN_PROMPTS} prompts are needed",
    )  # fmt: skip


def _kid_of_real(x: Seen, y: Seen, draws: int, seed: int) -> Interval:
    """KID of two sets of real pictures; what a perfect model would get, give or take chance."""
    n, m = len(x), len(y)
    estimate = kid.ClusteredKid(x.features_ND, np.arange(n), y.features_ND, np.arange(n, n + m), n + m)
    weights_WC = stats.resample(np.repeat(np.array([0, 1]), [n, m]), draws, seed)
    return stats.interval(float(estimate()[0]), estimate(weights_WC), min(n, m))


def _frechet_figure(
    key: str, label: str, better: Literal["lower", "higher"], e: Evidence, to: Seen, real: Seen | None
) -> Figure:
    few, dimensions = min(len(e.base), len(to)), to.features_ND.shape[1]
    rank = frechet.rank_bound(few, dimensions)

    def distance(s: Seen) -> Interval:
        return Interval(frechet.frechet(s.features_ND, to.features_ND), math.nan, math.nan, len(s), math.nan)

    note = "no interval: its bias is larger than its noise"
    if few < frechet.MIN_PICTURES:
        blind = f", and covariances of rank {rank} at most in {dimensions} dimensions" if rank < dimensions else ""
        note = f"indicative only: {few} pictures, {frechet.MIN_PICTURES:,} are needed{blind}"
    return Figure(
        key, label, better, distance(e.base), distance(e.tuned),
        real=distance(real) if real is not None and len(real) > 1 else None,
        evidence=few >= frechet.MIN_PICTURES, note=note,
    )  # fmt: skip


def _found(e: Evidence, s: Seen) -> Array:
    return content.found_first(s.embeds_NE, e.texts_PE, s.asked_N)


def _cosine(e: Evidence, s: Seen) -> Array:
    return content.prompt_cosine(s.embeds_NE, e.texts_PE, s.asked_N)


def _content_figures(e: Evidence, draws: int, seed: int) -> list[Figure]:
    """Asked drawing found first, and cosine to the prompt. The ceiling: real target pictures of the same prompts."""
    known = e.reference.asked_N >= 0
    real = Seen(e.reference.features_ND[known], e.reference.embeds_NE[known], e.reference.asked_N[known])
    ways = {
        "found_first": ("Asked drawing found first", _found),
        "prompt_cosine": ("Likeness to the prompt (cosine)", _cosine),
    }
    rows = []
    for key, (label, score) in ways.items():
        base, tuned = (stats.group_means(score(e, s), s.asked_N, len(e.prompts)) for s in (e.base, e.tuned))
        figure = paired_figure(key, label, "higher", base, tuned, draws, seed)
        ceiling = (
            stats.bootstrap_mean(stats.group_means(score(e, real), real.asked_N, len(e.prompts)), draws, seed)
            if len(real)
            else None
        )
        note = f"among {len(e.prompts)} prompts; chance {1 / len(e.prompts):.1%}" if key == "found_first" else ""
        rows.append(dataclasses.replace(figure, real=ceiling, note="; ".join(filter(None, (note, figure.note)))))
    return rows


def _diversity_figure(e: Evidence, draws: int, seed: int) -> Figure:
    base, tuned = (diversity.seed_diversity(s.features_ND, s.asked_N) for s in (e.base, e.tuned))
    figure = paired_figure("diversity", "Difference between the seeds of a prompt", "", base, tuned, draws, seed)
    if figure.base is None or math.isnan(figure.base.value):
        return dataclasses.replace(figure, evidence=False, note="needs at least two seeds")
    across = [diversity.between_prompts(s.features_ND, s.asked_N) for s in (e.base, e.tuned)]
    note = f"distance in feature space; between different prompts {across[0]:.3g} (base), {across[1]:.3g} (tuned)"
    return dataclasses.replace(figure, note=note)


def paired_figure(
    key: str,
    label: str,
    better: Literal["lower", "higher", ""],
    base_C: Array,
    tuned_C: Array,
    draws: int = 2000,
    seed: int = 0,
) -> Figure:
    """Base, tuned and the paired difference of one value a prompt (or a validation picture)."""
    both = np.isfinite(base_C) & np.isfinite(tuned_C)
    base_C, tuned_C = base_C[both], tuned_C[both]
    change = (tuned_C - base_C) * (-1 if better == "lower" else 1)
    few = f"not evidence: {len(base_C)} pairs, at least {MIN_PROMPTS} are needed" if len(base_C) < MIN_PROMPTS else ""
    return Figure(
        key, label, better,
        stats.bootstrap_mean(base_C, draws, seed),
        stats.bootstrap_mean(tuned_C, draws, seed),
        stats.bootstrap_mean(tuned_C - base_C, draws, seed),
        evidence=not few,
        note=few,
        wins=int((change > 0).sum()) if better else None,
        losses=int((change < 0).sum()) if better else None,
    )  # fmt: skip


def validation_figures(validation: Validation, draws: int = 2000, seed: int = 0) -> list[Figure]:
    """The validation loss of the base (step 0) and of the last step, paired by picture; none where a run has fewer than two."""
    if len(validation.steps) < 2 or validation.steps[0] != 0:
        return []
    first, last = validation.losses_SN[0], validation.losses_SN[-1]
    row = paired_figure("validation_loss", "Validation loss", "lower", first, last, draws, seed)
    note = f"{len(first)} pictures, the same noise and timesteps at step 0 and step {validation.steps[-1]}"
    return [dataclasses.replace(row, note="; ".join(filter(None, (note, row.note))))]


def _copying(e: Evidence) -> tuple[tuple[Neighbour, ...], Verdict]:
    """The nearest training picture of each tuned one, and whether more of them are too near than held-out real ones would be."""
    if e.train is None or len(e.train) < 2 or len(e.reference) < 2:
        return (), Verdict(
            "copied", COPIED, "cannot tell", "no", "there are no training or held-out pictures to compare with"
        )
    centre = np.concatenate([e.train.features_ND, e.reference.features_ND]).mean(0)
    index, cosine = nearest.nearest(e.tuned.features_ND, e.train.features_ND, centre)
    _, real = nearest.nearest(e.reference.features_ND, e.train.features_ND, centre)
    limit = float(real.max())
    rows = [Neighbour(i, int(j), float(c), bool(c > limit)) for i, (j, c) in enumerate(zip(index, cosine, strict=True))]
    flagged = len({int(e.tuned.asked_N[r.picture]) for r in rows if r.suspicious})
    ordered = tuple(sorted(rows, key=lambda r: -r.cosine))
    return ordered, copy_verdict(
        flagged, len(e.prompts), limit, float(np.median(real)), float(np.median(cosine)), len(e.reference)
    )


# ---- verdicts

MOVED = "Moved to the target?"
CONTENT = "Content kept?"
AWAY = "Moved away from the base's own domain?"
OVERFIT = "Overfit?"
COPIED = "Copied from the training pictures?"
UNFIT = "the scorer that comes with sdtune does not know this base model's pictures; look at them"
"""In place of the whole reason, which is said once, among the limits."""


def moved_verdict(figure: Figure | None) -> Verdict:
    """no: the interval excludes a tenth of the way to real pictures, or lies on the bad side. yes: it lies on the good one."""

    def say(answer: Answer, because: str, detail: str = "") -> Verdict:
        return Verdict("moved", MOVED, answer, "yes", because, detail)

    if figure is None:
        return say("cannot tell", "the primary figure could not be computed")
    d, base, tuned = figure.difference, figure.base, figure.tuned
    if d is None or base is None or tuned is None or not figure.evidence or math.isnan(d.low):
        return say("cannot tell", "there are too few pictures", f"{figure.label}: {figure.note}")
    detail = f"{figure.label}: {number(base.value)} to {number(tuned.value)}; change {change(d)}"
    way = base.value - max(0.0, figure.real.value) if figure.real else math.nan
    if way > 0 and max(-d.low, d.high) < MOVED_SHARE * way:
        return say("no", f"it moved by less than {MOVED_SHARE:.0%} of the way to real target pictures", detail)
    if d.high < 0 and figure.key == "validation_loss":
        return say("yes", f"it predicts held-out target pictures better, by {-d.value / base.value:.0%}", detail)
    if d.high < 0:
        gone = min(1.0, -d.value / way) if way > 0 else None
        far = "" if gone is None else f", {gone:.0%} of the way to real ones"
        came = f"its pictures came nearer to held-out target pictures{far}"
        return Verdict("moved", MOVED, "yes", "yes", came, detail, gone)
    if d.low > 0:
        return say("no", "it is further away from the target than the base is", detail)
    unseen = f"a change of less than {number(d.detectable)} could not have been seen with {d.n} {_units(figure)}"
    return say("cannot tell", "the change may be chance: its interval includes 0", f"{detail}; {unseen}")


def content_verdict(figure: Figure) -> Verdict:
    """Kept is a bound, not the absence of a proof: the interval of the loss must exclude CONTENT_BOUND.

    The scorer finds some target styles less often than the base's own, real pictures included; what it cannot find in real
    pictures is not held against the model, and where it is blind nothing is said.
    """

    def say(answer: Answer, because: str, detail: str = "") -> Verdict:
        return Verdict("content", CONTENT, answer, "yes", because, detail)

    d, base, tuned, real = figure.difference, figure.base, figure.tuned, figure.real
    if d is None or base is None or tuned is None or not figure.evidence or math.isnan(d.low):
        return say("cannot tell", "there are too few prompts", f"{figure.label}: {figure.note}")
    detail = f"asked drawing found first: base {base.value:.0%}, tuned {tuned.value:.0%}"
    detail += f", real target pictures {real.value:.0%}" if real else ""
    detail += f"; change {change(d, 100)} points"
    if real is None:
        return say(
            "cannot tell",
            "no held-out pictures have these captions, so nobody knows what the scorer can see in this style",
            detail,
        )
    if real.value < SCORER_FLOOR:
        return say(
            "cannot tell",
            "the scorer is nearly blind to this style, in real pictures too; look at the pictures",
            detail,
        )
    if base.value < SCORER_FLOOR:
        return say(
            "cannot tell",
            "too few of the base's own pictures are recognised to see a loss; look at the pictures",
            detail,
        )
    hard = max(0.0, base.value - real.value)  # what the scorer itself loses from the base's style to the target's
    if d.low + hard > -CONTENT_BOUND:
        return say("yes", f"a loss of {CONTENT_BOUND:.0%} of the drawings is excluded", detail)
    if d.high + hard < 0 and d.value + hard <= -CONTENT_BOUND:
        return say("no", "fewer pictures show what was asked, beyond chance", detail)
    unclear = f"a loss above {CONTENT_BOUND:.0%} can be neither shown nor excluded with {d.n} prompts"
    return say("cannot tell", unclear, detail)


def away_verdict(figure: Figure | None) -> Verdict:
    """A check of the first verdict: pictures that only became sharper come nearer to everything."""

    def say(answer: Answer, because: str, detail: str = "") -> Verdict:
        return Verdict("away", AWAY, answer, "yes", because, detail)

    if figure is None:
        return say(
            "cannot tell", "there are no pictures of the base's own domain; set evaluate.control to a folder of them"
        )
    d, base, tuned = figure.difference, figure.base, figure.tuned
    if d is None or base is None or tuned is None or not figure.evidence or math.isnan(d.low):
        return say("cannot tell", "there are too few pictures", f"{figure.label}: {figure.note}")
    detail = f"{figure.label}: {number(base.value)} to {number(tuned.value)}; change {change(d)}"
    if d.low > 0:
        return say("yes", "it left what the base draws, as a change of style must", detail)
    if d.high < 0:
        return say("no", "it came nearer to what the base was made from", detail)
    return say("cannot tell", "the change may be chance: its interval includes 0", detail)


def overfit_verdict(validation: Validation, draws: int = 2000, seed: int = 0) -> Verdict:
    """Did the validation loss rise again after its best step, by more than OVERFIT_SHARE of what it had gained?

    The best step is chosen on one half of the pictures and the rise measured on the other, and the other way round:
    measured where it was chosen, a best step always looks better than it is.
    """

    def say(answer: Answer, because: str, detail: str = "") -> Verdict:
        return Verdict("overfit", OVERFIT, answer, "no", because, detail)

    losses_SN = validation.losses_SN
    if len(validation.steps) < 3 or validation.steps[0] != 0:
        return say(
            "cannot tell", "this needs the validation loss at step 0 and two later steps; see train.validate_every"
        )
    if losses_SN.shape[1] < MIN_PROMPTS:
        return say(
            "cannot tell", f"there are {losses_SN.shape[1]} validation pictures, at least {MIN_PROMPTS} are needed"
        )
    half_N = np.arange(losses_SN.shape[1]) % 2
    best_of = [int(losses_SN[:, half_N != h].mean(1).argmin()) for h in (0, 1)]
    best_N = np.where(half_N == 0, losses_SN[best_of[0]], losses_SN[best_of[1]])
    rise = stats.bootstrap_mean(losses_SN[-1] - best_N, draws, seed)
    mean_S = losses_SN.mean(1)
    best = int(mean_S.argmin())
    bound = OVERFIT_SHARE * max(0.0, float(mean_S[0] - mean_S[best]))
    detail = f"validation loss {number(mean_S[0])} at the start, {number(mean_S[best])} at its best (step {validation.steps[best]})"
    detail += f", {number(mean_S[-1])} at the end; rise {change(rise)}{_training(validation, best)}"
    if rise.low > bound:
        never = (
            "the validation loss never fell below the base's"
            if best == 0
            else "the validation loss rose again; stop earlier"
        )
        return say("yes", never, detail)
    if rise.high <= bound:
        little = f"after its best step it lost less than {OVERFIT_SHARE:.0%} of what it had gained"
        return say("no", "the validation loss was lowest at the end" if best == len(mean_S) - 1 else little, detail)
    return say(
        "cannot tell",
        f"a loss of {OVERFIT_SHARE:.0%} of the gain after the best step can be neither shown nor excluded",
        detail,
    )


def copy_verdict(flagged: int, prompts: int, limit: float, real: float, drawn: float, held_out: int) -> Verdict:
    """Is the share of suspicious prompts, with its exact interval, above or below COPY_LIMIT?"""
    s = stats.share(flagged, prompts)
    detail = f"{flagged} of {prompts} prompts nearer than the nearest of {held_out} held-out real pictures (cosine {limit:.2f})"
    detail += f", 95% interval {s.low:.0%} to {s.high:.0%}; medians {drawn:.2f} drawn, {real:.2f} real"
    if prompts < MIN_PROMPTS or held_out < MIN_PROMPTS:
        few = f"at least {MIN_PROMPTS} prompts and held-out pictures are needed"
        return Verdict("copied", COPIED, "cannot tell", "no", few, detail)
    if s.low > COPY_LIMIT:
        return Verdict(
            "copied", COPIED, "yes", "no", "too many pictures are nearly training pictures; see the pairs below", detail
        )
    if s.high < COPY_LIMIT:
        return Verdict(
            "copied", COPIED, "no", "no", "its pictures are no nearer to training pictures than real ones are", detail
        )
    unclear = f"more than {COPY_LIMIT:.0%} of copies can be neither shown nor excluded; see the pairs below"
    return Verdict("copied", COPIED, "cannot tell", "no", unclear, detail)


def _training(validation: Validation, best: int) -> str:
    """The training loss around the best and the last step, in words."""
    steps, losses = np.array(validation.train_steps), np.array(validation.train_losses)
    window = max(1, (validation.steps[-1] or 1) // 10)

    def around(step: int) -> float:
        near = losses[(steps > step - window) & (steps <= step)]
        return float(near.mean()) if len(near) else math.nan

    then, end = around(validation.steps[best]), around(validation.steps[-1])
    if math.isnan(then) or math.isnan(end) or best == 0:
        return ""
    return f", while the training loss went from {number(then)} to {number(end)}"


def _limits(figures: Sequence[Figure]) -> list[str]:
    """What these pictures could not have shown."""
    rows = [f"{f.label}: {f.note}" for f in figures if not f.evidence]
    seen = [f"{f.label} {size}" for f in figures if (size := unseen(f))]
    if seen:
        rows.append(f"Smaller changes than these would mostly have gone unseen (80% power at 5%): {'; '.join(seen)}")
    return rows


def unseen(figure: Figure) -> str:
    """The smallest change that this many prompts would mostly show, in words; nothing where there is none."""
    if not figure.evidence or figure.difference is None or not 0 < figure.difference.detectable < math.inf:
        return ""
    least = figure.difference.detectable
    return f"{100 * least:.0f} points" if figure.key == "found_first" else number(least)


def _units(figure: Figure) -> str:
    return "pictures" if figure.key == "validation_loss" else "prompts"


def number(value: float) -> str:
    """Three significant digits, without an exponent where one can read it."""
    if not math.isfinite(value):
        return "-"
    if value and not 1e-5 <= abs(value) < 1e5:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def change(d: Interval, factor: float = 1.0) -> str:
    """A signed difference with its interval."""
    texts = [f"{'+' if v > 0 else ''}{number(v * factor)}" for v in (d.value, d.low, d.high)]
    return f"{texts[0]}, 95% interval {texts[1]} to {texts[2]}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
