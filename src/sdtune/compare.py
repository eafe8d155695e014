"""The proof of a fine-tuning: base and tuned pictures of the same prompts and seeds, judged and put into one report.

`compare` does it all and returns the result; `comparing` is the same as a generator of `Progress`, for whoever draws it.
Run again, it goes on: pictures that lie there with the same weights, prompt, seed and settings are not drawn again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sdtune.bands import changes
from sdtune.config import RunConfig
from sdtune.data import dataset, images
from sdtune.data.caption import decorate
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example
from sdtune.data.layouts import plural
from sdtune.drawing import INDEX, Progress, draw_missing, run_through
from sdtune.errors import DataError, EvaluationError
from sdtune.evaluate import judge, judge_without_scorer, see
from sdtune.events import Step, Validated
from sdtune.files import write_json, write_text
from sdtune.judging import votes
from sdtune.judging.scores import Evidence, Figure, Scores, Unrelated, Validation
from sdtune.metrics import content
from sdtune.pictures import scan
from sdtune.runs import Run

if TYPE_CHECKING:
    from sdtune.metrics.features import Scorer


SIDES = ("base", "tuned")


@dataclass(frozen=True)
class Pair:
    """One prompt and seed, drawn by the base and by the tuned model."""

    prompt: str
    seed: int
    base: Path
    tuned: Path
    flaws: tuple[str, str] = ("", "")
    """What is wrong with each of the two as a picture (`sample.flaw_of`); usually nothing."""


@dataclass(frozen=True)
class Plan:
    """What is compared with what. Captions have the prefix and suffix of the data."""

    prompts: tuple[str, ...]
    train: tuple[Example, ...]
    reference: tuple[Example, ...]
    control: tuple[Example, ...]
    sources: dict[str, str]
    """Where prompts, reference, control and unrelated prompts come from, in words."""
    notes: tuple[str, ...]
    unrelated: tuple[str, ...] = ()
    """Prompts of what the training was not about."""


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
    scorer: Scorer | None = None,
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
    scorer: Scorer | None = None,
    plan: Plan | None = None,
) -> Generator[Progress, None, Comparison]:
    """`compare`, step by step. `plan` is what is compared with what; unset, it follows from `config`."""
    from sdtune import ballot as ballots
    from sdtune import report

    config = config or run.config()
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
    if why := scorer_gap(config):
        scores, digest = _judge_loss(config, validation, why, voted), None
    else:
        from sdtune.metrics.features import Scorer

        scorer = scorer or Scorer.load()
        evidence = yield from _look(scorer, config.data, plan, pairs, apart)
        scores, digest = _judge(config, evidence, validation, voted), scorer.fingerprint
    scores = dataclasses.replace(scores, limits=(*scores.limits, *plan.notes, *_selection(judged, plan), *stale))
    seconds = {"drawing": drawn - began, "judging": time.perf_counter() - drawn}
    result = Comparison(run, config, checkpoint, plan, pairs, scores, validation, digest, seconds, apart, ballot)
    write_json(run.scores_file, report.as_json(result))
    write_text(run.comparison / "report.md", report.markdown(result))
    write_text(run.report_file, report.html(result))
    write_text(run.vote_file, ballots.html(result))
    yield Progress("report", 1, 1)
    return result


# ---- what is compared


def make_plan(config: RunConfig) -> Plan:
    """Read the folders and choose the prompts. Raises DataError or EvaluationError."""
    splits = scan(config)
    held_out, source = _reference(config, splits.validation)
    control, control_source = _control(config)
    prompts, prompt_source = _prompts(config, held_out)
    notes = []
    if source.startswith("the validation pictures"):
        notes.append(
            "The held-out pictures are those of the validation loss; a folder test/ beside train/ would be cleaner."
        )
    if leaked := {e.digest for e in held_out} & {e.digest for e in splits.train}:
        raise EvaluationError(f"evaluate.reference: {len(leaked)} of its pictures are trained on; give held-out ones")
    known = {*prompts, *(caption for e in splits.train for caption in e.captions)}
    unrelated, unrelated_source = _unrelated(config, control, known)
    sources = {"prompts": prompt_source, "reference": source, "control": control_source, "unrelated": unrelated_source}
    return Plan(
        tuple(prompts), tuple(splits.train), tuple(held_out), tuple(control), sources, tuple(notes), tuple(unrelated)
    )


def _reference(config: RunConfig, validation: list[Example]) -> tuple[list[Example], str]:
    if config.evaluate.reference:
        folder = dataset.resolve(config.evaluate.reference)
        return dataset.scan_folder(folder, config.data)[0], f"evaluate.reference ({config.evaluate.reference})"
    for place in config.data.places():
        root = dataset.locate(place.path)
        for name in dataset.TEST:
            if (root / name).is_dir():
                return dataset.scan_folder(root / name, config.data, layout=place.layout)[
                    0
                ], f"the {name} pictures of {place.path}"
    if not validation:
        raise EvaluationError(
            "no held-out pictures: set evaluate.reference to a folder, or data.validation_share above 0"
        )
    return validation, f"the validation pictures of {config.data.label}"


def _control(config: RunConfig) -> tuple[list[Example], str]:
    """Pictures of the base's own domain; the embedded base brings its own. The data's prefix and suffix do not concern them."""
    plain = dataclasses.replace(config.data, caption_prefix="", caption_suffix="")
    if config.evaluate.control:
        return _any_test(config.evaluate.control, plain), f"evaluate.control ({config.evaluate.control})"
    if scorer_gap(config):
        return [], "none"
    try:
        return _any_test("embedded:drawings", plain), "embedded:drawings"
    except DataError:
        return [], "none"


def _any_test(path: str, config: DataConfig) -> list[Example]:
    """The test pictures of a set, or all pictures of a plain folder."""
    root = dataset.resolve(path)
    folder = next((root / name for name in dataset.TEST if (root / name).is_dir()), root)
    return dataset.scan_folder(folder, config)[0]


def _prompts(config: RunConfig, held_out: list[Example]) -> tuple[list[str], str]:
    """The distinct prompts. Those of captions are spread evenly if there are more than evaluate.max_prompts."""
    if asked := _asked(config.evaluate.prompts, "evaluate.prompts"):
        return list(dict.fromkeys(_decorated(p, config.data) for p in asked)), "evaluate.prompts"
    return _spread((e.captions[0] for e in held_out), config.evaluate.max_prompts), "captions of the held-out pictures"


def _unrelated(config: RunConfig, control: Sequence[Example], known: Collection[str]) -> tuple[list[str], str]:
    """Prompts of what the training was not about; those of the control pictures that are no training caption or prompt."""
    most = config.evaluate.max_unrelated
    if config.evaluate.unrelated is not None:
        asked = _asked(config.evaluate.unrelated, "evaluate.unrelated") or ()
        if related := sorted(set(asked) & set(known)):
            raise EvaluationError(
                f"evaluate.unrelated: {related[0]!r} is a prompt or caption of the training; take it out"
            )
        return _spread(asked, most), "evaluate.unrelated" if asked else "none"
    found = _spread((e.captions[0] for e in control if e.captions[0] and e.captions[0] not in known), most)
    return found, "captions of the control pictures" if found else "none"


def _asked(prompts: tuple[str, ...] | str | None, key: str) -> tuple[str, ...] | None:
    """Prompts, or those of a text file. Raises EvaluationError."""
    if not isinstance(prompts, str):
        return prompts
    try:
        lines = Path(prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{key}: {prompts}: cannot be read as text ({type(error).__name__})") from None
    return tuple(line.strip() for line in lines if line.strip())


def _spread(texts: Iterable[str], most: int) -> list[str]:
    """The distinct texts, evenly chosen if there are more than `most`."""
    distinct = list(dict.fromkeys(texts))
    return [distinct[i * len(distinct) // most] for i in range(most)] if len(distinct) > most else distinct


def _decorated(prompt: str, config: DataConfig) -> str:
    """With the prefix and suffix that the training captions have, unless it has them already."""
    prefix, suffix = config.caption_prefix.strip(), config.caption_suffix.strip()
    inner = prompt.removeprefix(prefix).removesuffix(suffix).strip(" ") if prefix or suffix else prompt
    return decorate(inner, config)


def scorer_gap(config: RunConfig) -> str:
    """Why the shipped scorer cannot judge this base; nothing if it can."""
    if getattr(config.model, "path", None) == "embedded":
        return ""
    return (
        "The scorer that comes with sdtune knows small drawings only, the domain of the embedded base. For this base model KID, "
        "Frechet distance, content, copies and diversity need other encoders (the extra named metrics) and are left out; "
        "the pictures are shown, and the validation loss where the run has one."
    )


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
    """Draw with the untouched base, then with the tuned model; what is there already stays."""
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
    own = dataclasses.replace(config.sample.from_prompts, strength=1.0)
    yield from draw_missing(model, own, [(p.prompt, p.seed, p.tuned) for p in pairs], "tuned pictures")
    on_top.close()


def _with_flaws(run: Run, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs with what was found wrong with their pictures when they were drawn."""
    base, tuned = (json.loads((run.comparison / side / INDEX).read_text(encoding="utf-8")) for side in SIDES)
    for pair in pairs:
        flaws = base[pair.base.name].get("flaw", ""), tuned[pair.tuned.name].get("flaw", "")
        yield dataclasses.replace(pair, flaws=flaws)


