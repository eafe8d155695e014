"""The text in a PNG that says how it was drawn: written for web UIs and for us, and read again. Imports no torch.

What is read comes from strangers: it has limits, nothing of it is run, and what is not known is handed back as notes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from sdtune import emphasis
from sdtune.errors import ConfigError, DataError
from sdtune.samplers import SAMPLERS, titled

LONGEST = 100_000
"""Characters of a text that is read; a prompt has hundreds."""
LONGEST_LINE = 10_000
"""Characters of the line with the settings."""
MOST = {
    "steps": 1000,
    "width": 4096,
    "height": 4096,
    "guidance": 100.0,
    "strength": 4.0,
    "denoising_strength": 1.0,
    "seed": 2**63 - 1,
}
"""What a picture may ask for; more has to be said on the command line."""
_PAIR = re.compile(r'\s*(\w[\w /-]{0,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_NAMES = {
    "Steps": "steps", "CFG scale": "guidance", "Seed": "seed", "Denoising strength": "denoising_strength", "Model": "model",
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """How a picture was drawn, by its own text."""

    path: Path
    settings: Mapping[str, Any]
    """By the names of our own records, their types and bounds checked."""
    notes: tuple[str, ...]
    """What it says beyond that."""
    ours: bool
    """Whether sdtune drew it."""

    def overrides(self, given: Collection[str]) -> list[str]:
        """As `a.b=c`, but for the keys of `given` (`sample.steps`). Raises ConfigError."""
        keys = ("negative", "scheduler", "steps", "guidance", "width", "height", "strength", "denoising_strength")
        wanted = {key: self.settings[key] for key in keys if key in self.settings and f"sample.{key}" not in given}
        if (name := wanted.get("scheduler", "dpm++2m")) not in SAMPLERS:
            raise ConfigError(
                f"{self.path}: was drawn with the sampler {name[:80]!r}, which is not known here; choose one with sample.scheduler="
            )
        lines = [f"sample.{key}={toml(value)}" for key, value in wanted.items()]
        if self.settings.get("vae_tiling") and "sample.vae_tiling" not in given:
            lines.append("sample.vae_tiling=true")
        if self.settings.get("prompt_weights") and "sample.prompt_weights" not in given:
            lines.insert(0, "sample.prompt_weights=true")
        lines += self._guide(given) if "guide" in self.settings and "sample.guide" not in given else []
        return lines if "sample.seeds" in given else [*lines, f"sample.seeds=[{self.settings['seed']}]"]

    def _guide(self, given: Collection[str]) -> list[str]:
        guide: Mapping[str, str | float] = self.settings["guide"]
        if "clip" in guide and "sample.guide.clip" not in given:  # a stranger is not to choose what is loaded
            raise ConfigError(
                f"{self.path}: was steered by the CLIP model {str(guide['clip'])[:80]!r}; name it with sample.guide.clip="
            )
        return [f"sample.guide={{{', '.join(f'{key} = {toml(value)}' for key, value in guide.items())}}}"]


def toml(value: str | float) -> str:
    """A text or number as TOML writes it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def a1111_parameters(record: Mapping[str, Any]) -> str:
    """AUTOMATIC1111's grammar: the prompt, the negative prompt, a last line of `key: value` pairs.

    Web UIs always read weights: where none were read here, brackets are escaped. No `<lora:name:0.8>` is written into the
    prompt, which nobody here read; what was on the model is a pair of its own, which web UIs show and do not act on.
    """
    pairs = {
        "Steps": record["steps"], "Sampler": SAMPLERS[record["scheduler"]].title, "CFG scale": record["guidance"],
        "Seed": record["seed"], "Size": f"{record['width']}x{record['height']}", "Model": record["model"],
    }  # fmt: skip
    pairs |= {"Denoising strength": record["denoising_strength"]} if "denoising_strength" in record else {}
    pairs |= {"Tuned": tuned} if (tuned := ", ".join(_on_top(record))) else {}
    prompt, negative = (
        record[key] if record.get("prompt_weights") else emphasis.escape(record[key]) for key in ("prompt", "negative")
    )
    lines = [prompt, *([f"{_NEGATIVE} {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{k}: {_quoted(str(v))}" for k, v in pairs.items())])


