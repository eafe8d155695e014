"""Pictures to figures, figures to verdicts: how pictures are looked at, and what is judged of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sdtune.errors import EvaluationError
from sdtune.judging import Looker
from sdtune.judging import figures as fig
from sdtune.judging import verdicts as say
from sdtune.judging.figures import validation_figures
from sdtune.judging.scores import Evidence, Figure, Scores, Seen, Validation, Verdict
from sdtune.metrics import content, kid

if TYPE_CHECKING:
    from sdtune.metrics.features import Scorer
    from sdtune.metrics.panel import Panel

    Viewer = Scorer | Panel
    """What looks at pictures: the shipped scorer, or published encoders."""

CHUNK = 256
"""Pictures opened at once."""
SMALL = 128
"""Pixels: up to here pictures may be of the shipped scorer's domain, drawings of 64 pixels."""


def viewer_for(side: int, which: Looker = "auto", folder: Path | None = None, device: str = "cpu") -> Viewer:
    """What looks at pictures of this side, in pixels; `folder` keeps what was seen. Raises EvaluationError where published
    encoders are needed and are not here."""
    if which == "shipped" or (which == "auto" and side <= SMALL):
        from sdtune.metrics.features import Scorer

        return dataclasses.replace(Scorer.load(), folder=folder)
    from sdtune.metrics import panel

    if found := panel.Panel.here(side, device=device, folder=folder):
        return found
    remedies = " and ".join(m.remedy for m in panel.missing())
    raise EvaluationError(
        f"pictures of {side} pixels need published encoders, which are not here: get them with {remedies}. "
        "(--scorer shipped takes the one that comes with sdtune, which knows drawings of 64 pixels only.)"
    )


def see(scorer: Viewer, images: Iterable[Image.Image], captions: Sequence[str], prompts: Sequence[str]) -> Seen:
    """Look at pictures. `captions` has one a picture; those that are not among `prompts` count as none."""
    left, parts = iter(images), []
    while some := list(islice(left, CHUNK)):  # so many are open at once
        parts.append(scorer.see(some))
    features, embeds = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    number = {p: i for i, p in enumerate(prompts)}
    return Seen(features, embeds, np.array([number.get(c, -1) for c in captions], np.int64))


