"""The comparison as one HTML file that needs nothing else, as JSON, and as a Markdown table."""

from __future__ import annotations

import functools
import json
import math
import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdtune import charts, timeline, units
from sdtune import config as configs
from sdtune.bands import BandChange
from sdtune.data.images import load_image
from sdtune.events import Finished, Started
from sdtune.judging.scores import Figure, Scores, Validation, number, p_text, unseen
from sdtune.judging.verdicts import COPY_LIMIT
from sdtune.metrics.content import strip_shared
from sdtune.pages import asset, data_uri, page
from sdtune.pairs import SIDES, Pair
from sdtune.stats import ALPHA, MIN_UNITS, bootstrap_mean

if TYPE_CHECKING:
    from sdtune.compare import Comparison

LARGE = 512
"""Pictures are shown at most so wide; larger ones are reduced and stored as JPEG."""
SMALL = 128
TIMELINE_STEPS = 8
EXTREMES = 5
SWEEP = "sdtune sweep 1"
"""The format of sweep.json."""
HALF_WAY = 0.5
"""A shorter way to the target is named in the headline."""

Json = dict[str, Any]


def html(comparison: Comparison) -> str:
    """The whole report. No script, style, font or picture is loaded from anywhere."""
    return page("report", **_view(comparison))


def as_json(c: Comparison) -> Json:
    """Everything in numbers: what `scores.json` holds."""
    losses = c.validation
    return {
        "format": "sdtune comparison 1",
        "run": c.config.name,
        "checkpoint": c.checkpoint,
        "headline": headline(c.scores)[0],
        **c.scores.as_dict(),
        "plan": {
            "prompts": list(c.plan.prompts),
            "prompts_without_shared_words": strip_shared(c.plan.prompts),
            "seeds": list(c.config.evaluate.seeds),
            "unrelated": list(c.plan.unrelated),
            "sources": c.plan.sources,
            "train": [e.image.name for e in c.plan.train],
            "reference": [{"file": e.image.name, "caption": e.captions[0]} for e in c.plan.reference],
            "control": [e.image.name for e in c.plan.control],
        },
        "pictures": [_pair_record(p) for p in c.pairs],
        "unrelated_pictures": [_pair_record(p) for p in c.unrelated],
        "flawed": {side: sum(bool(p.flaws[i]) for p in c.pairs) for i, side in enumerate(SIDES)},
        "validation": {
            "steps": list(losses.steps),
            "mean_loss": [float(v) for v in losses.losses_SN.mean(1)] if losses.steps else [],
            "per_picture_first": [float(v) for v in losses.losses_SN[0]] if losses.steps else [],
            "per_picture_last": [float(v) for v in losses.losses_SN[-1]] if losses.steps else [],
            "bands": [_band_record(band) for band in losses.bands],
        },
        "statistics": {
            "interval": "95% percentile interval, cluster bootstrap over prompts",
            "draws": c.config.evaluate.draws,
            "seed": c.config.train.seed,
            "primary": c.config.evaluate.primary,
        },
        "scorer_sha256": c.scorer,
        "encoders": list(c.encoders),
        "ballot": c.ballot,
        "seconds": c.seconds,
        "config": tomllib.loads(configs.to_toml(c.config)),
        "environment": _environment(c),
    }


def _pair_record(p: Pair) -> Json:
    flaws = {f"{side}_flaw": flaw for side, flaw in zip(SIDES, p.flaws, strict=True) if flaw}
    return {
        "prompt": p.prompt,
        "seed": p.seed,
        "base": f"base/{p.base.name}",
        "tuned": f"tuned/{p.tuned.name}",
        **flaws,
    }