def _on_top(record: Mapping[str, Any]) -> Iterator[str]:
    """What was on the model, each with its strength."""
    if "tuned" in record:
        yield f"{record['tuned']}: {record['strength']:g}"
    for row in record.get("adapters", ()):
        yield f"{row['name']}: {row['strength']:g}"


def _quoted(text: str) -> str:
    """As web UIs write what would be taken for several pairs."""
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text


def _unquoted(text: str) -> str:
    text = text.strip()
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return text.strip('"')


def read(path: Path) -> Drawn:
    """How the PNG at `path` was drawn: by our own text, or by that of web UIs. Raises DataError."""
    return _read(texts_of(path, str(path)), path)


def read_bytes(data: bytes, name: Path) -> Drawn:
    """The same of a file's content, which messages call `name`. Raises DataError."""
    return _read(texts_of(io.BytesIO(data), str(name)), name)


def _read(texts: Mapping[str, str], path: Path) -> Drawn:
    try:
        if "sdtune" in texts:
            found, ours = _of_json(texts["sdtune"]), True
        elif "parameters" in texts:
            found, ours = _of_a1111(texts["parameters"]), False
        else:
            raise ValueError("holds no text that says how it was drawn; web UIs and sdtune write one into their PNGs")
        settings, notes = _checked(found)
    except RecursionError:
        raise DataError(f"{path}: its text is nested too deeply; it was not written by sdtune") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return Drawn(path, settings, notes, ours)


def texts_of(file: Path | BinaryIO, name: str) -> dict[str, str]:
    """The texts "sdtune" and "parameters" before a PNG's pixels, which are not decoded. Raises DataError that begins with `name`."""
    try:
        with Image.open(file, formats=("PNG",)) as im:
            found = {key: im.info[key] for key in ("sdtune", "parameters") if isinstance(im.info.get(key), str)}
    except OSError as error:
        why = error.strerror.lower() if error.strerror else "not a PNG; other formats are not read"
        raise DataError(f"{name}: {why}") from None
    except Exception:  # Pillow refuses texts of more than 1 MB, and damage in many ways
        raise DataError(f"{name}: damaged, or with a text that is too large") from None
    for key, text in found.items():
        if len(text) > LONGEST:
            raise DataError(f"{name}: its text {key!r} has {len(text)} characters, at most {LONGEST} are read")
    return {key: str(text) for key, text in found.items()}


