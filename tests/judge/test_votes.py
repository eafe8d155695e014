"""Blind votes: what the page may not tell, what counts, and what the report makes of it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tests.judge.test_report import Page, comparison

from sdtune import ballot, report
from sdtune.compare import Comparison
from sdtune.errors import EvaluationError
from sdtune.judging import votes
from sdtune.judging.votes import Votes

__all__ = ["comparison"]  # the fixture


def told(path: Path, ballot: str = "b", voter: str = "ann", chosen: dict[int, str] | None = None) -> Path:
    rows = [{"pair": k, "choice": c} for k, c in (chosen or {0: "left"}).items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": votes.FORMAT, "ballot": ballot, "voter": voter, "votes": rows}))
    return path


def for_tuned(ballot: str, pairs: range) -> dict[int, str]:
    return {k: "left" if votes.tuned_is_left(ballot, k) else "right" for k in pairs}


def against(chosen: dict[int, str]) -> dict[int, str]:
    return {k: {"left": "right", "right": "left"}[c] for k, c in chosen.items()}


def test_a_page_shows_every_pair_and_does_not_say_which_is_which(comparison: Comparison) -> None:
    text = ballot.html(comparison)
    page = Page(text)
    assert not [src for _, a in page.tags if (src := a.get("src") or a.get("href")) and not src.startswith("data:")]
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))  # type: ignore[union-attr]
    assert sorted(p["pair"] for p in data["pairs"]) == list(range(8))
    assert [p["pair"] for p in data["pairs"]] != list(range(8))
    assert set(data["pairs"][0]) == {"pair", "prompt", "left", "right"}
    for shown in data["pairs"]:
        pair = comparison.pairs[shown["pair"]]
        tuned, base = report.thumb(pair.tuned, 512), report.thumb(pair.base, 512)
        left_is_tuned = votes.tuned_is_left(comparison.ballot, shown["pair"])
        assert (shown["left"], shown["right"]) == ((tuned, base) if left_is_tuned else (base, tuned))
    assert "<script>alert(1)" not in text, "prompts are strangers' words"


def test_sides_are_as_good_as_thrown() -> None:
    left = np.mean([votes.tuned_is_left(f"{b}", k) for b in range(20) for k in range(100)])
    assert left == pytest.approx(0.5, abs=0.035)
    assert votes.tuned_is_left("x", 3) == votes.tuned_is_left("x", 3)


def test_a_ballot_is_known_by_its_pictures(tmp_path: Path) -> None:
    a, b, c = (tmp_path / n for n in "abc")
    for i, file in enumerate((a, b, c)):
        file.write_bytes(bytes([i]))
    same = votes.ballot_of([("dog", 1, a, b)])
    assert votes.ballot_of([("dog", 1, a, b)]) == same
    others = [[("dog", 1, a, c)], [("dog", 1, b, a)], [("cat", 1, a, b)], [("dog", 2, a, b)]]
    assert len({votes.ballot_of(other) for other in others} | {same}) == 5


def test_votes_are_counted_by_prompt() -> None:
    prompt_of = [k // 2 for k in range(60)]
    most = for_tuned("b", range(60)) | against(for_tuned("b", range(12)))
    row = votes.figure([Votes("b", "ann", most)], "b", prompt_of, 400, 0)
    assert row is not None
    assert row.difference is not None
    assert row.difference.value == pytest.approx((24 - 6) / 30)
    assert row.difference.n == 30
    assert (row.wins, row.losses) == (24, 6)
    assert row.evidence
    two = [Votes("b", "ann", most), Votes("b", "bob", against(most))]
    even = votes.figure(two, "b", prompt_of, 400, 0)
    assert even is not None
    assert even.difference is not None
    assert even.difference.value == 0
    assert "2 voters" in even.note
    undecided = votes.figure([Votes("b", "", dict.fromkeys(range(60), "same"))], "b", prompt_of, 400, 0)
    assert undecided is not None
    assert (undecided.wins, undecided.losses) == (0, 0)


def test_few_votes_are_no_evidence_and_none_no_figure() -> None:
    few = votes.figure([Votes("b", "ann", {0: "left", 99: "left"})], "b", [0, 1], 400, 0)
    assert few is not None
    assert not few.evidence
    assert "20 prompts" in few.note
    assert votes.figure([], "b", [0, 1], 400, 0) is None
    assert votes.figure([Votes("b", "ann", {99: "left"})], "b", [0, 1], 400, 0) is None


def test_files_are_kept_read_and_merged(tmp_path: Path) -> None:
    folder = tmp_path / "votes"
    first = votes.keep(told(tmp_path / "1.json", chosen={0: "left", 1: "left"}), folder)
    assert votes.keep(tmp_path / "1.json", folder) == first, "the same again"
    second = votes.keep(told(tmp_path / "2.json", chosen={1: "right"}), folder)
    votes.keep(told(tmp_path / "3.json", voter="../bob", chosen={0: "same"}), folder)
    votes.keep(told(tmp_path / "4.json", ballot="another"), folder)
    assert {first.name, second.name} == {"ann.json", "ann-2.json"}
    assert {p.parent for p in folder.rglob("*.json")} == {folder}
    found, stale = votes.of(folder, "b")
    assert stale == 1
    assert {v.voter: v.chosen for v in found} == {"ann": {0: "left", 1: "right"}, "../bob": {0: "same"}}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "sdtune votes 1"}', '{"format": "other", "ballot": "b", "votes": []}',
     '{"format": "sdtune votes 1", "ballot": "b", "votes": [{"pair": 0, "choice": "both"}]}',
     '{"format": "sdtune votes 1", "ballot": "b", "votes": [{"pair": "x", "choice": "left"}]}'],
)  # fmt: skip
def test_what_is_no_vote_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=r"v\.json: no votes") as error:
        votes.keep(path, tmp_path / "votes")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "votes").exists()
