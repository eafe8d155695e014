"""From a finished tiny run to a report: the right prompts, nothing drawn twice, the base untouched."""

import dataclasses
import html
import importlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests import tiny
from tests.metrics import tiny_encoders
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import sdtune
from sdtune import config as configs
from sdtune.compare import compare, comparing, read_validation
from sdtune.config import RunConfig
from sdtune.drawing import Progress
from sdtune.errors import ConfigError, EvaluationError
from sdtune.evaluate import evaluate
from sdtune.events import Step, Validated
from sdtune.metrics import cache, copying, encoders
from sdtune.metrics.features import Scorer
from sdtune.pairs import make_plan
from sdtune.runs import Run
from sdtune.train import train
from sdtune.viewing import open_rgb, square

module = importlib.import_module("sdtune.compare")  # the package's own `compare` is the function
SETTINGS = (
    "train.steps=2", "train.batch_size=2", "train.validate_every=1", "train.sample_every=2", "train.validation_timesteps=1",
    "train.precision=fp32", "train.threads=1", "train.device=cpu", "optimizer.lr=0.1", "method.rank=2", "sample.steps=2",
    "sample.seeds=[0]", "data.caption_suffix=in ink", "evaluate.seeds=[3, 4]", "evaluate.draws=100", "name=tiny",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a set with train, validation and test pictures, and a finished run."""
    folder = tmp_path_factory.mktemp("world")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "set" / "train", ["red dog", "blue dog", "green dog"])
    tiny.imagefolder(folder / "set" / "validation", ["red sun", "blue sun"], seed=20)
    tiny.imagefolder(folder / "set" / "test", ["red cat", "blue cat", "green cat", "red cat"], seed=40)
    tiny.imagefolder(folder / "control", ["house", "red house"], seed=60)
    config = config_of(folder)
    for _ in train(config, Run(folder / "run")):
        pass
    return folder


def config_of(world: Path, *overrides: str, unrelated: bool = False) -> RunConfig:
    """The tiny run's config; with `unrelated`, as by default, prompts of other things are drawn as well."""
    paths = (f"model.path={world / 'model'}", f"data.path={world / 'set'}", f"data.cache={world / 'cache'}")
    without = () if unrelated else ("evaluate.unrelated=[]",)
    return configs.load(None, [*paths, *SETTINGS, *without, *overrides])


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Run:
    shutil.copytree(world / "run", tmp_path / "run", dirs_exist_ok=True)
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A scorer of the shipped one's classes, with random weights."""
    folder = tmp_path_factory.mktemp("scorer")
    words = tiny.tokenizer(folder / "tokenizer")
    words.save_pretrained(folder / "tokenizer")
    tiny.text_encoder(words).save_pretrained(folder / "text")
    torch.manual_seed(0)
    shape = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    CLIPVisionModelWithProjection(shape).save_pretrained(folder / "vision")
    return Scorer.load(folder / "vision", text=folder / "text", tokenizer=folder / "tokenizer")


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scorer judge the tiny model, as it judges the embedded base."""
    monkeypatch.setattr(module, "scorer_gap", lambda config: "")


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is really drawn."""
    sampler = importlib.import_module("sdtune.sample")
    real, made = sampler.sample, list[tuple[str, int]]()

    def counted(model: Any, config: Any, *, prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Any]:
        for picture in real(model, config, prompts=prompts, seeds=seeds):
            made.append((picture.prompt, picture.seed))
            yield picture

    monkeypatch.setattr(sampler, "sample", counted)
    return made


def test_the_whole_way(world: Path, run: Run, scorer: Scorer, fitting: None) -> None:
    seen: list[Progress] = []
    config = config_of(world, f"evaluate.control={world / 'control'}", unrelated=True)
    result = compare(run, config, scorer=scorer, progress=seen.append)
    assert result.plan.prompts == ("red cat in ink", "blue cat in ink", "green cat in ink")
    assert [(p.prompt, p.seed) for p in result.pairs] == [(q, s) for q in result.plan.prompts for s in (3, 4)]
    for pair in result.pairs:
        base, tuned = (np.asarray(Image.open(p)) for p in (pair.base, pair.tuned))
        assert base.shape == (32, 32, 3)
        assert not np.array_equal(base, tuned)
    scores = json.loads(run.scores_file.read_text())
    assert scores["format"] == "sdtune comparison 1"
    assert {v["answer"] for v in scores["verdicts"]} == {"cannot tell"}  # six pictures prove nothing
    assert [e.captions[0] for e in result.plan.control] == ["house", "red house"]
    assert run.report_file.read_text().startswith("<!doctype html>")
    assert result.plan.unrelated == ("house", "red house")
    assert [(p.prompt, p.seed) for p in result.unrelated] == [("house", 3), ("red house", 3)]
    assert all(p.base.exists() and p.tuned.exists() for p in result.unrelated)
    assert result.scores.figure("unrelated") is not None
    assert run.vote_file.read_text().startswith("<!doctype html>")
    assert seen[0] == ("base pictures", 0, 8)
    assert ("tuned pictures", 8, 8) in seen
    assert seen[-1] == ("report", 1, 1)


def test_base_pictures_are_those_of_the_plain_model(world: Path, run: Run, scorer: Scorer, fitting: None) -> None:
    from sdtune.sample import sample

    config = config_of(world)
    result = compare(run, config, scorer=scorer)
    model = config.model.load(device="cpu")
    for pair in result.pairs[:2]:
        (picture,) = sample(model, config.sample, prompts=[pair.prompt], seeds=[pair.seed])
        difference = np.abs(np.asarray(picture.image, int) - np.asarray(Image.open(pair.base), int))
        assert difference.max() <= 1  # a batch may round otherwise than a single picture


def test_what_is_drawn_is_not_drawn_again(
    world: Path, run: Run, scorer: Scorer, fitting: None, drawings: list[tuple[str, int]]
) -> None:
    first = compare(run, config_of(world), scorer=scorer)
    report = run.report_file.read_bytes()
    assert len(drawings) == 12
    drawings.clear()
    compare(run, config_of(world), scorer=scorer)
    assert drawings == []
    assert run.report_file.read_bytes() == report
    first.pairs[0].base.unlink()
    first.pairs[3].tuned.write_bytes(first.pairs[3].tuned.read_bytes()[:100])
    compare(run, config_of(world), scorer=scorer)
    assert drawings == [(first.pairs[0].prompt, 3), (first.pairs[3].prompt, 4)]
    assert run.report_file.read_bytes() == report


def test_other_settings_or_weights_are_drawn_anew(
    world: Path, run: Run, scorer: Scorer, fitting: None, drawings: list[tuple[str, int]]
) -> None:
    compare(run, config_of(world), scorer=scorer)
    drawings.clear()
    compare(run, config_of(world, "sample.guidance=2"), scorer=scorer)
    assert len(drawings) == 12
    drawings.clear()
    (adapter,) = run.final.glob("*.safetensors")
    from safetensors import safe_open

    with safe_open(adapter, "pt") as file:
        about = file.metadata()
    save_file({k: v * 2 if v.ndim else v for k, v in load_file(adapter).items()}, adapter, about)
    compare(run, config_of(world, "sample.guidance=2"), scorer=scorer)
    assert len(drawings) == 6  # the tuned ones


def test_pictures_of_prompts_read_in_more_chunks_are_others(
    world: Path, run: Run, scorer: Scorer, fitting: None, drawings: list[tuple[str, int]]
) -> None:
    compare(run, config_of(world), scorer=scorer)
    once = len(drawings)
    compare(run, config_of(world, "data.caption_chunks=2"), scorer=scorer)
    assert len(drawings) == 2 * once


def test_pictures_drawn_anew_are_shown_anew(tmp_path: Path) -> None:
    from sdtune import report

    file = tmp_path / "a.png"
    tiny.picture(1, (32, 32)).save(file)
    before = report.thumb(file, 64)
    tiny.picture(2, (32, 32)).save(file)
    os.utime(file, ns=(1, 1))
    assert report.thumb(file, 64) != before


def test_the_command_repeats_what_was_asked(world: Path, run: Run, scorer: Scorer, fitting: None) -> None:
    compare(run, run.config(["evaluate.seeds=[3]", "sample.strength=0.5", "evaluate.max_prompts=2"]), scorer=scorer)
    text = html.unescape(run.report_file.read_text())
    line = next(line for line in text.splitlines() if "sdtune compare" in line and "run" in line)
    assert set(shlex.split(line)[-3:]) == {"evaluate.seeds=[3]", "sample.strength=0.5", "evaluate.max_prompts=2"}


def test_a_checkpoint_chosen_with_the_judging_pictures_is_said_to_be_flattered(
    world: Path, run: Run, scorer: Scorer, fitting: None, tmp_path: Path
) -> None:
    shutil.copytree(world / "set" / "train", tmp_path / "set" / "train")
    shutil.copytree(world / "set" / "validation", tmp_path / "set" / "validation")
    config = config_of(world, f"data.path={tmp_path / 'set'}")
    (step,) = [p.name for p in run.checkpoints.glob("step-*")][-1:]
    assert any("flatter" in limit for limit in compare(run, config, checkpoint="best", scorer=scorer).scores.limits)
    assert not any("flatter" in limit for limit in compare(run, config, checkpoint=step, scorer=scorer).scores.limits)


def test_interrupted_drawing_goes_on(
    world: Path, run: Run, scorer: Scorer, fitting: None, drawings: list[tuple[str, int]]
) -> None:
    parts = comparing(run, config_of(world, "sample.batch_size=1"), scorer=scorer)
    next(p for p in parts if p == ("base pictures", 3, 6))
    parts.close()
    drawings.clear()
    compare(run, config_of(world, "sample.batch_size=1"), scorer=scorer)
    assert len(drawings) == 9


def test_pictures_of_earlier_prompts_are_removed(world: Path, run: Run, scorer: Scorer, fitting: None) -> None:
    compare(run, config_of(world), scorer=scorer)
    compare(run, config_of(world, 'evaluate.prompts=["sun", "dog"]', "evaluate.seeds=[3]"), scorer=scorer)
    assert sorted(p.name for p in (run.comparison / "base").glob("*.png")) == ["000-3.png", "001-3.png"]


def test_another_base_is_judged_by_its_loss_alone_where_no_encoder_is_here(
    world: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDTUNE_ENCODERS", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    result = compare(run, config_of(world, "evaluate.primary='validation_loss'"))
    assert {f.key for f in result.scores.figures} == {"validation_loss"}
    assert result.scorer is None
    assert result.encoders == ()
    assert "sdtune metrics --get clip-l14 (" in result.scores.limits[0]
    assert "sdtune metrics --get dinov2-b14 (" in result.scores.limits[0]
    assert "validation loss" in result.scores.limits[0]


def test_published_encoders_judge_another_base(
    world: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny ones of the real classes stand in for CLIP, DINOv2 and PickScore."""
    home = tmp_path / "encoders"
    tiny_encoders.clip(home, "clip-b32")
    tiny_encoders.dinov2(home, "dinov2-b14")
    tiny_encoders.clip(home, "pickscore")
    monkeypatch.setenv("SDTUNE_ENCODERS", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    result = compare(run, config_of(world, "evaluate.max_unrelated=3", unrelated=True))
    keys = {f.key for f in result.scores.figures}
    assert keys >= {"kid_target", "found_first", "prompt_cosine", "unrelated", "drift", "pickscore", "validation_loss"}
    assert [e["encoder"] for e in result.encoders] == ["dinov2-b14", "clip-b32", "pickscore"]
    assert result.encoders[2]["sha256"]
    preferred = result.scores.figure("pickscore")
    assert preferred is not None
    assert "at least 100 are needed" in preferred.note
    assert len(result.plan.unrelated) == 3, "of the list that comes along"
    left = next(limit for limit in result.scores.limits if limit.startswith("Left out"))
    assert "hpsv2 (sdtune metrics --get hpsv2 " in left
    assert "pickscore" not in left and "copies by SSCD (sdtune metrics --get sscd " in left
    assert json.loads(run.scores_file.read_text())["encoders"][1]["encoder"] == "clip-b32"
    looked = f"taken on {result.encoders[0]['title']} (distances) and {result.encoders[1]['title']} (what is shown)."
    assert looked in run.report_file.read_text()
    again = compare(run, config_of(world, "evaluate.max_unrelated=3", unrelated=True))
    assert again.scores == result.scores


def test_sscd_looks_for_copies_where_it_is_here(
    world: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "encoders"
    tiny_encoders.clip(home, "clip-b32")
    tiny_encoders.sscd(home, monkeypatch)
    monkeypatch.setenv("SDTUNE_ENCODERS", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    config = config_of(world)
    result = compare(run, config)
    assert [e["encoder"] for e in result.encoders] == ["clip-b32", "sscd"]
    encoder, drawn = encoders.load("sscd"), [open_rgb(p.tuned) for p in result.pairs]
    tuned = cache.features(encoder, drawn)
    train = cache.features(encoder, [square(e, config.data, drawn[0].width) for e in result.plan.train])
    cosine = copying.copies(tuned, train)
    for n in result.scores.neighbours:
        assert n.train == cosine.nearest_N[n.picture]
        assert n.cosine == pytest.approx(cosine.cosine_N[n.picture], abs=1e-5)
    verdict = result.scores.verdict("copied")
    assert verdict and "SSCD" in verdict.detail
    page = run.report_file.read_text()
    assert "SSCD's limit for copies" in page
    assert f"All distances are taken on {result.encoders[0]['title']}." in page, "and not on SSCD"
    assert not [limit for limit in result.scores.limits if "copies by SSCD" in limit]


def test_plan(world: Path, tmp_path: Path) -> None:
    given = make_plan(config_of(world, 'evaluate.prompts=["sun", "house in ink", "sun"]'))
    assert given.prompts == ("sun in ink", "house in ink")
    (tmp_path / "prompts.txt").write_text("red sun\n\nblue sun\n")
    assert make_plan(config_of(world, f"evaluate.prompts={tmp_path / 'prompts.txt'}")).prompts == (
        "red sun in ink",
        "blue sun in ink",
    )
    few = make_plan(config_of(world, "evaluate.max_prompts=2"))
    assert few.prompts == ("red cat in ink", "blue cat in ink")
    assert len(few.reference) == 4
    other = make_plan(config_of(world, f"evaluate.reference={world / 'set' / 'validation'}"))
    assert other.prompts == ("red sun in ink", "blue sun in ink")
    shutil.copytree(world / "set", tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "test")
    plain = make_plan(config_of(world, f"data.path={tmp_path / 'set'}"))
    assert "validation pictures" in plain.sources["reference"]
    assert plain.notes


def test_the_tuned_model_is_drawn_at_the_strength_that_is_asked_for(
    world: Path, run: Run, scorer: Scorer, fitting: None
) -> None:
    whole = compare(run, config_of(world), scorer=scorer).pairs[0]
    base, tuned = whole.base.read_bytes(), whole.tuned.read_bytes()
    half = compare(run, config_of(world, "sample.strength=0.5"), scorer=scorer).pairs[0]
    assert half.base.read_bytes() == base
    assert half.tuned.read_bytes() != tuned
    assert "sample.strength=0.5" in run.report_file.read_text()
    with pytest.raises(ConfigError, match="at 0 the tuned model is the base"):
        compare(run, config_of(world, "sample.strength=0"), scorer=scorer)


def test_unrelated_prompts(world: Path, tmp_path: Path) -> None:
    control = f"evaluate.control={world / 'control'}"
    assert make_plan(config_of(world, control, "evaluate.max_unrelated=1", unrelated=True)).unrelated == ("house",)
    assert make_plan(config_of(world, control)).unrelated == ()
    assert make_plan(config_of(world, unrelated=True)).unrelated == (), "of another base nothing is known that would be"
    (tmp_path / "u.txt").write_text("a boat\n\na train\n")
    plan = make_plan(config_of(world, f"evaluate.unrelated={tmp_path / 'u.txt'}"))
    assert plan.unrelated == ("a boat", "a train")
    assert plan.sources["unrelated"] == "evaluate.unrelated"
    with pytest.raises(EvaluationError, match="'red dog in ink' is a prompt or caption of the training"):
        make_plan(config_of(world, "evaluate.unrelated=['red dog in ink']"))


def test_votes_enter_the_report(world: Path, run: Run, scorer: Scorer, fitting: None) -> None:
    result = compare(run, config_of(world), scorer=scorer)
    for name, ballot in (("ann", result.ballot), ("bob", "of other pictures")):
        rows = [{"pair": k, "choice": "left"} for k in range(3)]
        text = json.dumps({"format": "sdtune votes 1", "ballot": ballot, "voter": name, "votes": rows})
        (run.votes / f"{name}.json").parent.mkdir(exist_ok=True)
        (run.votes / f"{name}.json").write_text(text)
    scores = compare(run, config_of(world), scorer=scorer).scores
    row = scores.figure("votes")
    assert row is not None
    assert "3 blind choices on 2 prompts by 1 voter" in row.note
    assert any("1 file of votes in votes/ are on other pictures" in limit for limit in scores.limits)


def test_pictures_that_were_trained_on_are_no_reference(world: Path) -> None:
    with pytest.raises(EvaluationError, match="3 of its pictures are trained on"):
        make_plan(config_of(world, f"evaluate.reference={world / 'set' / 'train'}"))


def test_losses_are_read_up_to_the_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step, loss in ((0, 1.0), (10, 0.5), (20, 0.7), (30, 0.8)):
        run.log(Step(step + 1, loss, 1.0, 0.1, 0.1))
        run.log(Validated(step, loss, (loss, loss)))
    assert read_validation(run).steps == (0, 10, 20, 30)
    assert read_validation(run, "best").steps == (0, 10)
    assert read_validation(run, "step-000020").steps == (0, 10, 20)
    assert read_validation(run, "step-000020").train_steps == (1, 11)


def test_evaluate_measures_one_folder(scorer: Scorer) -> None:
    from sdtune.metrics.kid import kid

    drawn, real = [tiny.picture(i) for i in range(6)], [tiny.picture(i) for i in range(10, 15)]
    prompts = ["red dog", "blue dog", "sun"] * 2
    scores = evaluate(drawn, real, prompts=prompts, scorer=scorer, draws=100)
    assert [f.key for f in scores.figures] == ["kid_target", "fd_target", "found_first", "prompt_cosine"]
    assert all(f.base is None and f.difference is None for f in scores.figures)
    plain = evaluate(drawn, real, scorer=scorer, draws=100).figure("kid_target")
    assert plain is not None
    assert plain.tuned is not None
    assert plain.tuned.value == pytest.approx(kid(scorer.features(drawn), scorer.features(real)))
    assert "not evidence" in plain.note
    with pytest.raises(EvaluationError, match="2 for 6 pictures"):
        evaluate(drawn, real, prompts=["a", "b"], scorer=scorer)


def test_scorer_reads_pictures_of_any_size(scorer: Scorer) -> None:
    small, large = tiny.picture(1, (16, 16)), tiny.picture(1, (16, 16)).resize((64, 64), Image.Resampling.NEAREST)
    features, embeds = scorer.see([small, large])
    assert np.allclose(features[0], features[1], atol=1e-5)  # reduced by area, blocks become their pixels again
    assert np.allclose(np.linalg.norm(embeds, axis=1), 1)
    assert np.allclose(scorer.features([small]), features[:1], atol=1e-6)
    assert np.allclose(np.linalg.norm(scorer.texts(["red dog", "blue dog"]), axis=1), 1)


def test_scorer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no tokenizer there"):
        Scorer.load(tmp_path, text=tmp_path, tokenizer=tmp_path)
    (tmp_path / "vocab.json").touch()
    with pytest.raises(EvaluationError, match="no scorer there"):
        Scorer.load(tmp_path, text=tmp_path, tokenizer=tmp_path)


def test_pictures_that_show_nothing_are_counted(world: Path, run: Run, scorer: Scorer, fitting: None) -> None:
    sound = compare(run, config_of(world), scorer=scorer)
    assert sound.flawed == "" and "Careful" not in (run.comparison / "report.md").read_text()
    assert json.loads(run.scores_file.read_text())["flawed"] == {"base": 0, "tuned": 0}
    (file,) = run.final.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
        weights = {name: opened.get_tensor(name) * 1e30 for name in opened.keys()}  # noqa: SIM118
    save_file(weights, file, about)
    for _ in range(2):  # the second time, nothing is drawn anew
        broken = compare(run, config_of(world), scorer=scorer)
        assert broken.flawed.startswith("6 of 6 tuned pictures (and 0 of the base's) show nothing, and are judged")
        assert "'red cat in ink', seed 3: 1024 of 1024 pixels were NaN" in broken.flawed
        record = json.loads(run.scores_file.read_text())
        assert record["flawed"] == {"base": 0, "tuned": 6}
        assert all("tuned_flaw" in p and "base_flaw" not in p for p in record["pictures"])
        assert f"**Careful: {broken.flawed}**" in (run.comparison / "report.md").read_text()
        page = run.report_file.read_text()
        assert page.count(">shows nothing<") == 6 and page.count('<p class="alarm"') == 1


def test_bands_are_those_of_the_step_that_is_judged(run: Run) -> None:
    kept = list(run.events())
    run.events_file.write_text("")
    run.log(banded(0, 0.5))
    for step, mean in ((1, 0.3), (2, 0.4)):
        run.log(banded(step, mean))
    assert kept and [b.now for b in read_validation(run).bands] == pytest.approx([0.4, 0.4])
    assert [b.now for b in read_validation(run, "best").bands] == pytest.approx([0.3, 0.3])
    assert [b.base for b in read_validation(run, "step-000001").bands] == pytest.approx([0.5, 0.5])


def banded(step: int, mean: float) -> Validated:
    return Validated(step, mean, (mean, mean), (mean, mean), None, (250, 750), ((mean, mean), (mean, mean)))


def test_a_result_that_is_the_best_step_is_judged_by_its_losses(
    world: Path, run: Run, scorer: Scorer, fitting: None
) -> None:
    """The final result of such a run is not its last step."""
    for step, mean in ((0, 0.5), (1, 0.3), (2, 0.4)):
        run.log(banded(step, mean))
    assert compare(run, config_of(world), scorer=scorer).validation.steps == (0, 1, 2)
    run.write_config(config_of(world, "train.result=best"))
    result = compare(run, config_of(world, "train.result=best"), scorer=scorer)
    assert result.validation.steps == (0, 1)
    assert not any("flatter" in limit for limit in result.scores.limits), "the reference is the test set"


def folder_of(folder: Path, size: tuple[int, int], n: int = 3) -> Path:
    folder.mkdir()
    for i in range(n):
        array = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


def test_larger_pictures_need_published_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped scorer knows drawings of 64 pixels, and is not asked about others unless it is named."""
    monkeypatch.setenv("SDTUNE_ENCODERS", str(tmp_path / "encoders"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("SDTUNE_CACHE", str(tmp_path / "cache"))
    drawn, real = folder_of(tmp_path / "drawn", (160, 130)), folder_of(tmp_path / "real", (320, 400))
    with pytest.raises(
        EvaluationError, match=r"pictures of 130 pixels need published encoders.*--get clip-l14.*dinov2"
    ):
        sdtune.evaluate(drawn, real)
    assert "scorer that comes with sdtune" in sdtune.evaluate(drawn, real, scorer="shipped").limits[0]
    small = folder_of(tmp_path / "small", (64, 64))
    assert "scorer that comes with sdtune" in sdtune.evaluate(small, real).limits[0]
    with pytest.raises(EvaluationError, match="pictures of 64 pixels"):
        sdtune.evaluate(small, real, scorer="published")
    tiny_encoders.clip(tmp_path / "encoders", "clip-b32")
    tiny_encoders.dinov2(tmp_path / "encoders", "dinov2-b14")
    scores = sdtune.evaluate(drawn, real)
    assert "DINOv2" in scores.limits[0] and scores.figure("kid_target")
    kept = {path.stem for path in (tmp_path / "cache" / "seen").glob("*.sqlite")}
    assert kept == {"shipped-whole", "clip-b32", "dinov2-b14"}, "what was seen is kept"


def test_real_pictures_are_shown_as_large_as_the_drawn_ones(tmp_path: Path, scorer: Scorer) -> None:
    seen: list[tuple[int, int]] = []

    class Watching:
        title = "nobody"

        def see(self, images: list[Image.Image]) -> tuple[Any, Any]:
            seen.extend(im.size for im in images)
            return scorer.see(images)

    drawn, real = [Image.new("RGB", (40, 40))] * 2, [Image.new("RGB", (400, 200)), Image.new("RGB", (20, 30))]
    evaluate(drawn, real, scorer=Watching(), draws=100)  # type: ignore[arg-type]
    assert seen == [(40, 40), (40, 40), (80, 40), (20, 30)]


def test_pictures_that_the_scorer_has_seen_are_not_looked_at_again(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    look = Scorer.look

    def counted(self: Scorer, pixels: Any) -> Any:
        looked.append(len(pixels))
        return look(self, pixels)

    monkeypatch.setattr(Scorer, "look", counted)
    images, keeping = [tiny.picture(i) for i in range(4)], dataclasses.replace(scorer, folder=tmp_path)
    once, again, plain = keeping.see(images[:3]), keeping.see(images), scorer.see(images)
    assert looked == [3, 1, 4]
    for part in (0, 1):
        assert np.array_equal(again[part][:3], once[part])
        assert np.allclose(again[part], plain[part], atol=1e-6)
    other = dataclasses.replace(keeping, fingerprint="another")
    other.see(images[:1])
    assert looked == [3, 1, 4, 1], "of other weights nothing is known"
