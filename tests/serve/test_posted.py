"""Configs from clients: every key that could hold a place or code is decided; ids alone come through."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from sdtune import config as configs
from sdtune import presets
from sdtune.schema import Section
from sdtune.serve import posted, registry
from sdtune.serve.errors import ApiError
from sdtune.serve.limits import Limits
from sdtune.serve.posted import PLACES, WORDS, Known
from sdtune.serve.scrub import Scrub
from sdtune.serve.sets import Sets


@pytest.fixture
def known(named: Path, tmp_path: Path) -> Known:
    (tmp_path / "My Pictures").mkdir()
    models, _ = registry.build([str(named)])
    return Known(models, Sets((tmp_path / "My Pictures",)), Limits())


def refused(known: Known, config: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        posted.read(config, known)
    return caught.value


def table(key: str, value: Any) -> dict[str, Any]:
    """The config that sets one key."""
    out: dict[str, Any] = {}
    parts = key.split(".")
    if key.startswith("data.sources."):
        return {"data": {"sources": [{"path": "my-pictures", parts[-1]: value}]}}
    if key.startswith("sample.guide."):
        return {"sample": {"guide": {"type": "text", "text": "a boat", parts[-1]: value}}}
    configs.put(out, key, value)
    return out


# ---- the list of keys is whole


def texts(annotation: Any) -> bool:
    """Whether a field of this type can hold a text that is not one of a fixed few, or something that is no plain value at all."""
    if get_origin(annotation) is Literal:
        return False
    if isinstance(annotation, type) and get_origin(annotation) is None:
        plain = annotation in (int, float, bool, type(None)) or issubclass(annotation, Section)
        return not plain
    return any(texts(part) for part in get_args(annotation) if part is not Ellipsis and not hasattr(part, "metadata"))


def test_each_key_that_can_hold_a_text_is_decided() -> None:
    holding = {key for key, annotation in posted.names() if texts(annotation)}
    assert holding - PLACES.keys() - WORDS == set(), "decide in serve/posted.py whether these are places, code or words"
    fetching = {key for key, _ in posted.names() if key.endswith("download")}
    assert holding | fetching == PLACES.keys() | WORDS
    assert not PLACES.keys() & WORDS


def test_the_walk_sees_what_is_new() -> None:
    assert texts(str) and texts(Path) and texts(str | None) and texts(dict[str, int]) and texts(typing.Any | None)
    assert (
        texts(tuple[str, ...]) and not texts(int | None) and not texts(Literal["a", "b"]) and not texts(tuple[int, ...])
    )


# ---- ids


def test_ids_are_resolved(known: Known, named: Path, tmp_path: Path) -> None:
    config = posted.read(
        {
            "model": {"path": "model"},
            "data": {"path": "my-pictures", "validation": "embedded:pip"},
            "evaluate": {"control": "embedded:comic"},
        },
        known,
    )
    assert config.model.path == str(named.parent / "model")
    assert config.data.path == str((tmp_path / "My Pictures").resolve())
    assert (config.data.validation, config.evaluate.control) == ("embedded:pip", "embedded:comic")
    several = posted.read(
        {"data": {"sources": [{"path": "my-pictures"}, {"path": "embedded:pip", "repeats": 2}]}}, known
    )
    assert [s.path for s in several.data.sources] == [config.data.path, "embedded:pip"]


def test_without_a_model_it_is_the_one_that_comes_along(known: Known) -> None:
    assert posted.read({}, known).model.path == "embedded"
    assert posted.read({"model": {"prediction": "v"}}, known).model.prediction == "v"  # type: ignore[union-attr]
    assert refused(known, {"model": {"type": "sdxl"}}).status == 404
    assert refused(known, {"model": {"type": "sdxl", "path": "model"}}).field == "model.type"
    assert "tuned" in refused(known, {"model": {"path": "lora"}}).message


STRANGE = [
    "../../x", "/etc/passwd", "~/x", "http://example.org/x", "hf:owner/name", "owner/name", "embedded:../sets/comic", "embedded:nope",
    "", ".",
    "my-pictures/../..", "file:///etc/passwd", "My Pictures", "embedded",
]  # fmt: skip


@pytest.mark.parametrize("key", [key for key, rule in PLACES.items() if rule in ("set", "model")])
def test_no_place_comes_through(known: Known, key: str) -> None:
    for value in [*STRANGE, ["my-pictures"], 1, {"a": 1}, True]:
        if key == "model.path" and value == "embedded":
            continue
        error = refused(known, table(key, value))
        assert error.status in (404, 422) and (error.field == key or error.field.startswith(key.partition(".")[0])), (
            key,
            value,
        )


@pytest.mark.parametrize("key", [key for key, rule in PLACES.items() if rule == "refused"])
def test_what_is_refused(known: Known, key: str) -> None:
    for value in ("x", ["x"], True, "/etc/passwd", {"a": "b"}):
        assert refused(known, table(key, value)).field == key
    if not key.startswith("model."):
        usual: Any = None if "None" in repr(dict(posted.names())[key]) else False if key.endswith("download") else []
        posted.read(table(key, usual), known)


@pytest.mark.parametrize("key", [key for key, rule in PLACES.items() if rule == "list"])
def test_a_file_of_prompts_cannot_be_named(known: Known, key: str) -> None:
    assert refused(known, table(key, "/etc/passwd")).field == key
    posted.read(table(key, ["a red apple"]), known)


def test_places_in_places_where_none_belong_are_refused_too(known: Known) -> None:
    strange: tuple[Any, ...] = (
        {"data": [{"path": "/etc"}]}, {"data": {"sources": {"path": "/etc"}}}, {"data.path": "/etc"}, {"data": "/etc"},
        {"model": "embedded"}, {"Data": {"path": "/etc"}}, {"sample": {"guide": [{"clip": "/etc"}]}}, [], "x", None,
        {"train": {"out": "/etc"}}, {"data": {"sources": [["path", "/etc"]]}},
    )  # fmt: skip
    for config in strange:
        assert refused(known, config).status in (404, 422), config


# ---- bodies


def test_bodies_are_bounded(known: Known) -> None:
    deep: Any = "x"
    for _ in range(20):
        deep = {"a": deep}
    strange: tuple[dict[str, Any], ...] = (
        {"data": {"caption_prefix": "x" * 5000}}, {"sample": {"prompts": ["x"] * 1001}}, {"data": deep},
        {"sample": {"seeds": list(range(500))}}, {"train": {"steps": 10**9}}, {"data": {"resolution": 10**6}},
        {"data": {"resolution": [512, 99_999]}}, {"sample": {"width": 5000}}, {"optimizer": {"lr": math.inf}},
        {"data": {"caption_prefix": "\0"}}, {"data": {"caption_prefix": "\ud800"}}, {"train": {"seed": 2**70}},
        {"sample": {"width": 2048, "height": 2048}}, {"method": {"rank": 10**6}}, {"name": "../x"}, {"name": "a/b"}, {"name": ".hidden"},
    )  # fmt: skip
    for config in strange:
        error = refused(known, config)
        assert error.status == 422 and len(error.message) < 500, config


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a": NaN}', b"[" * 100_000, b"\xff", b"1"])
def test_what_is_no_object_is_told(body: bytes) -> None:
    with pytest.raises(ApiError):
        posted.parse(body)


def test_a_fault_names_its_key_and_no_path(known: Known, tmp_path: Path) -> None:
    error = refused(known, {"data": {"path": "my-pictures", "crop": "sideways"}})
    assert error.field == "data.crop" and str(tmp_path) not in error.message
    assert "did you mean" in refused(known, {"train": {"stepz": 1}}).message


# ---- back, and the schema


def test_a_config_comes_back_as_it_was_posted(known: Known) -> None:
    asked = {
        "name": "a", "model": {"path": "model"}, "data": {"path": "my-pictures", "class_path": "embedded:pip", "class_prompt": "a dog"},
        "method": {"type": "dora", "rank": 8, "tokens": {"<sks>": "dog"}}, "train": {"steps": 3},
    }  # fmt: skip
    config = posted.read(asked, known)
    again, lost = posted.back(configs.to_dict(config), known)
    assert not lost and posted.read(json.loads(json.dumps(again)), known) == config
    assert again["data"]["class_path"] == "embedded:pip"


def test_presets_that_fit_can_be_posted_as_they_are(known: Known) -> None:
    import tomllib

    fitting = 0
    for name in presets.names():
        config, lost = posted.back(tomllib.loads(presets.recipe(name).read_text(encoding="utf-8")), known)
        assert "/" not in json.dumps([config.get("model", {}).get("path"), config.get("data", {}).get("path")])
        if not lost:
            posted.read(config, known)
            fitting += 1
    assert fitting >= 10


def test_the_schema_has_ids_and_nothing_that_is_refused(known: Known) -> None:
    found = posted.schema(known)
    parts = {"RunConfig": found, **found["$defs"]}

    def walk(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            yield value
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)

    assert parts["DataConfig"]["properties"]["path"]["enum"][0] == "my-pictures"
    assert "model" in parts["Sd1"]["properties"]["path"]["enum"] and "description" in parts["Sd1"]["properties"]["path"]
    refused_names = {key.rpartition(".")[2] for key, rule in PLACES.items() if rule == "refused"} - {"config"}
    for part in parts.values():
        for name in part.get("properties", {}):
            assert name not in refused_names or name == "mask", name
    assert "mask" not in parts["SampleConfig"]["properties"] and "plugins" not in found["properties"]
    assert not any(kind.get("type") == "string" for kind in parts["EvaluateConfig"]["properties"]["prompts"]["anyOf"])
    assert len(list(walk(found))) > 100


# ---- texts


def test_texts_lose_their_paths(tmp_path: Path) -> None:
    folder = tmp_path / "my set"
    clean = Scrub({"set": folder, "runs": tmp_path / "runs"})
    assert clean(f"{folder}/a.png: damaged") == "set/a.png: damaged"
    assert clean(f"{tmp_path}/runs/mine: holds a run") == "runs/mine: holds a run"
    assert clean("/usr/lib/python3/site.py line 3, see /somewhere/me/x y") == "site.py line 3, see x y"
    assert clean("path = '/somewhere/me/data'") == "path = 'data'"
    assert (
        clean("12/40 steps, 1.5 it/s; and/or https://example.org/a/b")
        == "12/40 steps, 1.5 it/s; and/or https://example.org/a/b"
    )
