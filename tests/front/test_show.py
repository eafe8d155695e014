"""`sdtune show`: the drawing stays as it is, the figures are what they say, and the page needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdtune
from sdtune import charts, cli, show_page, tokens
from sdtune import config as configs
from sdtune.config import SampleConfig
from sdtune.families.sd1 import Sd1
from sdtune.families.watching import watched
from sdtune.methods.lora import Lora
from sdtune.model import Model, Prediction, noise_at
from sdtune.objective import parts
from sdtune.sample import Look, sample
from sdtune.samplers import build_scheduler
from sdtune.show import Shown, _fit, chosen, colours, moved, show
from sdtune.words import NewWords
from tests import tiny
from tests.families.common import load

FEW = ("sample.steps=4", "sample.guidance=3", "train.device=cpu", "train.precision=fp32")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.sd1_folder(folder / "sd1")
    return folder


@pytest.fixture(scope="module")
def embedded() -> Model:
    return Sd1().load()


# ---- what is watched


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3-t5"])
def test_watching_changes_no_byte_and_leaves_nothing_behind(models: Path, kind: str) -> None:
    folder = models / kind if kind == "sd1" else tiny.family_folder(kind, models / kind)
    model = load(folder)
    config = SampleConfig(steps=3, scheduler="euler", guidance=3.0)
    (plain,) = sample(model, config, prompts=["a red dog"], seeds=[5])
    shown = sdtune.show(str(folder), *FEW, "sample.steps=3", 'sample.scheduler="euler"', prompt="a red dog", seed=5)
    (side,) = shown.sides
    assert np.array_equal(np.asarray(side.picture.image), np.asarray(plain.image))
    with watched(model.denoiser) as watch:
        assert watch.layers
    assert not any(module._forward_pre_hooks for module in model.denoiser.modules())
    assert side.attention is not None
    total_GHW = side.attention.maps_GLHW.sum(1)
    if kind.startswith("sd3"):  # places attend to each other, too
        assert total_GHW.min() > 0 and total_GHW.max() < 1
    else:
        np.testing.assert_allclose(total_GHW, 1, atol=1e-5)
    assert len(side.frames) == 3 and [f.number for f in side.frames] == [0, 1, 2]
    assert side.frames[-1].predicted.size == side.picture.image.size == (32, 32)


def test_attention_is_what_diffusers_computes(models: Path) -> None:
    """By a processor of diffusers' own arithmetic, which keeps its probabilities."""
    model = load(models / "sd1")
    unet: Any = model.denoiser
    kept = list[torch.Tensor]()

    class Keep:
        def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **more: Any) -> Any:
            states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                attn.head_to_batch_dim(f(x))
                for f, x in ((attn.to_q, hidden_states), (attn.to_k, states), (attn.to_v, states))
            )
            share = attn.get_attention_scores(q, k)
            if encoder_hidden_states is not None:  # the second of two pictures, its mean over heads
                kept.append(share.view(2, attn.heads, *share.shape[1:])[1].mean(0))
            return attn.to_out[0](attn.batch_to_head_dim(share @ v))

    unet.set_attn_processor(Keep())
    x_BCHW, t_B = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 500])
    with torch.no_grad(), watched(unet) as watch:
        model.denoise(x_BCHW, t_B, model.encode_prompts(["", "a red dog"]))
        found_LHW = watch.take()
    assert found_LHW is not None and len(kept) == watch.layers
    sides = [int(len(m) ** 0.5) for m in kept]
    maps = [m.T.reshape(1, -1, side, side) for m, side in zip(kept, sides, strict=True)]
    whole = [torch.nn.functional.interpolate(m, (max(sides),) * 2, mode="bilinear")[0] for m in maps]
    torch.testing.assert_close(found_LHW, torch.stack(whole).mean(0))
    assert found_LHW.std() > 1e-4
    assert watch.take() is None


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_a_true_output_gives_the_true_picture(prediction: Prediction) -> None:
    rng = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=rng)
    alpha, sigma = (0.4, 0.6) if prediction == "flow" else (0.6, 0.8)
    out = {"epsilon": noise, "v": alpha * noise - sigma * x0, "flow": noise - x0}[prediction]
    torch.testing.assert_close(parts(prediction, out, alpha * x0 + sigma * noise, alpha, sigma)[0], x0)


