"""The models in the worker: each original is in memory once, and what was trained lies on it and is switched."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from sdtune import config as configs
from sdtune import devices, tuned
from sdtune.config import SampleConfig
from sdtune.errors import ConfigError, ModelError, SdtuneError
from sdtune.model import Model
from sdtune.objective import parts
from sdtune.opened import Opened
from sdtune.runs import Run
from sdtune.sample import Look, Sample, sample, save_png, to_images
from sdtune.sample import Row as MixedRow
from sdtune.serve.registry import Entry, Registry
from sdtune.serve.setup import Setup
from sdtune.serve.store import Store, picture_id
from sdtune.shortage import is_out_of_memory

PREVIEW = 256
"""Pixels of a preview's longer side, at most."""
PAUSE = 0.5
"""Seconds between two previews, at least."""
BEAT = 0.1
"""Seconds between two lines that tell the step, at least: each costs the server and every listener a millisecond."""
SHARE = 0.2
"""Of the time previews take no more than this."""
Say = Callable[[dict[str, Any]], object]


@dataclass
class _Loaded:
    """An original in memory, and what lies on it."""

    model: Model
    config: SampleConfig
    opened: Opened
    on: Entry | None = None


class Stopped(Exception):
    """Nobody wants what is being drawn any longer."""


class Engine:
    """Draws wishes. Used by one thread."""

    def __init__(self, setup: Setup, cancelled: Callable[[str], bool], say: Say) -> None:
        self.registry, self.store = Registry.loaded(setup.entries), Store(Path(setup.folder))
        self.setup, self._cancelled, self._say = setup, cancelled, say
        threads = devices.set_up_cpu(setup.threads)
        if not setup.threads and setup.workers > 1:
            devices.set_up_cpu(max(1, threads // setup.workers))
        if ":" in setup.device and torch.cuda.is_available():
            torch.cuda.set_device(setup.device)
        self.device, self.dtype = place(setup.device, setup.precision)
        self.batch = setup.batch or (1 if self.device.type == "cpu" else 8)
        self._loaded = OrderedDict[str, _Loaded]()

    @property
    def others(self) -> list[str]:
        """Where further workers are to compute: on the other CUDA devices, if none was named, or on the same CPU."""
        if self.device.type == "cpu":
            return ["cpu"] * (self.setup.workers - 1)
        count = torch.cuda.device_count() if self.device.type == "cuda" and ":" not in self.setup.device else 0
        return [f"cuda:{number}" for number in range(1, count)]

    @property
    def models(self) -> list[str]:
        """Ids of what is in memory: originals, and what lies on them."""
        on = [loaded.on.id for loaded in self._loaded.values() if loaded.on is not None]
        return [*self._loaded, *on]

    # ---- models

    def grow(self, entries: Sequence[dict[str, Any]]) -> None:
        """More models, or others under known ids: those are read anew when they are next drawn with."""
        self.registry.add([Entry(**row) for row in entries])

    def suit(self, entry: Entry) -> _Loaded:
        """The original of `entry` in memory, with `entry` on it; of an original whatever lies there, to be drawn at strength 0."""
        loaded = self._original(entry.base)
        if entry.kind != "original" and loaded.on != entry:
            loaded.opened.close()
            loaded.on, loaded.opened = None, Opened(loaded.model)
            loaded.model.chunks = entry.chunks
            place = Path(entry.place)
            own = (
                tuned.of_run(loaded.model, Run(place), entry.which)
                if entry.kind == "run"
                else tuned.load(loaded.model, place)
            )
            loaded.on, loaded.opened = entry, Opened(loaded.model, own)
        loaded.model.chunks = entry.chunks
        return loaded

    def _original(self, name: str) -> _Loaded:
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        while len(self._loaded) >= self.setup.keep:
            self._loaded.popitem(last=False)
            self.free()
        config = configs.from_dict({"model": json.loads(self.registry.entries[name].model)})
        model = config.model.load(device=self.device, dtype=self.dtype)
        self._loaded[name] = _Loaded(model, config.sample, Opened(model))
        return self._loaded[name]

    def free(self) -> None:
        """Give back what nothing holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    def memory(self) -> dict[str, int]:
        """Bytes: of the models' weights, each counted once; of the process or the device; what is free there, and all of it."""
        seen = dict[int, int]()
        for loaded in self._loaded.values():
            for tensor in _tensors(loaded):
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
        free, total = _room(self.device)
        used = torch.cuda.memory_allocated() if self.device.type == "cuda" else _resident()
        return {"weights": sum(seen.values()), "used": used, "free": free, "total": total}

    # ---- drawing

    def draw(self, jobs: Sequence[dict[str, Any]]) -> None:
        """Draw jobs that agree (`dispatch.together`); say of each how far it is and how it ended. Raises nothing that concerns a job."""
        todo = [_Todo.of(job) for job in jobs]
        try:
            self._draw(todo)
        except Exception as error:
            if len(todo) > 1 and is_out_of_memory(error):
                self.free()
                for one in todo:
                    if not one.ended:
                        self.draw([one.job])
                return
            for one in todo:
                self._end(one, error)
            self.free()

    def _draw(self, todo: Sequence[_Todo]) -> None:
        wish = todo[0].wish
        entry = self.registry.get(wish["model"])
        if entry is None:
            raise ModelError(f"{wish['model']}: not here any more")
        loaded = self.suit(entry)
        passes = list[_Pass]()
        for half, (name, strength, stacked) in enumerate(_passes(entry, wish)):
            if rows := [row for one in todo for row in one.rows(half, name)]:
                passes.append(_Pass(rows, self._config(loaded.config, wish, strength, stacked=stacked), entry))
        if len(passes) == 2 and self.batch > 1 and entry.stackable:
            self._draw_mixed(loaded, passes)
        else:
            for one_pass in passes:
                self._draw_pass(loaded, one_pass)
        for one in todo:
            self._end(one, Stopped() if self._cancelled(one.name) else None)

    def _draw_pass(self, loaded: _Loaded, now: _Pass) -> None:
        texts = loaded.opened.suit(now.config)
        more, drawing = now.record(loaded.opened), _Drawing(self, loaded.model, now.rows)
        pairs = [row.pair for row in now.rows]
        for picture in sample(loaded.model, now.config, pairs=pairs, texts=texts, on_step=drawing.looked):
            self._take(drawing, picture, more)

    def _draw_mixed(self, loaded: _Loaded, passes: Sequence[_Pass]) -> None:
        """Originals and tuned ones in the same batches: each adapter on the denoiser acts in the rows of its own."""
        rows, more = list[tuple[_Row, MixedRow]](), list[dict[str, Any]]()
        for acts, now in zip((False, True), passes, strict=True):
            texts = loaded.opened.suit(now.config)
            texts.learn([row.pair[0] for row in now.rows], now.config.negative)
            rows += [(row, MixedRow(*row.pair, texts, acts)) for row in now.rows]
            more.append({"strength": now.config.strength, **now.record(loaded.opened)})
        rows.sort(key=lambda both: both[0].place)
        drawing = _Drawing(self, loaded.model, [row for row, _ in rows])
        drawn = sample(loaded.model, passes[1].config, rows=[mixed for _, mixed in rows], on_step=drawing.looked)
        for (_, mixed), picture in zip(rows, drawn, strict=True):
            self._take(drawing, picture, more[mixed.acts])

    def _take(self, drawing: _Drawing, picture: Sample, more: dict[str, Any]) -> None:
        """The next picture of a drawing."""
        row = drawing.rows[drawing.done]
        drawing.done += 1
        if not self._cancelled(row.todo.name):
            self._keep(row, dataclasses.replace(picture, settings={**picture.settings, **more}))

    def _config(self, usual: SampleConfig, wish: dict[str, Any], strength: float, *, stacked: bool) -> SampleConfig:
        same = ("negative", "prompt_weights", "steps", "guidance", "scheduler", "width", "height", "denoising_strength")
        more = wish["adapters"] if stacked else ()
        adapters = tuple(f"{self.registry.entries[row['id']].place}:{row['strength']}" for row in more)
        changed: dict[str, Any] = {key: wish[key] for key in same}
        changed |= {key: str(self.store.path(*where)) for key, where in wish["files"].items()}
        changed |= {"prompts": (), "strength": strength, "adapters": adapters, "batch_size": self.batch}
        return dataclasses.replace(usual, **changed)

    def _keep(self, row: _Row, picture: Sample) -> None:
        """Write the file whole, then say so."""
        name = picture_id(row.todo.name, row.number)
        save_png(picture, self.store.path(name, row.kind))
        record = {"prompt": picture.prompt, "negative": picture.negative, "seed": picture.seed, **picture.settings}
        record |= {"flaw": picture.flaw} if picture.flaw else {}
        self._say(
            {
                "job": row.todo.name,
                "event": "picture",
                "id": name,
                "number": row.number,
                "kind": row.kind,
                "record": record,
            }
        )

    def _end(self, one: _Todo, error: Exception | None) -> None:
        if one.ended:
            return
        one.ended = True
        if error is None:
            self._say({"job": one.name, "event": "done"})
        elif isinstance(error, Stopped):
            self._say({"job": one.name, "event": "cancelled"})
        else:
            told = _reason(error, self._names())
            self._say({"job": one.name, "event": "failed", **told, "log": f"{type(error).__name__}: {error}"})

    def _names(self) -> dict[str, str]:
        """What places are called in front of clients."""
        entries = self.registry.entries.values()
        paths = {str(json.loads(entry.model)["path"]): entry.id for entry in entries if entry.model}
        return {**paths, **{entry.place: entry.id for entry in entries if entry.place}}


@dataclass
class _Todo:
    """One job of a batch."""

    job: dict[str, Any]
    ended: bool = False

    @classmethod
    def of(cls, job: dict[str, Any]) -> _Todo:
        return cls(job)

    @property
    def name(self) -> str:
        return str(self.job["id"])

    @property
    def wish(self) -> dict[str, Any]:
        wish: dict[str, Any] = self.job["wish"]
        return wish

    @property
    def total(self) -> int:
        return len(self.wish["seeds"]) * (2 if self.wish["kind"] == "compare" else 1)

    def rows(self, half: int, kind: str) -> Iterator[_Row]:
        """Its pictures of one kind, those that this worker is to draw."""
        for number, seed in enumerate(self.wish["seeds"], half * len(self.wish["seeds"])):
            if number in self.job["numbers"]:
                yield _Row(self, number, kind, (self.wish["prompt"], seed))


@dataclass(frozen=True)
class _Row:
    todo: _Todo
    number: int
    kind: str
    pair: tuple[str, int]

    @property
    def place(self) -> tuple[str, int]:
        """Sorts pictures from one noise to each other."""
        return self.todo.name, self.number % len(self.todo.wish["seeds"])


@dataclass(frozen=True)
class _Pass:
    """What is drawn with the model in one state."""

    rows: list[_Row]
    config: SampleConfig
    entry: Entry

    def record(self, opened: Opened) -> dict[str, Any]:
        """What pictures tell beside what `sample` knows. While `opened` is as it suits."""
        more: dict[str, Any] = {"adapters": opened.records} if opened.records else {}
        more |= {"tuned": self.entry.tuned} if self.config.strength and self.entry.tuned else {}
        if self.entry.kind == "original":  # as `sdtune sample` records it
            more["strength"] = self.rows[0].todo.wish["strength"]
        return more


class _Drawing:
    """Says how far pictures are, shows them on their way, and stops when nobody wants them."""

    def __init__(self, engine: Engine, model: Model, rows: Sequence[_Row]) -> None:
        self._engine, self._model, self.rows = engine, model, rows
        self.done = 0
        self._next = self._tell_next = 0.0

    def looked(self, look: Look) -> None:
        now = self.rows[self.done : self.done + len(look.x_BCHW)]
        if all(self._engine._cancelled(row.todo.name) for row in self.rows[self.done :]):
            raise Stopped
        began = time.monotonic()
        if began >= self._tell_next or look.number + 1 == look.count:
            self._tell_step(look, now)
            self._tell_next = began + BEAT
        if began >= self._next and look.number + 1 < look.count:
            self._show(look, now)
            spent = time.monotonic() - began
            self._next = time.monotonic() + max(PAUSE, spent / SHARE)

    def _tell_step(self, look: Look, rows: Sequence[_Row]) -> None:
        for name, row in {row.todo.name: row for row in reversed(rows)}.items():
            told = {"picture": row.number, "pictures": row.todo.total, "step": look.number + 1, "steps": look.count}
            self._engine._say({"job": name, "event": "step", **told})

    def _show(self, look: Look, rows: Sequence[_Row]) -> None:
        wanted = {row.todo.name: (i, row) for i, row in reversed(list(enumerate(rows))) if row.todo.wish["previews"]}
        if not wanted:
            return
        with suppress(RuntimeError):  # too little memory for a preview is no reason to lose the picture
            places = [i for i, _ in wanted.values()]
            images = previews(self._model, look, places)
            for (name, (_, row)), image in zip(wanted.items(), images, strict=True):
                jpeg = io.BytesIO()
                image.save(jpeg, "JPEG", quality=80)
                self._engine._say(
                    {"job": name, "event": "preview", "picture": row.number, "jpeg": _base64(jpeg.getvalue())}
                )


def place(name: str, precision: str) -> tuple[torch.device, torch.dtype]:
    """Device and type. Unless one is asked for: bf16 on CUDA, fp16 on cards that are slow at it, fp32 on MPS and CPUs."""
    device, dtype = devices.pick(name, precision, key="--device")
    if precision == "auto":
        half = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
        dtype = half if device.type == "cuda" else torch.float32
    return device, dtype


def _passes(entry: Entry, wish: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """What is drawn one after the other: kind of the pictures, strength of what lies on the original, whether further adapters do."""
    if entry.kind == "original":
        return [("tuned" if wish["adapters"] else "original", 0.0, True)]
    tuned = ("tuned", float(wish["strength"]), True)
    return [("original", 0.0, False), tuned] if wish["kind"] == "compare" else [tuned]


@torch.no_grad()
def previews(model: Model, look: Look, places: Sequence[int]) -> list[Image]:
    """What the denoiser expects the pictures at `places` of the batch to become, at most `PREVIEW` pixels a side."""
    alpha, sigma = model.noise_at(look.t)
    at = torch.tensor(places, device=look.seen_BCHW.device)
    seen_BCHW, told_BCHW = look.seen_BCHW[at].float(), look.told_BCHW[at].float()
    clean_BCHW, _ = parts(model.prediction, told_BCHW, seen_BCHW, max(alpha, 1e-3), sigma)
    shrink = max(1, -(-max(clean_BCHW.shape[-2:]) * model.downscale // PREVIEW))
    if shrink > 1:  # fewer latents: the decoder's time falls with their number
        clean_BCHW = torch.nn.functional.avg_pool2d(clean_BCHW, shrink, ceil_mode=True)
    return to_images(model.decode(clean_BCHW))


def _reason(error: Exception, names: Mapping[str, str]) -> dict[str, str]:
    """For clients: what they can mend in words of ours, the rest without details. `names`: what to call places."""
    if is_out_of_memory(error):
        return {
            "code": "out_of_memory",
            "message": "too little memory for this picture; ask for a smaller one, or for fewer at once",
        }
    if isinstance(error, ConfigError):  # of keys and values that the client sent; names no file
        return {"code": "invalid", "message": str(error).splitlines()[0].replace("sample.", "")[:300]}
    if isinstance(error, SdtuneError):
        text = str(error).splitlines()[0]
        for place in sorted(names, key=len, reverse=True):
            text = text.replace(place, names[place])
        if isinstance(error, ModelError) and not re.search(r"(^|[^\w.@-])[/~\\]|\b[A-Za-z]:\\", text):
            return {"code": "model_failed", "message": text[:300]}
        return {
            "code": "model_failed",
            "message": "the model or a picture of the request cannot be used; the server's log says why",
        }
    return {"code": "internal", "message": "a fault of the server; its log says more"}


def _tensors(loaded: _Loaded) -> Iterator[torch.Tensor]:
    """The weights of a model and of what lies on it."""
    found: list[Any] = [loaded.model, loaded.opened]
    seen = set[int]()
    while found:
        thing = found.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            yield thing
        elif isinstance(thing, torch.nn.Module):
            yield from (*thing.parameters(), *thing.buffers())
        elif isinstance(thing, dict):
            found += thing.values()
        elif isinstance(thing, list | tuple):
            found += thing
        elif type(thing).__module__.startswith("sdtune"):
            found += vars(thing).values() if hasattr(thing, "__dict__") else ()


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _room(device: torch.device) -> tuple[int, int]:
    """Free bytes, and all, of the memory that the models lie in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode("ascii")
