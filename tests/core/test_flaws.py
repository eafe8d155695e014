"""F15: what is no picture is said to be none, wherever pictures are drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdtune import config as configs
from sdtune.config import RunConfig, SampleConfig
from sdtune.events import Encoding, Sampled, Warned
from sdtune.families.sd1 import Sd1
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.sample import flaw_of, sample, save_png
from sdtune.train import train
from tests import tiny

CONFIG = SampleConfig(steps=2, seeds=(0, 7), guidance=1)
LATENTS = torch.ones(4, 2, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1_folder(tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def model(folder: Path) -> Model:
    return Sd1(path=str(folder)).load()


@pytest.fixture
def white_folder(folder: Path, tmp_path: Path) -> Path:
    """The same model with a decoder that draws white, whatever it is given."""
    white = tiny.sd1_folder(tmp_path / "white")
    file = white / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.weight"].zero_()
    weights["decoder.conv_out.bias"].fill_(3.0)
    save_file(weights, file, {"format": "pt"})
    return white


def levels(*channels: float) -> Tensor:
    """64 pixels in [-1, 1] whose channels span so many of 256 levels."""
    steps = torch.linspace(0, 1, 64) * torch.tensor(channels)[:, None]
    return (100 + steps).div(255).mul(2).sub(1).view(len(channels), 8, 8)


def test_a_sound_model_has_no_flaw(model: Model) -> None:
    assert [s.flaw for s in sample(model, CONFIG, prompts=["a dog", "a cat"])] == [""] * 4


@pytest.mark.parametrize("span, flat", [((0, 0, 0), True), ((2, 1, 0), True), ((0, 2.5, 0), False), ((9, 9, 9), False)])
def test_one_colour_is_what_the_eye_cannot_tell_apart(span: tuple[float, ...], flat: bool) -> None:
    said = flaw_of(levels(*span), LATENTS, "float32")
    assert bool(said) == flat
    assert not flat or said.startswith("one colour all over, rgb(10")


def test_the_shipped_decoder_makes_no_empty_page_of_one_colour() -> None:
    """So a page that is white because white was asked for passes, without a look at the prompt."""
    embedded = configs.load().model.load()
    for colour in (1.0, -1.0):
        page = torch.full((1, 3, 64, 64), colour)
        latents = embedded.encode_images(page).mean_BCHW
        assert flaw_of(embedded.decode(latents)[0], latents[0], "float32") == ""


def spoil_denoiser(model: Model) -> None:
    model.denoiser.conv_out.bias.data[0] = torch.nan  # type: ignore[union-attr, operator]


def spoil_decoder(model: Model) -> None:
    model.vae.decoder.conv_out.weight.data[1] = torch.nan  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "spoil, who",
    [
        (spoil_denoiser, "the latents were NaN already, so the denoiser made them"),
        (spoil_decoder, "the VAE made them, of finite latents up to "),
    ],
)
def test_nan_is_named_and_who_made_it(model: Model, spoil: Callable[[Model], None], who: str, tmp_path: Path) -> None:
    spoil(model)
    drawn = list(sample(model, CONFIG, prompts=["a dog"]))
    assert len(drawn) == 2
    for picture in drawn:
        assert picture.flaw.startswith("1024 of 1024 pixels were NaN, stored as black; " + who)
        assert "optimizer.lr" in picture.flaw


def test_a_single_pixel_is_enough_and_fp16_has_a_remedy_of_its_own() -> None:
    pixels = levels(50, 50, 50)
    pixels[1, 3, 4] = torch.nan
    assert flaw_of(pixels, LATENTS, "bfloat16").startswith("1 of 64 pixels were NaN")
    assert flaw_of(pixels, LATENTS, "float16").endswith("set train.precision=fp32")


def test_the_file_says_it_too(model: Model, tmp_path: Path) -> None:
    (sound,) = sample(model, CONFIG, prompts=["a dog"], seeds=[0])
    spoil_decoder(model)
    (broken,) = sample(model, CONFIG, prompts=["a dog"], seeds=[0])
    for name, picture in (("sound", sound), ("broken", broken)):
        save_png(picture, tmp_path / f"{name}.png")
    assert "flaw" not in json.loads((tmp_path / "sound.json").read_text())
    assert json.loads((tmp_path / "broken.json").read_text())["flaw"] == broken.flaw != ""
    with Image.open(tmp_path / "broken.png") as image:
        assert json.loads(image.text["sdtune"])["flaw"] == broken.flaw  # type: ignore[attr-defined]


def config_of(model: Path, folder: Path, *overrides: str) -> RunConfig:
    data = tiny.imagefolder(folder / "data", ["a red dog", "a blue cat"])
    settings = (
        f"model.path={model}", f"data.path={data}", f"data.cache={folder / 'cache'}", "data.validation_share=0",
        "train.steps=1", "train.batch_size=2", "train.device=cpu", "train.precision=fp32", "train.threads=1",
        "sample.steps=2", "sample.prompts=['a dog', 'the sun']", "sample.seeds=[5]", "method.rank=2",
    )  # fmt: skip
    return configs.load(None, [*settings, *overrides])


def test_a_preview_that_shows_nothing_is_warned_of(white_folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    events = list(train(config_of(white_folder, tmp_path), run))
    warned = [e for e in events if isinstance(e, Warned)]
    assert [(e.step, e.message.partition(": ")[0]) for e in warned] == [
        (step, f"preview of {prompt!r}, seed 5") for step in (0, 1) for prompt in ("a dog", "the sun")
    ]
    assert all(
        "one colour all over, rgb(255, 255, 255); unless an empty page was asked for" in e.message for e in warned
    )
    assert [e for e in run.events() if isinstance(e, Warned)] == warned
    assert all((run.path / e.path).is_file() for e in events if isinstance(e, Sampled)), "shown all the same"


def test_class_pictures_that_show_nothing_are_warned_of(white_folder: Path, tmp_path: Path) -> None:
    options = ("data.class_prompt=a dog", "data.class_count=2", "data.caption_prefix=sks", "train.sample_every=0")
    run = Run(tmp_path / "run")
    events = list(train(config_of(white_folder, tmp_path, *options), run))
    warned = [e for e in run.events() if isinstance(e, Warned)]
    assert [e.message.partition(": ")[0].rpartition("/")[2] for e in warned] == ["00000.png", "00001.png"]
    assert all(e.message.startswith("class picture ") and "one colour" in e.message for e in warned)
    assert [e.done for e in events if isinstance(e, Encoding) and e.what == "class pictures"] == [1, 2]
