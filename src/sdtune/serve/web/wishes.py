"""What the form of Create holds, and what is asked of the server with it. Knows nothing of pages."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdtune import infotext
from sdtune.config import SampleConfig
from sdtune.errors import SdtuneError
from sdtune.runs import Run
from sdtune.samplers import SAMPLERS
from sdtune.serve.registry import Entry, Registry

DRAWS = {"tuned": "Tuned", "original": "Original", "compare": "Both"}
"""Which of the two models is drawn with."""
MOST = 8
"""Pictures that the form asks for at once."""
EXAMPLES = ("a red apple", "a sailing boat", "a dog's face", "the sun")
"""Where a model says nothing of its own."""
COPIED = (
    "prompt", "negative", "steps", "guidance", "scheduler", "width", "height", "strength", "prompt_weights", "denoising_strength",
)  # fmt: skip


def usual(entry: Entry) -> dict[str, Any]:
    """The form's values to begin with: those that the run's own previews were drawn with."""
    sample = config_of(entry)
    return {
        "model": entry.id, "draw": "tuned" if entry.kind == "original" else "compare", "prompt": "", "negative": sample.negative,
        "count": 1, "chance": True, "seed": 1, "steps": sample.steps, "guidance": sample.guidance, "scheduler": sample.scheduler,
        "width": entry.resolution, "height": entry.resolution, "strength": 1.0, "prompt_weights": False, "adapters": {},
        "image": None, "mask": None, "denoising_strength": 0.75,
    }  # fmt: skip


def config_of(entry: Entry) -> SampleConfig:
    """How the previews of a run are drawn; the defaults for other models."""
    if entry.kind == "run":
        try:
            return Run(Path(entry.place)).config().sample
        except SdtuneError:  # gone since the server started
            pass
    return SampleConfig()


def examples(entry: Entry) -> list[str]:
    """Prompts to try it with."""
    return list(config_of(entry).prompts[:6] or EXAMPLES)


def body(values: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """The wish that the form's values are. What is no number stays as it is: the server says what is wrong."""
    values = {key: _whole(value) for key, value in values.items()}
    entry = registry.get(values["model"])
    both = values["draw"] == "compare" and entry is not None and entry.kind != "original"
    alone = values["draw"] == "original" and entry is not None
    wish = {key: values[key] for key in COPIED}
    wish["kind"] = "compare" if both else "inpaint" if values["mask"] else "img2img" if values["image"] else "txt2img"
    wish["model"] = entry.base if alone and entry else values["model"]
    if not values["image"]:
        del wish["denoising_strength"]
    for key in ("image", "mask"):
        wish |= {key: values[key]} if values[key] else {}
    if values["image"]:  # the size is the picture's own proportions
        wish |= {"width": None, "height": None}
    wish["adapters"] = [] if alone else [{"id": k, "strength": v} for k, v in values["adapters"].items() if v]
    first = secrets.randbelow(2**32) if values["chance"] else values["seed"]
    count = int(values["count"]) if isinstance(values["count"], int | float) else 1
    wish["seeds"] = [first + i if isinstance(first, int) else first for i in range(max(1, min(count, MOST)))]
    return wish


def _whole(value: Any) -> Any:
    """Browsers send 5.0 for 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def of_job(wish: Mapping[str, Any], seed: int | None, registry: Registry) -> dict[str, Any]:
    """The form's values that draw a job's picture again."""
    entry = registry.get(str(wish["model"]))
    values = {key: wish[key] for key in COPIED}
    values |= {
        "image": wish["image"],
        "mask": wish["mask"],
        "adapters": {row["id"]: row["strength"] for row in wish["adapters"]},
    }
    values |= {"draw": "compare" if wish["kind"] == "compare" else "tuned", "count": 1, "chance": False}
    values |= {"model": entry.id} if entry else {}
    seeds = wish.get("seeds") or [0]
    return values | {"seed": seeds[0] if seed is None else seed}


def of_file(data: bytes, name: str, registry: Registry) -> tuple[dict[str, Any], list[str]]:
    """The form's values that a PNG's own text asks for, and what was left out of it. Raises DataError."""
    drawn = infotext.read_bytes(data, Path(name))
    settings, notes = dict(drawn.settings), list(drawn.notes)
    values = {key: settings[key] for key in COPIED if key in settings}
    values |= {"seed": settings["seed"], "chance": False, "count": 1, "draw": "tuned"}
    if values.get("scheduler", "dpm++2m") not in SAMPLERS:
        notes.append(f"sampler: {values.pop('scheduler')} is not known here")
    named = settings.get("tuned") or settings.get("model", "")
    known = [e for e in registry.entries.values() if named and named in (e.tuned, e.id)]
    values |= {"model": known[0].id} if known else {}
    if named and not known:
        notes.append(f"model: {named} is not served here; the chosen one stays")
    notes += [f"{key}: is not taken over" for key in ("adapters", "guide", "image", "mask") if key in settings]
    return values, notes
