"""How often the judge errs: thousands of simulated evaluations whose truth is known.

    python scripts/judging/calibrate.py --evaluations 2000 --draws 600 --out benchmarks/calibration.json

writes a Markdown table beside it.

Each is judged by the code that judges runs (`sdtune.evaluate.judge`), on pictures that are drawn from a law instead of by a model: features
with an effect of the prompt that base and tuned share, embeddings of which a share points at the prompt, validation losses that are
paired by picture. Without an effect base and tuned follow the same law; then "moved: yes" is an error, and each interval of a
difference must hold 0. With one, the intervals must hold its true size. Columns: how often the answer was yes, and how often the 95% intervals
held the truth.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdtune.evaluate import judge
from sdtune.judging.scores import Evidence, Scores, Seen, Unrelated, Validation

Array = NDArray[np.float64]
COMMAND = "python scripts/judging/calibrate.py --evaluations 2000 --draws 600 --out benchmarks/calibration.json"
DIMENSIONS = 16
PAIRED = ("kid_target", "kid_control", "found_first", "prompt_cosine", "diversity", "unrelated", "validation_loss")
UNRELATED = 24


@dataclass(frozen=True)
class Case:
    """What is simulated."""

    name: str
    prompts: int
    seeds: int = 2
    real: int = 60
    effect: float = 0.0
    """By how much the tuned features lie nearer to the target, of a distance of 2."""
    tail: str = "normal"
    """normal: of the features and losses; heavy: Student's t with 4 degrees of freedom; skewed: exponential."""


CASES = (
    Case("no effect, 20 prompts", 20),
    Case("no effect, 48 prompts", 48),
    Case("no effect, 100 prompts x 4 seeds", 100, 4, 200),
    Case("no effect, 48 prompts, heavy tails", 48, tail="heavy"),
    Case("no effect, 48 prompts, skewed", 48, tail="skewed"),
    Case("moved, 48 prompts", 48, effect=0.5),
)


def noise(rng: np.random.Generator, shape: tuple[int, ...], tail: str) -> Array:
    """Of mean 0 and variance 1."""
    if tail == "heavy":
        return np.asarray(rng.standard_t(4, shape) / math.sqrt(2))
    if tail == "skewed":
        return np.asarray(rng.standard_exponential(shape) - 1)
    return rng.standard_normal(shape)


def evidence(case: Case, seed: int) -> tuple[Evidence, Validation]:
    """One simulated evaluation."""
    rng = np.random.default_rng(seed)
    p, k, d = case.prompts, case.seeds, DIMENSIONS
    asked = np.repeat(np.arange(p), k)
    target, control = np.zeros(d), np.zeros(d)
    target[0], control[1] = 2.0, 2.0
    texts = noise(rng, (p, d), "normal")
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    prompt_PD, same_ND = noise(rng, (p, d), case.tail), noise(rng, (p * k, d), case.tail)

    def drawn(mean: Array) -> Seen:
        features = mean + (prompt_PD[asked] + same_ND + noise(rng, (p * k, d), case.tail)) / math.sqrt(3)
        embeds = texts[asked] + 0.35 * noise(rng, (p * k, d), case.tail)
        return Seen(features, embeds / np.linalg.norm(embeds, axis=1, keepdims=True), asked)

    def real(mean: Array, n: int) -> Seen:
        number = np.where(np.arange(n) < p, np.arange(n), -1)
        embeds = texts[np.maximum(number, 0)] + 0.35 * noise(rng, (n, d), case.tail)
        features = mean + noise(rng, (n, d), case.tail)
        return Seen(features, embeds / np.linalg.norm(embeds, axis=1, keepdims=True), number)

    base, tuned = drawn(control / 2), drawn(control / 2 + case.effect * target / 2)
    picture = 0.1 + 0.02 * np.abs(noise(rng, (case.real,), case.tail))
    losses = [picture + 0.004 * noise(rng, (case.real,), case.tail) for _ in range(3)]
    validation = Validation((0, 100, 200), np.stack(losses))
    names = tuple(map(str, range(p)))
    other = np.arange(min(UNRELATED, p))
    apart = [drawn(control / 2) for _ in range(2)]
    unrelated = Unrelated(
        names[: len(other)], texts[: len(other)],
        *(Seen(s.features_ND[::k][: len(other)], s.embeds_NE[::k][: len(other)], other) for s in apart),
    )  # fmt: skip
    pictures = real(target, case.real), real(target, 80), real(control, 80)
    return Evidence(names, texts, base, tuned, *pictures, unrelated), validation


