"""What the models see is what transformers' own processors show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdtune.captioners import pixels
from sdtune.errors import ModelError

blip_pil = pytest.importorskip("transformers.models.blip.image_processing_pil_blip")
clip_pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
SIZES = [(64, 64), (31, 90), (90, 31), (384, 384), (500, 333)]


def picture(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size[0])
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("blip", {"size": {"height": 48, "width": 48}, "resample": 3}),
    (
        "blip",
        {
            "size": {"height": 48, "width": 40},
            "resample": 2,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.2, 0.3, 0.4],
        },
    ),
    ("blip", {"size": {"height": 48, "width": 48}, "do_normalize": False, "rescale_factor": 0.01}),
    ("clip", {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}, "do_center_crop": True}),
    ("clip", {"size": {"shortest_edge": 43}, "do_center_crop": False}),
    ("clip", {"size": {"shortest_edge": 40}, "crop_size": {"height": 61, "width": 47}, "do_center_crop": True}),
    ("clip", {"size": {"height": 40, "width": 40}, "do_center_crop": False, "do_convert_rgb": None}),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind, numbers", CASES)
def test_equal_to_the_library(kind: str, numbers: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    cls = blip_pil.BlipImageProcessorPil if kind == "blip" else clip_pil.CLIPImageProcessorPil
    theirs = cls(**numbers)
    theirs.save_pretrained(tmp_path)
    (want,) = theirs(picture(size), return_tensors="np")["pixel_values"]
    got = pixels.read(tmp_path, "tiny", 32)(picture(size))
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_published_files(tmp_path: Path) -> None:
    """As the Hub has them for BLIP (no do_rescale, no do_convert_rgb) and, saved with a whole processor, one level deeper."""
    blip = {
        "do_normalize": True,
        "do_resize": True,
        "image_processor_type": "BlipImageProcessor",
        "resample": 3,
        "size": 24,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(blip), encoding="utf-8")
    seen = pixels.read(tmp_path, "tiny", 384)(picture((64, 64)))
    assert seen.shape == (3, 24, 24) and -3 < seen.min() < seen.max() < 3
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "gone")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": blip}), encoding="utf-8")
    assert (pixels.read(tmp_path, "tiny", 384)(picture((64, 64))) == seen).all()


@pytest.mark.parametrize("text", ["", "[]", '{"size": {"long": 3}}', '{"resample": "best"}'])
def test_unusable_files_are_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no preprocessor_config.json"):
        pixels.read(tmp_path, "tiny", 32)
    (tmp_path / "preprocessor_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"tiny: preprocessor_config.json cannot be used"):
        pixels.read(tmp_path, "tiny", 32)
