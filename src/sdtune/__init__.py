"""Fine-tunes Stable Diffusion and proves what the fine-tuning did.

    import sdtune

    config = sdtune.load_config("recipe.toml", "train.steps=200")
    for event in sdtune.train(config, "runs/mine"):
        print(event)
    pictures = [s.image for s in sdtune.sample("runs/mine", prompts=["red apple"])]
    comparison = sdtune.compare("runs/mine")

Importing this package is quick: torch is imported by the first function that needs it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from sdtune.asks import Ask, Axis
    from sdtune.compare import Comparison
    from sdtune.config import RunConfig
    from sdtune.drawing import Progress
    from sdtune.events import Event
    from sdtune.experiments.events import Event as ExperimentEvent
    from sdtune.experiments.matrix import Matrix
    from sdtune.judging import Looker
    from sdtune.judging.scores import Scores
    from sdtune.model import Model
    from sdtune.opened import Opened
    from sdtune.runs import Run
    from sdtune.sample import Sample
    from sdtune.show import Shown
    from sdtune.sweep import Sweep
    from sdtune.tuned import Tuned

__all__ = [
    "Run",
    "RunConfig",
    "compare",
    "compare_runs",
    "evaluate",
    "experiment",
    "load_config",
    "sample",
    "show",
    "sweep",
    "train",
]


def load_config(recipe: str | Path | None = None, *overrides: str) -> RunConfig:
    """The config of a recipe file, changed by overrides such as `"optimizer.lr=1e-4"`; without a recipe, the defaults.

    Raises ConfigError, which lists every fault.
    """
    from sdtune import config

    return config.load(recipe, overrides)


def train(config: RunConfig, run: Run | str | Path | None = None) -> Generator[Event, None, None]:
    """Train, yielding events. Nothing happens until the iterator is read; closing it stops after the step and saves.

    `run` is the folder, `runs/<config.name>` if unset. A folder that holds a part of this very run is gone on with; a
    finished one yields its `Finished` event and nothing else. Raises the errors of `sdtune.errors`.
    """
    from sdtune.train import train

    yield from train(config, _as_run(Path("runs") / config.name if run is None else run))


def sample(
    source: Run | str | Path = "embedded",
    *overrides: str,
    prompts: Sequence[str | Ask] | None = None,
    seeds: Sequence[int] | None = None,
    checkpoint: str = "final",
    grid: Sequence[Axis] = (),
    matrix: bool = False,
    most: int | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[Sample]:
    """Draw one picture per prompt and seed; `sample.image` is a PIL picture.

    `source`: a run or its folder, a LoRA or embedding file (on the model that `"model.path=..."` names), a model folder, a Hub id,
    "embedded", or a recipe, which stands for its base model. `prompts` and `seeds` replace those of the config; other settings are
    overrides: `"sample.steps=30"`.
    `checkpoint` of a run: "final", "best", or one such as "step-000250".
    A prompt may be an `asks.Ask`, with settings of its own (`asks.read` reads files of them). `grid` and `matrix` multiply them
    (`asks.expanded`), up to `most` pictures. `say` gets lines worth telling.
    """
    from sdtune import asks as asking
    from sdtune.asks import Ask
    from sdtune.errors import ConfigError
    from sdtune.sample import sample

    config, opened = open_model(source, *overrides, checkpoint=checkpoint, say=say)
    wanted = config.sample.prompts if prompts is None else prompts
    if not wanted:
        raise ConfigError("nothing to draw: give a prompt (--prompt, --prompts, prompts=, or the key sample.prompts)")
    asks = [ask if isinstance(ask, Ask) else Ask(ask) for ask in wanted]
    cells = asking.expanded(asks, config, grid=grid, matrix=matrix, most=most or asking.MOST)
    drawn_with = [(ask.config(config), ask) for ask in cells]  # all are checked before the first is drawn
    by: dict[str, Any] = dict(_tuned_by(source, checkpoint))
    for own, group in itertools.groupby(drawn_with, lambda pair: pair[0]):
        some, texts = [ask for _, ask in group], opened.suit(own)
        more = {"adapters": opened.records} if opened.records else {}
        count = len(own.seeds if seeds is None else seeds)
        pictures = sample(opened.model, own, prompts=[ask.prompt for ask in some], seeds=seeds, texts=texts)
        for i, picture in enumerate(pictures):
            ask = some[i // count]
            settings = {**picture.settings, **by, **more}
            yield dataclasses.replace(picture, settings=settings, ask=ask.number, cell=ask.cell)


def show(
    source: Run | str | Path = "embedded",
    *overrides: str,
    prompt: str | None = None,
    seed: int | None = None,
    checkpoint: str = "final",
    steps_shown: int = 8,
    picture: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Shown:
    """Watch one drawing from noise to picture; of a run or an adapter, the base's and the tuned model's. Writes nothing.

    `source`, `overrides` and `checkpoint` as in `sample`. `prompt` and `seed` are the first of the config if unset, the prompt of a run
    without any being the first caption. `picture` is what the training view shows: unset, the first training picture of a run, else
    the picture that was drawn. `sdtune.show_page.html` makes the page of it. Raises ConfigError, and the errors of `sample`.
    """
    from sdtune.errors import ConfigError
    from sdtune.show import picture_of, show, training_picture

    config, model, on_top = _opened(source, *overrides, checkpoint=checkpoint)
    if config.sample.adapters:
        raise ConfigError("sample.adapters: one run or adapter is shown at a time; leave it out")
    asked, trained = prompt or next(iter(config.sample.prompts), None), None
    if _as_run(source).exists() and not (picture and asked):
        trained = training_picture(config, model.resolution)
        asked = asked or (trained and trained[2])
    if not asked:
        raise ConfigError("nothing to draw: give a prompt (--prompt, prompt=, or the key sample.prompts)")
    if picture is not None:
        trained = picture_of(Path(picture), asked, model.resolution)
    return show(
        model,
        config,
        source=_tuned_by(source, checkpoint).get("tuned", model.label),
        prompt=asked,
        seed=next(iter(config.sample.seeds), 0) if seed is None else seed,
        on_top=on_top,
        steps_shown=steps_shown,
        training=trained,
        progress=progress or (lambda what, done, total: None),
    )


def compare(
    run: Run | str | Path,
    *overrides: str,
    checkpoint: str = "final",
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Base against tuned on the same prompts and seeds; writes `comparison/report.html` and `scores.json` into the run.

    `overrides` change how is compared: `"evaluate.seeds=[1, 2]"`. `progress` is called with (what, done, total).
    """
    from sdtune.compare import compare

    run = _as_run(run)
    return compare(run, run.config(overrides), checkpoint=checkpoint, progress=progress)


