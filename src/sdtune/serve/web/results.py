"""The pages of results: every run with what came out of it, two beside each other, experiments, and the reports opened in place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from nicegui import ui

from sdtune import report
from sdtune.experiments.listing import when
from sdtune.judging.scores import QUESTIONS, Verdict
from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.shelf import FRESH, PAGES, CellSeen, Experiment, Page, Seen, Shelves
from sdtune.serve.web import beside
from sdtune.serve.web.comparing import Comparing
from sdtune.serve.web.frame import alarm, empty, facts, frame, section, tag
from sdtune.serve.web.live import Block
from sdtune.serve.web.parts import STYLE, answer, figures, pill, titled
from sdtune.units import duration

EVERY = 3.0
"""Seconds between two looks at the folders."""
PATIENCE = 60.0
"""Seconds that a first look at many runs may take."""
COLUMNS: tuple[tuple[str, str], ...] = (
    ("name", "Run"), ("method", "Method"), ("verdict", "What came out"), ("figure", "Figure that decides"), ("began", "Trained"),
)  # fmt: skip
SHORT = {"helped": "Helped", "moved": "Moved", "content": "Content kept", "overfit": "Overfit"}
"""The questions of a row; all are on the run's page."""
ORDER = {"good": 0, "open": 1, "bad": 2, "": 3}


def change_of(run: Seen) -> tuple[int, float]:
    """For sorting: the change of the figure that decides, the best first; runs without one come last."""
    primary = str((run.told.get("statistics") or {}).get("primary", ""))
    figure = next((f for f in run.scores.figures if f.key in (primary, f"{primary}_target")), None)
    if figure is None or figure.difference is None:
        return 1, 0.0
    return 0, figure.difference.value * (-1 if figure.better == "higher" else 1)


KEYS: dict[str, Callable[[Seen], Any]] = {
    "name": lambda r: r.name.lower(),
    "method": lambda r: (r.row.method, r.name),
    "verdict": lambda r: (ORDER[r.headline[1]], -r.row.began),
    "figure": change_of,
    "began": lambda r: r.row.began,
}
"""How the columns sort."""
NEWEST_FIRST = ("began",)
"""Columns whose first order is the other way round."""


def add(server: Server) -> None:
    async def look() -> Shelves:
        return await asyncio.to_thread(server.shelf.look, FRESH)

    @ui.page("/results", response_timeout=PATIENCE)
    async def runs(run: str = "") -> None:
        """`run`: an id of `Work`, whose run is then shown."""
        ui.add_head_html(STYLE)
        found = await look()
        folder = await asyncio.to_thread(server.work.folder_of, run) if run else None
        if folder and (same := [seen for seen in found.runs if seen.path == folder.resolve()]):
            ui.navigate.to(f"/results/run/{quote(same[0].id)}")
            return
        with frame("Results", "/results"):
            _List(found, look)

    @ui.page("/results/run/{name}", response_timeout=PATIENCE)
    async def run(name: str, page: str = "") -> None:
        ui.add_head_html(STYLE)
        try:
            seen = (await look()).run(name)
        except ApiError:
            _missing("run")
            return
        with frame(seen.name, "/results"):
            _back()
            _run(server, seen, page)

    @ui.page("/results/experiment/{name}", response_timeout=PATIENCE)
    async def experiment(name: str, page: str = "") -> None:
        ui.add_head_html(STYLE)
        try:
            found = (await look()).experiment(name)
        except ApiError:
            _missing("experiment")
            return
        with frame(found.name, "/results"):
            _back()
            _experiment(found, page)

    @ui.page("/results/beside/{a}/{b}", response_timeout=PATIENCE)
    async def pair(a: str, b: str) -> None:
        ui.add_head_html(STYLE)
        try:
            found = await look()
            two = found.run(a), found.run(b)
        except ApiError:
            _missing("run")
            return
        with frame("Beside each other", "/results"):
            _back()
            beside.show(*two)


