"""Pictures and losses to figures with intervals.

Base and tuned pictures share prompts and seeds, in the same order. The prompt is the unit of all intervals: the seeds of a
prompt stay together, and base and tuned are drawn together, so differences are paired. The held-out real pictures are
drawn again as well, since they too are a sample; one whose caption is among the prompts goes with that prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdtune import stats
from sdtune.judging.scores import Array, Evidence, Figure, Seen, Validation
from sdtune.metrics import content, dino, diversity, frechet, kid
from sdtune.stats import Interval

MIN_PROMPTS = stats.MIN_UNITS


def clusters(prompts: int, asked_M: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cluster of each real picture, and the stratum of each cluster: prompts first, then pictures of no prompt (-1), each alone."""
    alone_M = asked_M < 0
    cluster_M = np.where(alone_M, prompts + np.cumsum(alone_M) - 1, asked_M)
    return cluster_M, np.repeat(np.array([0, 1]), [prompts, int(alone_M.sum())])


def kid_figure(
    key: str,
    label: str,
    better: Literal["lower", "higher"],
    e: Evidence,
    to: Seen,
    real: Seen | None,
    draws: int,
    seed: int,
    kernel: Callable[[Array, Array], Array] = kid.cubic_kernel,
    factor: float = 1.0,
) -> Figure:
    """KID of base and tuned pictures to `to`, drawn again together; `real` against `to` is the yardstick. Another kernel and factor
    make it another discrepancy without bias, such as CMMD."""
    cluster_M, strata = clusters(len(e.prompts), to.asked_N)
    weights_WC = stats.resample(strata, draws, seed)
    n = len(e.prompts)
    estimates = [
        kid.ClusteredKid(s.features_ND, s.asked_N, to.features_ND, cluster_M, len(strata), kernel=kernel)
        for s in (e.base, e.tuned)
    ]
    base, tuned = (k.drawn_again(weights_WC, strata, factor) for k in estimates)
    few = min(len(e.base), len(to))
    sound = few >= kid.MIN_PICTURES and n >= MIN_PROMPTS
    why = f"{len(e.base)} pictures of {n} prompts against {len(to)} real ones"
    return Figure(
        key, label, better, base.interval(n), tuned.interval(n), (tuned - base).interval(n),
        real=kid_of_real(real.features_ND, to.features_ND, draws, seed, kernel, factor) if real is not None and len(real) > 1 else None,
        evidence=sound,
        note=why if sound else f"not evidence: {why}; at least {kid.MIN_PICTURES} of each and {MIN_PROMPTS} prompts are needed",
    )  # fmt: skip


def kid_of_real(
    x_ND: Array, y_MD: Array, draws: int, seed: int,
    kernel: Callable[[Array, Array], Array] = kid.cubic_kernel, factor: float = 1.0,
) -> Interval:  # fmt: skip
    """KID of two sets of real pictures; what a perfect model would get, give or take chance."""
    n, m = len(x_ND), len(y_MD)
    estimate = kid.ClusteredKid(x_ND, np.arange(n), y_MD, np.arange(n, n + m), n + m, kernel=kernel)
    strata = np.repeat(np.array([0, 1]), [n, m])
    return estimate.drawn_again(stats.resample(strata, draws, seed), strata, factor).interval(min(n, m))


def frechet_figure(
    key: str, label: str, better: Literal["lower", "higher"], e: Evidence, to: Seen, real: Seen | None
) -> Figure:
    few, dimensions = min(len(e.base), len(to)), to.features_ND.shape[1]
    if few < frechet.MIN_PICTURES:
        rank = frechet.rank_bound(few, dimensions)
        blind = f"; covariances of rank {rank} at most in {dimensions} dimensions" if rank < dimensions else ""
        why = f"refused: {few} pictures, {frechet.MIN_PICTURES:,} are needed, as its bias is of the size of its value{blind}"
        return Figure(key, label, better, evidence=False, note=why)

    def distance(s: Seen) -> Interval:
        return Interval(frechet.frechet(s.features_ND, to.features_ND), math.nan, math.nan, len(s), math.nan)

    return Figure(
        key, label, better, distance(e.base), distance(e.tuned),
        real=distance(real) if real is not None and len(real) > 1 else None,
        note="no interval: its bias is larger than its noise",
    )  # fmt: skip