@pytest.mark.parametrize("scheduler", ["euler", "dpm++2m", "ddim", "heun"])
def test_the_noise_of_a_look_is_the_samplers(models: Path, scheduler: str) -> None:
    """Also between two timesteps, where Euler asks; and what the denoiser is shown has that much noise."""
    model = load(models / "sd1")
    looks = list[Look]()
    config = SampleConfig(steps=5, scheduler=scheduler, guidance=1.0)  # type: ignore[arg-type]
    list(sample(model, config, prompts=["a dog"], seeds=[1], on_step=looks.append))
    assert [look.number for look in looks] == list(range(looks[0].count)) and looks[0].unconditional_BCHW is None
    ours = [noise_at("epsilon", model.alphas_T, model.sigmas_T, look.t) for look in looks]
    built = build_scheduler(model, scheduler)
    built.set_timesteps(5)
    assert [look.t for look in looks] == pytest.approx([float(t) for t in built.timesteps])
    if scheduler in ("euler", "heun", "dpm++2m"):
        ratios = [float(s) for s in built.sigmas[: len(ours)]]
        assert [sigma / alpha for alpha, sigma in ours] == pytest.approx(ratios, rel=1e-3)
    assert all(a**2 + s**2 == pytest.approx(1, abs=1e-5) for a, s in ours)
    assert float(looks[0].seen_BCHW.std()) == pytest.approx(1, abs=0.1)


def test_the_map_to_colours_is_the_one_that_fits() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(5, 3)) / 4
    latents = torch.from_numpy(rng.normal(size=(1, 4, 6, 6)))
    pixels = (
        torch.einsum("bchw,cd->bdhw", latents, torch.from_numpy(true[:4])) + torch.from_numpy(true[4])[:, None, None]
    )
    found, explained = _fit([(latents, pixels), (latents.flip(2), pixels.flip(2))])
    np.testing.assert_allclose(found, true, atol=1e-9)
    assert explained == pytest.approx(1)
    picture = colours(latents[0].float().numpy(), found)
    assert np.abs(np.asarray(picture, float) / 127.5 - 1 - pixels[0].clamp(-1, 1).permute(1, 2, 0).numpy()).max() < 0.01


def test_a_drawing_of_nothing_is_shown_all_the_same(models: Path) -> None:
    """The VAE of a model that breaks in half precision gives NaN."""
    model = load(models / "sd1")
    parts: Any = model
    for layer in (parts.vae.post_quant_conv, parts.denoiser.conv_out):
        layer.weight.data[0, 0] = float("nan")
    config = configs.load(None, ["sample.steps=2", "sample.guidance=2"])
    shown = show(model, config, source="m", prompt="a dog", seed=0)
    assert "shows nothing" in show_page.html(shown)
    json.dumps(show_page.as_json(shown), allow_nan=False)


def test_looks_are_chosen_evenly() -> None:
    assert chosen(20, 8) == [0, 3, 5, 8, 11, 14, 16, 19]
    assert chosen(3, 8) == [0, 1, 2] and chosen(1, 8) == [0] and chosen(9, 1) == [8] and chosen(9, 2) == [0, 8]


def test_moved_is_none_for_the_same_map_and_all_for_another_place() -> None:
    a, b = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    a[0, 0], b[1, 1] = 0.5, 0.1
    assert moved(a, 3 * a) == pytest.approx(0) and moved(a, b) == pytest.approx(1)
    assert moved(a, a + 5 * b) == pytest.approx(0.5)


# ---- how a prompt is read


def test_pieces_are_put_together_to_words(embedded: Model) -> None:
    read = tokens.read(embedded, "a réd Ghost!", 1)
    assert [w.text for w in read.words] == ["a", "réd", "ghost", "!"]
    assert read.words[1].positions == (2, 3, 4, 5), "a word of four tokens"
    assert [t.text for t in read.tokens[:7]] == ["<|startoftext|>", "a", "r", r"\xc3", r"\xa9", "d", "ghost"]
    assert [t.kind for t in read.tokens[:2]] == ["start", "piece"] and read.tokens[8].kind == "end"
    assert read.positions("padding") == list(range(9, 32)) and not read.cut


def test_a_long_prompt_is_read_in_chunks_or_cut(embedded: Model) -> None:
    prompt = "red " * 29 + "dog ghost"  # 30 tokens and a mark at either end fill a chunk
    assert embedded.chunks_for([prompt]) == 2
    read = tokens.read(embedded, prompt, 2)
    assert read.positions("start") == [0, 32] and read.words[-1].positions == (33,) and read.tokens[33].chunk == 1
    assert len(read.words) == 31 and not read.cut
    assert tokens.read(embedded, prompt, 1).cut == ("ghost",)


def test_a_new_word_is_one_word(models: Path) -> None:
    model = load(models / "sd1")
    model.new_words = NewWords(model.tokenizers, {"<mine>": 2})
    read = tokens.read(model, "a <mine> dog", 1)
    assert [(w.text, w.positions) for w in read.words] == [("a", (1,)), ("<mine>", (2, 3)), ("dog", (4,))]
    assert read.tokens[3].word == 1


# ---- base and tuned


def adapter_on(model: Model, folder: Path) -> Path:
    method = Lora(rank=2, targets="attention")
    parameters, rng = method.attach(model, seed=0), torch.Generator().manual_seed(1)
    for p in parameters.values():
        p.data += torch.randn(p.shape, generator=rng) * 0.3
    return method.export(model, {n: p.detach() for n, p in parameters.items()}, folder, "mine", {"steps": 1})


