"""What the help of each data key says of the cache, and whether it is true."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdtune.data.cache import Cache
from sdtune.data.check.kinds import On
from sdtune.data.config import DataConfig, Source
from sdtune.data.dataset import scan
from sdtune.families.sd1 import Sd1
from sdtune.model import Model
from sdtune.schema import field_help
from tests import tiny

SAID = re.compile(
    r"Cache: (kept|only what is new(, the [a-z]+( pictures)?)?|(class )?pictures again|captions again|all again(, in that folder)?)\.$"
)


@pytest.mark.parametrize("section", [DataConfig, Source])
def test_each_key_says_what_it_does_to_the_cache(section: type) -> None:
    silent = [f.name for f in fields(section) if not SAID.search(field_help(section)[f.name])]
    assert not silent, f"end their help with one of: {SAID.pattern}"


def said(key: str) -> str:
    found = SAID.search(field_help(DataConfig)[key])
    assert found
    return found[1].partition(", the ")[0]


CASES: list[tuple[str, dict[str, Any], dict[str, Any], tuple[int, int]]] = [
    # key, settings before, settings after, pictures and captions that are encoded anew
    ("path", {}, {"path": "copy"}, (0, 0)),
    ("layout", {}, {"layout": "imagefolder"}, (0, 0)),
    ("roots", {}, {"roots": ("other",)}, (0, 0)),
    ("validation", {}, {"validation": "other"}, (1, 1)),
    ("validation_share", {}, {"validation_share": 0.5}, (0, 0)),
    ("validation_most", {"validation_share": 0.5}, {"validation_most": 1}, (0, 0)),
    ("caption_column", {}, {"caption_column": "note"}, (0, 1)),
    ("resolution", {}, {"resolution": 16}, (4, 0)),
    ("crop", {}, {"crop": "squash"}, (4, 0)),
    ("crops", {"crop": "random", "crops": 2, "validation_share": 0}, {"crops": 3}, (11, 0)),
    ("flip", {"validation_share": 0}, {"flip": True}, (4, 0)),
    ("holes", {}, {"holes": 2}, (0, 0)),
    ("background", {}, {"background": "red"}, (4, 0)),
    ("mask", {}, {"mask": "alpha"}, (0, 0)),
    ("mask_path", {}, {"mask": "files", "mask_path": "masks"}, (0, 0)),
    ("mask_floor", {"mask": "alpha"}, {"mask_floor": 0.5}, (0, 0)),
    ("mask_normalize", {"mask": "alpha"}, {"mask_normalize": False}, (0, 0)),
    ("caption_prefix", {}, {"caption_prefix": "sks"}, (0, 4)),
    ("caption_suffix", {}, {"caption_suffix": "sks"}, (0, 4)),
    ("caption_variants", {"shuffle_tags": True}, {"caption_variants": 6}, (0, 1)),
    ("shuffle_tags", {}, {"shuffle_tags": True}, (0, 3)),
    ("keep_tags", {"shuffle_tags": True}, {"keep_tags": 1}, (0, 1)),
    ("tag_dropout", {}, {"tag_dropout": 0.5}, (0, 4)),
    ("wildcards", {}, {"wildcards": True}, (0, 1)),
    ("caption_dropout", {}, {"caption_dropout": 0.5}, (0, 0)),
    ("prior_weight", {}, {"prior_weight": 0.5}, (0, 0)),
    ("jitter", {"validation_share": 0}, {"jitter": 0.1}, (4, 0)),
    ("jitters", {"jitter": 0.1, "validation_share": 0}, {"jitters": 3}, (4, 0)),
    ("buckets", {}, {"buckets": True}, (4, 0)),
    ("bucket_step", {"buckets": True, "resolution": 64}, {"bucket_step": 16}, (4, 0)),
    ("enlarge", {}, {"enlarge": False}, (0, 0)),
    ("caption_chunks", {}, {"caption_chunks": 2}, (0, 5)),
    ("cache_dtype", {}, {"cache_dtype": "fp16"}, (4, 5)),
    ("download", {}, {"download": True}, (0, 0)),
    ("on", {}, {"on": On(transparent="ignore")}, (0, 0)),
    ("on_bad", {}, {"on_bad": "skip"}, (0, 0)),
    ("max_pixels", {}, {"max_pixels": 10_000}, (0, 0)),
    ("cache", {}, {"cache": "elsewhere"}, (4, 5)),
]  # fmt: skip
ELSEWHERE = {
    "sources": "its parts are those of path",
    "class_prompt": "class pictures are files, not in a Cache",
    "class_path": "as class_prompt",
    "class_count": "as class_prompt",
}


def test_each_key_is_looked_at() -> None:
    assert {f.name for f in fields(DataConfig)} == {case[0] for case in CASES} | ELSEWHERE.keys()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Sd1(path=str(tiny.sd1_folder(tmp_path_factory.mktemp("base") / "model"))).load()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four wide pictures, one transparent in part, with two captions each; and another picture."""
    folder = tmp_path_factory.mktemp("place")
    captions = ["a red dog, sun, house", "a cat", "{red|blue} apple", "sks, sun"]
    rows = [{"file_name": f"{i}.png", "text": c, "note": c if i else "a note"} for i, c in enumerate(captions)]
    for name, own in (("pictures", rows), ("other", [{"file_name": "9.png", "text": "the sun"}]), ("masks", [])):
        (folder / name).mkdir()
        for row in own:
            pixels = np.asarray(tiny.picture(int(str(row["file_name"])[0]), (48, 36)).convert("RGBA")).copy()
            pixels[:9, :, 3] = 0 if row["file_name"] == "0.png" else 255
            Image.fromarray(pixels).save(folder / name / str(row["file_name"]))
        (folder / name / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    Image.fromarray(np.tile(np.arange(48, dtype=np.uint8) * 5, (36, 1))).save(folder / "masks" / "0.png")
    shutil.copytree(folder / "pictures", folder / "copy")
    return folder


@pytest.mark.parametrize(("key", "before", "after", "encoded"), CASES, ids=[case[0] for case in CASES])
def test_the_help_is_true(
    key: str, before: dict[str, Any], after: dict[str, Any], encoded: tuple[int, int],
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    common = {"path": "pictures", "caption_prefix": "", "validation_share": 0.3, "cache": str(tmp_path / "cache")}
    after = after | ({"cache": str(tmp_path / "elsewhere")} if key == "cache" else {})
    fill(model, DataConfig(**{**common, **before}))
    found = fill(model, DataConfig(**{**common, **before, **after}))
    (pictures, all_pictures), (captions, all_captions) = found["pictures"], found["captions"]
    assert (pictures, captions) == encoded
    match said(key):
        case "kept":
            assert not pictures and not captions
        case "only what is new":
            assert pictures < all_pictures and captions < all_captions
        case "pictures again":
            assert pictures > 0.9 * all_pictures and not captions  # one of three random cuts is where it was
        case "captions again":
            assert captions and not pictures
        case _:
            assert (pictures, captions) == (all_pictures, all_captions - 1)  # the empty one is of both splits


def fill(model: Model, config: DataConfig) -> dict[str, tuple[int, int]]:
    """How many pictures and captions were encoded, and how many there are, for training and validation as a run has them."""
    counts = {"pictures": (0, 0), "captions": (0, 0)}
    splits = scan(config)
    model.chunks = config.caption_chunks
    for examples, augment in ((splits.train, True), (splits.validation, False)):
        resolution = config.resolution if isinstance(config.resolution, int) else model.resolution
        told = list(Cache.open(examples, model, config, resolution=resolution, augment=augment).fill())
        for what, (made, total) in counts.items():
            there = [(done, of) for name, done, of in told if name == what] or [(0, 0)]
            counts[what] = (made + there[0][1] - there[0][0], total + there[0][1])
    return counts
