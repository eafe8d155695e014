"""Which checkpoint, at which strength? The trade-off between likeness to the target and what is still drawn, on validation prompts.

What is chosen here is chosen with the validation pictures; `sdtune compare` then judges it on the test pictures. A point chosen and judged
on the same pictures always looks better than it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdtune import stats
from sdtune.config import RunConfig
from sdtune.drawing import Progress, draw_missing
from sdtune.errors import ConfigError, EvaluationError
from sdtune.evaluate import see
from sdtune.judging.figures import clusters
from sdtune.judging.scores import Array, Seen
from sdtune.judging.verdicts import CONTENT_BOUND
from sdtune.metrics import content, kid
from sdtune.pictures import scan
from sdtune.runs import Run
from sdtune.stats import Interval
from sdtune.viewing import open_rgb, scorer_gap, square, viewer_of

if TYPE_CHECKING:
    from sdtune.evaluate import Viewer

STRENGTHS = (0.5, 0.75, 1.0, 1.25)
BASE = "base"


@dataclass(frozen=True)
class Point:
    """One checkpoint at one strength, on all prompts."""

    checkpoint: str
    strength: float
    pictures: tuple[Path, ...]
    """In the order of prompts, then seeds."""
    kid: Interval | None = None
    """To the real validation pictures; lower is nearer."""
    content: Interval | None = None
    """How much more its pictures resemble their prompts than the others (`metrics.content.margin`), 0 to 1."""
    lost: Interval | None = None
    """Of the base's content, or of real target pictures' where the scorer sees less in these; as a share of it."""
    behind: Interval | None = None
    """KID above that of the nearest point that did not lose too much, paired over prompts."""

    @property
    def name(self) -> str:
        return BASE if self.checkpoint == BASE else f"{self.checkpoint} at {self.strength:g}"


@dataclass(frozen=True)
class Sweep:
    run: Run
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    base: Point
    points: tuple[Point, ...]
    chosen: Point | None
    real: Interval | None
    """The content of the real validation pictures: as much as can be seen in pictures of the target."""
    rule: str
    """How it was chosen, in words; or why none was."""


def sweeping(
    run: Run, config: RunConfig | None = None, *, checkpoints: Sequence[str] = (), strengths: Sequence[float] = STRENGTHS,
    scorer: Viewer | None = None,
) -> Generator[Progress, None, Sweep]:  # fmt: skip
    """Draw the validation prompts with each checkpoint at each strength, and place each between likeness and content.

    `checkpoints`: names as `compare` takes them; all that are kept if there are none. Raises RunError, DataError, ConfigError or
    EvaluationError.
    """
    config = config or run.config()
    if not strengths or any(not 0 < s <= 4 for s in strengths):
        raise ConfigError(
            f"--strengths: {', '.join(f'{s:g}' for s in strengths) or 'none'}: give some above 0 and up to 4"
        )
    held_out = scan(config).validation
    if not held_out:
        raise EvaluationError("there are no validation pictures to choose with: set data.validation_share above 0")
    prompts = tuple(dict.fromkeys(e.captions[0] for e in held_out))[: config.evaluate.max_prompts]
    if len(prompts) < 2:
        raise EvaluationError(
            f"the validation pictures have one caption ({prompts[0]!r}), and content is seen by telling prompts apart: give them "
            "captions of their own"
        )
    seeds = tuple(dict.fromkeys(config.evaluate.seeds))
    base, points = yield from _drawn(run, config, prompts, seeds, checkpoints or _kept(run), strengths)
    if why := scorer_gap(config):
        return Sweep(run, prompts, seeds, base, points, None, None, f"none is suggested. {why}")
    scorer = scorer or viewer_of(config, base.pictures[0])
    real = see(
        scorer, [square(e, config.data, scorer.side) for e in held_out], [e.captions[0] for e in held_out], prompts
    )
    asked = [p for p in prompts for _ in seeds]
    seen = list[Seen]()
    for k, point in enumerate((base, *points)):
        yield Progress("looking at pictures", k, len(points) + 1)
        seen.append(see(scorer, map(open_rgb, point.pictures), asked, prompts))
    yield Progress("looking at pictures", len(points) + 1, len(points) + 1)
    texts_PE = scorer.texts(content.strip_shared(prompts))
    placed = place([base, *points], seen, texts_PE, real, config.evaluate.draws, config.train.seed)
    chosen, rule = choose(placed[1:], len(prompts))
    visible = stats.bootstrap_mean(_content(real, texts_PE), config.evaluate.draws, config.train.seed)
    return Sweep(run, prompts, seeds, placed[0], tuple(placed[1:]), chosen, visible, rule)


def place(
    points: Sequence[Point], seen: Sequence[Seen], texts_PE: Array, real: Seen, draws: int, seed: int
) -> list[Point]:
    """The points with their figures; the first is the base. Prompts are drawn again for all points together, so differences are paired."""
    prompts = len(texts_PE)
    cluster_M, strata = clusters(prompts, real.asked_N)
    weights_WC = stats.resample(strata, draws, seed)
    distances = [kid.ClusteredKid(s.features_ND, s.asked_N, real.features_ND, cluster_M, len(strata)) for s in seen]
    kids = [k.drawn_again(weights_WC, strata) for k in distances]
    shown = [_content(s, texts_PE) for s in seen]
    visible = _content(real, texts_PE)  # what the scorer cannot see in real pictures is not lost
    most = visible if np.isfinite(visible).any() and np.nanmean(visible) < np.nanmean(shown[0]) else shown[0]
    lost = [stats.bootstrap_mean((most - own) / float(np.nanmean(most)), draws, seed) for own in shown]
    tuned = range(1, len(points))
    nearest = min([i for i in tuned if _sound(lost[i])] or tuned, key=lambda i: kids[i].value)
    return [
        dataclasses.replace(
            point,
            kid=kids[i].interval(prompts),
            content=stats.bootstrap_mean(shown[i], draws, seed),
            lost=lost[i],
            behind=(kids[i] - kids[nearest]).interval(prompts),
        )
        for i, point in enumerate(points)
    ]


def choose(points: Sequence[Point], prompts: int) -> tuple[Point | None, str]:
    """Of the points that lost no more than CONTENT_BOUND of the base's content and are not behind the nearest of them by more than one
    standard error, the one that shows most of its prompts. (The rule of one standard error: Breiman et al., 1984, section 3.4.3.)
    """
    kept = [p for p in points if p.lost is not None and _sound(p.lost)]
    if not kept:
        lost = f"each lost more than {CONTENT_BOUND:.0%} of what the base's pictures show"
        return None, f"none is suggested: {lost}; train less, or with a lower rate"
    near = [p for p in kept if p.behind is not None and p.behind.value <= p.behind.error]
    best = max(near, key=lambda p: p.content.value if p.content else 0.0)
    few = f" With {prompts} prompts this is a guide, no proof." if prompts < stats.MIN_UNITS else ""
    return best, (
        f"{best.name}: of the points that lost at most {CONTENT_BOUND:.0%} of the base's content, those within one standard error of the "
        f"nearest to the target; of these the one that shows most of what is asked. Chosen on {prompts} validation prompts: judge it with "
        f"`sdtune compare` on the test pictures.{few}"
    )


def _content(s: Seen, texts_PE: Array) -> Array:
    """The mean `metrics.content.margin` of each prompt's pictures; nan where there are none."""
    known = s.asked_N >= 0
    margin_N = content.margin(s.embeds_NE[known], texts_PE, s.asked_N[known])
    return stats.group_means(margin_N, s.asked_N[known], len(texts_PE))


