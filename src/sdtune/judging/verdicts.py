"""Figures to answers: yes, no, or cannot tell; and why, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sdtune import stats
from sdtune.judging.figures import MIN_PROMPTS
from sdtune.judging.scores import (
    Answer,
    Array,
    Evidence,
    Figure,
    Neighbour,
    Seen,
    Validation,
    Verdict,
    change,
    number,
    units_of,
    unseen,
)
from sdtune.metrics import nearest
from sdtune.metrics.copying import SSCD_LIMIT, copies

MOVED_SHARE = 0.1
"""A movement below this share of the way from the base to real target pictures is called none."""
CONTENT_BOUND = 0.1
"""Content is kept if at most this share of the pictures stopped showing what was asked."""
SCORER_FLOOR = 0.5
"""Content is judged only where the scorer finds at least this share of real target pictures (and of the base's) by their captions."""
OVERFIT_SHARE = 0.1
"""Overfit: more than this share of the gain in validation loss was lost again after the best step."""
FORGET_BOUND = 0.2
"""Forgot: unrelated pictures lost at least this share of what they show of their prompts."""
DRIFTED = 0.25
"""Unrelated pictures that moved by more than this share of the distance between two prompts look different."""
COPY_LIMIT = 0.2
"""Copied: more than this share of the prompts gives pictures nearer to a training picture than any held-out real one is."""

DECIDES = {"kid": "the distance to held-out target pictures (KID)", "validation_loss": "the validation loss"}
UNFIT = "the scorer that comes with sdtune does not know this base model's pictures; look at them"
"""In place of the whole reason, which is said once, among the limits."""


def helped_verdict(answers: Mapping[str, Verdict], primary: str) -> Verdict:
    """The sum of the others: it moved to the target by the figure that was fixed before the run, and nothing speaks against it."""

    def say(answer: Answer, because: str) -> Verdict:
        return Verdict.on(
            "helped", answer, because, f"decided by {DECIDES[primary]}, as evaluate.primary said before the run"
        )

    moved, content, away = (answers[key].answer for key in ("moved", "content", "away"))
    if moved == "no":
        return say("no", "the pictures did not move to the target")
    if content == "no":
        return say("no", "fewer pictures show what was asked")
    if answers["copied"].answer == "yes":
        return say("no", "it draws copies of its training pictures")
    if moved == "cannot tell":
        return say("cannot tell", "these pictures cannot show whether it moved to the target")
    if away == "no":
        return say("cannot tell", "it came nearer to everything, not to the target in particular")
    if content == "cannot tell":
        return say("cannot tell", "it moved to the target; whether it still draws what is asked cannot be told")
    price = [
        words
        for key, words in (("forgot", "it forgot other things"), ("overfit", "it was trained for too long"))
        if answers[key].answer == "yes"
    ]
    but = f"; but {' and '.join(price)}" if price else ""
    return say("yes", f"it moved to the target and still draws what is asked{but}")


def forgot_verdict(kept: Figure | None, drift: Figure | None) -> Verdict:
    """Do pictures of unrelated prompts still show them? A loss of FORGET_BOUND must be shown, or excluded."""
    say = partial(Verdict.on, "forgot")
    if kept is None:
        return say("cannot tell", "nothing unrelated was drawn; set evaluate.unrelated to prompts")
    d, base, tuned = kept.difference, kept.base, kept.tuned
    if d is None or base is None or tuned is None or not kept.evidence or math.isnan(d.low):
        return say("cannot tell", "there are too few unrelated prompts", kept.note)
    if base.low <= 0:
        return say(
            "cannot tell",
            "the base's own pictures of these prompts do not show them, as far as the scorer can see",
            kept.note,
        )
    lost, low, high = (-v / base.value for v in (d.value, d.high, d.low))
    detail = f"of what the base's pictures show of {d.n} unrelated prompts {lost:.0%} is lost, 95% interval {low:.0%} to {high:.0%}"
    detail += (
        f"; they drifted by {number(drift.tuned.value)} of the distance between two prompts"
        if drift and drift.tuned
        else ""
    )
    if d.low > -FORGET_BOUND * base.value:
        seen = drift.tuned if drift else None
        changed = "; but they look different, as the training reaches them too" if seen and seen.low > DRIFTED else ""
        return say("no", f"what they show is kept, a loss of {FORGET_BOUND:.0%} is excluded{changed}", detail)
    if d.high < 0 and lost >= FORGET_BOUND:
        return say("yes", "pictures of other things show less of what was asked, beyond chance", detail)
    return say("cannot tell", f"a loss of {FORGET_BOUND:.0%} can be neither shown nor excluded", detail)


def moved_verdict(figure: Figure | None) -> Verdict:
    """no: the interval excludes a tenth of the way to real pictures, or lies on the bad side. yes: it lies on the good one."""
    say = partial(Verdict.on, "moved")
    if figure is None:
        return say("cannot tell", "the primary figure could not be computed")
    d, base, tuned = figure.difference, figure.base, figure.tuned
    if d is None or base is None or tuned is None or not figure.evidence or math.isnan(d.low):
        return say("cannot tell", "there are too few pictures", f"{figure.label}: {figure.note}")
    detail = (
        f"{figure.label}: {number(base.value)} to {number(tuned.value)}; change {change(d)}, {d.n} {units_of(figure)}"
    )
    detail += f"; {size} or less would have gone unseen" if (size := unseen(figure)) else ""
    way = base.value - max(0.0, figure.real.value) if figure.real else math.nan
    if way > 0 and max(-d.low, d.high) < MOVED_SHARE * way:
        return say("no", f"it moved by less than {MOVED_SHARE:.0%} of the way to real target pictures", detail)
    if d.high < 0 and figure.key == "validation_loss":
        return say("yes", f"it predicts held-out target pictures better, by {-d.value / base.value:.0%}", detail)
    if d.high < 0:
        gone = min(1.0, -d.value / way) if way > 0 else None
        far = "" if gone is None else f", {gone:.0%} of the way to real ones"
        came = f"its pictures came nearer to held-out target pictures{far}"
        return say("yes", came, detail, gone)
    if d.low > 0:
        return say("no", "it is further away from the target than the base is", detail)
    return say("cannot tell", "the change may be chance: its interval includes 0", detail)


def content_verdict(figure: Figure) -> Verdict:
    """Kept is a bound, not the absence of a proof: the interval of the loss must exclude CONTENT_BOUND.

    The scorer finds some target styles less often than the base's own, real pictures included; what it cannot find in real
    pictures is not held against the model, and where it is blind nothing is said.
    """
    say = partial(Verdict.on, "content")
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
    say = partial(Verdict.on, "away")
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
    say = partial(Verdict.on, "overfit")
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


def copying(e: Evidence) -> tuple[tuple[Neighbour, ...], Verdict]:
    """The nearest training picture of each tuned one, and whether more of them are too near than held-out real ones would be."""
    if e.train is None or len(e.train) < 2 or len(e.reference) < 2:
        return (), Verdict.on("copied", "cannot tell", "there are no training or held-out pictures to compare with")
    index, cosine, real = _nearest(e, e.train)
    limit = max(float(real.max()), SSCD_LIMIT if e.doubles else 0.0)
    rows = [Neighbour(i, int(j), float(c), bool(c > limit)) for i, (j, c) in enumerate(zip(index, cosine, strict=True))]
    flagged = len({int(e.tuned.asked_N[r.picture]) for r in rows if r.suspicious})
    ordered = tuple(sorted(rows, key=lambda r: -r.cosine))
    medians = float(np.median(real)), float(np.median(cosine))
    return ordered, copy_verdict(flagged, len(e.prompts), limit, *medians, len(e.reference), sscd=e.doubles is not None)


def _nearest(e: Evidence, train: Seen) -> tuple[NDArray[np.int64], Array, Array]:
    """Of each tuned picture the nearest training picture and its cosine, and the cosines of held-out real ones."""
    if d := e.doubles:
        found, real = copies(d.tuned_ND, d.train_MD), copies(d.reference_HD, d.train_MD)
        return found.nearest_N, found.cosine_N, real.cosine_N
    centre = np.concatenate([train.features_ND, e.reference.features_ND]).mean(0)
    index, cosine = nearest.nearest(e.tuned.features_ND, train.features_ND, centre)
    return index, cosine, nearest.nearest(e.reference.features_ND, train.features_ND, centre)[1]


def copy_verdict(
    flagged: int, prompts: int, limit: float, real: float, drawn: float, held_out: int, *, sscd: bool = False
) -> Verdict:
    """Is the share of suspicious prompts, with its exact interval, above or below COPY_LIMIT?"""
    s, published = stats.share(flagged, prompts), sscd and limit == SSCD_LIMIT
    nearer = (
        "nearer than SSCD's limit for copies"
        if published
        else f"nearer than the nearest of {held_out} held-out real pictures" + " by SSCD" * sscd
    )
    detail = f"{flagged} of {prompts} prompts {nearer} (cosine {limit:.2f})"
    detail += f", 95% interval {s.low:.0%} to {s.high:.0%}; medians {drawn:.2f} drawn, {real:.2f} real"
    if prompts < MIN_PROMPTS or (held_out < MIN_PROMPTS and not published):
        few = f"at least {MIN_PROMPTS} prompts and held-out pictures are needed"
        return Verdict.on("copied", "cannot tell", few, detail)
    if s.low > COPY_LIMIT:
        return Verdict.on(
            "copied", "yes", "too many pictures are nearly training pictures; see the pairs below", detail
        )
    if s.high < COPY_LIMIT:
        return Verdict.on("copied", "no", "its pictures are no nearer to training pictures than real ones are", detail)
    unclear = f"more than {COPY_LIMIT:.0%} of copies can be neither shown nor excluded; see the pairs below"
    return Verdict.on("copied", "cannot tell", unclear, detail)


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


def limits(figures: Sequence[Figure]) -> list[str]:
    """What these pictures could not have shown."""
    rows = [f"{f.label}: {f.note}" for f in figures if not f.evidence]
    seen = [f"{f.label} {size}" for f in figures if (size := unseen(f))]
    if seen:
        rows.append(f"Smaller changes than these would mostly have gone unseen (80% power at 5%): {'; '.join(seen)}")
    return rows
