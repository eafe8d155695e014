"""The proof of a fine-tuning: base and tuned pictures of the same prompts and seeds, judged and put into one report.

`compare` does it all and returns the result; `comparing` is the same as a generator of `Progress`, for whoever draws it.
Run again, it goes on: pictures that lie there with the same weights, prompt, seed and settings are not drawn again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdtune.bands import changes
from sdtune.config import RunConfig
from sdtune.data.layouts import plural
from sdtune.drawing import INDEX, Progress, draw_missing, run_through
from sdtune.errors import ConfigError
from sdtune.evaluate import judge, judge_without_scorer
from sdtune.events import Step, Validated
from sdtune.files import write_json, write_text
from sdtune.judging import votes
from sdtune.judging.scores import Evidence, Figure, Scores, Validation
from sdtune.pairs import SIDES, Pair, Plan, make_plan
from sdtune.runs import Run
from sdtune.viewing import find_copies, look, not_asked, opinions, scorer_gap, viewer_of

if TYPE_CHECKING:
    from sdtune.evaluate import Viewer


@dataclass(frozen=True)
class Comparison:
    """All that the report shows."""

    run: Run
    config: RunConfig
    checkpoint: str
    plan: Plan
    pairs: tuple[Pair, ...]
    scores: Scores
    validation: Validation
    scorer: str | None
    """sha256 of the scorer's weights; None where it does not fit the base."""
    seconds: dict[str, float]
    """Wall time of each part."""
    unrelated: tuple[Pair, ...] = ()
    ballot: str = ""
    """The name of these pictures in votes on them."""
    encoders: tuple[dict[str, Any], ...] = ()
    """What a result must say of the encoders that looked."""
    looked: str = "the scorer that comes with sdtune"
    """What looked, in words."""

    @property
    def report(self) -> Path:
        return self.run.report_file

    @property
    def flawed(self) -> str:
        """How many of the pictures are none, and why the first is not. "" if all are sound."""
        found = [[(p, flaw) for p in self.pairs if (flaw := p.flaws[i])] for i in (0, 1)]
        if not any(found):
            return ""
        pair, flaw = (found[1] or found[0])[0]
        counts = f"{len(found[1])} of {len(self.pairs)} tuned pictures (and {len(found[0])} of the base's) show nothing"
        return f"{counts}, and are judged all the same; {pair.prompt!r}, seed {pair.seed}: {flaw}"


def compare(
    run: Run,
    config: RunConfig | None = None,
    *,
    checkpoint: str = "final",
    progress: Callable[[Progress], None] | None = None,
    scorer: Viewer | None = None,
) -> Comparison:
    """Compare the run's result with its base; writes pictures, scores.json, report.html and report.md into the run folder.

    `config` changes how is compared (prompts, seeds, sampler, reference); unset, it is the run's own. `checkpoint` is
    "final", "best" or a name such as "step-000250". Raises RunError, DataError or EvaluationError.
    """
    return run_through(comparing(run, config, checkpoint=checkpoint, scorer=scorer), progress)


def comparing(
    run: Run,
    config: RunConfig | None = None,
    *,
    checkpoint: str = "final",
    scorer: Viewer | None = None,
    plan: Plan | None = None,
) -> Generator[Progress, None, Comparison]:
    """`compare`, step by step. `plan` is what is compared with what; unset, it follows from `config`."""
    from sdtune import ballot as ballots
    from sdtune import report

    config = config or run.config()
    if not config.sample.strength:
        raise ConfigError(
            "sample.strength: at 0 the tuned model is the base, and there is nothing to compare; give more"
        )
    began = time.perf_counter()
    plan = plan or make_plan(config)
    pairs = tuple(_pairs(run, plan.prompts, config.evaluate.seeds))
    apart = tuple(_pairs(run, plan.unrelated, config.evaluate.seeds[:1], "unrelated-"))
    yield from _draw(run, config, checkpoint, (*pairs, *apart))
    pairs, apart = tuple(_with_flaws(run, pairs)), tuple(_with_flaws(run, apart))
    drawn = time.perf_counter()
    judged = "best" if checkpoint == "final" and run.config().train.result == "best" else checkpoint
    validation = read_validation(run, judged)
    ballot = votes.ballot_of([(p.prompt, p.seed, p.base, p.tuned) for p in pairs])
    voted, stale = _voted(run, config, ballot, pairs)
    encoders: tuple[dict[str, Any], ...]
    looked = Comparison.looked
    if why := scorer_gap(config):
        scores, digest, encoders = _judge_loss(config, validation, why, voted), None, ()
    else:
        scorer = scorer or viewer_of(config, pairs[0].base)
        evidence = yield from look(scorer, config.data, plan, pairs, apart)
        doubles, finder = find_copies(config, scorer, plan, pairs)
        evidence = dataclasses.replace(evidence, doubles=doubles)
        others, asked = opinions(config, scorer, plan, pairs)
        scores, digest = _judge(config, evidence, validation, [*voted, *others]), scorer.fingerprint
        encoders, looked = (*scorer.records(), *finder, *asked), scorer.title
        stale += not_asked(scorer)
    scores = dataclasses.replace(scores, limits=(*scores.limits, *plan.notes, *_selection(judged, plan), *stale))
    seconds = {"drawing": drawn - began, "judging": time.perf_counter() - drawn}
    result = Comparison(
        run, config, checkpoint, plan, pairs, scores, validation, digest, seconds, apart, ballot, encoders, looked
    )
    write_json(run.scores_file, report.as_json(result))
    write_text(run.comparison / "report.md", report.markdown(result))
    write_text(run.report_file, report.html(result))
    write_text(run.vote_file, ballots.html(result))
    yield Progress("report", 1, 1)
    return result


