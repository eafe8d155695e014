"""The captioners themselves, against transformers' own way to use them; and models that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, BlipForConditionalGeneration, Florence2ForConditionalGeneration

from sdtune.captioners import Blip, CaptionConfig, Florence2, from_options
from sdtune.captioners.base import Captioner
from sdtune.captioners.config import Source
from sdtune.errors import ConfigError, ModelError
from sdtune.families.sd1 import Sd1


def images(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(7)
    return [Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), np.uint8)) for i in range(count)]


def load(config: Source, precision: str = "fp32") -> Captioner:
    return config.load("cpu", precision)


def captions(config: Source, batch: int = 3, precision: str = "fp32") -> list[str]:
    model = load(config, precision)
    seen = [model.prepare(image) for image in images()]
    return [text for i in range(0, 3, batch) for text in model.caption(seen[i : i + batch])]


# ---- BLIP


@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_blip_says_what_the_library_says(blip_folder: Path, prompt: str) -> None:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    pixel_values = BlipImageProcessorPil.from_pretrained(blip_folder)(images(), return_tensors="pt")["pixel_values"]
    words = AutoTokenizer.from_pretrained(blip_folder)
    model = BlipForConditionalGeneration.from_pretrained(blip_folder).eval()
    inputs: Any = words([prompt] * 3, return_tensors="pt", return_token_type_ids=False) if prompt else {}
    ids = model.generate(pixel_values=pixel_values, **inputs, max_new_tokens=6, num_beams=2)
    want = [text.strip() for text in words.batch_decode(ids, skip_special_tokens=True)]
    assert captions(Blip(path=str(blip_folder), prompt=prompt, max_tokens=6, beams=2)) == want
    assert len(set(want)) > 1 and all(text.startswith(prompt) for text in want)


def test_blip_in_batches_and_in_bf16(blip_folder: Path) -> None:
    config = Blip(path=str(blip_folder), max_tokens=6, beams=1)
    assert captions(config, batch=1) == captions(config, batch=2) == captions(config)
    model = load(config, "bf16")
    assert model.precision == "bfloat16"
    assert all(model.caption([model.prepare(image) for image in images()]))


def test_more_tokens_and_beams_are_heard(blip_folder: Path) -> None:
    short, long = (captions(Blip(path=str(blip_folder), max_tokens=n, beams=1)) for n in (2, 12))
    assert max(len(text.split()) for text in short) <= 2 < max(len(text.split()) for text in long)


# ---- Florence-2


def test_florence2_asks_what_the_processor_of_the_library_asks(florence2_folder: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.florence2.processing_florence2 import Florence2Processor

    words = AutoTokenizer.from_pretrained(florence2_folder)
    words.image_token, words.image_token_id = "<image>", words.convert_tokens_to_ids("<image>")
    look = CLIPImageProcessorPil.from_pretrained(florence2_folder)
    model = load(Florence2(path=str(florence2_folder)))
    seen = torch.from_numpy(np.stack([model.prepare(image) for image in images()]))
    look.image_seq_length = model._tokens_of(seen)  # type: ignore[attr-defined]
    processor = Florence2Processor(image_processor=look, tokenizer=words)
    for task in ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"):
        want = processor(images=images(), text=[task] * 3, return_tensors="pt")
        model.config = Florence2(path=str(florence2_folder), prompt=task)  # type: ignore[attr-defined]
        assert torch.equal(model.prompt_ids(seen), want["input_ids"])  # type: ignore[attr-defined]
        torch.testing.assert_close(seen, want["pixel_values"], atol=2e-6, rtol=0)


def test_florence2_says_what_the_library_says(florence2_folder: Path) -> None:
    config = Florence2(path=str(florence2_folder), prompt="caption", max_tokens=8, beams=2)
    model = load(config)
    seen = torch.from_numpy(np.stack([model.prepare(image) for image in images()]))
    ids = model.prompt_ids(seen)  # type: ignore[attr-defined]
    theirs = Florence2ForConditionalGeneration.from_pretrained(florence2_folder).eval()
    made = theirs.generate(input_ids=ids, pixel_values=seen, max_new_tokens=8, num_beams=2, attention_mask=ids * 0 + 1)
    words = AutoTokenizer.from_pretrained(florence2_folder)
    assert captions(config) == [text.strip() for text in words.batch_decode(made, skip_special_tokens=True)]
    assert captions(config) == captions(config, batch=1) and len(set(captions(config))) > 1


@pytest.mark.parametrize("prompt", ["more-detailed-caption", "<MORE_DETAILED_CAPTION>", "more_detailed_caption"])
def test_tasks_are_heard(prompt: str) -> None:
    assert Florence2(prompt=prompt).task == "<MORE_DETAILED_CAPTION>"
    with pytest.raises(ConfigError, match="florence2 has the tasks <CAPTION>"):
        Florence2(prompt="<OD>")


# ---- what cannot be used


def test_pickle_is_not_opened(blip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(blip_folder, tmp_path / "blip")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"no model.safetensors; pytorch_model.bin is pickle, which is not opened.*--revision"
    ):
        load(Blip(path=str(folder)))


@pytest.mark.parametrize("kind", ["blip", "florence2"])
def test_other_models_are_refused(kind: str, blip_folder: Path, florence2_folder: Path) -> None:
    with pytest.raises(ModelError, match="is a model of type"):
        load(Blip(path=str(florence2_folder)) if kind == "blip" else Florence2(path=str(blip_folder)))


def test_code_of_strangers_is_not_run(florence2_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(florence2_folder, tmp_path / "flo")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_florence2.Florence2ForConditionalGeneration"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_florence2.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    with pytest.raises(ModelError, match="brings code of its own, which is not run"):
        load(Florence2(path=str(folder)))


def test_missing_weights_are_not_made_up(blip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(blip_folder, tmp_path / "blip")
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.encoder.layers.0.self_attn.qkv.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="1 weights of BlipForConditionalGeneration are missing, such as vision_model"):
        load(Blip(path=str(folder)))


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_damaged_files_are_named(damage: str, blip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(blip_folder, tmp_path / "blip")
    (folder / damage).write_bytes(b"{")
    with pytest.raises(ModelError, match=str(folder)):
        load(Blip(path=str(folder)))


def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"revision refs/pr/38\): neither a folder nor in the local Hub cache; --download"
    ):
        load(Blip())
    with pytest.raises(ModelError, match="florence-community/Florence-2-base: neither a folder"):
        load(Florence2())
    with pytest.raises(ModelError, match="no such folder; give a folder"):
        load(Blip(path=str(tmp_path / "gone")))


@pytest.fixture
def cached(blip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's local cache with the tiny BLIP as owner/name; gives its folder."""
    cache = tmp_path / "hub" / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    return Path(shutil.copytree(blip_folder, cache / "snapshots" / ("0" * 40)))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_a_part_of_a_model_in_the_cache(file: str, cached: Path) -> None:
    """Other tools fetch only what they need."""
    assert load(Blip(path="owner/name")).source == f"owner/name@{'0' * 40}"
    (cached / file).unlink()
    with pytest.raises(ModelError, match=rf"only a part of it is in the local Hub cache \(no {file}\); --download"):
        load(Blip(path="owner/name"))


