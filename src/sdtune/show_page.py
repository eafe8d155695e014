"""What `show` saw as one HTML page that needs nothing else, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune import charts
from sdtune.errors import ConfigError
from sdtune.files import is_ours, write_json, write_text
from sdtune.model import noise_at
from sdtune.pages import asset, data_uri, page
from sdtune.show import PARTS, Attention, Frame, Shown, Side, Training, moved
from sdtune.tokens import Token

Json = dict[str, Any]

MARK = "<!doctype html><!-- sdtune show -->"
"""How a page begins: another file of that name is not written over."""
JSON_MARK = '{\n "format": "sdtune show 1"'
LARGE = 384
"""Pictures are shown at most so wide; larger ones are reduced and stored as JPEG."""
FEW = 12
"""Words whose maps are shown at once; the others are folded away."""
_uri = partial(data_uri, most=LARGE)


ALPHA, SIGMA = "\N{GREEK SMALL LETTER ALPHA}", "\N{GREEK SMALL LETTER SIGMA}"
COARSE = 24
"""Maps with fewer places along a side show hints only."""


def check_file(path: Path, mark: str = MARK) -> None:
    """Raises ConfigError unless `path` may be written: it is not there, or an earlier file of ours."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file, such as {path / 'show.html'}")
    if not is_ours(path, mark):
        raise ConfigError(f"{path}: is there already, and not made by `sdtune show`; give another name with --out")


def write(shown: Shown, path: Path) -> None:
    check_file(path)
    write_text(path, html(shown))


def write_numbers(shown: Shown, path: Path) -> None:
    check_file(path, JSON_MARK)
    write_json(path, as_json(shown))


def html(shown: Shown) -> str:
    """The whole page. No script, style, font or picture is loaded from anywhere."""
    return page("show", **_view(shown))


def as_json(shown: Shown) -> Json:
    """The numbers behind the figures."""
    alphas, sigmas = _at_looks(shown)
    record: Json = {
        "format": "sdtune show 1",
        "source": shown.source,
        "prompt": shown.prompt,
        "seed": shown.seed,
        "prediction": shown.prediction,
        "tokens": [{"id": t.id, "text": t.text, "kind": t.kind, "word": t.word} for t in shown.reading.tokens],
        "cut": list(shown.reading.cut),
        "looks": [
            {"time": t, "alpha": a, "sigma": s, "snr": (a / s) ** 2 if s else None}
            for t, a, s in zip(shown.times, alphas, sigmas, strict=True)
        ],
        "latents_to_colours": {"map": shown.to_colours.tolist(), "variance_explained": shown.explained},
        "sides": {side.name: _side_record(shown, side) for side in shown.sides},
    }
    if len(shown.sides) > 1:
        record["attention_moved"] = {
            word.text: value for word, value in zip(shown.reading.words, _moves(shown), strict=True)
        }
    if shown.training:
        record["training"] = {
            "picture": shown.training.name,
            "caption": shown.training.caption,
            "timesteps": list(shown.training.times),
            "losses": {side: _finite(losses) for side, losses in shown.training.losses.items()},
        }
    return record


def _side_record(shown: Shown, side: Side) -> Json:
    record: Json = {
        "settings": side.picture.settings,
        "conditional_rms": _finite(side.conditional),
        "conditional_minus_unconditional_rms": _finite(side.difference),
    }
    if side.attention:
        a = side.attention
        record["attention"] = {
            "layers": a.layers,
            "parts": [list(looks) for looks in a.looks],
            "shares": [
                {"word": name, "parts": rows[:-1], "whole": rows[-1]}
                for name, positions in _rows(shown)
                for rows in [[float(v) for v in a.of(positions).mean((1, 2))]]
            ],
        }
    return record


def _finite(values: Sequence[float]) -> list[float | None]:
    """JSON knows no NaN."""
    return [v if math.isfinite(v) else None for v in values]


# ---- what the template is given


def _view(shown: Shown) -> Json:
    settings = shown.sides[-1].picture.settings
    facts = [
        ("model", settings["model"]), ("seed", str(shown.seed)), ("sampler", settings["scheduler"]),
        ("steps", str(settings["steps"])), ("guidance", f"{settings['guidance']:g}"),
        ("size", f"{settings['width']} x {settings['height']}"), ("predicts", shown.prediction),
    ]  # fmt: skip
    if len(shown.sides) > 1:
        facts.append(("strength", f"{settings['strength']:g}"))
    return {
        "mark": MARK,
        "css": asset("report.css") + asset("show.css"),
        "js": asset("show.js"),
        "shown": shown,
        "facts": facts,
        "pictures": [(s.name, _uri(s.picture.image), s.picture.flaw) for s in shown.sides],
        "guidance": f"{settings['guidance']:g}",
        "chunks": [list(chunk) for chunk in _chunks(shown.reading.tokens)],
        "frames": [_frame(frames) for frames in zip(*(s.frames for s in shown.sides), strict=True)],
        "looks": len(shown.times),
        "latents": shown.sides[0].frames[0].colours.size,
        "channels": len(shown.to_colours) - 1,
        "explained": f"{shown.explained:.0%}",
        "schedule": _schedule(shown),
        "guidance_chart": _guidance(shown),
        "attention": _attention(shown),
        "training": shown.training and _training(shown.training),
    }


