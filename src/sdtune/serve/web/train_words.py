"""How the pages of trainings say things, and what they share."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from nicegui import ui

from sdtune.serve.errors import ApiError
from sdtune.serve.web.frame import say
from sdtune.serve.work import RunView
from sdtune.units import duration

STATES = {
    "queued": ("waits", "open"), "running": ("running", "good"), "stopping": ("stopping", "open"), "stopped": ("stopped", "open"),
    "finished": ("finished", "good"), "failed": ("failed", "bad"), "empty": ("not begun", "soft"),
}  # fmt: skip
"""A run's state in a word, and the class of its colour."""
AT_WORK = ("queued", "running", "stopping")


def progress(view: RunView) -> str:
    """Where a run is: "step 120 of 200 · 3.1 steps/s · 25 s left"."""
    if view.state == "queued":
        return "waits for its turn"
    parts = [f"step {view.step:,} of {view.steps:,}"]
    if view.state == "running" and view.what:
        parts.append(view.what)
    if view.rate:
        parts.append(speed(view.rate))
    if view.seconds is not None and view.state == "running":
        parts.append(f"{duration(view.seconds)} left")
    return " · ".join(parts)


def speed(rate: float) -> str:
    return f"{rate:.2g} steps/s" if rate >= 0.5 else f"{1 / rate:.2g} s a step"


def since(when: float) -> str:
    """How long ago that was."""
    passed = time.time() - when
    if passed < 90:
        return "just now"
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if passed >= size:
            number = int(passed // size)
            return f"{number} {word}{'s' if number > 1 else ''} ago"
    return "just now"


def sentence(text: str) -> str:
    """A line of the command line as a page says it: with a capital, without marks of code."""
    text = text.replace("`", "")
    return text[:1].upper() + text[1:]


async def tried(action: Callable[[], object | Awaitable[object]], done: str = "") -> bool:
    """Do it and say so, or say why not; whether it was done."""
    try:
        result = action()
        if isinstance(result, Awaitable):
            await result
    except ApiError as error:
        say(error.message, bad=True)
        return False
    if done:
        say(done)
    return True


def style() -> None:
    """Style sheet and script of these pages."""
    ui.add_head_html('<link rel="stylesheet" href="/ui/assets/train.css"><script src="/ui/assets/train.js"></script>')
