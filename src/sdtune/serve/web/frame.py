"""What all pages share: head, navigation, and how they say that something is empty, wrong or under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import Request
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement
from starlette.responses import Response

PAGES = (("/", "Create"), ("/train", "Train"), ("/results", "Results"), ("/status", "Status"))
"""Address below the app's place, and name."""
HEAD = (
    '<link rel="stylesheet" href="/ui/slider.css"><link rel="stylesheet" href="/ui/assets/web.css">'
    '<script src="/ui/assets/web.js" defer></script>'
)


@contextmanager
def frame(title: str, here: str) -> Iterator[ui.element]:
    """A page: within it, elements go into its main part. `here` is the address of its entry in PAGES."""
    ui.page_title(f"{title} · sdtune")
    ui.add_head_html(HEAD)
    with tag("a", "Skip to the content", "skip").props('href="#main"'):
        pass
    with tag("header", classes="bar"), tag("div", classes="bar-in"):
        ui.link("sdtune", "/").classes("brand").props('aria-label="sdtune: first page"')
        with tag("nav", classes="pages").props('aria-label="Pages"'):
            for target, name in PAGES:
                link = ui.link(name, target)
                if target == here:
                    link.props('aria-current="page"')
        _theme()
    with tag("div", classes="page").props('id="main" tabindex="-1"') as main:  # within the <main> that NiceGUI makes
        tag("h1", title)
        yield main


def tag(name: str, text: str = "", classes: str = "") -> TextElement:
    """An HTML element of that name with plain text; a context for what is inside."""
    return TextElement(tag=name, text=text).classes(classes)


@contextmanager
def section(title: str, lead: str = "") -> Iterator[ui.element]:
    """A part of a page under a heading of its own."""
    with tag("section") as found:
        tag("h2", title)
        if lead:
            tag("p", lead, "lead")
        yield found


def empty(title: str, text: str, target: str = "", action: str = "") -> None:
    """There is nothing here yet, why, and what to do about it."""
    with tag("div", classes="empty"):
        tag("p", title, "empty-title")
        tag("p", text)
        if target:
            ui.link(action, target).classes("go")


def alarm(text: str) -> TextElement:
    """Something is wrong: read out at once by screen readers."""
    return tag("p", text, "alarm").props('role="alert"')


def facts(rows: list[tuple[str, str]]) -> None:
    """Names and values, as a description list."""
    with tag("dl", classes="facts"):
        for name, value in rows:
            with tag("div"):
                tag("dt", name)
                tag("dd", value)


def icon_button(icon: str, name: str, action: Callable[[], object]) -> ui.button:
    """A button that shows a sign alone; `name` is what it is called."""
    button = ui.button(on_click=action, color=None).props(f'flat round dense icon={icon} aria-label="{name}"')
    with button:
        ui.tooltip(name)
    return button


def client() -> str:
    """Who asks, as the server's shares count."""
    return str(getattr(ui.context.client.request.state, "client", "web"))


def say(text: str, *, bad: bool = False) -> None:
    """A line that goes by itself; what went wrong stays longer, and can be closed."""
    if bad:
        ui.notify(text, multi_line=True, close_button="Close", timeout=10_000, classes="notice-bad")
    else:
        ui.notify(text, timeout=4000)


def _theme() -> None:
    """Light, dark, or as the system says; the browser keeps the choice."""
    dark = ui.dark_mode(value=None)
    order: tuple[bool | None, ...] = (None, False, True)
    signs = ("brightness_auto", "light_mode", "dark_mode")
    names = ("as the system", "light", "dark")

    def show() -> None:
        at = order.index(dark.value)
        button.props(f'icon={signs[at]} aria-label="Colours: {names[at]}"')

    def turn() -> None:
        dark.value = order[(order.index(dark.value) + 1) % 3]
        show()
        ui.run_javascript(f"localStorage.setItem('sdtune-colours', '{order.index(dark.value)}')")

    async def recall() -> None:
        kept = await ui.run_javascript("localStorage.getItem('sdtune-colours')", timeout=5)
        if kept in ("1", "2"):
            dark.value = order[int(kept)]
            show()

    button = ui.button(on_click=turn, color=None).props("flat round dense").classes("theme")
    show()
    ui.context.client.on_connect(recall)


async def missing(request: Request, error: Exception) -> Response:
    """The answer for a page that is not there."""
    return Response("no such page", 404, media_type="text/plain")
