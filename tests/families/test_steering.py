"""Drawing steered by a loss: it goes where the loss says, in every family and with every sampler, and not at all at strength 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import sdtune
from sdtune import cli, infotext
from sdtune import config as configs
from sdtune.config import SampleConfig
from sdtune.errors import ConfigError, DataError, ModelError
from sdtune.guides import Colour, Text, _clip, recorded
from sdtune.metrics.features import Scorer
from sdtune.model import Model
from sdtune.objective import parts
from sdtune.sample import sample
from sdtune.samplers import SAMPLERS
from sdtune.steering import Steering
from tests import tiny
from tests.families.common import PROMPTS, Pictures, drawn, load
from tests.front.test_sample_command import SOUND, picture

SCHEDULERS = get_args(get_type_hints(SampleConfig)["scheduler"])
ORANGE = Colour(colour="#ff8800", strength=1.0)
PLUGIN = Path(__file__).parents[2] / "examples" / "plugins" / "my_method.py"


def distance(pictures: Pictures, rgb: tuple[int, int, int] = (255, 136, 0)) -> Any:
    """Of each picture, the mean distance of its pixels to the colour."""
    return np.sqrt(((pictures - np.array(rgb, float)) ** 2).sum(-1)).mean((1, 2))


@pytest.fixture(scope="module")
def embedded() -> Model:
    return configs.load(None).model.load()


def test_a_colour_draws_pictures_nearer_to_it(embedded: Model) -> None:
    config = SampleConfig(prompts=("red apple",), seeds=(1, 2, 3), steps=5)
    plain, steered = (distance(drawn(embedded, replace(config, guide=guide))) for guide in (None, ORANGE))
    assert (steered < plain - 15).all(), (plain, steered)


def test_a_text_raises_what_the_scorer_sees_of_it(embedded: Model) -> None:
    config = SampleConfig(prompts=("red apple",), seeds=(1, 2), steps=5)
    scorer = Scorer.load()
    wanted_E = scorer.texts(["blue car"])[0]

    def cosine(guide: Text | None) -> Any:
        return scorer.embeds([s.image for s in sample(embedded, replace(config, guide=guide))]) @ wanted_E

    plain, steered = cosine(None), cosine(Text(text="blue car"))
    assert (steered > plain + 0.03).all(), (plain, steered)


def test_a_loss_of_ones_own_from_a_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.sd1_folder(tmp_path / "model")
    overrides = [f'plugins=["{PLUGIN}"]', "sample.steps=4", "sample.seeds=[1]", "train.threads=1"]
    (plain,) = sdtune.sample(model, *overrides, prompts=["a dog"])
    (steered,) = sdtune.sample(
        model, *overrides, "sample.guide.type=mirror", "sample.guide.strength=2", prompts=["a dog"]
    )
    before, after = (np.asarray(p.image, float) for p in (plain, steered))
    gap = [np.square(p - p[:, ::-1]).mean() for p in (before, after)]
    assert gap[1] < 0.8 * gap[0] and steered.settings["guide"]["type"] == "mirror"
    with pytest.raises(
        ConfigError, match=r"sample.guide.type: unknown type, known: .*'mirror'; did you mean|unknown type"
    ):
        configs.load(None, [f'plugins=["{PLUGIN}"]', "sample.guide.type=miror"])
    config = configs.load(None, [overrides[0], "sample.guide.type=mirror"])
    (tmp_path / "recipe.toml").write_text(configs.to_toml(config))
    assert configs.load(tmp_path / "recipe.toml") == config


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sd3"])
def test_it_works_in_every_family_and_a_strength_of_0_is_none(folder_of: Callable[[str], Path], kind: str) -> None:
    """Noise, v and flow."""
    model = load(folder_of(kind))
    config = SampleConfig(prompts=PROMPTS, seeds=(3,), steps=4, scheduler="euler", guidance=3.0)
    plain, none, orange = (
        drawn(model, replace(config, guide=guide)) for guide in (None, replace(ORANGE, strength=0.0), ORANGE)
    )
    assert np.array_equal(plain, none)
    assert (distance(orange) < distance(plain) - 1).all()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_it_works_with_every_sampler(folder_of: Callable[[str], Path], scheduler: str) -> None:
    model = load(folder_of("sd1"))
    config = SampleConfig(prompts=PROMPTS[:1], seeds=(3,), steps=4, scheduler=scheduler)  # type: ignore[arg-type]
    plain, orange = (distance(drawn(model, replace(config, guide=guide))) for guide in (None, ORANGE))
    assert set(SCHEDULERS) == set(SAMPLERS) and orange < plain - 1


def test_a_steered_picture_does_not_depend_on_its_neighbours(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder_of("sd1"))
    config = SampleConfig(prompts=PROMPTS, seeds=(3, 4, 5), steps=3, guide=ORANGE)
    together, alone = drawn(model, config), drawn(model, replace(config, batch_size=1))
    assert abs(together - alone).max() <= 1
    monkeypatch.setattr("sdtune.families.common.PIXELS_BACKWARD", 2 * 32 * 32)
    monkeypatch.setattr("sdtune.families.common.PIXELS_KEPT", 0)
    assert abs(drawn(model, config) - together).max() <= 1, "in parts, with activations computed again"
    assert not model.vae.is_gradient_checkpointing  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl-v", "sd3"])
def test_the_output_says_the_moved_picture_of_the_same_noisy_one(folder_of: Callable[[str], Path], kind: str) -> None:
    model, rng = load(folder_of(kind)), torch.Generator().manual_seed(0)
    shape = (2, model.latent_channels, 16, 16)
    x, out = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    steering = Steering.of(model, replace(ORANGE, strength=0.05))
    assert steering
    for time in (20.0, 500.0, 730.25):
        levels = model.noise_at(time)
        (before, noise), (after, other) = (
            parts(model.prediction, o, x, *levels) for o in (out, steering.steered(out, x, time))
        )
        torch.testing.assert_close(levels[0] * after + levels[1] * other, x, rtol=1e-4, atol=1e-4)
        changed_B = (other - noise).square().mean((1, 2, 3)).sqrt()
        assert changed_B.max() <= 0.05 * 1.01, "the strength is the most by which the noise is changed"
        loss_before, loss_after = (model.judged(x0, steering.loss)[0] for x0 in (before, after))
        assert (loss_after < loss_before).all()


def test_noise_levels_between_timesteps_are_the_samplers(folder_of: Callable[[str], Path]) -> None:
    from sdtune.samplers import build_scheduler

    for kind in ("sd1", "sd3"):
        model = load(folder_of(kind))
        scheduler = build_scheduler(model, "euler")
        scheduler.set_timesteps(7)
        for t, s in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            alpha, sigma = model.noise_at(float(t))
            assert (sigma if kind == "sd3" else sigma / alpha) == pytest.approx(float(s), rel=2e-3)


def test_start_and_end_are_shares_of_the_steps(folder_of: Callable[[str], Path]) -> None:
    model = load(folder_of("sd1"))
    steering = Steering.of(model, replace(ORANGE, start=0.25, end=0.5))
    assert steering and [steering.at_work(i, 8) for i in range(8)] == [i in (2, 3) for i in range(8)]
    whole = Steering.of(model, ORANGE)
    assert whole and all(whole.at_work(i, 3) for i in range(3))


def test_a_clip_model_in_a_folder_is_read(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    words = tiny.tokenizer(tmp_path / "words")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIPModel(
            CLIPConfig(
                text_config=tiny.text_config(words, 16).to_dict(),
                vision_config={
                    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "image_size": 24, "patch_size": 8, "projection_dim": 16,
                },
                projection_dim=16,
            )
        )  # fmt: skip
    clip.save_pretrained(tmp_path / "clip")
    words.save_pretrained(tmp_path / "clip")
    guide = Text(text="a blue house", clip=str(tmp_path / "clip"), strength=1.0)
    reader = _clip(str(tmp_path / "clip"), False, torch.device("cpu"))
    pixels = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (pixels.new_tensor(v).view(1, 3, 1, 1) for v in (reader.mean, reader.std))
    clip.eval()
    with torch.no_grad():
        theirs = clip(
            input_ids=words(["a blue house"], padding="max_length", return_tensors="pt").input_ids,
            pixel_values=(pixels / 2 + 0.5 - mean) / std,
        )
        ours = torch.nn.functional.cosine_similarity(reader.see(pixels), reader.read("a blue house"))
    torch.testing.assert_close(ours, (theirs.image_embeds @ theirs.text_embeds.T)[:, 0])
    model = load(folder_of("sd1"))
    config = SampleConfig(prompts=PROMPTS[:1], seeds=(3,), steps=3)
    plain, steered = (drawn(model, replace(config, guide=g)) for g in (None, guide))
    loss = guide.build(model)
    before, after = (float(loss(torch.from_numpy(p / 127.5 - 1).float().permute(0, 3, 1, 2))) for p in (plain, steered))
    assert after < before - 0.005
    assert recorded(guide)["clip"] == "clip", "a picture that travels tells no path"
    (tmp_path / "none").mkdir()
    for name, says in (
        (str(tmp_path / "none"), "no CLIP model in transformers layout"),
        ("own/er", "in the local Hub cache"),
    ):
        with pytest.raises(ModelError, match=says) as error:
            Text(text="a", clip=name).build(model)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=r"openai/clip-vit-large-patch14: .*sample.guide.download=true"):
        Text(text="a").build(model)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sample.guide.colour=#ff8800"], r"sample.guide.type: say which kind; known: 'colour', 'text'"),
        (["sample.guide.type=colur"], "sample.guide.type: unknown type.*did you mean 'colour'"),
        (["sample.guide.type=colour", "sample.guide.colour=oringe"], "'oringe' is no colour"),
        (["sample.guide.type=text", "sample.guide.text=a", "sample.guide.strength=-1"], "sample.guide.strength: .*greater"),
        (["sample.guide.type=text", "sample.guide.text=a", "sample.guide.strenth=1"], "did you mean 'strength'"),
        (["sample.guide={type='text', text='a', start=0.5, end=0.5}"], "start: 0.5 is not before sample.guide.end"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_clear_line(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        configs.load(None, overrides)
    assert "\n" not in str(error.value)


def test_a_loss_that_gives_no_number_for_each_picture_is_refused(folder_of: Callable[[str], Path]) -> None:
    model = load(folder_of("sd1"))
    x0 = torch.zeros(2, 4, 16, 16)
    for loss, says in (
        (lambda p: p.mean(), r"gave shape \(\) for 2 pictures"),
        (lambda p: p.detach().mean((1, 2, 3)), "no slope"),
    ):
        with pytest.raises(ConfigError, match=says):
            Steering(model, ORANGE, loss).steered(x0, x0, 500.0)
    flat = Steering(model, ORANGE, lambda p: (p * 0).sum((1, 2, 3)) + 1)
    assert torch.equal(flat.steered(x0, x0, 500.0), x0), "no slope: nothing is moved"


def test_a_picture_tells_what_it_was_steered_by(tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main(["sample", *arguments, "--quiet"])
        return int(left.value.code or 0)

    few = ("sample.steps=2", "sample.width=32", "sample.height=32", "sample.seeds=[1]")
    guide = ("sample.guide.type=colour", "sample.guide.colour=#ff8800", "sample.guide.each_pixel=false")
    assert run("-p", "red apple", *few, *guide, "--out", str(tmp_path / "a")) == 0
    (first,) = (tmp_path / "a").glob("*.png")
    assert run("--from", str(first), "--out", str(tmp_path / "b")) == 0
    (second,) = (tmp_path / "b").glob("*.png")
    assert first.read_bytes() == second.read_bytes()
    record = json.loads(first.with_suffix(".json").read_text())
    assert record["guide"] == {
        "type": "colour", "strength": 0.5, "start": 0.0, "end": 1.0, "colour": "#ff8800", "each_pixel": False
    }  # fmt: skip
    drawn = infotext.read(first)
    with pytest.raises(ConfigError, match=r"was steered by the CLIP model 'evil'; name it with sample.guide.clip="):
        replace(drawn, settings={**drawn.settings, "guide": {"type": "text", "text": "a", "clip": "evil"}}).overrides(
            ()
        )
    hostile: tuple[object, ...] = (
        [], {"colour": "red"}, {"type": "colour", "a = 1}\n[plugins": "x"}, {"type": "colour", "colour": ["x"]},
        {"type": "text", "text": "a", "download": True},
    )  # fmt: skip
    for bad in hostile:
        path = picture(tmp_path / "p.png", ours={**SOUND, "guide": bad})
        with pytest.raises(DataError, match="its guide"):
            infotext.read(path)