def markdown(c: Comparison) -> str:
    """Verdicts and figures for a README or an issue."""
    lines = [f"**{headline(c.scores)[0]}**", ""]
    lines += [f"**Careful: {c.flawed}**", ""] if c.flawed else []
    lines += [
        f"- {v.question} **{v.answer}**: {v.because}" + (f" ({v.detail})" if v.detail else "")
        for v in c.scores.verdicts
    ]
    lines += ["", "| figure | base | tuned | change | real pictures | note |", "|---|---|---|---|---|---|"]
    for row in table(c.scores.figures):
        cells = [row["label"], *(_plain(row[k]) for k in ("base", "tuned", "difference", "real")), row["note"]]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    if c.validation.bands:
        lines += ["", "| validation loss at timesteps | base | tuned | change | |", "|---|---|---|---|---|"]
        for b in c.validation.bands:
            change, span = _percent(b)
            cells = [f"{b.name}, {b.timesteps}", number(b.base), number(b.now), f"{change} ({span})", b.verdict]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def headline(scores: Scores) -> tuple[str, str]:
    """One sentence for everyone, and its tone: good, bad or open."""
    answers = {v.key: v.answer for v in scores.verdicts}
    moved, content = answers.get("moved"), answers.get("content")
    if moved == "no":
        return "The fine-tuning did not move the model to the target.", "bad"
    if moved != "yes" and content == "no":
        return "The model lost what it was asked to draw.", "bad"
    if moved != "yes" and answers.get("copied") == "yes":
        return "The model draws copies of its training pictures.", "bad"
    if moved != "yes":
        return "These pictures cannot show whether the fine-tuning helped.", "open"
    way = next((v.way for v in scores.verdicts if v.key == "moved"), None)
    where = f"moved {way:.0%} of the way to the target" if way is not None and way < HALF_WAY else "moved to the target"
    if content == "no":
        return f"The model {where}, but lost what it was asked to draw.", "bad"
    if answers.get("copied") == "yes":
        return f"The model {where}, but draws copies of its training pictures.", "bad"
    if answers.get("away") == "no":
        return "The model moved nearer to everything, not to the target in particular.", "open"
    if content != "yes":
        return f"The model {where}; whether it still draws what is asked cannot be told.", "open"
    price = {"forgot": "forgot other things", "overfit": "was trained for too long"}
    if paid := [words for key, words in price.items() if answers.get(key) == "yes"]:
        return f"The model {where} and still draws what is asked, but {' and '.join(paid)}.", "open"
    if where != "moved to the target":
        return f"The model {where} and still draws what is asked.", "good"
    return "The fine-tuning worked: the pictures moved to the target and still show what was asked.", "good"


# ---- what the template is given


def _view(c: Comparison) -> Json:
    sentence, tone = headline(c.scores)
    train = [e.image for e in c.plan.train]
    return {
        "css": asset("report.css") + asset("slider.css"),
        "js": asset("report.js"),
        "name": c.config.name,
        "headline": sentence,
        "tone": tone,
        "verdicts": c.scores.verdicts,
        "rows": table(c.scores.figures),
        "limits": c.scores.limits,
        "facts": _facts(c),
        "flawed": c.flawed,
        "groups": _groups(c, c.pairs),
        "unrelated": _groups(c, c.unrelated),
        "extremes": _extremes(c),
        "size": "small" if _side(c) <= SMALL else "large",
        "targets": [{"src": thumb(e.image, 2 * SMALL), "caption": e.captions[0]} for e in c.plan.reference],
        "neighbours": _neighbours(c, train),
        "sscd": any(e.get("encoder") == "sscd" for e in c.encoders),
        "suspicious": sum(n.suspicious for n in c.scores.neighbours),
        "copy_limit": COPY_LIMIT,
        "validation_chart": _validation_chart(c.validation),
        "training_chart": _training_chart(c.validation),
        "bands": _bands(c.validation),
        "timeline": _timeline(c),
        "sources": c.plan.sources,
        "toml": configs.to_toml(c.config),
        "environment": _environment(c),
        "sweep": _sweep(c),
        "sweep_command": f"sdtune sweep {shown_path(c.run.path)}",
        "commands": _commands(c),
        "statistics": f"{c.config.evaluate.draws:,}",
        "scorer": c.scorer,
        "looked": c.looked,
    }