def found(e: Evidence, s: Seen) -> Array:
    return content.found_first(s.embeds_NE, e.texts_PE, s.asked_N)


def cosine(e: Evidence, s: Seen) -> Array:
    return content.prompt_cosine(s.embeds_NE, e.texts_PE, s.asked_N)


def content_figures(e: Evidence, draws: int, seed: int) -> list[Figure]:
    """Asked drawing found first, and cosine to the prompt. The ceiling: real target pictures of the same prompts."""
    known = e.reference.asked_N >= 0
    real = Seen(e.reference.features_ND[known], e.reference.embeds_NE[known], e.reference.asked_N[known])
    ways = {
        "found_first": ("Asked drawing found first", found),
        "prompt_cosine": ("Likeness to the prompt (cosine)", cosine),
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


def likeness_figure(e: Evidence, draws: int, seed: int) -> Figure:
    """Mean cosine to the held-out real pictures (DINO and CLIP-I of arXiv:2208.12242), from the mean of all real pictures: features share a
    large constant part. The ceiling: a real picture to the other ones."""
    centre_D = np.concatenate([e.reference.features_ND, *([e.control.features_ND] if e.control else [])]).mean(0)
    real_MD = e.reference.features_ND - centre_D
    base, tuned = (
        stats.group_means(dino.likeness(s.features_ND - centre_D, real_MD), s.asked_N, len(e.prompts))
        for s in (e.base, e.tuned)
    )
    row = paired_figure("likeness", "Likeness to held-out target pictures (cosine)", "higher", base, tuned, draws, seed)
    return dataclasses.replace(
        row, real=stats.bootstrap_mean(dino.among(real_MD), draws, seed) if len(real_MD) > 1 else None
    )


def unrelated_figures(e: Evidence, draws: int, seed: int) -> list[Figure]:
    """Whether unrelated prompts are still drawn, and how far their pictures went from the base's own at the same seed."""
    u = e.unrelated
    if u is None or len(u.prompts) < 2:
        return []
    base, tuned = (
        stats.group_means(content.margin(s.embeds_NE, u.texts_PE, s.asked_N), s.asked_N, len(u.prompts))
        for s in (u.base, u.tuned)
    )
    kept = paired_figure(
        "unrelated", "Unrelated prompts: likeness to them above chance", "higher", base, tuned, draws, seed
    )
    moved_N = np.linalg.norm(u.tuned.features_ND - u.base.features_ND, axis=1)
    yardstick = diversity.between_prompts(u.base.features_ND, u.base.asked_N)
    drift = stats.bootstrap_mean(stats.group_means(moved_N, u.base.asked_N, len(u.prompts)) / yardstick, draws, seed)
    note = "distance from the base's picture of the same prompt and seed; 1 is the distance between two prompts"
    return [
        dataclasses.replace(
            kept, note="; ".join(filter(None, (f"{len(u.prompts)} prompts that were not trained on", kept.note)))
        ),
        Figure("drift", "Unrelated prompts: drift", "", tuned=drift, note=note),
    ]


def change_p(figure: Figure) -> float:
    """Two-sided, of no difference; nan where there is none."""
    return figure.difference.p if figure.difference else math.nan


def corrected(figures: Sequence[Figure], primary: str, p_of: Callable[[Figure], float] = change_p) -> list[Figure]:
    """With the p values of the secondary figures that are evidence and have a better side corrected for their number (Holm)."""
    found = list(figures)
    p_values = {
        i: p
        for i, f in enumerate(found)
        if f.key != primary and f.better and f.evidence and math.isfinite(p := p_of(f))
    }
    for i, p in zip(p_values, stats.holm(list(p_values.values())), strict=True):
        found[i] = dataclasses.replace(found[i], holm=p)
    return found


def diversity_figure(e: Evidence, draws: int, seed: int) -> Figure:
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
    needs: int = MIN_PROMPTS,
) -> Figure:
    """Base, tuned and the paired difference of one value a prompt (or a validation picture). With fewer than `needs` of them it is no
    evidence."""
    both = np.isfinite(base_C) & np.isfinite(tuned_C)
    base_C, tuned_C = base_C[both], tuned_C[both]
    change = (tuned_C - base_C) * (-1 if better == "lower" else 1)
    few = f"not evidence: {len(base_C)} pairs, at least {needs} are needed" if len(base_C) < needs else ""
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
