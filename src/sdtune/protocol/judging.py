"""The protocol from folders to figures: one encoder after the other is loaded, looks at all pictures, and is let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sdtune.errors import ConfigError, EvaluationError
from sdtune.judging.figures import corrected
from sdtune.metrics.places import NotHere
from sdtune.metrics.prdc import NEIGHBOURS
from sdtune.protocol import measures
from sdtune.protocol.choosing import DEFAULT, FRECHET, TO_CAPTIONS, Choice, choice_of, choices
from sdtune.protocol.looking import Looking, Told
from sdtune.protocol.pairing import Item, pair, training
from sdtune.protocol.results import Result


def judge(
    reference: str | Path, original: str | Path, tuned: str | Path, *, metrics: str = DEFAULT, train: str | Path | None = None,
    indicative: bool = False,
    device: str = "cpu", draws: int = 2000, seed: int = 0, at: Path | None = None, cache: Path | None = None,
    progress: Told | None = None,
) -> Result:  # fmt: skip
    """Judge two folders of drawn pictures against the real ones of a third.

    `train`: the training pictures, for `copies`. `at`: where encoders lie (places.home); `cache`: the folder of features, None for
    none. A figure whose encoder is not here is left out and said so. Raises ConfigError, DataError, and EvaluationError where not one
    figure is left.
    """
    began, wanted = time.monotonic(), choices(metrics)
    check_train(wanted, train)
    known = training(train) if train is not None else []
    result = Result(str(reference), str(original), str(tuned), pair(reference, original, tuned), draws=draws, seed=seed)
    result.train = str(train or "")
    todo = [choice for choice in wanted if _allowed(choice, result, indicative)]
    for encoder in dict.fromkeys(choice.encoder for choice in todo):
        mine = [choice for choice in todo if choice.encoder == encoder]
        look = Looking(result, known, device, at, cache, progress or (lambda what, done, total: None))
        try:
            look.take(encoder, mine)
        except NotHere as error:
            result.missing += [(choice.key, error.missing) for choice in mine]
    order = [choice.of("").key for choice in wanted]
    result.figures.sort(
        key=lambda figure: order.index(choice_of(figure.key).of("").key)
    )  # parts of one stay as they are
    first = next((f.key for f in result.figures if choice_of(f.key).of("").key == order[0]), order[0])
    result.figures = corrected(result.figures, first, measures.p_of)
    if not result.figures:
        reasons = [f"{key}: {why}" for key, why in result.refused] + [f"{key}: {why}" for key, why in result.missing]
        raise EvaluationError("nothing is left to be measured\n  " + "\n  ".join(dict.fromkeys(reasons)))
    result.seconds = time.monotonic() - began
    return result


def check_train(wanted: Sequence[Choice], train: str | Path | None) -> None:
    """Refuse copies of nothing, and training pictures that nothing looks at. Raises ConfigError."""
    asked = any(choice.metric == "copies" for choice in wanted)
    if asked and train is None:
        raise ConfigError(
            "--metrics: copies: of which pictures? Name the folder that was trained on with --train FOLDER"
        )
    if train is not None and not asked:
        raise ConfigError(f"--train: {train}: nothing looks at it but copies; add it to --metrics")


def _allowed(choice: Choice, result: Result, indicative: bool) -> bool:
    """Whether these pictures can give the figure at all; if not, it is said why."""
    why = _hindrance(choice, result, indicative)
    if why:
        result.refused.append((choice.key, why))
    return not why


def _hindrance(choice: Choice, result: Result, indicative: bool) -> str:
    items, needs = result.pairs.items, choice.rule.needs
    n = len(items)
    if choice.metric in FRECHET and n < needs and not indicative:
        return (
            f"{n} pictures: a Frechet distance needs {needs:,}, its bias is of the size of its value (arXiv:1911.07023); "
            "--indicative shows it with that warning, KID has no such bias"
        )
    if choice.metric in TO_CAPTIONS and not result.pairs.captions:
        return f"not every picture of {result.reference} has a caption"
    if choice.metric == "prdc" and n <= NEIGHBOURS:
        return f"{n} pictures: with {NEIGHBOURS} neighbours at least {NEIGHBOURS + 1} are needed"
    if choice.metric == "diversity" and _count(items, lambda i: min(len(i.original), len(i.tuned)) > 1) < 2:
        return 'no two captions were drawn twice by both models; draw other seeds, with the column "reference" in metadata.jsonl'
    if choice.metric == "drift" and _count(items, lambda i: len(i.original) == len(i.tuned)) < 2:
        return "no two captions have as many pictures of both models, a seed each"
    return ""


def _count(items: Sequence[Item], holds: Callable[[Item], bool]) -> int:
    return sum(map(holds, items))
