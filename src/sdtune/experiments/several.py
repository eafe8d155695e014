"""`sdtune compare RUN RUN ...`: any runs on one page, asked for the same prompts and seeds and held against the same pictures.

Those of the first run, unless overrides say otherwise. The runs' own comparisons stay as they are: what is drawn for this page is kept
beside it, and what a run has drawn already with the same settings is linked.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdtune import config as configs
from sdtune.compare import comparing
from sdtune.config import RunConfig
from sdtune.data.dataset import Splits
from sdtune.data.layouts import listed, plural
from sdtune.drawing import Progress
from sdtune.errors import ConfigError, EvaluationError, RunError
from sdtune.experiments import page
from sdtune.experiments.cells import identity
from sdtune.experiments.evidence import Trained
from sdtune.experiments.run import is_finished
from sdtune.experiments.shared import take
from sdtune.pairs import SIDES, Plan, make_plan
from sdtune.pictures import scan
from sdtune.report import shown_path
from sdtune.runs import Run
from sdtune.viewing import scorer_gap, viewer_of

if TYPE_CHECKING:
    from sdtune.evaluate import Viewer


@dataclass(frozen=True)
class Beside(Run):
    """A run whose comparison is kept elsewhere."""

    place: Path = Path()

    @property
    def comparison(self) -> Path:
        return self.place


@dataclass(frozen=True)
class One:
    """A run with what it is compared by."""

    name: str
    run: Beside
    own: RunConfig
    config: RunConfig
    plan: Plan
    splits: Splits


def folder_of(runs: Sequence[Run]) -> Path:
    """Where the page goes unless it is said."""
    return Path("comparisons") / "-".join(_labels(runs))[:80]


def compare_runs(
    runs: Sequence[Run],
    overrides: Sequence[str] = (),
    out: Path | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    scorer: Viewer | None = None,
) -> tuple[Path, str]:
    """Write the page of `runs`; returns its path and its summary. Runs that differ in nothing but their seeds are one row.

    Raises RunError for a run that is not finished, EvaluationError for runs that cannot be compared, with the reason.
    """
    out = out or folder_of(runs)
    ones = list(_planned(runs, overrides, out))
    for i, one in enumerate(ones):
        for side in SIDES:
            sources = [
                Run(one.run.path).comparison / side,
                *([o.run.comparison / side for o in ones[:i]] if side == "base" else []),
            ]
            _take_first(sources, one.run.comparison / side)
        for step in comparing(one.run, one.config, scorer=scorer, plan=one.plan):
            if progress:
                progress(Progress(f"{one.name}: {step.what}", step.done, step.total))
        if scorer is None and not scorer_gap(one.config):  # one for all: a large encoder takes a while to load
            scorer = viewer_of(one.config, next((one.run.comparison / SIDES[0]).glob("*.png")))
    subject = _subject(ones, out, overrides)
    return out / page.NAME, page.write(subject, scorer)


def _planned(runs: Sequence[Run], overrides: Sequence[str], out: Path) -> Iterator[One]:
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ConfigError("each run only once; a run cannot be compared with itself")
    for run in runs:
        run.config()  # the error for a folder that is no run
        if not is_finished(run):
            raise RunError(f"{run.path}: is not finished, and only results are compared; go on with `sdtune train`")
    first = runs[0].config(overrides)
    plan = make_plan(first)
    for name, run in zip(_labels(runs), runs, strict=True):
        own = run.config()
        config = dataclasses.replace(own, evaluate=first.evaluate, sample=first.sample)
        splits = scan(own)
        if leaked := {e.digest for e in plan.reference} & {e.digest for e in splits.train}:
            raise EvaluationError(
                f"{run.path}: was trained on {plural(len(leaked), 'picture')} that would judge it; give evaluate.reference= pictures that "
                "none of the runs has seen"
            )
        mine = dataclasses.replace(plan, train=tuple(splits.train))
        yield One(name, Beside(run.path, place=out / "runs" / name), own, config, mine, splits)


def _take_first(sources: Sequence[Path], own: Path) -> None:
    """Link from the first that has anything, if there is nothing yet; the comparison draws what does not fit."""
    source = next((s for s in sources if (s / "index.json").exists()), None)
    if source is not None and not (own / "index.json").exists():
        take(source, own)


def _labels(runs: Sequence[Run]) -> list[str]:
    """The folders' names, with those above where they would be the same."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, 6):
        names = [re.sub(r"[^A-Za-z0-9_.+-]", "-", "-".join(path.parts[-depth:])).strip("-") or "run" for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"run-{i}" for i in range(1, len(runs) + 1)]


# ---- the page


def _subject(ones: Sequence[One], out: Path, overrides: Sequence[str]) -> page.Subject:
    groups: dict[str, list[One]] = {}
    for one in ones:
        key = identity(one.own)
        if any(o.own.train.seed == one.own.train.seed for o in groups.get(key, [])):
            key += one.name  # the same seed again is no other training
        groups.setdefault(key, []).append(one)
    told = _differences([group[0].own for group in groups.values()])
    entries = [
        page.Entry(
            group[0].name if len(group) == 1 else f"{group[0].name} and {plural(len(group) - 1, 'seed')} more",
            key[:8], settings, tuple(Trained.of(o.run, o.own.train.seed) for o in group), group[0].own,
            out / "runs" / group[0].name / "card.md", {},
        )
        for (key, group), settings in zip(groups.items(), told, strict=True)
    ]  # fmt: skip
    seeds = tuple(dict.fromkeys(one.own.train.seed for one in ones))
    again = shlex.join(["sdtune", "compare", *(shown_path(one.run.path) for one in ones), *overrides])
    name = listed([one.name for one in ones], 4)
    return page.Subject(
        "comparison",
        name,
        "",
        out,
        ones[0].config,
        tuple(entries),
        seeds,
        again=again,
        plan=ones[0].plan,
        losses=_losses(ones),
    )


def _differences(of: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """The keys in which each differs from the others."""
    tables = [configs.flat(configs.to_dict(config)) for config in of]
    keys = dict.fromkeys(key for table in tables for key in table)
    varied = [key for key in keys if _told(key) and len({repr(table.get(key)) for table in tables}) > 1]
    return [{key: table[key] for key in varied if table.get(key) is not None} for table in tables]


def _told(key: str) -> bool:
    """Whether a key makes runs different: not what names them, seeds them or compares them."""
    return key not in ("name", "train.seed") and not key.startswith(("evaluate.", "sample."))


def _losses(ones: Sequence[One]) -> str:
    """Why the validation losses do not compare; "" where they do."""
    first = ones[0]
    for one in ones[1:]:
        if [e.digest for e in one.splits.validation] != [e.digest for e in first.splits.validation]:
            return f"the validation losses do not compare: {one.name} has other validation pictures than {first.name}"
        for key, a, b in (
            ("model", first.own.model, one.own.model),
            ("objective", first.own.objective, one.own.objective),
            ("train.validation_timesteps", first.own.train.validation_timesteps, one.own.train.validation_timesteps),
        ):
            if a != b:
                return f"the validation losses do not compare: {one.name} has another {key} than {first.name}"
    return ""
