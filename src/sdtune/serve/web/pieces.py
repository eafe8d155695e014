"""Pictures in pages: side by side, under a slider, small in a gallery; and files that come from the browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import events, ui

from sdtune.serve.queue import Picture
from sdtune.serve.web.frame import say, tag

PNG = ".png,.jpg,.jpeg,.webp"


def address(picture: Picture | str, kind: str = "file") -> str:
    """Where the browser gets it: kind is "file" or "thumb"."""
    return f"/api/pictures/{picture if isinstance(picture, str) else picture.id}/{kind}"


def image(source: str, alt: str, classes: str = "") -> ui.element:
    found = tag("img", classes=classes)
    found.props["src"], found.props["alt"] = source, alt
    found.props["loading"] = "lazy"
    return found


def slider(left: str, right: str, name: str) -> ui.element:
    """Two pictures of one size, one over the other: web.js moves the cut. `name` says what they show."""
    with tag("div", classes="slider") as found, tag("div", classes="stack"):
        image(left, f"original: {name}")
        with tag("div", classes="over"):
            image(right, f"tuned: {name}")
        tag("div", classes="cut")
        range_ = tag("input")
        range_.props["type"], range_.props["aria-label"] = "range", f"{name}: original to the left, tuned to the right"
    return found


def file_button(
    name: str,
    accept: str,
    limit: int,
    taken: Callable[[bytes, str], Awaitable[None]],
    *,
    icon: str = "upload_file",
    drop: str = "",
) -> ui.button:
    """A button that takes a file, in place of Quasar's uploader. `drop`: a CSS selector of where files may also be dropped."""

    async def got(event: events.UploadEventArguments) -> None:
        uploader.reset()
        await taken(await event.file.read(), event.file.name)

    def refused() -> None:
        say(f"At most {limit // 2**20} MB, one of: {accept}", bad=True)

    uploader = ui.upload(on_upload=got, on_rejected=refused, auto_upload=True, max_file_size=limit)
    uploader.classes("unseen").props(f'accept="{accept}" aria-hidden=true')
    if drop:
        uploader.props["data-drop"] = drop
    return ui.button(name, icon=icon, on_click=lambda: uploader.run_method("pickFiles")).props("outline no-caps")


def number(label: str, **options: Any) -> ui.number:
    return ui.number(label, **options).props("outlined dense")