def evaluate(
    images: Sequence[Image.Image],
    reference: Sequence[Image.Image],
    *,
    prompts: Sequence[str] | None = None,
    scorer: Viewer | Looker = "auto",
    folder: Path | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Scores:
    """Figures of one set of pictures against real ones; with `prompts`, one a picture, content as well.

    `scorer`: what looks, or its name (`viewer_for`, as is `folder`). Real pictures are reduced to the size of the drawn ones.
    Raises EvaluationError where nothing can be measured.
    """
    if len(images) < 2 or len(reference) < 2:
        counts = f"{len(images)} pictures against {len(reference)}"
        raise EvaluationError(f"{counts}: at least 2 of each are needed, {kid.MIN_PICTURES} for evidence")
    if prompts is not None and len(prompts) != len(images):
        raise EvaluationError(f"prompts: {len(prompts)} for {len(images)} pictures; give one a picture")
    side = int(np.median([min(im.size) for im in images]))
    scorer = viewer_for(side, scorer, folder) if isinstance(scorer, str) else scorer
    reference = [_reduced(im, side) for im in reference]
    asked = list(prompts) if prompts else [f"picture {i}" for i in range(len(images))]
    distinct = tuple(dict.fromkeys(asked))
    seen = see(scorer, images, asked, distinct)
    real = see(scorer, reference, [""] * len(reference), distinct)
    texts = (
        scorer.texts(content.strip_shared(distinct)) if prompts else np.zeros((len(distinct), seen.embeds_NE.shape[1]))
    )
    evidence = Evidence(distinct, texts, seen, seen, real)
    rows = [fig.kid_figure("kid_target", "KID to the reference", "lower", evidence, real, None, draws, seed)]
    rows.append(fig.frechet_figure("fd_target", "Frechet distance to the reference", "lower", evidence, real, None))
    if prompts:
        rows += fig.content_figures(evidence, draws, seed)[:2]
    alone = (dataclasses.replace(r, base=None, difference=None, wins=None, losses=None) for r in rows)
    return Scores(tuple(alone), limits=(f"Seen by {scorer.title}.",))


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """With a short side of `side` pixels at most, as drawn pictures have it: sharper ones would lie apart by that alone."""
    short = min(image.size)
    if short <= side:
        return image
    width, height = (round(n * side / short) for n in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def judge(
    evidence: Evidence,
    validation: Validation,
    *,
    primary: str,
    draws: int = 2000,
    seed: int = 0,
    others: Sequence[Figure] = (),
) -> Scores:
    """Everything that the shipped scorer and the validation losses tell about one fine-tuning; `others`: figures from elsewhere."""
    e = evidence
    figures = [
        fig.kid_figure("kid_target", "KID to held-out target pictures", "lower", e, e.reference, e.train, draws, seed),
        fig.frechet_figure(
            "fd_target", "Frechet distance to held-out target pictures", "lower", e, e.reference, e.train
        ),
        fig.likeness_figure(e, draws, seed),
        *fig.content_figures(e, draws, seed),
        fig.diversity_figure(e, draws, seed),
    ]
    if e.control is not None:
        away = "the base's own domain"
        figures.append(
            fig.kid_figure("kid_control", f"KID to {away}", "higher", e, e.control, e.reference, draws, seed)
        )
        figures.append(
            fig.frechet_figure("fd_control", f"Frechet distance to {away}", "higher", e, e.control, e.reference)
        )
    figures += fig.unrelated_figures(e, draws, seed)
    figures += [*validation_figures(validation, draws, seed), *others]
    first = "kid_target" if primary == "kid" else primary
    figures = fig.corrected(figures, first)
    by_key = {f.key: f for f in figures}
    neighbours, copy = say.copying(e)
    verdicts = _with_sum(
        say.moved_verdict(by_key.get(first)),
        say.content_verdict(by_key["found_first"]),
        say.away_verdict(by_key.get("kid_control")),
        say.overfit_verdict(validation, draws, seed),
        say.forgot_verdict(by_key.get("unrelated"), by_key.get("drift")),
        copy,
        primary=primary,
    )
    found, likeness = (
        tuple(zip(*(map(float, score(e, s)) for s in (e.base, e.tuned)), strict=True))
        for score in (fig.found, fig.cosine)
    )
    return Scores(tuple(figures), verdicts, neighbours, found, likeness, tuple(say.limits(figures)))


def judge_without_scorer(
    validation: Validation, why: str, *, primary: str, draws: int = 2000, seed: int = 0, others: Sequence[Figure] = ()
) -> Scores:
    """What is left where the shipped scorer does not fit the pictures: the validation loss. Everything else cannot be told."""
    figures = fig.corrected([*validation_figures(validation, draws, seed), *others], primary)
    moved = next((f for f in figures if f.key == primary), None)
    verdicts = _with_sum(
        say.moved_verdict(moved) if moved else Verdict.on("moved", "cannot tell", say.UNFIT),
        Verdict.on("content", "cannot tell", say.UNFIT),
        Verdict.on("away", "cannot tell", say.UNFIT),
        say.overfit_verdict(validation, draws, seed),
        Verdict.on("forgot", "cannot tell", say.UNFIT),
        Verdict.on("copied", "cannot tell", say.UNFIT),
        primary=primary,
    )
    return Scores(tuple(figures), verdicts, limits=(why,))


def _with_sum(*verdicts: Verdict, primary: str) -> tuple[Verdict, ...]:
    """The verdicts, and first what they come to."""
    return say.helped_verdict({v.key: v for v in verdicts}, primary), *verdicts