def _selection(checkpoint: str, plan: Plan) -> list[str]:
    if checkpoint == "best" and plan.sources["reference"].startswith("the validation"):
        return [
            "The checkpoint was chosen with the validation pictures, and is judged with the same: its figures flatter it."
        ]
    return []


# ---- drawing


def _pairs(run: Run, prompts: Sequence[str], seeds: Sequence[int], prefix: str = "") -> Iterator[Pair]:
    for i, prompt in enumerate(prompts):
        for seed in dict.fromkeys(seeds):
            name = f"{prefix}{i:03d}-{seed}.png"
            yield Pair(prompt, seed, run.comparison / "base" / name, run.comparison / "tuned" / name)


def _draw(run: Run, config: RunConfig, checkpoint: str, pairs: Sequence[Pair]) -> Iterator[Progress]:
    """Draw with the untouched base, then with the tuned model at `sample.strength`; what is there already stays."""
    from sdtune import tuned
    from sdtune.devices import choose, set_up_cpu

    set_up_cpu(config.train.threads)
    device, dtype = choose(config.train)
    model = config.model.load(device=device, dtype=dtype)
    model.chunks = config.data.caption_chunks
    model.denoiser.eval()
    own = dataclasses.replace(config.sample.from_prompts, strength=0.0)
    yield from draw_missing(model, own, [(p.prompt, p.seed, p.base) for p in pairs], "base pictures")
    on_top = tuned.of_run(model, run, checkpoint)
    model.denoiser.eval()
    on_top.set_strength(config.sample.strength)
    own = config.sample.from_prompts
    yield from draw_missing(model, own, [(p.prompt, p.seed, p.tuned) for p in pairs], "tuned pictures")
    on_top.close()


def _with_flaws(run: Run, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs with what was found wrong with their pictures when they were drawn."""
    base, tuned = (json.loads((run.comparison / side / INDEX).read_text(encoding="utf-8")) for side in SIDES)
    for pair in pairs:
        flaws = base[pair.base.name].get("flaw", ""), tuned[pair.tuned.name].get("flaw", "")
        yield dataclasses.replace(pair, flaws=flaws)


# ---- judging


def _judge(config: RunConfig, evidence: Evidence, validation: Validation, others: Sequence[Figure]) -> Scores:
    e = config.evaluate
    return judge(evidence, validation, primary=e.primary, draws=e.draws, seed=config.train.seed, others=others)


def _judge_loss(config: RunConfig, validation: Validation, why: str, others: Sequence[Figure]) -> Scores:
    e = config.evaluate
    return judge_without_scorer(
        validation, why, primary=e.primary, draws=e.draws, seed=config.train.seed, others=others
    )


def _voted(run: Run, config: RunConfig, ballot: str, pairs: Sequence[Pair]) -> tuple[list[Figure], list[str]]:
    """The figure of the votes that came back, if any did; and a remark on those that are on other pictures."""
    found, stale = votes.of(run.votes, ballot)
    prompt = {p: i for i, p in enumerate(dict.fromkeys(pair.prompt for pair in pairs))}
    figure = votes.figure(found, ballot, [prompt[p.prompt] for p in pairs], config.evaluate.draws, config.train.seed)
    remark = (
        f"{plural(stale, 'file')} of votes in {run.votes.name}/ are on other pictures than these, and do not count."
    )
    return [figure] if figure else [], [remark] if stale else []


def read_validation(run: Run, checkpoint: str = "final") -> Validation:
    """The loss curves in the run's log, up to the checkpoint."""
    losses: dict[int, tuple[float, ...]] = {}
    found: dict[int, Validated] = {}
    training: dict[int, float] = {}
    for event in run.events():
        if isinstance(event, Validated):
            losses[event.step], found[event.step] = event.per_picture, event
        elif isinstance(event, Step):
            training[event.step] = event.loss
    last = _step_of(checkpoint, losses)
    steps = [s for s in sorted(losses) if s <= last and len(losses[s]) == len(losses[min(losses)])]
    shown = [s for s in sorted(training) if s <= last]
    table_SN = np.array([losses[s] for s in steps], np.float64) if steps else np.zeros((0, 0))
    moved = changes(found[0], found[steps[-1]]) if 0 in found and len(steps) > 1 else ()
    return Validation(tuple(steps), table_SN, tuple(shown), tuple(training[s] for s in shown), moved)


def _step_of(checkpoint: str, losses: dict[int, tuple[float, ...]]) -> float:
    trained = {s: float(np.mean(v)) for s, v in losses.items() if s}
    if checkpoint == "best" and trained:
        return min(trained, key=lambda s: trained[s])
    number = checkpoint.removeprefix("step-")
    return int(number) if number.isdigit() else float("inf")