def truth(case: Case, key: str) -> float:
    """The true difference, tuned minus base. Of KID: from the moments of the law, see `kid_of`."""
    if not case.effect or not key.startswith("kid"):
        return 0.0
    target, control = np.zeros(DIMENSIONS), np.zeros(DIMENSIONS)
    target[0], control[1] = 2.0, 2.0
    to = target if key == "kid_target" else control
    return kid_of(control / 2 + case.effect * target / 2, to) - kid_of(control / 2, to)


def kid_of(a_D: Array, b_D: Array) -> float:
    """KID of two normal laws with unit covariance: E k(x, x') + E k(y, y') - 2 E k(x, y) of the cubic kernel.

    Of x . y / D with means a, b and unit variances: mean m = a.b/D, variance v = (|a|^2 + |b|^2 + D) / D^2, third central
    moment c = 6 a.b / D^3.
    """

    def k(u: Array, v: Array) -> float:
        d = DIMENSIONS
        m, var, third = float(u @ v) / d + 1, (float(u @ u) + float(v @ v) + d) / d**2, 6 * float(u @ v) / d**3
        return m**3 + 3 * m * var + third

    return k(a_D, a_D) + k(b_D, b_D) - 2 * k(a_D, b_D)


def judged(job: tuple[Case, int, int]) -> tuple[dict[str, str], dict[str, bool | None]]:
    """The answers to one evaluation, and whether each interval held the truth."""
    case, seed, draws = job
    found, validation = evidence(case, seed)
    scores: Scores = judge(found, validation, primary="kid", draws=draws, seed=seed)
    held: dict[str, bool | None] = {}
    for key in PAIRED:
        figure = scores.figure(key)
        d = figure.difference if figure else None
        held[key] = None if d is None or math.isnan(d.low) else d.low <= truth(case, key) <= d.high
    return {v.key: v.answer for v in scores.verdicts}, held


def rates(case: Case, evaluations: int, draws: int, pool: ProcessPoolExecutor | None) -> dict[str, Any]:
    jobs = [(case, seed, draws) for seed in range(evaluations)]
    results = list(pool.map(judged, jobs, chunksize=16) if pool else map(judged, jobs))
    answers = {key: Counter(a[key] for a, _ in results) for key in results[0][0]}
    shares = {key: {answer: n / evaluations for answer, n in sorted(c.items())} for key, c in answers.items()}
    held = {key: [bool(h[key]) for _, h in results if h[key] is not None] for key in PAIRED}
    return {
        "case": case.name,
        "evaluations": evaluations,
        "answers": shares,
        "coverage": {k: float(np.mean(v)) for k, v in held.items() if v},
    }


NAMES = {
    "kid_target": "KID to target", "kid_control": "KID to control", "found_first": "asked found first", "prompt_cosine": "likeness to prompt",
    "diversity": "seed difference", "unrelated": "unrelated prompts", "validation_loss": "validation loss",
}  # fmt: skip


def markdown(rows: list[dict[str, Any]], draws: int) -> str:
    """Two tables: how often each answer was yes, and how often the intervals held the truth."""

    def table(heads: list[str], lines: list[list[str]]) -> str:
        return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])

    questions = list(rows[0]["answers"])
    yes = [[r["case"], *(f"{r['answers'][q].get('yes', 0):.1%}" for q in questions)] for r in rows]
    held = [[r["case"], *(f"{r['coverage'][k]:.1%}" if k in r["coverage"] else "" for k in PAIRED)] for r in rows]
    return f"""# How often does the judge err?

{rows[0]["evaluations"]:,} simulated evaluations of each case, judged by the code that judges runs, with {draws:,} bootstrap draws each:
`{COMMAND}`. Features, embeddings and losses are drawn from laws instead of by models, so the truth is known. In cases without an effect base
and tuned follow the same law.

## How often the answer was "yes"

{table(["case", *questions], yes)}

Without an effect "helped" and "moved" are errors, and must stay below 5%. "Content" is "kept?", and is right to be yes where enough prompts show
it; the rest of its answers is "cannot tell". "Overfit", "forgot" and "copied" would be errors in every case.

## How often 95% intervals of the difference held the truth

{table(["case", *(NAMES[k] for k in PAIRED)], held)}

To be between 93% and 97%; of {rows[0]["evaluations"]:,} evaluations the last percent is chance.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()

    def all_rates() -> Iterator[dict[str, Any]]:
        with ProcessPoolExecutor(asked.processes) as pool:
            for case in CASES:
                row = rates(case, asked.evaluations, asked.draws, pool)
                print(json.dumps(row), flush=True)
                yield row

    rows = list(all_rates())
    if asked.out:
        asked.out.write_text(json.dumps({"draws": asked.draws, "cases": rows}, indent=1) + "\n", encoding="utf-8")
        asked.out.with_suffix(".md").write_text(markdown(rows, asked.draws), encoding="utf-8")


if __name__ == "__main__":
    main()
