"""The page Blind vote: which of two pictures is better, without knowing which model drew it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from nicegui import events, ui

from sdtune.data.layouts import plural
from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.queue import Picture
from sdtune.serve.registry import Entry
from sdtune.serve.web import wishes
from sdtune.serve.web.book import Book, Choice, Vote
from sdtune.serve.web.create import ask, views
from sdtune.serve.web.frame import alarm, empty, frame, say, section, tag
from sdtune.serve.web.pieces import address, image
from sdtune.serve.web.tally import tally

LOOKED = 500
"""Jobs that pairs are taken from, the newest."""


@dataclass(frozen=True)
class Pair:
    job: str
    seed: int
    prompt: str
    original: Picture
    tuned: Picture


def pairs(server: Server, model: str) -> list[Pair]:
    """Original and tuned pictures of one prompt and seed, drawn from noise with `model`, the newest first."""
    found = []
    for job in server.queue.jobs(("done",), limit=LOOKED):
        if job.wish.get("kind") == "compare" and job.wish["model"] == model and not job.wish["image"]:
            by_seed: dict[int, dict[str, Picture]] = {}
            for picture in server.queue.pictures_of(job.id):
                by_seed.setdefault(picture.record["seed"], {})[picture.kind] = picture
            found += [
                Pair(job.id, seed, job.wish["prompt"], two["original"], two["tuned"])
                for seed, two in by_seed.items()
                if len(two) == 2
            ]
    return found


def add(server: Server, book: Book) -> None:
    @ui.page("/vote")
    def page(model: str = "") -> None:
        with frame("Create", "/"):
            views("/vote")
            tuned = [e for e in server.registry.entries.values() if e.kind != "original"]
            if not tuned:
                empty(
                    "Nothing to vote on",
                    "A blind vote sets a tuned model against its original; only originals are served here.",
                    "/train",
                    "Train one",
                )
                return
            _Voting(server, book, tuned, model)


class _Voting:
    def __init__(self, server: Server, book: Book, tuned: list[Entry], model: str) -> None:
        self.server, self.book = server, book
        names = [e.id for e in tuned]
        self.model = model if model in names else names[0]
        self._now: tuple[Pair, bool] | None = None
        with ui.row().classes("fields"):
            ui.select(names, label="Model", value=self.model, on_change=lambda e: self._choose(e.value)).props(
                "outlined dense"
            )
        self._box = tag("div", classes="voting")
        with section("So far"):
            self._result = tag("div")
        with section(
            "More pairs",
            "Each prompt counts once, however many votes its pictures get: new prompts tell more than new seeds.",
        ):
            self._more()
        ui.keyboard(on_key=self._key)
        ui.timer(3.0, self._look)
        self._next()

    def _choose(self, model: str) -> None:
        self.model = model
        self._next()

    # ---- one pair after the other

    def _waiting(self) -> list[Pair]:
        voted = {(v.job, v.seed) for v in self.book.votes(self.model)}
        return [p for p in pairs(self.server, self.model) if (p.job, p.seed) not in voted]

    def _next(self) -> None:
        """One of the pairs without a vote, its sides by chance."""
        left = self._waiting()
        self._now = (secrets.choice(left), bool(secrets.randbelow(2))) if left else None
        self._box.clear()
        with self._box:
            if self._now:
                self._show(*self._now, len(left))
            else:
                empty("No pair is waiting", "Draw pairs below, or draw with Both on the first page; then vote here.")
        self._count()

    def _show(self, pair: Pair, tuned_left: bool, left: int) -> None:
        tag("h2", f"Which shows better: {pair.prompt}")
        sides = (pair.tuned, pair.original) if tuned_left else (pair.original, pair.tuned)
        with tag("div", classes="two"):
            for name, picture, key in zip(("left", "right"), sides, "12", strict=True):
                with tag("button", classes="choice").props("type=button").on("click", lambda n=name: self._vote(n)):
                    image(f"{address(picture)}", f"{name} picture")
                    with tag("span"):
                        tag("kbd", key)
                        tag("span", f" {name} is better")
        with ui.row().classes("fields"):
            ui.button("No difference (3)", on_click=lambda: self._vote("same")).props("outline no-caps")
            tag("p", f"{left} waiting", "note").props("role=status")

    def _key(self, event: events.KeyEventArguments) -> None:
        side = {"1": "left", "2": "right", "3": "same"}.get(str(event.key))
        if side and event.action.keydown and not event.action.repeat and self._now:
            self._vote(side)

    def _vote(self, side: str) -> None:
        assert self._now
        pair, tuned_left = self._now
        choice: Choice = "same" if side == "same" else "tuned" if (side == "left") == tuned_left else "original"
        self.book.vote(Vote(pair.job, pair.seed, self.model, pair.prompt, choice))
        self._next()

    def _look(self) -> None:
        """New pairs may have been drawn."""
        if self._now is None and self._waiting():
            self._next()

    # ---- what came out, and more to vote on

    def _count(self) -> None:
        self._result.clear()
        found = tally(self.book.votes(self.model))
        with self._result:
            if not found.votes:
                tag("p", "No votes on this model yet.", "note")
                return
            colour, sentence = found.verdict
            tag("p", sentence, f"verdict {colour}")
            counts = f"{plural(found.votes, 'vote')} on {plural(found.prompts, 'prompt')}"
            tag("p", f"{counts}; sign test over prompts, p = {found.p:.3f}.", "note")

    def _more(self) -> None:
        entry = self.server.registry.get(self.model)
        assert entry
        text = (
            ui.textarea("Prompts, one a line", value="\n".join(wishes.examples(entry)))
            .props("outlined autogrow")
            .classes("prompts")
        )
        fault = tag("div")

        def draw() -> None:
            fault.clear()
            values = wishes.usual(self.server.registry.get(self.model) or entry) | {"draw": "compare"}
            lines = [line.strip() for line in str(text.value or "").splitlines() if line.strip()]
            try:
                for line in lines:
                    ask(self.server, wishes.body(values | {"prompt": line}, self.server.registry))
            except ApiError as error:
                with fault:
                    alarm(f"{error.message}.")
                return
            say(f"{len(lines)} pairs are being drawn; each comes up above as soon as it is there.")

        ui.button("Draw a pair of each", icon="brush", on_click=draw).props("no-caps")
