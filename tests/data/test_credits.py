"""Whom collected pictures are owed to goes with what was trained on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sdtune.data.config import DataConfig, Source
from sdtune.data.dataset import root_of, scan
from sdtune.data.owed import CREDITS, page
from sdtune.data.record import name_in
from sdtune.events import Finished, Warned
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny
from tests.data.test_dataset import jsonl, pair, put
from tests.data.test_readers import png, tar
from tests.data.test_sets import run_config

OWED = {"licence": "CC BY 4.0", "licence_url": "https://creativecommons.org/licenses/by/4.0/"}


def collected(folder: Path, *authors: str) -> Path:
    """What `sdtune data collect` writes, as far as it counts here."""
    for i in range(len(authors)):
        put(folder / f"{i}.png", i, (32, 32))
    rows = [
        {"file_name": f"{i}.png", "text": "a dog", "title": f"Dog | {i}", "author": author, **OWED}
        for i, author in enumerate(authors)
    ]
    jsonl(folder, *rows)
    return folder


def page_of(config: DataConfig) -> str:
    return page(config, [name_in(e.image, root_of(config)) for e in scan(config).train], "mine")


def test_the_result_names_authors_and_licences(tmp_path: Path) -> None:
    folder = collected(tmp_path / "data", "Ann", "Ben", "Cleo")
    put(folder / "3.png", 3, (32, 32))
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"file_name": "3.png", "text": "a cat"}) + "\n")
    config = run_config(
        folder, tmp_path, "train.steps=1", "train.sample_every=0", "data.validation_share=0.25", "name=dogs"
    )
    run = Run(tmp_path / "run")
    held = {"Ann", "Ben", "Cleo"}
    assert isinstance(list(train(config, run))[-1], Finished)
    text = (run.final / CREDITS).read_text(encoding="utf-8")
    trained = json.loads(run.data_file.read_text(encoding="utf-8"))["train"]
    held -= {author for i, author in enumerate(("Ann", "Ben", "Cleo")) if f"{i}.png" in trained}
    assert text.startswith("# Licences of the pictures that dogs was trained on\n")
    assert "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)" in text and "Dog \\| " in text
    assert all(author not in text for author in held), "who is held out was not trained on"
    assert text.count("| Dog") == 3 - len(held)
    assert ("Of 1 other picture nothing is known." in text) == ("3.png" in trained)


def test_pictures_that_are_gone_cost_the_page_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = collected(tmp_path / "data", "Ann", "Ben")
    config = run_config(folder, tmp_path, "train.steps=1", "train.sample_every=0", "data.validation_share=0")
    events = []
    for event in train(config, Run(tmp_path / "run")):
        events.append(event)
        shutil.rmtree(folder, ignore_errors=True) if type(event).__name__ == "Step" else None
    assert isinstance(events[-1], Finished)
    assert [e.message for e in events if isinstance(e, Warned) and CREDITS in e.message] == [
        f"no {CREDITS} beside the result: {folder}: no such folder"
    ]


def test_nothing_known_is_no_page(tmp_path: Path) -> None:
    pair(tmp_path / "data" / "a.png", "a dog")
    assert page_of(DataConfig(path=str(tmp_path / "data"), validation_share=0)) == ""


def test_several_sources_class_pictures_and_archives(tmp_path: Path) -> None:
    """With the American word, too; what the reader of captions alone would say nothing of."""
    collected(tmp_path / "a" / "train", "Ann")
    row = {"caption": "a cat", "license": "CC0", "author": "Cleo"}
    tar(tmp_path / "b" / "0.tar", {"x.png": png(7), "x.json": json.dumps(row).encode()})
    sources = (Source(path=str(tmp_path / "a")), Source(path=str(tmp_path / "b")))
    config = DataConfig(sources=sources, validation_share=0)
    text = page_of(config)
    assert (
        "2 pictures. As their metadata has it." in text and "Ann" in text and "CC0" in text and "b/0.tar/x.png" in text
    )
    tiny.imagefolder(tmp_path / "mine", ["a dog"])
    given = collected(tmp_path / "class", "Ben")
    config = DataConfig(path=str(tmp_path / "mine"), validation_share=0, class_prompt="a dog", class_path=str(given))
    assert "Ben" in page(config, [str(given / "0.png"), "000.png"], "mine")