def _frame(frames: Sequence[Frame]) -> Json:
    first = frames[0]
    snr = (first.alpha / first.sigma) ** 2 if first.sigma else math.inf
    return {
        "number": first.number + 1, "t": f"{first.t:.4g}", "alpha": f"{first.alpha:.3f}", "sigma": f"{first.sigma:.3f}",
        "snr": _number(snr),
        "sides": [{k: _uri(getattr(f, k)) for k in ("channels", "colours", "noisy", "predicted")} for f in frames],
    }  # fmt: skip


def _chunks(read: Sequence[Token]) -> Iterator[Iterator[Json]]:
    """Each chunk's tokens, padding as one."""
    for number in sorted({t.chunk for t in read}):
        yield _chips([t for t in read if t.chunk == number])


def _chips(read: Sequence[Token]) -> Iterator[Json]:
    words = [t.word for t in read]
    padding = sum(t.kind == "padding" for t in read)
    for i, t in enumerate(read):
        if t.kind == "padding":
            yield {"text": f"{padding} x padding", "id": t.id, "kind": t.kind, "joined": False}
            return
        text = {"start": "start", "end": "end"}.get(t.kind, t.text)
        joined = t.word is not None and i + 1 < len(read) and words[i + 1] == t.word
        yield {"text": text, "id": t.id, "kind": t.kind, "joined": joined}


def _at_looks(shown: Shown) -> tuple[list[float], list[float]]:
    """alpha and sigma of every look, interpolated as samplers do."""
    pairs = [noise_at(shown.prediction, shown.alphas, shown.sigmas, t) for t in shown.times]
    return [a for a, _ in pairs], [s for _, s in pairs]


def _schedule(shown: Shown) -> list[charts.Plot]:
    every = list(range(len(shown.alphas)))
    alphas, sigmas = _at_looks(shown)
    places = list(shown.times)
    if shown.prediction == "flow":  # its time is sigma x T, so that the training timesteps stand at their sigma
        every = [round(s * len(shown.sigmas)) for s in shown.sigmas]
    factors = charts.plot(
        "How much picture, how much noise", "over the timestep t",
        [(f"picture, {ALPHA}", every, shown.alphas), (f"noise, {SIGMA}", every, shown.sigmas)],
        f"alpha falls from {alphas[-1]:.2f} at the last look to {alphas[0]:.2f} at the first, sigma rises.",
        dots=[("", places, alphas), ("", places, sigmas)], pins=places, zero=True,
    )  # fmt: skip
    snr = [_log_snr(a, s) for a, s in zip(shown.alphas, shown.sigmas, strict=True)]
    seen = [_log_snr(a, s) for a, s in zip(alphas, sigmas, strict=True)]
    ratio = charts.plot(
        "Signal-to-noise ratio", f"{ALPHA}\N{SUPERSCRIPT TWO} / {SIGMA}\N{SUPERSCRIPT TWO} over the timestep t",
        [("SNR", every, snr)], "The signal-to-noise ratio falls by many powers of ten from timestep 0 to the last.",
        dots=[("", places, seen)], pins=places, decades=True,
    )  # fmt: skip
    return [factors, ratio]


def _log_snr(alpha: float, sigma: float) -> float:
    """log10 of the SNR; NaN, which no chart draws, where it is 0 or endless."""
    return 2 * math.log10(alpha / sigma) if alpha > 0 and sigma > 0 else math.nan


def _guidance(shown: Shown) -> charts.Plot | None:
    if not all(side.difference for side in shown.sides):
        return None
    looks = list(range(1, len(shown.times) + 1))
    rows = [
        (s.name, looks, [d / c if c else 0.0 for d, c in zip(s.difference, s.conditional, strict=True)])
        for s in shown.sides
    ]
    words = "; ".join(f"{name}: {_number(v[0])} at the first look, {_number(v[-1])} at the last" for name, _, v in rows)
    return charts.plot(
        "What the prompt changes in the prediction", "relative length of the difference, over the looks", rows, words, dots=rows, zero=True
    )  # fmt: skip


# ---- attention


def _rows(shown: Shown) -> list[tuple[str, list[int]]]:
    """The words, then the marks and the padding, with the positions of their tokens."""
    r = shown.reading
    marks = [("start mark", r.positions("start")), ("end mark and padding", r.positions("end", "padding"))]
    return [*((w.text, list(w.positions)) for w in r.words), *marks]