def test_a_hub_that_cannot_be_reached() -> None:
    with pytest.raises(ModelError) as error:
        load(Blip(path="owner/name", download=True))
    assert "the Hub cannot be reached; check the network" in str(error.value) and "--download" not in str(error.value)


@pytest.mark.parametrize("config", [Blip(path="owner/-.-"), Sd1(path="owner/-.-")])
def test_names_that_the_hub_does_not_have(config: Blip | Sd1) -> None:
    with pytest.raises(ModelError, match=r"owner/-\.-: cannot be fetched from the Hub: Repo id must"):
        config.load()


# ---- options


def test_options_without_effect_are_named() -> None:
    with pytest.raises(ConfigError) as error:
        from_options("wd14", {"beams": 3, "prompt": "a", "threshold": 0.5}, {})
    assert str(error.value).splitlines() == [
        "--beams: has no effect with --model wd14; leave it out",
        "--prompt: has no effect with --model wd14; leave it out",
    ]


@pytest.mark.parametrize(
    "kind, model, rest, said",
    [
        ("clip", {}, {}, "--model: no such captioner 'clip'; known: blip, florence2, wd14"),
        ("blip", {"beams": 0}, {}, "--beams: input should be greater than 0, got 0"),
        ("blip", {}, {"batch_size": 0}, "--batch-size: input should be greater than 0, got 0"),
        ("blip", {}, {"write": "csv"}, "--write: input should be 'sidecar' or 'metadata', got 'csv'"),
        ("wd14", {"threshold": 2.0}, {}, "--threshold: input should be less than or equal to 1, got 2.0"),
        ("blip", {}, {"overwrite": True, "append": True}, "--overwrite: contradicts append"),
        ("florence2", {"prompt": "ocr"}, {}, "--prompt: florence2 has the tasks"),
        (
            "florence2",
            {"prompt": "my_own"},
            {},
            "--prompt: florence2 has the tasks <CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>, got 'my_own'",
        ),
        ("wd14", {}, {"precision": "bf16"}, "--precision: has no effect with wd14"),
    ],
)
def test_wrong_options_are_named(kind: str, model: dict[str, Any], rest: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_options(kind, model, rest)
    assert str(error.value).startswith(said)


def test_records_hold_what_differs() -> None:
    config = CaptionConfig(model=Blip(path="x", beams=1), prefix="sks", batch_size=2)
    assert config.record() == {"type": "blip", "beams": 1, "prefix": "sks"}
