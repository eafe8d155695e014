"""The previews of a run over its steps: a slider, and for each prompt its pictures at that step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from sdtune.serve.web.frame import tag
from sdtune.serve.work import Preview


class Timeline:
    """Rows of prompts. Follows the newest step while the slider stands at the end."""

    def __init__(self) -> None:
        self._samples: list[Preview] = []
        self._at = 0
        with tag("div", classes="timeline") as self.place:
            with tag("div", classes="timeline-head") as self._head:
                tag("label", "Step").props('for="timeline-step"')
                self._slider = ui.element("input").props('type=range min=0 max=0 step=1 id="timeline-step"')
                self._step = tag("output", "", "timeline-step number").props('for="timeline-step"')
            self._slider.on("input", lambda e: self._go(int(e.args)), js_handler="(e) => emit(e.target.value)")
            self._rows = tag("div", classes="timeline-rows")
        self._pictures: dict[tuple[str, int], Any] = {}
        self.nothing = tag("p", "Previews appear here as they are drawn: the base model's first, as step 0.", "note")
        self._show()

    @property
    def steps(self) -> list[int]:
        return sorted({p.step for p in self._samples})

    def update(self, samples: Sequence[Preview]) -> None:
        """Show these; the same again costs nothing."""
        samples = list(samples)
        if samples == self._samples:
            return
        follows = self._at >= len(self.steps) - 1
        rows = [(p.prompt, p.seed) for p in self._samples]
        self._samples = samples
        if set(rows) != {(p.prompt, p.seed) for p in samples}:
            self._draw_rows()
        self._at = len(self.steps) - 1 if follows else self._at
        self._slider.props["max"] = len(self.steps) - 1
        ui.run_javascript(
            f"sdtuneSlide({len(self.steps) - 1}, {self._at})"
        )  # a `value` of ours would pull at it while it is held
        self._head.set_visibility(len(self.steps) > 1)
        self._show()

    def _draw_rows(self) -> None:
        prompts = dict.fromkeys(p.prompt for p in self._samples)
        self._rows.clear()
        self._pictures = {}
        with self._rows:
            for prompt in prompts:
                seeds = sorted({p.seed for p in self._samples if p.prompt == prompt})
                with tag("figure", classes="previews"):
                    tag("figcaption", prompt or "(no words)")
                    with tag("div", classes="previews-row"):
                        for seed in seeds:
                            self._pictures[prompt, seed] = ui.element("img").props("decoding=async")

    def _go(self, at: int) -> None:
        self._at = max(0, min(at, len(self.steps) - 1))
        self._show()

    def _show(self) -> None:
        self.place.set_visibility(bool(self._samples))
        self.nothing.set_visibility(not self._samples)
        if not self._samples:
            return
        step = self.steps[self._at]
        said = f"{step:,}" if step else "0, the base"
        self._step.text = said
        self._slider.props["aria-valuetext"] = f"step {said}"
        for key, image in self._pictures.items():
            found = [p for p in self._samples if (p.prompt, p.seed) == key and p.step <= step]
            if not found:
                image.set_visibility(False)
                continue
            preview = found[-1]
            image.set_visibility(True)
            if image.props.get("src") != preview.href:
                image.props["src"] = preview.href
                image.props["alt"] = f"{preview.prompt}, seed {preview.seed}, step {preview.step}"
                image.props["title"] = f"seed {preview.seed}"
