"""Image-to-image and inpainting draw what diffusers' own pipelines draw with the same seed."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting
from PIL import Image

from sdtune.config import SampleConfig
from sdtune.errors import ConfigError, DataError
from sdtune.model import Model
from sdtune.original import Original, Start
from sdtune.sample import sample, to_images
from sdtune.samplers import build_scheduler
from tests import tiny
from tests.families.common import OWN_SCHEDULER, PROMPTS, Pictures, drawn, load, pipeline

SIDE = 32


@cache
def model_at(folder: Path) -> tuple[Model, Any]:
    """Ours and diffusers' pipeline. Drawing leaves them as they are."""
    return load(folder), pipeline(folder)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A picture of the model's size, one that is larger and wider, and masks: white is the lower right, on the latents' grid."""
    folder, rng = tmp_path_factory.mktemp("originals"), np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
    coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folder / "square.png")
    coarse.resize((90, 60), Image.Resampling.BILINEAR).save(folder / "wide.png")
    for name, size in (("square-mask", (SIDE, SIDE)), ("wide-mask", (90, 60))):
        mask = np.zeros(size[::-1], np.uint8)
        mask[size[1] * 3 // 8 :, size[0] // 2 :] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    return {path.stem: str(path) for path in folder.iterdir()}


def theirs(folder: Path, config: SampleConfig, pictures: dict[str, Image.Image]) -> Pictures:
    """The same pictures from diffusers' pipeline, one at a time."""
    auto: Any = AutoPipelineForInpainting if config.mask else AutoPipelineForImage2Image
    model, whole = model_at(folder)
    pipe = auto.from_pipe(whole)
    pipe.set_progress_bar_config(disable=True)
    out = []
    for prompt in config.prompts:
        for seed in config.seeds:
            if folder.name not in OWN_SCHEDULER:
                pipe.scheduler = build_scheduler(model, config.scheduler)
            size = {"width": SIDE, "height": SIDE} if config.mask else {}
            latents = pipe(
                prompt, negative_prompt=config.negative, num_inference_steps=config.steps, guidance_scale=config.guidance,
                strength=config.denoising_strength, generator=torch.Generator().manual_seed(seed), output_type="latent",
                **pictures, **size,
            ).images  # fmt: skip
            (decoded,) = to_images(model.decode(latents))  # of SD 3's inpainting theirs forgets the VAE's shift
            out.append(np.asarray(decoded, np.int16))
    return np.stack(out)


def opened(files: dict[str, str], *names: str) -> list[Image.Image]:
    return [Image.open(files[name]).copy() for name in names]


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sdxl-v", "sd3"])
def test_image_to_image_equals_diffusers(
    folder_of: Callable[[str], Path], files: dict[str, str], kind: str, strength: float
) -> None:
    model, _ = model_at(folder_of(kind))
    config = SampleConfig(
        prompts=PROMPTS[1:], seeds=(3, 4), steps=3, scheduler="euler", negative="a cat", guidance=4.0, image=files["square"],
        denoising_strength=strength,
    )  # fmt: skip
    ours, (picture,) = drawn(model, config), opened(files, "square")
    assert abs(ours - theirs(folder_of(kind), config, {"image": picture})).max() <= 1
    assert abs(ours[0] - ours[1]).max() > 5, "seeds differ"


@pytest.mark.parametrize("scheduler", ["ddpm", "pndm", "euler-a", "heun", "dpm++2m-sde-karras", "unipc", "lcm"])
def test_image_to_image_with_each_sampler(
    folder_of: Callable[[str], Path], files: dict[str, str], scheduler: str
) -> None:
    model, _ = model_at(folder_of("sd1"))
    config = SampleConfig(
        prompts=PROMPTS[:1], seeds=(3,), steps=6, scheduler=scheduler, image=files["square"], denoising_strength=0.7  # type: ignore[arg-type]
    )  # fmt: skip
    (picture,) = opened(files, "square")
    assert abs(drawn(model, config) - theirs(folder_of("sd1"), config, {"image": picture})).max() <= 1


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "sd1-inpainting", "sdxl-inpainting"])
def test_inpainting_equals_diffusers(
    folder_of: Callable[[str], Path], files: dict[str, str], tmp_path: Path, kind: str, strength: float
) -> None:
    folder = folder_of(kind)
    if kind == "sd3":
        folder = tiny.pipeline_folder(tiny.sd3_inpaintable, tmp_path / "sd3")
    model, _ = model_at(folder)
    config = SampleConfig(
        prompts=PROMPTS[1:], seeds=(3, 4), steps=3, scheduler="ddim" if kind == "sd1" else "euler", negative="a cat",
        guidance=4.0, image=files["square"], mask=files["square-mask"], denoising_strength=strength,
    )  # fmt: skip
    picture, mask = opened(files, "square", "square-mask")
    ours, white = drawn(model, config), np.asarray(mask) > 0
    reference = theirs(folder, config, {"image": picture, "mask_image": mask})
    assert abs(ours - reference)[:, white].max() <= 1
    assert (ours[:, ~white] == np.asarray(picture)[~white]).all(), "what is black stays, byte for byte"
    assert abs(ours[0] - ours[1])[white].max() > 5


