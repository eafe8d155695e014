"""What the pages of results share: answers in colour and words, tables of figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from sdtune.judging.scores import Verdict
from sdtune.serve.web.frame import tag

STYLE = '<link rel="stylesheet" href="/ui/assets/results.css">'
SIGNS = {True: "✓", False: "✗", None: "?"}
TONES = {True: "good", False: "bad", None: "open"}


def titled(name: str, text: str) -> None:
    """A cell of a table; on a narrow screen, where the table's head is hidden, with the column's name."""
    cell = tag("td", text, "number" if any(c.isdigit() for c in text) else "")
    if text:
        cell.props["data-name"] = name


def answer(name: str, verdict: Verdict) -> None:
    """Helped: yes, in the colour of what one hopes for; the sign says the same to those who see no colours."""
    with tag("span", classes=f"answer {TONES[verdict.good]}"):
        tag("span", SIGNS[verdict.good]).props("aria-hidden=true")
        tag("span", f"{name}: {verdict.answer}")


def pill(verdict: Verdict) -> None:
    tag("span", f"{SIGNS[verdict.good]} {verdict.answer}", f"pill {TONES[verdict.good]}")


def figures(rows: Sequence[dict[str, Any]]) -> None:
    """The table of a report; a row is as `report.table` makes it."""
    heads = (("base", "Base"), ("tuned", "Tuned"), ("difference", "Change"), ("real", "Real pictures"))
    with tag("table", classes="rows figures"):
        tag("caption", "Figures with their 95% intervals", "spoken")
        with tag("thead"), tag("tr"):
            for name in ("Figure", *(name for _, name in heads)):
                tag("th", name).props("scope=col")
        with tag("tbody"):
            for row in rows:
                with tag("tr", classes="" if row["evidence"] else "weak"):
                    _name(row)
                    for key, name in heads:
                        tone = {1: "good", -1: "bad"}.get(row["side"], "") if key == "difference" else ""
                        figure(name, row[key], tone)


def _name(row: dict[str, Any]) -> None:
    with tag("th", classes="name").props("scope=row"):
        tag("span", row["label"])
        better = f"{row['better']} is better" if row["better"] else ""
        tag("span", row["note"] if not row["evidence"] else better, "soft")


def figure(name: str, value: tuple[str, str] | None, tone: str = "") -> None:
    """A cell: a value, and its interval below."""
    with tag("td", classes="number") as cell:
        if value is None:
            return
        cell.props["data-name"] = name
        with tag("span"):
            tag("span", value[0], tone)
            if value[1]:
                tag("span", f" ({value[1]})", "soft")


def go(text: str, target: str) -> ui.link:
    """A link to a page of this app, as the next thing to do."""
    return ui.link(text, target).classes("go")
