"""Textual inversion and pivotal tuning: new words learn, stay out of the way of the others, and their files load elsewhere."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdtune import config as configs
from sdtune import tuned
from sdtune.config import RunConfig, SampleConfig
from sdtune.errors import ConfigError, ModelError
from sdtune.events import Step, Warned
from sdtune.methods import word_layer
from sdtune.methods.word_file import file_name
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.sample import sample
from sdtune.train import train
from sdtune.words import NewWords
from tests import tiny

FAMILIES = ("sd1", "sd2", "sdxl", "sd3-t5")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    tiny.sd1_folder(folder / "sd1")
    for kind in FAMILIES[1:]:
        tiny.family_folder(kind, folder / kind)
    tiny.imagefolder(folder / "pictures", ["a <sks> dog", "a blue <sks>", "the <sks>", "a <sks> cat"])
    return folder


def config_of(world: Path, family: str, *overrides: str) -> RunConfig:
    return configs.load(None, [
        f"model.type={family.partition('-')[0]}", f"model.path={world / family}", f"data.path={world / 'pictures'}",
        f"data.cache={world / 'cache'}", 'method.tokens={"<sks>"="red dog"}', "method.token_vectors=2", "data.caption_dropout=0",
        "train.steps=4", "train.batch_size=2", "train.validate_every=2", "train.validation_timesteps=2", "train.sample_every=0",
        "train.precision=fp32", "train.threads=1", "train.device=cpu", "optimizer.lr=1e-1", "optimizer.schedule=constant",
        *overrides,
    ])  # fmt: skip


METHODS = {
    "alone": ("method.type=textual-inversion",),
    "pivotal": ("method.type=lora", "method.rank=2", "method.text_encoders=[1]"),
}


def drawn(model: Model, prompt: str = "a <sks> dog") -> NDArray[np.int16]:
    options = SampleConfig(prompts=(prompt,), seeds=(1,), steps=2, scheduler="euler")
    (picture,) = sample(model, options)
    return np.asarray(picture.image, np.int16)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("family", FAMILIES)
def test_new_words_from_end_to_end(family: str, method: str, world: Path, tmp_path: Path) -> None:
    config, run, half = config_of(world, family, *METHODS[method]), Run(tmp_path / "run"), Run(tmp_path / "half")
    events = list(train(config, run))
    assert not [e for e in events if isinstance(e, Warned)], "did it train? says nothing"
    first = train(config, half)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    assert [e.loss for e in train(config, half) if isinstance(e, Step)] == [
        e.loss for e in events if isinstance(e, Step)
    ][2:]

    model = config.model.load()
    base, others = drawn(model), drawn(model, "the sun")
    embeddings = {part: model.parts[part].get_input_embeddings() for part in model.word_parts}  # type: ignore[operator]
    on_top = tuned.of_run(model, run)
    expected = drawn(model)
    assert abs(expected - base).max() > 2
    if method == "alone":
        assert np.array_equal(drawn(model, "the sun"), others), "what has no new word is drawn as before"
    on_top.set_strength(0)
    assert np.array_equal(drawn(model), base), "strength 0 is the base, byte for byte"
    on_top.set_strength(1)
    assert np.array_equal(drawn(model), expected)
    on_top.close()
    assert np.array_equal(drawn(model), base)
    assert all(model.parts[p].get_input_embeddings() is e for p, e in embeddings.items())  # type: ignore[operator]
    assert not any(m._forward_pre_hooks for part in model.parts.values() for m in part.modules())
    tuned.of_run(model, run, "step-000004")
    assert np.array_equal(drawn(model), expected), "the checkpoint is what the files are"


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_diffusers_draws_the_same_with_the_file(kind: str, world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, kind, *METHODS["alone"]), Run(tmp_path / "run")
    list(train(config, run))
    model = config.model.load()
    tuned.of_run(model, run)
    ours = model.encode_prompts(["a <sks> cat"]).states_BLD
    pipe: Any = StableDiffusionPipeline.from_pretrained(world / kind)
    pipe.load_textual_inversion(str(run.final / "embeddings" / "sks.safetensors"))
    theirs, _ = pipe.encode_prompt("a <sks> cat", "cpu", 1, False)
    torch.testing.assert_close(ours, theirs)


def test_both_encoders_of_sdxl_have_their_vectors_under_the_usual_names(world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, "sdxl", *METHODS["alone"]), Run(tmp_path / "run")
    list(train(config, run))
    model = config.model.load()
    tuned.of_run(model, run)
    ours = model.encode_prompts(["a <sks> cat"])
    file = load_file(run.final / "embeddings" / "sks.safetensors")
    assert {k: v.shape for k, v in file.items()} == {"clip_l": (2, 16), "clip_g": (2, 24)}
    pipe: Any = DiffusionPipeline.from_pretrained(world / "sdxl")
    names = ["<sks>", "<sks>_1"]
    for key, encoder, words in (
        ("clip_l", pipe.text_encoder, pipe.tokenizer), ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2)
    ):  # fmt: skip
        # as their advanced training script loads them
        pipe.load_textual_inversion(list(file[key]), token=names, text_encoder=encoder, tokenizer=words)
    theirs, _, pooled, _ = pipe.encode_prompt("a <sks> cat", device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(ours.states_BLD, theirs)
    torch.testing.assert_close(ours.pooled_BD, pooled)


def test_the_prompts_vector_is_still_read_at_its_end(world: Path) -> None:
    """With a new word that has the vectors of known ones, everything is as with those: also in models of before transformers 4.31,
    whose config has the id 2 for the end mark, and which take the largest id's place for it."""
    model = config_of(world, "sdxl").model.load()
    for encoder in model.text_encoders:
        (inner,) = [m for m in encoder.modules() if hasattr(m, "eos_token_id")]
        inner.eos_token_id = 2  # type: ignore[assignment]
    plain = model.encode_prompts(["a red dog cat"])
    starts = word_layer.starts(model, {"<sks>": "red dog"}, 2, seed=0)
    word_layer.attach(model, {"<sks>": 2}, starts)
    new = model.encode_prompts(["a <sks> cat"])
    for name, value in plain.tensors().items():
        torch.testing.assert_close(new.tensors()[name], value)
    assert model.token_counts(["a <sks> cat"]) == model.token_counts(["a red dog cat"])