def sweep(
    run: Run | str | Path,
    *overrides: str,
    checkpoints: Sequence[str] = (),
    strengths: Sequence[float] = (),
    progress: Callable[[Progress], None] | None = None,
) -> Sweep:
    """Which checkpoint, at which strength? On the validation prompts; writes `sweep/report.html` and `sweep.json` into the run.

    `checkpoints` are names as `compare` takes them, all that are kept if there are none; `strengths` 0.5, 0.75, 1 and 1.25.
    """
    from sdtune import sweep_page
    from sdtune.drawing import run_through
    from sdtune.sweep import STRENGTHS, sweeping

    run = _as_run(run)
    config = run.config(overrides)
    parts = sweeping(run, config, checkpoints=checkpoints, strengths=strengths or STRENGTHS)
    found = run_through(parts, progress)
    sweep_page.write(found)
    return found


def compare_runs(
    runs: Sequence[Run | str | Path],
    *overrides: str,
    out: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, str]:
    """Several finished runs on one page, with the prompts, seeds and held-out pictures of the first, which `overrides` may change.

    Returns the page, `comparisons/<names>/index.html` unless `out` names the folder, and its summary. The runs stay as they are.
    Raises EvaluationError where they cannot be compared, with the reason.
    """
    from sdtune.experiments.several import compare_runs

    return compare_runs(list(map(_as_run, runs)), overrides, Path(out) if out else None, progress=progress)


def evaluate(
    pictures: str | Path, reference: str | Path, prompts: Sequence[str] | None = None, *, scorer: Looker = "auto"
) -> Scores:
    """Figures of a folder of pictures against a folder of real ones (or "embedded:lineart": its held-out test pictures).

    `prompts`, one a picture in the order of the file names, add the figures of content; unset, they are read from the
    JSON files that `sdtune sample` writes beside its pictures, if all have one. `scorer`: "shipped" is the one that comes with sdtune,
    for drawings of 64 pixels; "published" are DINOv2 and CLIP (`sdtune metrics`), "auto" takes the one that fits the pictures' size.
    Raises EvaluationError where nothing can be measured, also where published encoders are needed and are not here.
    """
    from sdtune.evaluate import evaluate
    from sdtune.files import cache_home

    files, real = _picture_files(pictures), _picture_files(reference)
    drawn, held_out = ([_square(f) for f in some] for some in (files, real))
    asked = prompts or _prompts_beside(files)
    return evaluate(drawn, held_out, prompts=asked, scorer=scorer, folder=cache_home() / "seen")