@pytest.fixture(scope="module")
def both(models: Path) -> Shown:
    path = adapter_on(load(models / "sd1"), models / "final")
    return sdtune.show(path, f"model.path={models / 'sd1'}", *FEW, prompt="a red dog", seed=3, steps_shown=3)


def test_an_adapter_is_shown_beside_its_base(models: Path, both: Shown) -> None:
    base, tuned = both.sides
    assert (base.name, tuned.name) == ("base", "tuned")
    assert both.source.endswith(".safetensors") and "/" not in both.source
    config = SampleConfig(steps=4, guidance=3.0)
    (plain,) = sample(load(models / "sd1"), config, prompts=["a red dog"], seeds=[3])
    assert np.array_equal(np.asarray(base.picture.image), np.asarray(plain.image)), "strength 0 is the base"
    assert not np.array_equal(np.asarray(base.picture.image), np.asarray(tuned.picture.image))
    assert both.training is not None
    assert set(both.training.losses) == {"base", "tuned"}
    assert both.training.losses["base"] != both.training.losses["tuned"]
    record = show_page.as_json(both)
    assert set(record["attention_moved"]) == {"a", "red", "dog"}
    assert all(0 < value < 1 for value in record["attention_moved"].values())
    assert len(record["looks"]) == 4 and record["looks"][0]["snr"] < record["looks"][-1]["snr"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


# ---- the page


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images, self.ids, self.headings, self.open = list[str](), list[str](), list[str](), list[str]()
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "img", "input", "link", "br", "col", "path", "line", "circle"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(given.get("src") or "")
            assert given.get("alt") is not None
        if "id" in given:
            self.ids.append(given["id"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "line", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_page_needs_nothing_else(both: Shown) -> None:
    text = show_page.html(both)
    page = Page(text)
    assert text.startswith(show_page.MARK)
    assert all(src.startswith("data:image/") or src == "" for src in page.images) and len(page.images) > 40
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?:|@import|url\((?!data:)|<link|src=\"(?!data:)", text.replace('src=""', ""))
    assert len(page.headings) == 6
    assert "timestep 999" in text and "loss" in text
    assert "<b>" not in show_page.html(dataclasses.replace(both, prompt="<b>x</b>")).partition("<main>")[0]


def test_without_guidance_there_is_nothing_to_show_of_it(models: Path) -> None:
    shown = sdtune.show(str(models / "sd1"), *FEW, "sample.guidance=1", "sample.steps=1", prompt="a dog", steps_shown=1)
    assert shown.sides[0].difference == () and len(shown.sides[0].frames) == 1
    assert "sample.guidance is 1" in show_page.html(shown)


def test_charts_bear_what_has_no_number() -> None:
    nan = float("nan")
    drawn = charts.plot("t", "a", [("x", [1, 2, 3], [nan, 1.0, 2.0])], "w", dots=[("x", [1, 2], [nan, 1.0])], zero=True)
    assert drawn.lines[0][1].count(",") == 2 and len(drawn.dots) == 1
    assert charts.plot("t", "a", [("x", [1], [nan])], "w").lines[0][1] == "M"
    marks = charts.plot("t", "a", [("x", [0, 12], [-4, 2])], "w", decades=True).ticks_y
    assert [text for _, text in marks] == ["0.0001", "0.01", "1", "100"]


# ---- the command


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["show", *arguments])
    return int(left.value.code or 0)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_a_page_and_numbers(models: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = (str(models / "sd1"), *FEW, "sample.steps=1", "--steps-shown", "1", "-p", "a dog", "--seed", "4")
    assert run(*few, "--json") == 0
    (said,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (said["page"], said["numbers"], said["seed"]) == ("show.html", "show.json", 4)
    record = json.loads((inside / "show.json").read_text(encoding="utf-8"))
    assert record["prompt"] == "a dog" and len(record["sides"]["model"]["attention"]["shares"]) == 4
    assert str(models) not in (inside / "show.html").read_text(encoding="utf-8") + json.dumps(record)
    (inside / "show.html").write_text(show_page.MARK)
    assert run(*few, "--quiet") == 0
    assert (inside / "show.html").stat().st_size > 10_000, "a page of its own is replaced"


def test_another_file_is_not_written_over(models: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "mine.html").write_text("mine")
    assert run(str(models / "sd1"), "-p", "a dog", "--out", "mine.html") == 2
    assert "mine.html: is there already, and not made by `sdtune show`" in capsys.readouterr().err
    assert (inside / "mine.html").read_text() == "mine"
    assert run(str(models / "sd1"), "-p", "a dog", "--out", str(models)) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_without_a_prompt_it_says_so(models: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(models / "sd1"), *FEW) == 2
    assert capsys.readouterr().err.startswith("error: nothing to draw: give a prompt (--prompt")
    assert not list(inside.iterdir())