def _of_json(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        raise ValueError(f"its text has {constant} for a number")

    def whole(digits: str) -> int:
        if len(digits) > 20:
            raise ValueError(f"its text has a number of {len(digits)} digits")
        return int(digits)

    try:
        found = json.loads(text, parse_constant=refuse, parse_int=whole)
    except json.JSONDecodeError:
        raise ValueError("its text is not the JSON that sdtune writes; it was changed or damaged") from None
    if not isinstance(found, dict):
        raise ValueError("its text is not the JSON that sdtune writes; it was changed or damaged")
    return found


def parts_of(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """A web UI's text as it stands: the prompts ("prompt", "negative"), and the pairs of its last line. Raises ValueError."""
    *lines, last = text.strip().replace("\r\n", "\n").split("\n")
    pairs = {key: _unquoted(value) for key, value in _PAIR.findall(last[:LONGEST_LINE])}
    if len(pairs) < 3:  # web UIs read such a line as part of the prompt, too
        raise ValueError("its text ends without the settings (Steps, Sampler, Seed ...) that web UIs write")
    at = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    prompts = {
        "prompt": "\n".join(lines[:at]).strip(),
        "negative": "\n".join(lines[at:]).removeprefix(_NEGATIVE).strip(),
    }
    return prompts, pairs


def _of_a1111(text: str) -> dict[str, Any]:
    prompts, told = parts_of(text)
    pairs: dict[str, Any] = dict(told)
    found: dict[str, Any]
    if any(map(emphasis.weighs, prompts.values())):
        found = {**prompts, "prompt_weights": True}
    else:  # what is escaped and nothing else are letters
        found = {key: emphasis.unescape(prompt) for key, prompt in prompts.items()}
    for name, key in _NAMES.items():
        if name in pairs:
            value = pairs.pop(name)
            found[key] = value if key == "model" else _number(name, value)
    if "Sampler" in pairs:
        found["scheduler"] = _sampler(pairs.pop("Sampler"), pairs)
    if "Size" in pairs:
        width, _, height = pairs.pop("Size").partition("x")
        found |= {"width": _number("Size", width), "height": _number("Size", height)}
    return pairs | found  # a pair named as ours is no setting of theirs


def _number(name: str, text: str) -> float:
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        raise ValueError(f"its {name} is {text[:40]!r}, no number") from None


def _sampler(title: str, pairs: dict[str, Any]) -> str:
    """Our name of a web UI's sampler; newer ones write Karras as "Schedule type"; the title itself if it is not known."""
    if "Schedule type" in pairs and (whole := titled(f"{title} {pairs['Schedule type']}")):
        del pairs["Schedule type"]
        return whole
    return titled(title) or title


def _checked(found: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    texts = (
        "prompt",
        "negative",
        "scheduler",
        "model",
        "tuned",
        "precision",
        "image",
        "mask",
        "image_sha256",
        "mask_sha256",
    )
    settings = dict[str, Any]()
    for key in texts:
        if key in found:
            if not isinstance(found[key], str) or not _is_text(found[key]):
                raise ValueError(f"its {key} is no text")
            settings[key] = found[key]
    for key, most in MOST.items():
        if key in found:
            value = found[key]
            whole = key not in ("guidance", "strength", "denoising_strength")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ValueError(f"its {key} is {_shown(value)}, no {'whole ' if whole else ''}number")
            if not 0 <= value <= most:
                raise ValueError(f"its {key} is {_shown(value)}; a picture may ask for 0 to {most:g}")
            settings[key] = value
    if "adapters" in found:
        settings["adapters"] = _adapters(found["adapters"])
    settings |= {key: found[key] is True for key in ("prompt_weights", "vae_tiling") if key in found}
    if "guide" in found:
        settings["guide"] = _guide(found["guide"])
    if lacking := [key for key in ("prompt", "seed") if key not in settings]:
        raise ValueError(f"its text does not say the {' and the '.join(lacking)}")
    notes = [
        f"{_shown(key)}: {_shown(value)}"
        for key, value in found.items()
        if key not in (*texts, *MOST, "prompt_weights", "vae_tiling", "guide", "adapters", "flaw")
    ]
    return settings, tuple(notes[:20])


def _guide(found: object) -> dict[str, str | float]:
    """What a picture was steered by: keys and plain values, which the config checks."""
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise ValueError(f"its guide is {_shown(found)}, no kind with its settings")
    if "download" in found:
        raise ValueError("its guide would load something over the network, which a picture is not to ask for")
    for key, value in found.items():
        plain = _is_text(value) if isinstance(value, str) else isinstance(value, int | float)
        if not (re.fullmatch(r"[a-z_]{1,40}", key) and plain):
            raise ValueError(f"its guide's {_shown(key)} is {_shown(value)}, no text or number")
    return found


def _adapters(found: object) -> list[dict[str, Any]]:
    """What lay on the model beside its run: to be named again, and compared with."""
    kinds: dict[str, Any] = {"name": str, "strength": int | float, "sha256": str}
    rows: list[Any] = found if isinstance(found, list) else [found]
    for row in rows:
        if not (
            isinstance(row, dict)
            and row.keys() == kinds.keys()
            and all(isinstance(row[k], t) for k, t in kinds.items())
        ):
            raise ValueError(f"its adapters are {_shown(found)}, no names with strengths and hashes")
        if not all(_is_text(row[k]) and len(row[k]) < 300 and row[k].isprintable() for k in ("name", "sha256")):
            raise ValueError("its adapters have names that are no text")
    return rows


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8 and shown: no half characters, no control signs but breaks."""
    return not any("\ud800" <= c <= "\udfff" or (c < " " and c not in "\n\t\r") for c in value)


def _shown(value: object) -> str:
    """For messages: one short line that no terminal takes for commands."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text[:80])
    return text + ("..." if len(text) == 80 else "")