# ---- judging


def _look(
    scorer: Scorer, config: DataConfig, plan: Plan, pairs: Sequence[Pair], apart: Sequence[Pair]
) -> Generator[Progress, None, Evidence]:
    """Show everything to the scorer. Real pictures are cut to squares as for training, a random cut becoming the centre."""
    asked = [p.prompt for p in pairs]
    sets: dict[str, tuple[list[Image.Image], list[str]]] = {
        "base": ([open_rgb(p.base) for p in pairs], asked),
        "tuned": ([open_rgb(p.tuned) for p in pairs], asked),
    }
    for name in ("reference", "train", "control"):
        examples: tuple[Example, ...] = getattr(plan, name)
        sets[name] = ([square(e, config, scorer.side) for e in examples], [e.captions[0] for e in examples])
    seen = {}
    for k, (name, (pictures, captions)) in enumerate(sets.items()):
        yield Progress("looking at pictures", k, len(sets))
        if pictures:
            seen[name] = see(scorer, pictures, captions, plan.prompts)
    yield Progress("looking at pictures", len(sets), len(sets))
    texts = scorer.texts(content.strip_shared(plan.prompts))
    unrelated = None
    if len(plan.unrelated) > 1:
        asked = [p.prompt for p in apart]
        base, tuned = (
            see(scorer, map(open_rgb, files), asked, plan.unrelated)
            for files in ([p.base for p in apart], [p.tuned for p in apart])
        )
        unrelated = Unrelated(plan.unrelated, scorer.texts(content.strip_shared(plan.unrelated)), base, tuned)
    return Evidence(
        plan.prompts,
        texts,
        seen["base"],
        seen["tuned"],
        seen["reference"],
        seen.get("train"),
        seen.get("control"),
        unrelated,
    )


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


def open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as im:
        return im.convert("RGB")


def square(example: Example, config: DataConfig, side: int) -> Image.Image:
    """A real picture as training sees it, `side` pixels wide."""
    im = images.load_image(example.image, background=config.background, max_pixels=config.max_pixels)
    crop = "center" if config.crop == "random" else config.crop
    box = images.crop_boxes(im.size, crop, 1, "")[0]
    return Image.fromarray(images.to_frame(im, (side, side), box=box, pad=crop == "pad", background=config.background))


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
