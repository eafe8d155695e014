"""The embedded base and its sets: readable without us, small, honest about what is held out, and able to draw."""

import hashlib
import json
import warnings
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdtune.config import SampleConfig
from sdtune.families.sd1 import Sd1
from sdtune.metrics.features import Scorer
from sdtune.sample import sample

DEMO = Path(str(resources.files("sdtune") / "demo"))
SETS = {"comic": (144, 24, 72), "lineart": (144, 24, 72), "pixel": (144, 24, 72), "pip": (60, 12, 60)}
ASKED = (
    "red apple", "pizza", "hamburger", "dog face", "cat face", "panda face", "penguin", "crab", "cactus", "sunflower", "rainbow", "red car",
    "soccer ball", "light bulb", "crown", "red heart", "blue book", "ghost", "banana", "pumpkin",
)  # fmt: skip


def test_the_weights_are_small() -> None:
    size = sum(f.stat().st_size for part in ("base", "scorer") for f in (DEMO / part).rglob("*") if f.is_file())
    assert 20e6 < size < 31.5e6


def test_diffusers_reads_it_without_us() -> None:
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionPipeline.from_pretrained(DEMO / "base")
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        "red apple", num_inference_steps=8, guidance_scale=4.0, output_type="np", height=64, width=64
    ).images[0]
    assert picture.shape == (64, 64, 3)
    red, green, blue = picture[24:48, 24:40].mean((0, 1))
    assert red > 0.6 and red > green + 0.2 and red > blue + 0.2


@pytest.mark.parametrize("name", list(SETS))
def test_sets_are_whole_and_their_splits_apart(name: str) -> None:
    seen: dict[str, set[str]] = {}
    for split, count in zip(("train", "validation", "test"), SETS[name], strict=True):
        folder = DEMO / "sets" / name / split
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        assert len(rows) == count and {r["file_name"] for r in rows} == {f.name for f in folder.glob("*.png")}
        assert all(r["text"].strip() for r in rows)
        for row in rows:
            with Image.open(folder / row["file_name"]) as im:
                assert im.size == (64, 64)
        seen[split] = {hashlib.sha256((folder / r["file_name"]).read_bytes()).hexdigest() for r in rows}
    assert not (seen["train"] & seen["validation"] or seen["train"] & seen["test"] or seen["validation"] & seen["test"])


def test_it_draws_what_is_asked_and_the_scorer_sees_it() -> None:
    model, scorer = Sd1().load(), Scorer.load()
    pictures = [s.image for s in sample(model, SampleConfig(steps=12, batch_size=20), prompts=ASKED, seeds=(0,))]
    similarity = scorer.embeds(pictures) @ scorer.texts(ASKED).T
    found = (similarity.argmax(1) == np.arange(len(ASKED))).mean()
    assert found >= 0.8
    shuffled = (np.roll(similarity, 1, axis=0).argmax(1) == np.arange(len(ASKED))).mean()
    assert shuffled <= 0.2, "the test must be able to fail"