def _missing(what: str) -> None:
    with frame(f"No such {what}", "/results"):
        empty(
            "It is not here",
            f"The {what} was removed or renamed, or the address has a slip in it.",
            "/results",
            "All results",
        )


def _back() -> None:
    with tag("p", classes="back"):
        ui.link("All results", "/results")


# ---- the list


class _List:
    def __init__(self, found: Shelves, look: Callable[[], Any]) -> None:
        self._look, self._found = look, found
        self._sort, self._turned, self._inside = "began", True, False
        self._chosen = list[str]()
        with section("Runs"):
            self._tools()
            self._body = tag("div")
            self._table = Block(self._body, self._show_runs)
        with section("Experiments", "Several ways to train, each with several seeds, on one leaderboard."):
            self._boards = Block(tag("div"), _show_experiments)
        self._show()
        ui.timer(EVERY, self._again, immediate=False)

    def _tools(self) -> None:
        with tag("div", classes="tools") as self._bar:
            options = {key: f"Sort by: {name.lower()}" for key, name in COLUMNS}
            self._select = ui.select(options, value=self._sort, on_change=lambda e: self._chose(e.value)).props(
                "outlined dense options-dense"
            )
            self._select.props["aria-label"] = "Sort by"
            self._select.classes("narrow-only")
            inside = sum(bool(r.experiment) for r in self._found.runs)
            self._switch = ui.switch(f"Runs of experiments, too ({inside})", on_change=lambda e: self._widen(e.value))
            self._switch.set_visibility(bool(inside))
            self._beside = ui.button("Show two beside each other", on_click=self._go).props("outline no-caps")
            self._hint = tag("span", "", "soft").props('aria-live="polite"')

    def _rows(self) -> list[Seen]:
        rows = [r for r in self._found.runs if self._inside or not r.experiment]
        rows.sort(key=KEYS[self._sort], reverse=self._turned)
        return rows

    def _show(self) -> None:
        rows = self._rows()
        self._chosen = [name for name in self._chosen if any(r.id == name for r in rows)]
        self._bar.set_visibility(bool(self._found.runs))
        self._table.show((self._sort, self._turned, tuple(rows)))
        self._boards.show(list(self._found.experiments))
        self._count()

    async def _again(self) -> None:
        self._found = await self._look()
        self._show()

    def _by(self, key: str) -> None:
        if key == self._sort:
            self._turned = not self._turned
        else:
            self._sort, self._turned = key, key in NEWEST_FIRST
            self._select.set_value(key)
        self._show()

    def _chose(self, key: str) -> None:
        if key != self._sort:
            self._by(key)

    def _widen(self, inside: bool) -> None:
        self._inside = inside
        self._show()

    def _show_runs(self, shown: tuple[str, bool, tuple[Seen, ...]]) -> None:
        _, _, rows = shown
        if not rows:
            _no_runs(self._found)
            return
        with tag("table", classes="rows"):
            tag("caption", "Runs, with what came out of each", "spoken")
            with tag("thead"), tag("tr"):
                with tag("th").props("scope=col"):
                    tag("span", "Choose", "spoken")
                for key, name in COLUMNS:
                    self._head(key, name)
            with tag("tbody"):
                for row in rows:
                    self._row(row)

    def _head(self, key: str, name: str) -> None:
        with tag("th").props("scope=col") as head:
            if key == self._sort:
                head.props["aria-sort"] = "descending" if self._turned else "ascending"
            with tag("button", classes="sort").props("type=button") as button:
                tag("span", name)
                tag("span", ("▾" if self._turned else "▴") if key == self._sort else "", "arrow").props(
                    "aria-hidden=true"
                )
            button.on("click", lambda: self._by(key))

    def _row(self, run: Seen) -> None:
        text, tone = run.headline
        with tag("tr"):
            with tag("td", classes="choose"):
                box = ui.checkbox(value=run.id in self._chosen, on_change=lambda e: self._choose(run.id, e.value))
                box.props["aria-label"] = f"Choose {run.name}"
                if not run.row.compared:
                    box.disable()
            with tag("th", classes="name").props("scope=row"):
                ui.link(run.name, f"/results/run/{run.id}")
                tag("span", f"on {run.base}" if run.base else "", "soft")
            titled("Method", run.row.method)
            with tag("td", classes="verdict"):
                tag("p", text, tone or "soft")
                _marks(run)
                _next_step(run)
            titled("Figure that decides", run.row.primary)
            titled("Trained", when(run.row.began))

    def _choose(self, name: str, chosen: bool) -> None:
        self._chosen = [n for n in self._chosen if n != name] + ([name] if chosen else [])
        self._count()

    def _count(self) -> None:
        n = len(self._chosen)
        self._beside.set_enabled(n == 2)
        texts = {0: "Choose two runs that were compared.", 1: "Choose one more.", 2: ""}
        self._hint.set_text(texts.get(n, f"{n} are chosen; two can be shown."))

    def _go(self) -> None:
        if len(self._chosen) == 2:
            ui.navigate.to("/results/beside/{}/{}".format(*self._chosen))


