"""Two runs beside each other: answers, figures, and the pictures of the same prompts and seeds."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from sdtune import report
from sdtune.judging.scores import QUESTIONS
from sdtune.serve.shelf import Seen
from sdtune.serve.web.frame import empty, section, tag
from sdtune.serve.web.parts import SIGNS, TONES, figure

PICTURES = 24
"""Rows at most; evenly spread over all."""


def show(a: Seen, b: Seen) -> None:
    """The part of the page below its heading."""
    if not (a.row.compared and b.row.compared):
        empty(
            "One of them was not compared", "Compare it first: what it draws is known then.", "/results", "All results"
        )
        return
    if why := differs(a, b):
        tag("p", f"{why} What stands beside each other here is no fair comparison.", "notice").props('role="status"')
    else:
        text = "Both were asked for the same prompts and seeds. "
        text += "The command sdtune compare, with both, says whether more than chance tells them apart."
        tag("p", text, "lead")
    with section("Answers"):
        _answers(a, b)
    with section("Figures", "Of the tuned models, with 95% intervals."):
        _figures(a, b)
    with section("Pictures"):
        _pictures(a, b)


def differs(a: Seen, b: Seen) -> str:
    """Why the two cannot be held against each other; "" if they can."""
    one, two = (run.told.get("plan") or {} for run in (a, b))
    if a.base != b.base:
        return "They began from different models."
    for key, what in (("prompts", "prompts"), ("seeds", "seeds")):
        if one.get(key) != two.get(key):
            return f"They were asked for different {what}."
    files = [[row.get("file") for row in plan.get("reference", [])] for plan in (one, two)]
    if files[0] != files[1]:
        return "They are held against different pictures."
    return "" if _scorers(a) == _scorers(b) else "Different encoders looked at their pictures."


def _scorers(run: Seen) -> list[Any]:
    return [row.get("fingerprint") for row in run.told.get("encoders", [])]


def _head(a: Seen, b: Seen, first: str, *more: str) -> None:
    with tag("thead"), tag("tr"):
        tag("th", first).props("scope=col")
        for run in (a, b):
            with tag("th").props("scope=col"):
                ui.link(run.name, f"/results/run/{run.id}")
        for name in more:
            tag("th", name).props("scope=col")


def _answers(a: Seen, b: Seen) -> None:
    with tag("table", classes="rows"):
        tag("caption", "Answers of both", "spoken")
        _head(a, b, "Question")
        with tag("tbody"):
            for key, (question, _) in QUESTIONS.items():
                two = [(run, run.scores.verdict(key)) for run in (a, b)]
                if any(verdict for _, verdict in two):
                    with tag("tr"):
                        tag("th", question, "name").props("scope=row")
                        for run, verdict in two:
                            with tag("td") as cell:
                                cell.props["data-name"] = run.name
                                if verdict:
                                    tag(
                                        "span", f"{SIGNS[verdict.good]} {verdict.answer}", f"pill {TONES[verdict.good]}"
                                    )


def _figures(a: Seen, b: Seen) -> None:
    tables = [{row["key"]: row for row in report.table(run.scores.figures)} for run in (a, b)]
    with tag("table", classes="rows figures"):
        tag("caption", "Figures of both", "spoken")
        _head(a, b, "Figure", "Base", "Real pictures")
        with tag("tbody"):
            for key in dict.fromkeys([*tables[0], *tables[1]]):
                rows = [table.get(key) for table in tables]
                row = rows[0] or rows[1]
                assert row
                if not any(r and r["tuned"] for r in rows):
                    continue
                with tag("tr"):
                    with tag("th", classes="name").props("scope=row"):
                        tag("span", row["label"])
                        tag("span", f"{row['better']} is better" if row["better"] else "", "soft")
                    for run, own in zip((a, b), rows, strict=True):
                        tone = {1: "good", -1: "bad"}.get(own["side"], "") if own else ""
                        figure(run.name, own["tuned"] if own else None, tone)
                    figure("Base", row["base"])
                    figure("Real pictures", row["real"])


def shared_pictures(a: Seen, b: Seen) -> list[tuple[str, int, int, int]]:
    """Prompt, seed, and the picture's place in each, of what both have drawn."""
    places = {_asked(row): i for i, row in enumerate(b.told.get("pictures", []))}
    return [
        (*asked, i, places[asked])
        for i, row in enumerate(a.told.get("pictures", []))
        if (asked := _asked(row)) in places
    ]


def _asked(row: dict[str, Any]) -> tuple[str, int]:
    return str(row.get("prompt", "")), int(row.get("seed", 0))


def _pictures(a: Seen, b: Seen) -> None:
    found = shared_pictures(a, b)
    if not found:
        empty(
            "No prompt and seed that both have drawn", "Compare them with the same settings to see their pictures here."
        )
        return
    step = -(-len(found) // PICTURES)
    with tag("ul", classes="trios"):
        for prompt, seed, i, j in found[::step]:
            with tag("li"):
                tag("p", f"{prompt} · seed {seed}", "soft")
                with tag("div", classes="trio"):
                    for run, number, side in ((a, i, "base"), (a, i, "tuned"), (b, j, "tuned")):
                        _picture(run, number, side, prompt)
    if step > 1:
        tag("p", f"{len(found[::step])} of {len(found)} pictures, evenly spread; the reports show all.", "soft")


def _picture(run: Seen, number: int, side: str, prompt: str) -> None:
    by = run.name if side == "tuned" else "base"
    with tag("figure"):
        image = tag("img").props(f'src="/api/results/{run.id}/pictures/{number}/{side}" loading="lazy"')
        image.props["alt"] = f"{prompt}, by {by}"
        tag("figcaption", by, "soft")
