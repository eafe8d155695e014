"""The page on which people vote without knowing which picture is the tuned one, and the votes that come back."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from sdtune.judging import votes
from sdtune.pages import asset, page
from sdtune.report import LARGE, SMALL, shown_path, thumb
from sdtune.stats import MIN_UNITS

if TYPE_CHECKING:
    from sdtune.compare import Comparison

TARGETS = 8
"""So many real pictures show what was aimed at."""


def html(c: Comparison) -> str:
    """The page: pairs in a random order, each on random sides; it needs nothing else and sends nothing."""
    pairs = []
    for k, pair in enumerate(c.pairs):
        left, right = (pair.tuned, pair.base) if votes.tuned_is_left(c.ballot, k) else (pair.base, pair.tuned)
        pairs.append({"pair": k, "prompt": pair.prompt, "left": thumb(left, LARGE), "right": thumb(right, LARGE)})
    random.Random(c.ballot).shuffle(pairs)
    targets = c.plan.reference[:: max(1, len(c.plan.reference) // TARGETS)][:TARGETS]
    return page(
        "vote",
        css=asset("report.css") + asset("vote.css"),
        js=asset("vote.js"),
        name=c.config.name,
        run=shown_path(c.run.path),
        least=MIN_UNITS,
        targets=[thumb(e.image, SMALL) for e in targets],
        data=json.dumps({"format": votes.FORMAT, "ballot": c.ballot, "pairs": pairs}).replace("<", "\\u003c"),
    )