def _marks(run: Seen) -> None:
    told = {v.key: v for v in run.scores.verdicts}
    if not told:
        return
    with tag("ul", classes="marks"):
        for key, name in SHORT.items():
            if key in told:
                with tag("li"):
                    answer(name, told[key])


def _next_step(run: Seen) -> None:
    if run.row.state == "finished" and not run.row.compared:
        ui.link("Compare now", f"/results/run/{run.id}").classes("go")
    elif run.row.message:
        tag("p", run.row.message.splitlines()[0][:200], "soft")
    elif run.row.state == "running":
        tag("p", f"step {run.row.step} of {run.row.steps}", "soft")


def _no_runs(found: Shelves) -> None:
    if found.runs:
        empty("Every run here belongs to an experiment", "The switch above shows them; their leaderboards are below.")
    else:
        empty(
            "No run to look at", "The server was started with models alone. Start it with a run or a folder of runs, or train one.",
            "/train", "To Train",
        )  # fmt: skip


def _show_experiments(found: list[Experiment]) -> None:
    if not found:
        empty(
            "No experiment here",
            "The command sdtune experiment makes one; start the server with its folder to see it here.",
        )
        return
    with tag("div", classes="cards"):
        for one in found:
            done, of = one.trainings
            with tag("div", classes="card"):
                with tag("h3"):
                    ui.link(one.name, f"/results/experiment/{one.id}")
                tag("p", _sentence(one.summary) or "No leaderboard yet.", "" if one.summary else "soft")
                told = [f"decided by {one.decides}"] if one.decides else []
                told += [f"{done} of {of} trainings finished"] if of else []
                told += [when(one.made_at)] if one.made_at else []
                tag("p", " · ".join(told), "soft")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


# ---- a run


def _run(server: Server, run: Seen, page: str) -> None:
    text, tone = run.headline
    tag("p", text, f"headline {tone or 'soft'}")
    if run.row.message:
        alarm(run.row.message.splitlines()[0][:400])
    facts([(name, value) for name, value in _facts(run) if value])
    if run.pages:
        tag("a", f"To the {'report' if run.row.compared else 'timeline'}", "to-shown").props("href=#shown")
    if run.row.state == "finished":
        Comparing(server, run)
    if run.scores.verdicts:
        with section("Questions and answers"), tag("ul", classes="verdicts"):
            for verdict in run.scores.verdicts:
                _verdict(verdict)
    if run.scores.figures:
        with tag("details", classes="more"):
            tag("summary", f"All {len(run.scores.figures)} figures, with their 95% intervals")
            figures(report.table(run.scores.figures))
    _pages(run.id, run.name, [p for p in run.pages if p != "scores"], page, "report")


