"""Long captions and prompts, read in chunks: the encoders see each chunk alone, and nothing changes for short ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sdtune
from sdtune import config as configs
from sdtune import tuned
from sdtune.config import RunConfig, SampleConfig
from sdtune.errors import ConfigError
from sdtune.events import Sampled, Step
from sdtune.families import recognise
from sdtune.methods import word_layer
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny
from tests.families.common import drawn, load, pictures

WORDS = ("red", "dog", "cat", "sun", "house", "apple", "photo")
ROOM = tiny.MAX_TOKENS - 2
"""Words of a chunk."""
FamilyFolder = Callable[[str], Path]


def words(count: int, start: int = 0) -> list[str]:
    return [WORDS[(start + i) % len(WORDS)] for i in range(count)]


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def model(request: pytest.FixtureRequest, folder_of: FamilyFolder) -> Model:
    return load(folder_of(request.param))


def test_long_prompts_are_the_sum_of_their_chunks(model: Model) -> None:
    long = words(2 * ROOM + 3)
    parts = [long[:ROOM], long[ROOM : 2 * ROOM], long[2 * ROOM :]]
    alone = [model.encode_prompts([" ".join(part)]) for part in parts]
    model.chunks = 3
    whole = model.encode_prompts([" ".join(long), "a cat"])
    assert whole.states_BLD.shape[1] == 3 * tiny.MAX_TOKENS
    torch.testing.assert_close(whole.states_BLD[:1], torch.cat([c.states_BLD for c in alone], 1))
    if model.family == "sdxl":
        assert whole.pooled_BD is not None and alone[0].pooled_BD is not None
        torch.testing.assert_close(whole.pooled_BD[:1], alone[0].pooled_BD)
    assert torch.equal(whole.states_BLD, model.read_tokens(model.tokenize([" ".join(long), "a cat"])).states_BLD)  # type: ignore[attr-defined]


def test_short_prompts_are_filled_up_with_empty_chunks(model: Model) -> None:
    short, empty = model.tokenize(["a red dog"]), model.tokenize([""])
    assert torch.equal(model.tokenize(["a red dog"], 2), torch.cat([short, empty], 2))
    full = " ".join(words(ROOM))
    assert torch.equal(model.tokenize([full], 2), torch.cat([model.tokenize([full]), empty], 2))
    beyond = " ".join(words(2 * ROOM))
    assert torch.equal(model.tokenize([beyond, f"{beyond} sun"], 2)[0], model.tokenize([f"{beyond} sun"], 2)[0])


def test_chunks_count_the_tokens_and_leave_the_pictures_cache_alone(model: Model, folder_of: FamilyFolder) -> None:
    assert (model.chunks, model.max_tokens) == (1, tiny.MAX_TOKENS)
    model.chunks = 3
    assert model.max_tokens == 3 * ROOM + 2
    assert model.fingerprint == load(folder_of(model.family)).fingerprint
    needed = [model.chunks_for([" ".join(words(n))]) for n in (0, ROOM, 3 * ROOM, 3 * ROOM + 1)]
    assert needed == [3, 3, 3, 4] and model.chunks_for(["a", " ".join(words(5 * ROOM))]) == 5


def test_an_empty_prompt_is_zeros_in_all_chunks_where_the_model_is_made_so(folder_of: FamilyFolder) -> None:
    model = load(folder_of("sdxl"))
    model.chunks = 2
    cond = model.encode_prompts(["", "a dog"])
    assert not cond.states_BLD[0].any() and cond.states_BLD[1, -tiny.MAX_TOKENS :].any()


def test_a_model_without_chunks_says_so(folder_of: FamilyFolder) -> None:
    model = load(folder_of("sd3"))
    model.chunks = 1
    with pytest.raises(
        ConfigError, match=r"^data\.caption_chunks: sd3 does not read prompts in chunks, .* set it to 1$"
    ):
        model.chunks = 2
    assert model.chunks_for([" ".join(words(40))]) == 1


def test_new_words_lie_across_the_border(folder_of: FamilyFolder) -> None:
    model = load(folder_of("sd1"))
    starts = word_layer.starts(model, {"<sks>": "red dog"}, 3, seed=0)
    word_layer.attach(model, {"<sks>": 3}, starts)
    model.chunks = 2
    ids = model.tokenize([" ".join([*words(ROOM - 1), "<sks>"])])[0, 0]
    assert model.new_words
    first = model.new_words.firsts[0]
    assert ids[ROOM].item() == first and ids[tiny.MAX_TOKENS + 1 :][:2].tolist() == [first + 1, first + 2]
    assert model.encode_prompts(["<sks>"]).states_BLD.shape[1] == 2 * tiny.MAX_TOKENS


# ---- drawing


def test_no_prompt_is_cut_and_none_changes_its_neighbours(folder_of: FamilyFolder) -> None:
    model = load(folder_of("sd1"))
    short, long = "a red dog", " ".join(words(ROOM + 5))
    config = SampleConfig(prompts=(short, long), seeds=(1,), steps=2, batch_size=4)
    mixed = drawn(model, config)
    assert np.array_equal(mixed[0], drawn(model, replace(config, prompts=(short,)))[0])
    cut = " ".join(words(ROOM))
    assert not np.array_equal(mixed[1], drawn(model, replace(config, prompts=(cut,)))[0])


def test_a_long_negative_prompt_is_read_whole(folder_of: FamilyFolder) -> None:
    model = load(folder_of("sdxl"))
    config = SampleConfig(
        prompts=("a red dog",), seeds=(1,), steps=2, guidance=7.0, negative=" ".join(words(ROOM + 1, 1))
    )
    whole = drawn(model, config)
    assert not np.array_equal(whole, drawn(model, replace(config, negative=" ".join(words(ROOM, 1)))))
    assert np.isfinite(whole).all()


# ---- training


SETTINGS = (
    "train.steps=4", "train.batch_size=2", "train.validate_every=0", "train.sample_every=4", "train.precision=fp32",
    "train.threads=1", "train.device=cpu", "optimizer.lr=1e-2", "data.validation_share=0", "sample.steps=2",
    "sample.seeds=[0]", "sample.scheduler=euler", "method.rank=2", "data.caption_chunks=2",
)  # fmt: skip
CAPTIONS = [" ".join(words(ROOM + 6, i)) for i in range(3)]


def config_of(model: Path, place: Path, *overrides: str) -> RunConfig:
    data = place / "pictures"
    if not data.exists():
        pictures(data, CAPTIONS)
    paths = (f"model.path={model}", f"model.type={recognise(str(model))}", f"data.path={data}", f"data.cache={place}")
    return configs.load(None, [*paths, *SETTINGS, *overrides])


@pytest.mark.parametrize(
    ("kind", "method"),
    [("sd1", ()), ("sdxl", ("method.text_encoders=true",))],
    ids=["frozen text encoder", "trained text encoders"],
)
def test_it_trains_on_the_second_chunk_and_resumes(
    folder_of: FamilyFolder, tmp_path: Path, kind: str, method: tuple[str, ...]
) -> None:
    config = config_of(folder_of(kind), tmp_path, *method)
    straight, broken = Run(tmp_path / "straight"), Run(tmp_path / "broken")
    events = list(train(config, straight))
    losses = [e.loss for e in events if isinstance(e, Step)]
    assert not [e for e in events if "tokens that the text encoder reads" in getattr(e, "message", "")]
    parts = train(config, broken)
    next(e for e in parts if isinstance(e, Step) and e.step == 2)
    parts.close()  # type: ignore[attr-defined]
    list(train(config, broken))
    one, two = (load_file(next(run.final.glob("*.safetensors"))) for run in (straight, broken))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    short = list(train(config_of(folder_of(kind), tmp_path, *method, "data.caption_chunks=1"), Run(tmp_path / "1")))
    assert losses[0] != next(e.loss for e in short if isinstance(e, Step)), "the second chunk is seen"
    assert [e for e in short if "tokens that the text encoder reads" in getattr(e, "message", "")]

    preview = next(e for e in events if isinstance(e, Sampled) and e.step == 4)
    settings = ("sample.steps=2", "sample.scheduler=euler", *(() if kind == "sd1" else ("train.device=cpu",)))
    (picture,) = sdtune.sample(straight, *settings, prompts=[preview.prompt], seeds=[0])
    shown = np.asarray(Image.open(straight.path / preview.path))
    assert np.array_equal(np.asarray(picture.image), shown), "drawn later as the preview was"
    (short_prompt,) = sdtune.sample(straight, *settings, prompts=["a dog"], seeds=[0])
    alone = load(folder_of(kind))
    tuned.of_run(alone, straight)
    plain = drawn(alone, SampleConfig(prompts=("a dog",), seeds=(0,), steps=2, scheduler="euler"))[0]
    assert not np.array_equal(np.asarray(short_prompt.image, np.int16), plain), "read in the two chunks of its training"


def test_gradients_come_from_every_chunk(model: Model) -> None:
    model.chunks = 2
    encoder = model.text_encoders[0]
    weight = encoder.get_input_embeddings().weight.requires_grad_(True)  # type: ignore[operator]
    rare = model.tokenizers[0]("sks", add_special_tokens=False).input_ids[0]
    tokens = model.tokenize([" ".join([*words(ROOM), "sks"])])
    model.read_tokens(tokens).states_BLD.square().sum().backward()  # type: ignore[attr-defined]
    assert weight.grad is not None and weight.grad[rare].any()