def _sweep(c: Comparison) -> Json | None:
    """The table of the run's sweep over checkpoints and strengths, if there was one."""
    try:
        found: Json = json.loads((c.run.sweep / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if found.get("format") != SWEEP:  # of another version
        return None
    own, chosen = (c.checkpoint, c.config.sample.strength), found["suggested"]
    points = [(p, (p["checkpoint"], p["strength"])) for p in found["points"] if p["kid"]]
    rows = [
        {
            "name": f"{at[0]} at {at[1]:g}" if at[1] else "base",
            "judged": at == own,
            "chosen": bool(chosen) and at == (chosen["checkpoint"], chosen["strength"]),
            **{key: _kept(p[key]) for key in ("kid", "content")},
            "lost": f"{p['lost']['value']:.0%}" if p["lost"] and at[1] else "",
        }
        for p, at in points
    ]
    return {"rule": found["rule"], "rows": rows, "prompts": len(found["prompts"]), "seeds": len(found["seeds"])}


def _kept(interval: Mapping[str, float]) -> tuple[str, str]:
    return number(interval["value"]), f"{number(interval['low'])} to {number(interval['high'])}"


def table(figures: Sequence[Figure]) -> list[Json]:
    """Rows with numbers as texts; a cell is (value, interval) or None."""
    rows = []
    for f in figures:
        percent = f.key == "found_first"
        rows.append(
            {
                "key": f.key,
                "label": f.label,
                "better": f.better,
                "base": _cell(f.base, percent),
                "tuned": _cell(f.tuned, percent),
                "difference": _cell(f.difference, percent, signed=True),
                "real": _cell(f.real, percent),
                "side": _side_of(f),
                "holm": "" if f.holm is None else f"corrected {p_text(f.holm)}",
                "evidence": f.evidence,
                "wins": "" if f.wins is None else f"{f.wins} of {f.wins + (f.losses or 0)}",
                "p": _p_value(f),
                "note": f.note,
                "unseen": unseen(f),
            }
        )
    return rows


def _cell(i: Any, percent: bool, signed: bool = False) -> tuple[str, str] | None:
    if i is None or not math.isfinite(i.value):
        return None

    def text(v: float) -> str:
        plus = "+" if signed and v > 0 else ""
        return (
            f"{plus}{100 * v:.0f}{'' if signed else '%'}".replace("-", "\N{MINUS SIGN}")
            if percent
            else plus + number(v)
        )

    points = " points" if percent and signed else ""
    return text(i.value) + points, f"{text(i.low)} to {text(i.high)}" if math.isfinite(i.low) else ""


def _plain(cell: tuple[str, str] | None) -> str:
    return "" if cell is None else f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]


def _p_value(f: Figure) -> str:
    from sdtune.stats import sign_test

    if f.wins is None or f.losses is None:
        return ""
    return p_text(sign_test(f.wins, f.losses))


def _side_of(f: Figure) -> int:
    """1 where tuned is better beyond chance, -1 where it is worse; of secondary figures after the correction for their number."""
    if not f.evidence or not f.better or f.difference is None or not (f.difference.low > 0 or f.difference.high < 0):
        return 0
    if f.holm is not None and f.holm >= ALPHA:
        return 0
    return 1 if (f.difference.value > 0) == (f.better == "higher") else -1


def _groups(c: Comparison, pairs: Sequence[Pair]) -> list[Json]:
    """The pairs of each prompt, in order."""
    groups: dict[str, list[Json]] = {}
    for k, pair in enumerate(pairs):
        found = c.scores.found[k] if pairs is c.pairs and k < len(c.scores.found) else None
        groups.setdefault(pair.prompt, []).append(
            {
                "seed": pair.seed,
                "base": thumb(pair.base, LARGE),
                "tuned": thumb(pair.tuned, LARGE),
                "flaws": pair.flaws,
                "found": None if found is None else [bool(v) for v in found],
            }
        )
    short = dict(zip(c.plan.prompts, strip_shared(c.plan.prompts), strict=True))
    return [{"prompt": p, "short": short.get(p, p), "pairs": pairs} for p, pairs in groups.items()]


def _extremes(c: Comparison) -> list[Json]:
    """The EXTREMES prompts whose pictures gained most likeness to them, and those that lost most; none where there are few prompts."""
    likeness = c.scores.likeness
    if len(c.plan.prompts) < 4 * EXTREMES or not likeness:
        return []
    changes: dict[str, list[float]] = {}
    for pair, (base, tuned) in zip(c.pairs, likeness, strict=True):
        changes.setdefault(pair.prompt, []).append(tuned - base)
    order = sorted(changes, key=lambda p: -sum(changes[p]) / len(changes[p]))
    shown = {g["prompt"]: g for g in _groups(c, c.pairs)}

    def row(prompt: str) -> Json:
        mean = sum(changes[prompt]) / len(changes[prompt])
        return {**shown[prompt], "change": _signed(mean, ".2f")}

    halves = (("Gained most", order[:EXTREMES]), ("Lost most", order[: -EXTREMES - 1 : -1]))
    return [{"title": title, "groups": [row(p) for p in prompts]} for title, prompts in halves]


def _neighbours(c: Comparison, train: Sequence[Path]) -> list[Json]:
    """The pictures that are nearest to a training picture, nearest first."""
    return [
        {
            "drawn": thumb(c.pairs[n.picture].tuned, SMALL),
            "train": thumb(train[n.train], SMALL),
            "prompt": c.pairs[n.picture].prompt,
            "caption": c.plan.train[n.train].captions[0],
            "cosine": f"{n.cosine:.2f}",
            "suspicious": n.suspicious,
        }
        for n in c.scores.neighbours
    ]


def _timeline(c: Comparison) -> Json | None:
    """The previews of the run: a row a prompt and seed, a column a step, at most TIMELINE_STEPS of them."""
    found = timeline.read(c.run, TIMELINE_STEPS)
    if found is None:
        return None
    rows = [
        {"prompt": r.prompt, "seed": r.seed, "cells": [thumb(path, SMALL) if path else None for path in r.cells]}
        for r in found.rows
    ]
    losses = [None if v is None else number(v) for v in found.losses]
    return {"steps": found.steps, "losses": losses if any(losses) else None, "rows": rows}


def _facts(c: Comparison) -> list[tuple[str, str]]:
    """The run in a few words."""
    events = list(c.run.events())
    started = next((e for e in events if isinstance(e, Started)), None)
    finished = next((e for e in reversed(events) if isinstance(e, Finished)), None)
    method = c.config.method
    rank = f", rank {method.rank}" if hasattr(method, "rank") else ""
    facts = [("method", f"{method.type}{rank}"), ("base", str(getattr(c.config.model, "path", c.config.model.type)))]
    if started:
        facts.append(("trained on", f"{started.pictures} pictures"))
        facts.append(("trainable", f"{units.count(started.trainable)} of {units.count(started.total)} weights"))
    if finished:
        facts += [("steps", f"{finished.step:,}"), ("training time", units.duration(finished.seconds))]
    facts += [("at strength", f"{c.config.sample.strength:g}")] if c.config.sample.strength != 1 else []
    facts.append(("compared", f"{len(c.plan.prompts)} prompts x {len({p.seed for p in c.pairs})} seeds"))
    return facts


def _environment(c: Comparison) -> Json:
    try:
        found: Json = json.loads(c.run.environment_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _commands(c: Comparison) -> list[str]:
    shown = shown_path(c.run.path)
    which = "" if c.checkpoint == "final" else f" --checkpoint {c.checkpoint}"
    which += (
        "".join(f" {shlex.quote(change)}" for change in configs.changes(c.run.config(), c.config))
        if c.run.exists()
        else ""
    )
    return [f"sdtune train {shown}/config.toml", f"sdtune compare {shown}{which}"]


def shown_path(folder: Path) -> str:
    """As one would type it from here; of a folder that is not below, its name alone."""
    path = Path(os.path.relpath(folder))
    return folder.name if path.is_absolute() or ".." in path.parts else path.as_posix()


# ---- pictures


def _side(c: Comparison) -> int:
    with Image.open(c.pairs[0].base) as im:
        return max(im.size)


def thumb(path: Path, most: int) -> str:
    """The picture as a data URI of at most `most` pixels a side."""
    return _thumb(path, path.stat().st_mtime_ns, most)


@functools.lru_cache(maxsize=4096)
def _thumb(path: Path, changed_ns: int, most: int) -> str:
    """Of the same file, in the same state, once: a page shows some pictures twice."""
    return data_uri(load_image(path), most)


# ---- curves


def _validation_chart(v: Validation) -> charts.Chart | None:
    if len(v.steps) < 2:
        return None
    mean_S = v.losses_SN.mean(1)
    best = int(mean_S.argmin())
    marks = [(0, "base"), (best, f"best: step {v.steps[best]}")] if best else [(0, "base is the best")]
    words = f"Validation loss {number(mean_S[0])} at step 0, {number(mean_S[-1])} at step {v.steps[-1]}."
    return charts.over_steps("Validation loss", v.steps, [float(x) for x in mean_S], (), marks, words, _band(v))


def _band(v: Validation) -> list[tuple[float, float]]:
    """At each step the base's mean loss and the 95% interval of the change from it, paired by picture; none with a single picture."""
    if v.losses_SN.shape[1] < 2:
        return []
    first_N = v.losses_SN[0]
    changes = [bootstrap_mean(losses_N - first_N) for losses_N in v.losses_SN]
    return [(float(first_N.mean() + d.low), float(first_N.mean() + d.high)) for d in changes]


def _training_chart(v: Validation) -> charts.Chart | None:
    if len(v.train_steps) < 2:
        return None
    smooth = _smooth(np.array(v.train_losses))
    words = f"Training loss, smoothed, {number(smooth[0])} at the start and {number(smooth[-1])} at the end."
    return charts.over_steps("Training loss", v.train_steps, smooth, v.train_losses, [], words)


def _smooth(values: Any) -> list[float]:
    """A centred mean over a tenth of the run."""
    window = max(1, len(values) // 20)
    return [float(values[max(0, i - window) : i + window + 1].mean()) for i in range(len(values))]


BAND_WIDE, BAND_EDGE = 300, 20
"""Of the small drawings of intervals, in view-box units."""


def _bands(v: Validation) -> Json | None:
    """Rows of the table of bands, each with its interval drawn on one scale, in per cent of the base's loss."""
    if not v.bands:
        return None
    bounds = [100 * x for b in v.bands for x in b.relative if math.isfinite(x)]
    ticks = charts.ticks(min(0.0, *bounds), max(0.0, *bounds), 4)

    def at(share: float) -> float:
        inside = (100 * share - ticks[0]) / (ticks[-1] - ticks[0])
        return round(BAND_EDGE + inside * (BAND_WIDE - 2 * BAND_EDGE), 1)

    rows = []
    for b in v.bands:
        value, low, high = b.relative
        change, span = _percent(b)
        rows.append(
            {
                "name": b.name, "timesteps": b.timesteps, "base": number(b.base), "tuned": number(b.now),
                "change": change, "span": span, "verdict": b.verdict,
                "tone": {"lower": "good", "higher": "bad", "cannot tell": ""}[b.verdict],
                "x": at(value), "ends": (at(low), at(high)) if span else None,
            }
        )  # fmt: skip
    marks = [(at(t / 100), _signed(t, "g")) for t in ticks]
    return {"rows": rows, "zero": at(0), "marks": marks, "pictures": v.bands[0].change.n, "least": MIN_UNITS}


def _percent(band: BandChange) -> tuple[str, str]:
    """The change in per cent of the base, and its interval."""
    value, low, high = (_signed(100 * x, ".1f") for x in band.relative)
    return f"{value}%", f"{low} to {high}%" if math.isfinite(band.change.low) else ""


def _signed(value: float, form: str) -> str:
    return f"{value:+{form}}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _band_record(band: BandChange) -> Json:
    change = {"value": band.change.value, "low": band.change.low, "high": band.change.high, "n": band.change.n}
    return {
        "name": band.name, "timesteps": [band.first, band.last], "base": band.base, "tuned": band.now,
        "change": {k: v if math.isfinite(v) else None for k, v in change.items()}, "verdict": band.verdict,
    }  # fmt: skip
