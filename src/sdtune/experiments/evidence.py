"""From finished runs to what the leaderboard ranks: each figure of each training, drawn again with the same prompts for all.

The scorer looks at each picture once; what it saw is kept beside the matrix and found again by the pictures' bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sdtune import stats
from sdtune.config import RunConfig
from sdtune.errors import EvaluationError
from sdtune.evaluate import see
from sdtune.experiments.leaderboard import Ranking, Sample, rank
from sdtune.files import atomic_write
from sdtune.judging.figures import clusters
from sdtune.judging.scores import Seen
from sdtune.metrics import content, kid
from sdtune.pairs import Plan, make_plan
from sdtune.runs import Run
from sdtune.viewing import open_rgb, scorer_gap, square, viewer_of

if TYPE_CHECKING:
    from sdtune.evaluate import Viewer

Array = NDArray[np.float64]
BASE = "base"
LABELS: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "kid": ("KID to held-out pictures", "lower"),
    "validation_loss": ("Validation loss", "lower"),
    "found_first": ("Asked drawing found first", "higher"),
    "prompt_cosine": ("Likeness to the prompt", "higher"),
}
"""The figures of a leaderboard, by the names that `evaluate.primary` has for them."""
CHUNK = 256
"""Pictures opened at once."""


@dataclass(frozen=True)
class Trained:
    """A finished run and what its comparison found."""

    run: Run
    seed: int
    scores: Mapping[str, Any]

    @staticmethod
    def of(run: Run, seed: int) -> Trained:
        """Raises EvaluationError for a run that was not compared."""
        try:
            return Trained(run, seed, json.loads(run.scores_file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise EvaluationError(f"{run.path}: has no comparison; `sdtune compare {run.path}` makes one") from None

    def pictures(self, side: Literal["base", "tuned"]) -> list[Path]:
        return [self.run.comparison / row[side] for row in self.scores["pictures"]]

    def figure(self, key: str) -> Mapping[str, Any] | None:
        return next((f for f in self.scores["figures"] if f["key"] == key), None)

    def verdict(self, key: str) -> str:
        return next((str(v["answer"]) for v in self.scores["verdicts"] if v["key"] == key), "")

    @property
    def losses(self) -> tuple[Array, Array]:
        """Validation loss of each picture at step 0 and at the end; empty where the run has none."""
        found = self.scores["validation"]
        return np.array(found["per_picture_first"]), np.array(found["per_picture_last"])


@dataclass(frozen=True)
class Table:
    """The rankings of all figures that there are."""

    primary: str
    rankings: Mapping[str, Ranking]
    ceilings: Mapping[str, float]
    """The same figures of real pictures, where they have any."""
    units: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def main(self) -> Ranking:
        return self.rankings[self.primary]


def table(
    rows: Mapping[str, Sequence[Trained]],
    config: RunConfig,
    folder: Path,
    plan: Plan | None = None,
    scorer: Viewer | None = None,
    *,
    losses: str = "",
) -> Table:
    """Rank the rows, each a name with its finished runs. All were compared with the same prompts, seeds and pictures, as `config` says.

    `folder` keeps what the scorer saw. `losses` says why their validation losses do not compare, where they do not. Raises
    EvaluationError where the primary figure is none of theirs.
    """
    notes = [losses] if losses else []
    samples = {} if losses else dict(_validation(rows, config, notes))
    judged = all(t.figure("kid_target") for runs in rows.values() for t in runs)
    if judged:
        samples |= _judged(rows, config, folder, plan or make_plan(config), scorer)
    primary = config.evaluate.primary
    if primary not in samples:
        why = notes[0] if notes else scorer_gap(config) or "its figures are not in their comparisons"
        raise EvaluationError(f"primary: {primary!r} is not known of these runs: {why}")
    rankings, units = {}, {}
    for key, (found, n) in samples.items():
        rankings[key] = rank(found, n, LABELS[key][1], BASE if any(s.name == BASE for s in found) else None)
        units[key] = n
    any_run = next(t for runs in rows.values() for t in runs)
    ceilings = {k: float(f["real"]["value"]) for k in samples if (f := any_run.figure(_key(k))) and f["real"]}
    return Table(primary, rankings, ceilings, units, tuple(notes))


def _key(figure: str) -> str:
    """What a run's scores call it."""
    return "kid_target" if figure == "kid" else figure


Samples = Iterator[tuple[str, tuple[list[Sample], int]]]


def _validation(rows: Mapping[str, Sequence[Trained]], config: RunConfig, notes: list[str]) -> Samples:
    """The validation loss, drawn again over its pictures."""
    losses = {name: [t.losses for t in runs] for name, runs in rows.items()}
    counts = {len(last) for found in losses.values() for _, last in found}
    if len(counts) != 1 or not (n := counts.pop()):
        notes.append("the validation loss is not known of all runs, for the same pictures")
        return
    weights_WN = stats.resample(np.zeros(n, np.int64), config.evaluate.draws, 0) / n
    first = [first for found in losses.values() for first, _ in found]
    usual = np.median(np.stack(first), 0)  # a quantised base has a loss of its own
    odd = {name for name, found in losses.items() if not all(np.allclose(f, usual, rtol=1e-3) for f, _ in found)}
    if odd:
        notes.append(
            f"validation loss: {', '.join(sorted(odd))} began from another loss than the others (a quantised base, or another objective)"
        )
    samples = [_means(BASE, [usual], weights_WN, trained=False)]
    samples += [_means(name, [last for _, last in found], weights_WN) for name, found in losses.items()]
    yield "validation_loss", (samples, n)