def experiment(
    matrix: Matrix | str | Path,
    out: str | Path | None = None,
    *,
    jobs: int = 1,
    devices: int = 0,
    only: Sequence[str] = (),
    retry: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[ExperimentEvent, None, None]:
    """Train and compare every run of a matrix that is missing, yielding events of `sdtune.experiments.events`, and write the page.

    Each run is a process of its own: `jobs` at once, or one on each of so many CUDA `devices`. `out` is the folder,
    `experiments/<name>` if unset. `only` names cells. Runs that failed before are passed over unless `retry`. Closing the iterator
    stops and saves what runs, and so does `stop`, which is asked twice a second; the same call goes on. Raises the errors of
    `sdtune.errors`, ConfigError with every fault of the matrix.
    """
    from sdtune.experiments import matrix as matrices
    from sdtune.experiments.run import experiment

    plan = matrix if isinstance(matrix, matrices.Matrix) else matrices.load(matrix)
    yield from experiment(
        plan, Path(out) if out else None, jobs=jobs, devices=devices, only=only, retry=retry, stop=stop
    )


def _tuned_by(source: Run | str | Path, checkpoint: str) -> dict[str, str]:
    """For the record of a picture: the run with its checkpoint, or the adapter's file, without the path to it."""
    run = _as_run(source)
    if run.exists():
        return {"tuned": f"{run.path.resolve().name}@{checkpoint}"}
    from sdtune.families import recognise

    adapter = run.path.suffix == ".safetensors" and recognise(str(run.path)) is None
    return {"tuned": run.path.name} if adapter else {}


def open_model(
    source: Run | str | Path,
    *overrides: str,
    checkpoint: str = "final",
    say: Callable[[str], object] = lambda line: None,
) -> tuple[RunConfig, Opened]:
    """The config and the model of `source` (see `sample`), tuned if it is a run or an adapter; `Opened.suit` sets strengths."""
    from sdtune.opened import Opened

    config, model, on_top = _opened(source, *overrides, checkpoint=checkpoint)
    return config, Opened(model, on_top, say)


def _opened(
    source: Run | str | Path, *overrides: str, checkpoint: str = "final"
) -> tuple[RunConfig, Model, Tuned | None]:
    """The same with what is on the model, if it is a run or an adapter, at strength 1."""
    from sdtune import config as configs
    from sdtune import devices, tuned
    from sdtune.families import recognise
    from sdtune.runs import Run

    run = _as_run(source)
    name = str(source.path if isinstance(source, Run) else source)
    family = None if run.exists() else recognise(name)
    adapter = run.path.suffix == ".safetensors" and family is None
    if run.exists():
        config = run.config(overrides)
    elif adapter or run.path.suffix == ".toml":
        config = configs.load(None if adapter else run.path, overrides)
    else:
        found = [f"model.path={json.dumps(name)}", f"model.type={family or 'sd1'}"]
        config = configs.load(None, [*found, *overrides])
    devices.set_up_cpu(config.train.threads)
    device, dtype = devices.choose(config.train)
    model = config.model.load(device=device, dtype=dtype)
    model.chunks = config.data.caption_chunks
    if run.exists():
        return config, model, tuned.of_run(model, run, checkpoint)
    return config, model, tuned.load(model, run.path) if adapter else None


def _picture_files(folder: str | Path) -> list[Path]:
    from sdtune.data.dataset import held_out_part, resolve
    from sdtune.errors import DataError

    files = sorted(
        p
        for p in held_out_part(resolve(str(folder))).iterdir()
        if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    )
    if not files:
        raise DataError(f"{folder}: no pictures there (PNG, JPEG, WebP)")
    return files


def _square(path: Path) -> Image.Image:
    """The centre of the picture, cut to a square."""
    from sdtune.data.images import crop_boxes, load_image

    image = load_image(path)
    return image.crop(crop_boxes(image.size, "center", 1, "")[0])


def _prompts_beside(files: Sequence[Path]) -> list[str] | None:
    try:
        return [str(json.loads(f.with_suffix(".json").read_text(encoding="utf-8"))["prompt"]) for f in files]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _as_run(run: Run | str | Path) -> Run:
    from sdtune.runs import Run

    return run if isinstance(run, Run) else Run(Path(run).expanduser())


class _Package(ModuleType):
    """Keeps `sdtune.train` the function when the module `sdtune.train` is imported, which Python would put in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "Run":
            from sdtune.runs import Run

            return Run
        if name == "RunConfig":
            from sdtune.config import RunConfig

            return RunConfig
        raise AttributeError(f"module 'sdtune' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