def test_only_the_new_rows_move(world: Path) -> None:
    config = config_of(world, "sd1", *METHODS["alone"])
    model = config.model.load()
    before = copy.deepcopy(model.text_encoders[0].state_dict())
    parameters = config.method.attach(model, seed=0)
    assert {n: tuple(p.shape) for n, p in parameters.items()} == {"text_encoder.words.vectors": (2, 16)}
    assert [n for n, p in model.text_encoders[0].named_parameters() if p.requires_grad] == [
        "embeddings.token_embedding.vectors"
    ]
    config.method.detach(model)
    after = model.text_encoders[0].state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert model.new_words is None


def test_first_vectors_are_those_of_the_words_it_begins_as(world: Path) -> None:
    model = config_of(world, "sd1").model.load()
    table = model.text_encoders[0].get_input_embeddings().weight  # type: ignore[operator]
    (red,), (dog,) = (model.tokenizers[0](w, add_special_tokens=False).input_ids for w in ("red", "dog"))
    starts = word_layer.starts(model, {"<a>": "red dog", "<b>": ""}, 3, seed=1)["text_encoder"]
    assert torch.equal(starts[:3], table[[red, dog, red]])
    assert not torch.equal(starts[3], starts[4]) and starts[3:].std() == pytest.approx(float(table.std()), rel=0.5)
    assert torch.equal(word_layer.starts(model, {"<a>": "", "<b>": ""}, 3, 1)["text_encoder"],
                       word_layer.starts(model, {"<a>": "", "<b>": ""}, 3, 1)["text_encoder"])  # fmt: skip


def test_words_are_spelt_with_all_of_their_tokens(tmp_path: Path) -> None:
    words = NewWords([tiny.tokenizer(tmp_path / "t")], {"<sks>": 2, "<hut>": 1})
    assert words.spell(["a <SKS>, <hut>", "<sks>_1 dog"]) == ["a <sks> <sks>_1, <hut>", "<sks>_1 dog"]
    (tokenizer,) = words.tokenizers
    ids = tokenizer(words.spell(["a <SKS>, <hut> dog"]), add_special_tokens=False).input_ids[0]
    assert [i - words.firsts[0] for i in ids if i >= words.firsts[0]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.type=textual-inversion", "method.tokens={}"], "method.tokens: name the new word and what it begins as"),
        (['method.tokens={"dog"="cat"}'], "'dog' is a word that the model knows; choose another, such as <dog-1>"),
        (['method.tokens={"two words"=""}'], "'two words' is no single word; write one such as <sks>"),
        (['method.tokens={"<hut>"="house"}'], "no caption has the word '<hut>', so it would learn nothing"),
        (["method.type=textual-inversion", "objective.type=consistency"], "there is no teacher for new words"),
    ],
)  # fmt: skip
def test_faults_are_one_clear_line(overrides: list[str], says: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        list(train(config_of(world, "sd1", *overrides), Run(tmp_path / "run")))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_prefix_gives_every_caption_the_word(world: Path, tmp_path: Path) -> None:
    config = config_of(world, "sd1", *METHODS["alone"], 'method.tokens={"<hut>"="house"}', "data.caption_prefix=<hut>")
    assert not [e for e in train(config, Run(tmp_path / "run")) if isinstance(e, Warned)]


def test_files_of_other_tools_and_other_models(world: Path, tmp_path: Path) -> None:
    model = config_of(world, "sd1").model.load()
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, tmp_path / "hut.safetensors")
    before = drawn(model, "a hut")
    on_top = tuned.load(model, tmp_path / "hut.safetensors")
    assert model.new_words is not None and model.new_words.words == {"hut": 2}, "AUTOMATIC1111 goes by the file's name"
    assert not np.array_equal(drawn(model, "a hut"), before)
    with pytest.raises(ModelError, match="there is an adapter on"):
        tuned.load(model, tmp_path / "hut.safetensors")
    on_top.close()
    save_file({"<one>": vectors[0]}, tmp_path / "one.safetensors")
    tuned.load(model, tmp_path / "one.safetensors").close()

    two = config_of(world, "sdxl").model.load()
    with pytest.raises(ModelError, match=r"hut.safetensors: has vectors of width emb_params 16; .* needs 16 and 24"):
        tuned.load(two, tmp_path / "hut.safetensors")
    assert two.new_words is None
    save_file({"emb_params": vectors * float("nan")}, tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match="emb_params holds NaN"):
        tuned.load(model, tmp_path / "bad.safetensors")


def test_the_header_keeps_the_word_as_it_was_written(world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, "sd1", *METHODS["alone"], "train.steps=1"), Run(tmp_path / "run")
    list(train(config, run))
    with safe_open(run.final / "embeddings" / "sks.safetensors", "pt") as file:
        assert '"word": "<sks>"' in file.metadata()["sdtune"] and list(file.keys()) == ["<sks>"]
    assert file_name("<a/b c>") == "abc" and file_name("<>") == "word"
    assert config.method.tokens == {"<sks>": "red dog"}  # type: ignore[union-attr]