def test_a_picture_of_any_size_gives_one_of_its_proportions(
    folder_of: Callable[[str], Path], files: dict[str, str]
) -> None:
    model, _ = model_at(folder_of("sd1"))
    config = {"prompts": PROMPTS[:1], "seeds": (0,), "steps": 2, "image": files["wide"], "mask": files["wide-mask"]}
    (picture,) = sample(model, SampleConfig(**config))  # type: ignore[arg-type]
    assert picture.image.size == (40, 24), "3:2, about as many pixels as 32x32"
    (asked,) = sample(model, SampleConfig(**config, width=48, height=32))  # type: ignore[arg-type]
    assert asked.image.size == (48, 32)
    whole = Image.open(files["wide"]).resize((48, 32), Image.Resampling.LANCZOS)
    assert abs(np.asarray(asked.image, int) - np.asarray(whole, int))[:10, :20].max() <= 2
    assert asked.settings["image"] == "wide.png" and asked.settings["mask"] == "wide-mask.png"
    assert len(asked.settings["image_sha256"]) == 64 and asked.settings["denoising_strength"] == 0.75


def test_pictures_do_not_depend_on_their_neighbours(folder_of: Callable[[str], Path], files: dict[str, str]) -> None:
    model, _ = model_at(folder_of("sd1-inpainting"))
    config = {"steps": 3, "scheduler": "euler-a", "image": files["square"], "mask": files["square-mask"]}
    together = drawn(model, SampleConfig(prompts=PROMPTS, seeds=(5, 6, 7), **config))  # type: ignore[arg-type]
    alone = drawn(model, SampleConfig(prompts=PROMPTS[1:], seeds=(6,), batch_size=1, **config))  # type: ignore[arg-type]
    assert abs(together[4] - alone[0]).max() <= 1


def test_a_mask_that_is_off_the_grid_is_painted_to_its_last_pixel(
    folder_of: Callable[[str], Path], files: dict[str, str], tmp_path: Path
) -> None:
    """The latents of every pixel that is white are painted anew; greys blend."""
    model, _ = model_at(folder_of("sd1"))
    grey = np.zeros((SIDE, SIDE), np.uint8)
    grey[11:21, 11:21], grey[11:21, 21] = 255, 128
    Image.fromarray(grey).save(tmp_path / "odd.png")
    config = SampleConfig(
        prompts=PROMPTS[:1], seeds=(0, 1), steps=4, image=files["square"], mask=str(tmp_path / "odd.png"),
        denoising_strength=1.0, guidance=8.0,
    )  # fmt: skip
    original = Original.read(config, lambda size: size)
    assert original
    mask_1HW = Start.of(model, original).mask_1HW
    assert mask_1HW is not None and bool(mask_1HW[0, 5:11, 5:11].all()) and mask_1HW.sum() == 36
    (before,), ours = opened(files, "square"), drawn(model, config)
    changed = abs(ours - np.asarray(before, np.int16)).max((0, 3))
    assert (changed[11:21, 11:21] > 0).mean() > 0.98 and not changed[grey == 0].any()
    assert 0 < changed[11:21, 21].mean() < changed[11:21, 20].mean()


def test_what_does_not_fit_is_one_clear_line(
    folder_of: Callable[[str], Path], files: dict[str, str], tmp_path: Path
) -> None:
    model, _ = model_at(folder_of("sd1"))
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("hello")
    faults: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, r"sample.mask: has no picture to lie on", {"mask": files["square-mask"]}),
        (DataError, r"is 90x60, the picture .*square.png is 32x32", {"image": files["square"], "mask": files["wide-mask"]}),
        (DataError, r"black.png: nothing of it is white", {"image": files["square"], "mask": str(tmp_path / "black.png")}),
        (DataError, r"sample.image: .*nothing.png: no such file", {"image": str(tmp_path / "nothing.png")}),
        (DataError, r"sample.image: .*text.png: text, not a picture", {"image": str(tmp_path / "text.png")}),
        (ConfigError, r"0.1 of sample.steps=5 leaves no step to draw; from 0.2 on", {"image": files["square"], "denoising_strength": 0.1}),
    ]  # fmt: skip
    for error, says, settings in faults:
        with pytest.raises(error, match=says) as found:
            list(sample(model, SampleConfig(prompts=("a",), steps=5, **settings)))
        assert "\n" not in str(found.value)