def _means(name: str, values: Sequence[Array], weights_WC: Array, *, trained: bool = True) -> Sample:
    """Means over units, for each training; `weights_WC` sum to 1."""
    table_SC = np.stack(values)
    return Sample(name, table_SC.mean(1), table_SC @ weights_WC.T, trained)


class Eyes:
    """Shows pictures to the scorer, and remembers what it saw of a whole set by its files' bytes: a leaderboard of thousands of pictures,
    made again after each run, decodes none of them twice (the scorers themselves remember pixels)."""

    def __init__(self, folder: Path, scorer: Viewer) -> None:
        self._folder, self.scorer = folder, scorer

    def see(self, files: Sequence[Path], asked: Sequence[str], prompts: Sequence[str]) -> Seen:
        """Drawn pictures, `asked` for by one of `prompts` each."""
        digest = hashlib.sha256(self.scorer.fingerprint.encode())
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        kept = self._folder / f"{digest.hexdigest()[:24]}.safetensors"
        number = {p: i for i, p in enumerate(prompts)}
        asked_N = np.array([number[c] for c in asked], np.int64)
        if kept.exists():
            return Seen(*_read(kept), asked_N)
        parts = [
            see(self.scorer, map(open_rgb, files[i : i + CHUNK]), asked[i : i + CHUNK], prompts)
            for i in range(0, len(files), CHUNK)
        ]
        seen = Seen(
            np.concatenate([p.features_ND for p in parts]), np.concatenate([p.embeds_NE for p in parts]), asked_N
        )
        _write(kept, seen)
        return seen


def _read(path: Path) -> tuple[Array, Array]:
    from safetensors.numpy import load_file

    found = load_file(path)
    return found["features"], found["embeds"]


def _write(path: Path, seen: Seen) -> None:
    from safetensors.numpy import save

    with atomic_write(path) as file:
        file.write(save({"features": seen.features_ND, "embeds": seen.embeds_NE}))


def _judged(
    rows: Mapping[str, Sequence[Trained]], config: RunConfig, folder: Path, plan: Plan, scorer: Viewer | None
) -> dict[str, tuple[list[Sample], int]]:
    """KID and content, drawn again over the prompts."""
    for t in (t for runs in rows.values() for t in runs):
        if tuple(t.scores["plan"]["prompts"]) != plan.prompts or t.scores["plan"]["seeds"] != list(
            config.evaluate.seeds
        ):
            raise EvaluationError(f"{t.run.path}: was compared with other prompts or seeds; compare it again")
    some = next(t for runs in rows.values() for t in runs)
    eyes = Eyes(folder, scorer or viewer_of(config, some.pictures("base")[0]))
    asked = [str(row["prompt"]) for row in some.scores["pictures"]]
    real = [square(e, config.data, eyes.scorer.side) for e in plan.reference]
    target = see(eyes.scorer, real, [e.captions[0] for e in plan.reference], plan.prompts)
    texts_PE = eyes.scorer.texts(content.strip_shared(plan.prompts))
    P, draws = len(plan.prompts), config.evaluate.draws
    cluster_M, strata = clusters(P, target.asked_N)
    weights_WC = stats.resample(strata, draws, 0)

    def kids(seen: Seen) -> tuple[float, Array]:
        made = kid.ClusteredKid(seen.features_ND, seen.asked_N, target.features_ND, cluster_M, len(strata))
        return float(made()[0]), made(weights_WC)

    def of_prompts(seen: Seen, what: Callable[[Array, Array, NDArray[np.int64]], Any]) -> Array:
        values_N = np.asarray(what(seen.embeds_NE, texts_PE, seen.asked_N), np.float64)
        return stats.group_means(values_N, seen.asked_N, P)

    shown = {name: [eyes.see(t.pictures("tuned"), asked, plan.prompts) for t in runs] for name, runs in rows.items()}
    shown = {BASE: [eyes.see(some.pictures("base"), asked, plan.prompts)], **shown}
    out: dict[str, tuple[list[Sample], int]] = {"kid": ([], P), "found_first": ([], P), "prompt_cosine": ([], P)}
    for name, seen in shown.items():
        values, drawn = zip(*map(kids, seen), strict=True)
        out["kid"][0].append(Sample(name, np.array(values), np.stack(drawn), name != BASE))
        for key, what in (("found_first", content.found_first), ("prompt_cosine", content.prompt_cosine)):
            table = [of_prompts(s, what) for s in seen]
            out[key][0].append(_means(name, table, weights_WC[:, :P] / P, trained=name != BASE))
    return out