def _moves(shown: Shown) -> list[float | None]:
    """`moved` of each word from the first side to the last."""
    first, last = (side.attention for side in (shown.sides[0], shown.sides[-1]))
    if not first or not last:
        return [None] * len(shown.reading.words)
    return [moved(first.of(w.positions)[-1], last.of(w.positions)[-1]) for w in shown.reading.words]


def _attention(shown: Shown) -> Json | None:
    found = [side.attention for side in shown.sides if side.attention]
    if len(found) < len(shown.sides):
        return None
    rows = [_maps(name, positions, found) for name, positions in _rows(shown)]
    parts = [
        {"name": PARTS[i] if len(found[0].looks) == len(PARTS) else f"part {i + 1}", "looks": _span(looks)}
        for i, looks in enumerate(found[0].looks)
    ]
    words = len(shown.reading.words)
    height, width = found[0].maps_GLHW.shape[2:]
    return {
        "rows": rows[:words], "marks": rows[words:], "parts": parts, "few": FEW, "layers": found[0].layers, "grid": f"{width} x {height}",
        "text_share": f"{sum(row['share'] for row in rows[:words]):.0%}", "joint": shown.prediction == "flow",
        "coarse": height * width < COARSE**2,
    }  # fmt: skip


def _span(looks: tuple[int, int]) -> str:
    first, last = looks[0] + 1, looks[1] + 1
    return f"look {first}" if first == last else f"looks {first} to {last}"


def _maps(name: str, positions: Sequence[int], found: Sequence[Attention]) -> Json:
    """The heat maps of one word on a common scale, and what the last model gives it."""
    maps = [a.of(positions) for a in found]
    low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)

    def heat(map_HW: NDArray[np.float32]) -> str:
        return _uri(_heat((map_HW - low) / max(1e-12, high - low)))

    shares = [float(m[-1].mean()) for m in maps]
    row: Json = {
        "name": name, "share": shares[-1], "shares": [_percent(s) for s in shares],
        "whole": [heat(m[-1]) for m in maps], "parts": [[heat(m[g]) for m in maps] for g in range(len(maps[0]) - 1)],
        "change": None, "moved": None,
    }  # fmt: skip
    if len(maps) > 1:
        difference = maps[-1][-1] - maps[0][-1]
        row["change"] = _uri(_change(difference / max(1e-12, high - low)))
        row["moved"] = f"{moved(maps[0][-1], maps[-1][-1]):.0%}"
    return row


HEAT = np.array([[10, 8, 40], [92, 22, 110], [190, 54, 84], [247, 132, 28], [252, 255, 164]], np.float64)
"""From little to much: dark to light, so that it reads in grey, too."""


def _heat(share_HW: NDArray[np.float32]) -> Image.Image:
    at = share_HW.clip(0, 1) * (len(HEAT) - 1)
    below = np.minimum(at.astype(int), len(HEAT) - 2)
    rgb = HEAT[below] + (HEAT[below + 1] - HEAT[below]) * (at - below)[..., None]
    alpha = np.full((*share_HW.shape, 1), 190.0)
    return Image.fromarray(np.concatenate([rgb, alpha], -1).round().astype(np.uint8), "RGBA")


LESS, MORE = (40, 90, 200), (214, 80, 20)


def _change(share_HW: NDArray[np.float32]) -> Image.Image:
    """Blue where there is less, orange where there is more."""
    rgb = np.where(share_HW[..., None] < 0, LESS, MORE)
    alpha = (np.abs(share_HW)[..., None] * 2).clip(0, 1) * 235
    return Image.fromarray(np.concatenate([rgb, alpha], -1).round().astype(np.uint8), "RGBA")


# ---- the training view


def _training(t: Training) -> Json:
    rows = [(side, [float(x) for x in t.times], list(losses)) for side, losses in t.losses.items()]
    words = "; ".join(
        f"{side}: {_number(v[0])} at timestep {t.times[0]}, {_number(v[-1])} at {t.times[-1]}" for side, _, v in rows
    )
    chart = charts.plot(
        "Loss of this picture", "mean square error, over the timestep t", rows, words, dots=rows, zero=True
    )
    return {
        "name": t.name, "caption": t.caption, "picture": _uri(t.picture), "times": t.times, "noisy": [_uri(im) for im in t.noisy],
        "sides": [
            {"name": side, "predicted": [_uri(im) for im in row], "losses": [_number(v) for v in t.losses[side]]}
            for side, row in t.predicted.items()
        ],
        "chart": chart,
    }  # fmt: skip


# ---- texts and pictures


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _number(value: float) -> str:
    return "\N{INFINITY}" if math.isinf(value) else f"{value:.3g}"