def _sound(lost: Interval) -> bool:
    return lost.value <= CONTENT_BOUND


def _kept(run: Run) -> list[str]:
    """All checkpoints of a run, in order, the final result last."""
    steps = sorted(p.name for p in run.checkpoints.glob("step-*") if p.is_dir())
    if run.final.is_dir() and run.config().train.result != "best":
        last = f"step-{run.config().train.steps:06d}"
        steps = [s for s in steps if s != last]
    return [*steps, "final"] if run.final.is_dir() else steps


def _drawn(
    run: Run,
    config: RunConfig,
    prompts: Sequence[str],
    seeds: Sequence[int],
    checkpoints: Sequence[str],
    strengths: Sequence[float],
) -> Generator[Progress, None, tuple[Point, tuple[Point, ...]]]:
    """The pictures of the base and of each point; what is there already stays."""
    from sdtune import tuned
    from sdtune.devices import choose as device_of
    from sdtune.devices import set_up_cpu

    if not checkpoints:
        raise EvaluationError(f"{run.path}: has no checkpoint yet; see train.save_every")
    set_up_cpu(config.train.threads)
    device, dtype = device_of(config.train)
    model = config.model.load(device=device, dtype=dtype)
    model.chunks = config.data.caption_chunks
    model.denoiser.eval()

    def jobs(name: str) -> list[tuple[str, int, Path]]:
        folder = run.sweep / name
        return [(p, s, folder / f"{i:03d}-{s}.png") for i, p in enumerate(prompts) for s in seeds]

    def point(checkpoint: str, strength: float, drawn: Sequence[tuple[str, int, Path]]) -> Point:
        return Point(checkpoint, strength, tuple(path for _, _, path in drawn))

    asked = jobs(BASE)
    yield from draw_missing(model, dataclasses.replace(config.sample.from_prompts, strength=0.0), asked, BASE)
    base, points = point(BASE, 0.0, asked), list[Point]()
    for checkpoint in checkpoints:
        on_top = tuned.of_run(model, run, checkpoint)
        model.denoiser.eval()
        for strength in strengths:
            on_top.set_strength(strength)
            asked = jobs(f"{re.sub(r'[^A-Za-z0-9-]', '-', checkpoint)}-{strength:g}")
            own = dataclasses.replace(config.sample.from_prompts, strength=strength)
            yield from draw_missing(model, own, asked, f"{checkpoint} at {strength:g}")
            points.append(point(checkpoint, strength, asked))
        on_top.close()
    return base, tuple(points)