def _facts(run: Seen) -> list[tuple[str, str]]:
    row = run.row
    return [
        ("Method", row.method), ("On", run.base), ("State", row.state), ("Steps", f"{row.step} of {row.steps}" if row.steps else ""),
        ("Trained", when(row.began)), ("Training took", duration(row.seconds) if row.seconds else ""),
        ("Size of the result", f"{row.size_mb:.3g} MB" if row.size_mb else ""),
        ("Compared", when(run.compared_at) if run.compared_at else ""), ("Comparison took", duration(run.took) if run.took else ""),
    ]  # fmt: skip


def _verdict(verdict: Verdict) -> None:
    with tag("li", classes="card"):
        with tag("div", classes="card-head"):
            tag("h3", QUESTIONS[verdict.key][0])
            pill(verdict)
        tag("p", verdict.because)
        if verdict.detail:
            tag("p", verdict.detail, "soft")


# ---- an experiment


def _experiment(found: Experiment, page: str) -> None:
    tag(
        "p",
        _sentence(found.summary) or "There is no leaderboard yet; sdtune experiment writes it at the end.",
        "headline",
    )
    done, of = found.trainings
    facts(
        [
            (name, value)
            for name, value in (
                ("Decided by", found.decides),
                ("Trainings", f"{done} of {of} finished" if of else ""),
                ("Leaderboard made", when(found.made_at) if found.made_at else ""),
            )
            if value
        ]
    )
    if found.cells:
        with section("Cells"):
            _cells(found.cells)
    _pages(found.id, found.name, list(found.pages), page, "board")


STATES = {"finished": "good", "failed": "bad", "running": "open", "begun": "open", "to compare": "open", "missing": ""}


def _cells(cells: tuple[CellSeen, ...]) -> None:
    with tag("table", classes="rows"):
        tag("caption", "Cells, with the state of each training", "spoken")
        with tag("thead"), tag("tr"):
            for name in ("Cell", "Settings", "Trainings"):
                tag("th", name).props("scope=col")
        with tag("tbody"):
            for cell in cells:
                with tag("tr"):
                    tag("th", cell.name, "name").props("scope=row")
                    titled("Settings", cell.settings)
                    with tag("td"), tag("ul", classes="marks"):
                        for seed, state, run in cell.runs:
                            with tag("li", classes=STATES.get(state, "")):
                                if run:
                                    ui.link(f"seed {seed}", f"/results/run/{run}")
                                else:
                                    tag("span", f"seed {seed}")
                                tag("span", state)


# ---- what others wrote, opened in place


def _pages(name: str, title: str, pages: list[Page], chosen: str, usual: Page) -> None:
    if not pages:
        return
    now = next((p for p in pages if p == chosen), usual if usual in pages else pages[0])
    with section(PAGES[usual if usual in pages else now]):
        with tag("div", classes="tools"):
            with tag("nav", classes="tabs").props('aria-label="What is shown"'):
                for page in pages:
                    link = tag("a", PAGES[page]).props(f"href=?page={page}#shown")
                    if page == now:
                        link.props('aria-current="page"')
            href = f"/api/results/{name}/{now}"
            tag("a", "Open in a tab").props(f'href="{href}" target="_blank" rel="noopener"')
            tag("a", "Download").props(f'href="{href}?download=true" download')
        with tag("div", classes="shown").props("id=shown"):
            _opened(href, f"{PAGES[now]} of {title}", picture=now in ("timeline", "sheet"))


def _opened(href: str, title: str, *, picture: bool) -> None:
    if picture:
        with tag("div", classes="scroll").props("tabindex=0 role=region") as region:
            region.props["aria-label"] = title
            image = tag("img").props(f'src="{href}" loading="lazy"')
            image.props["alt"] = title
    else:
        shown = tag("iframe").props(
            f'src="{href}" sandbox="allow-scripts allow-downloads" loading="lazy" referrerpolicy="no-referrer"'
        )
        shown.props["title"] = title
