"""The tagger: a real onnxruntime session on a tiny ONNX file."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdtune.captioners import CaptionConfig, Wd14, caption
from sdtune.captioners.wd14 import FACES, Wd14Captioner, shown
from sdtune.errors import ConfigError, ModelError
from tests.captioners import tiny_captioners as tiny

onnxruntime = pytest.importorskip("onnxruntime")
NOTHING = [[0.0] * 6] * 3


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def load(config: Wd14) -> Wd14Captioner:
    made = config.load("cpu")
    assert isinstance(made, Wd14Captioner)
    return made


def plain(colour: str, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_thresholds_order_and_words(tmp_path: Path) -> None:
    chances = [
        0.99,
        0.4,
        0.6,
        0.36,
        0.86,
        0.34,
    ]  # general (a rating), 1girl, blue_sky, ^_^, hatsune_miku, red_background
    folder = tiny.wd14(tmp_path / "w", NOTHING, [logit(p) for p in chances])
    model = load(Wd14(path=str(folder)))
    seen = [model.prepare(plain("red"))]
    assert model.caption(seen) == ["hatsune miku, blue sky, 1girl, ^_^"]
    for config, said in (
        (Wd14(threshold=0.5), "hatsune miku, blue sky"),
        (Wd14(character_threshold=0.9), "blue sky, 1girl, ^_^"),
        (Wd14(character_threshold=1, threshold=0.3), "blue sky, 1girl, ^_^, red background"),
    ):
        model.config = config
        assert model.caption(seen) == [said]


def test_colours_are_blue_green_red_from_0_to_255(tmp_path: Path) -> None:
    """blue_sky: mean of the first channel over 200; red_background: of the third."""
    weights = [[0, 0, 1, 0, 0, 0], [0] * 6, [0, 0, 0, 0, 0, 1]]
    folder = tiny.wd14(tmp_path / "w", weights, [-99, -99, -200, -99, -99, -200])
    model = load(Wd14(path=str(folder)))
    colours = ("blue", "red", "lime", "white", "#0000b0")
    assert model.caption([model.prepare(plain(c)) for c in colours]) == [
        "blue sky", "red background", "", "blue sky, red background", "",
    ]  # fmt: skip


def test_pictures_are_padded_with_white_to_a_square(tmp_path: Path) -> None:
    folder = tiny.wd14(tmp_path / "w", NOTHING, [0] * 6, side=448)
    seen = load(Wd14(path=str(folder))).prepare(plain("black", (200, 100)))
    assert seen.shape == (448, 448, 3) and seen.dtype == np.float32
    assert (seen[:100] == 255).all() and (seen[-100:] == 255).all() and (seen[130:318] == 0).all()


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_models_of_fixed_batches(batch: int | None, tmp_path: Path) -> None:
    weights = [[0, 0, 1, 0, 0, 0], [0] * 6, [0] * 6]
    folder = tiny.wd14(tmp_path / "w", weights, [-99, -99, -200, -99, -99, -99], batch=batch)
    model = load(Wd14(path=str(folder)))
    said = model.caption([model.prepare(plain(c)) for c in ("blue", "red", "blue")])
    assert said == ["blue sky", "", "blue sky"]


def test_faces_keep_their_mouths() -> None:
    assert shown("blue_sky") == "blue sky" and shown("^_^") == "^_^" and len(FACES) == 19


def test_a_folder_is_tagged(tmp_path: Path) -> None:
    folder = tiny.wd14(tmp_path / "w", NOTHING, [logit(p) for p in (0.9, 0.5, 0.6, 0.1, 0.1, 0.1)])
    data = tiny.pictures(tmp_path / "p", ["a.png"])
    (data / "b.png").write_bytes((data / "a.png").read_bytes())
    (data / "b.txt").write_text("mine, 1girl\n", encoding="utf-8")
    config = CaptionConfig(model=Wd14(path=str(folder)), prefix="sks,", blacklist=("blue_sky",), append=True)
    list(caption(data, config))
    assert (data / "a.txt").read_text(encoding="utf-8") == "sks, 1girl\n"
    assert (data / "b.txt").read_text(encoding="utf-8") == "mine, 1girl, sks\n"


def test_a_tagger_needs_no_torch(tmp_path: Path) -> None:
    """onnxruntime alone says where it computes."""
    folder = tiny.wd14(tmp_path / "w", NOTHING, [0] * 6)
    data = tiny.pictures(tmp_path / "p", ["a.png"])
    code = (
        "import sys\nfrom sdtune import captioners\n"
        "config = captioners.CaptionConfig(model=captioners.Wd14(path=sys.argv[1]))\n"
        "events = list(captioners.caption(sys.argv[2], config))\n"
        "print(events[1].device, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder, data], capture_output=True, text=True, check=True)
    have = onnxruntime.get_available_providers()
    assert done.stdout == f"{'cuda' if 'CUDAExecutionProvider' in have else 'cpu'} False\n"
    assert (data / "a.txt").exists()


# ---- what cannot be used


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = tiny.wd14(tmp_path / "w", NOTHING, [0] * 6)
    with (folder / "selected_tags.csv").open("a", encoding="utf-8") as file:
        file.write("9,more,0,1\n")
    model = load(Wd14(path=str(folder)))
    with pytest.raises(ModelError, match=r"gives 6 values, selected_tags.csv names 7"):
        model.caption([model.prepare(plain("red"))])


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("model.onnx", b"no", "model.onnx cannot be read"),
        ("model.onnx", None, "no model.onnx there"),
        ("selected_tags.csv", None, "no selected_tags.csv there"),
        ("selected_tags.csv", b"tag,kind\na,0\n", "needs the columns name and category"),
        ("selected_tags.csv", b"name,category\na,b\n", "needs the columns name and category"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    folder = tiny.wd14(tmp_path / "w", NOTHING, [0] * 6)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load(Wd14(path=str(folder)))


def test_devices_that_onnxruntime_has_not(tmp_path: Path) -> None:
    folder = tiny.wd14(tmp_path / "w", NOTHING, [0] * 6)
    data = tiny.pictures(tmp_path / "p", ["a.png"])
    with pytest.raises(ConfigError, match="wd14 runs on cuda or cpu"):
        list(caption(data, CaptionConfig(model=Wd14(path=str(folder)), device="mps")))
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ConfigError, match="this onnxruntime has no CUDA"):
            list(caption(data, CaptionConfig(model=Wd14(path=str(folder)), device="cuda")))
