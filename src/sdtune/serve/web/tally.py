"""What blind votes on one model come to. Knows nothing of pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sdtune import stats
from sdtune.serve.web.book import Vote

VALUE = {"tuned": 1, "same": 0, "original": -1}


@dataclass(frozen=True)
class Tally:
    """Counted over prompts: all votes on one prompt's pictures are one voice, since they are no independent ones."""

    votes: int
    prompts: int
    wins: int
    """Prompts whose tuned pictures were liked better."""
    losses: int
    p: float
    """Two-sided sign test over prompts."""

    @property
    def verdict(self) -> tuple[str, str]:
        """A class of colour, and one sentence."""
        decided = self.wins + self.losses
        if self.prompts < stats.MIN_UNITS:
            return "open", f"Too few prompts to tell: {self.prompts} so far, {stats.MIN_UNITS} are the least."
        share = stats.share(self.wins, decided)
        seen = (
            f"on {self.wins} of {decided} prompts ({100 * share.low:.0f} to {100 * share.high:.0f}%)"
            if decided
            else "on none"
        )
        if self.p > 0.05 or not decided:
            return "open", f"Not told apart: the tuned pictures were liked better {seen}."
        return ("good", f"The tuned pictures are liked better, {seen}.") if self.wins > self.losses else (
            "bad", f"The original's pictures are liked better: the tuned ones only {seen}.",
        )  # fmt: skip


def tally(votes: Sequence[Vote]) -> Tally:
    by_prompt: defaultdict[str, int] = defaultdict(int)
    for vote in votes:
        by_prompt[vote.prompt] += VALUE[vote.choice]
    wins, losses = sum(v > 0 for v in by_prompt.values()), sum(v < 0 for v in by_prompt.values())
    return Tally(len(votes), len(by_prompt), wins, losses, stats.sign_test(wins, losses))
