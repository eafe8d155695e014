"""Tiny captioners, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdtune.captioners import Blip, store
from tests.captioners import tiny_captioners as tiny


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="session")
def florence2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.florence2(tmp_path_factory.mktemp("florence2"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions are written as they come, however busy this machine is."""
    monkeypatch.setattr(store, "PATIENCE", 0)


@pytest.fixture
def quick(blip_folder: Path) -> Blip:
    """A captioner whose captions take no time, and are never empty."""
    return Blip(path=str(blip_folder), prompt="a", max_tokens=3, beams=1)
