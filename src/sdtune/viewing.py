"""Who looks at the pictures of a comparison, and what is seen: the shipped scorer for the embedded base, published encoders for others."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune import stats
from sdtune.config import RunConfig
from sdtune.data import images
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example
from sdtune.drawing import Progress
from sdtune.evaluate import see, viewer_for
from sdtune.judging import Looker
from sdtune.judging.figures import paired_figure
from sdtune.judging.scores import Doubles, Evidence, Figure, Seen, Unrelated
from sdtune.metrics import content

if TYPE_CHECKING:
    from sdtune.evaluate import Viewer
    from sdtune.pairs import Pair, Plan


PUBLISHED = (
    "Published metrics (CLIP score, DINO, CMMD, LPIPS, FID, PickScore, HPS v2.1, ImageReward, aesthetic score) were left out: they "
    "were made for photographs, not for drawings of 64 pixels. `sdtune metrics` lists them with what each downloads; `sdtune protocol` "
    "takes them."
)


def scorer_gap(config: RunConfig) -> str:
    """Why nothing here can judge pictures of this base, and what to get; "" if something can."""
    from sdtune.metrics import panel

    if embedded(config) or not (absent := panel.missing()) or panel.WORDS[0] not in [m.encoder for m in absent]:
        return ""
    remedies = " and ".join(m.remedy for m in absent)
    return (
        "The scorer that comes with sdtune knows small drawings only, the domain of the embedded base. For this base model KID, content, "
        f"copies and diversity need published encoders, which are not here: get them with {remedies}, and compare again; "
        "`sdtune metrics` lists all. Until then the pictures are shown, and the validation loss where the run has one."
    )


def viewer_of(config: RunConfig, drawn: Path) -> Viewer:
    """What looks at pictures of this base, `drawn` being one of them. Raises EvaluationError; see `scorer_gap`."""
    with Image.open(drawn) as im:
        side = min(im.size)
    which: Looker = "shipped" if embedded(config) else "published"
    return viewer_for(side, which, _seen(config), _device(config))


def _seen(config: RunConfig) -> Path:
    """Where what was seen is kept."""
    return config.data.cache_folder() / "seen"


def embedded(config: RunConfig) -> bool:
    return getattr(config.model, "path", None) == "embedded"


def _device(config: RunConfig) -> str:
    from sdtune.devices import choose

    return str(choose(config.train)[0])


def look(
    scorer: Viewer, config: DataConfig, plan: Plan, pairs: Sequence[Pair], apart: Sequence[Pair]
) -> Generator[Progress, None, Evidence]:
    """Show everything to the scorer. Real pictures are cut to squares as for training, a random cut becoming the centre."""
    asked = [p.prompt for p in pairs]
    files = {"base": [p.base for p in pairs], "tuned": [p.tuned for p in pairs]}
    real = {name: getattr(plan, name) for name in ("reference", "train", "control")}
    seen = dict[str, Seen]()
    for k, name in enumerate((*files, *real)):
        yield Progress("looking at pictures", k, len(files) + len(real))
        if name in files:
            seen[name] = see(scorer, map(open_rgb, files[name]), asked, plan.prompts)
        elif real[name]:
            captions = [e.captions[0] for e in real[name]]
            seen[name] = see(scorer, (square(e, config, scorer.side) for e in real[name]), captions, plan.prompts)
    yield Progress("looking at pictures", len(files) + len(real), len(files) + len(real))
    texts = scorer.texts(content.strip_shared(plan.prompts))
    unrelated = None
    if len(plan.unrelated) > 1:
        asked = [p.prompt for p in apart]
        base, tuned = (
            see(scorer, map(open_rgb, files), asked, plan.unrelated)
            for files in ([p.base for p in apart], [p.tuned for p in apart])
        )
        unrelated = Unrelated(plan.unrelated, scorer.texts(content.strip_shared(plan.unrelated)), base, tuned)
    return Evidence(
        plan.prompts,
        texts,
        seen["base"],
        seen["tuned"],
        seen["reference"],
        seen.get("train"),
        seen.get("control"),
        unrelated,
    )


def find_copies(
    config: RunConfig, scorer: Viewer, plan: Plan, pairs: Sequence[Pair]
) -> tuple[Doubles | None, list[dict[str, Any]]]:
    """What the encoder for copies sees beside the panel, where it is here; and what to say of it."""
    from sdtune.metrics import cache, panel

    sscd = panel.copy_finder(device=_device(config)) if isinstance(scorer, panel.Panel) and plan.train else None
    if sscd is None:
        return None, []

    def see(images: Iterable[Image.Image]) -> NDArray[np.float64]:
        return cache.features(sscd, images, folder=_seen(config))

    train, real = ((square(e, config.data, scorer.side) for e in some) for some in (plan.train, plan.reference))
    return Doubles(see(open_rgb(p.tuned) for p in pairs), see(train), see(real)), [sscd.record()]


def opinions(
    config: RunConfig, scorer: Viewer, plan: Plan, pairs: Sequence[Pair]
) -> tuple[list[Figure], list[dict[str, Any]]]:
    """What the published models that are here beside the panel think of the pictures, paired by prompt; and what to say of the models."""
    from sdtune.metrics import panel

    if not isinstance(scorer, panel.Panel):
        return [], []
    asked = [p.prompt for p in pairs]
    number = np.array([plan.prompts.index(p) for p in asked])
    both = [open_rgb(p.base) for p in pairs] + [open_rgb(p.tuned) for p in pairs]
    figures, records = list[Figure](), list[dict[str, Any]]()
    for said in panel.opinions(both, asked * 2, device=_device(config), folder=scorer.folder):
        base, tuned = (stats.group_means(v, number, len(plan.prompts)) for v in np.split(said.values_N, 2))
        row = paired_figure(
            said.key, said.label, "higher", base, tuned, config.evaluate.draws, config.train.seed, needs=said.needs
        )
        figures.append(dataclasses.replace(row, note="; ".join(filter(None, (said.note, row.note)))))
        records.append(said.record)
    return figures, records


def not_asked(scorer: Viewer) -> list[str]:
    """Which published metrics were left out and how to get them, in a line."""
    from sdtune.metrics import panel

    if not isinstance(scorer, panel.Panel):
        return [PUBLISHED]
    absent = panel.left_out()
    return [f"Left out, since their encoders are not here: {', '.join(absent)}."] if absent else []


def open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as im:
        return im.convert("RGB")


def square(example: Example, config: DataConfig, side: int) -> Image.Image:
    """A real picture as training sees it, `side` pixels wide."""
    im = images.load_image(example.image, background=config.background, max_pixels=config.max_pixels)
    crop = "center" if config.crop == "random" else config.crop
    box = images.crop_boxes(im.size, crop, 1, "")[0]
    return Image.fromarray(images.to_frame(im, (side, side), box=box, pad=crop == "pad", background=config.background))
