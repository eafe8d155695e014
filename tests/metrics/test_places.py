"""Where weights lie, what is said where they do not, and how they come here: from a server and a Hub on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sdtune.errors import EvaluationError
from sdtune.metrics import places
from sdtune.metrics.registry import ENCODERS, Web
from tests.metrics.conftest import DATA, SHA256


def told(seen: list[tuple[str, int, int]]) -> places.Told:
    return lambda name, done, total: seen.append((name, done, total))


def test_a_file_comes_whole_and_checked(server: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = tmp_path / "x/whole.pth"
    places.fetch(Web(f"{server}/web/whole.pth", "whole.pth", SHA256[:8]), path, told(seen))
    assert path.read_bytes() == DATA
    assert seen[-1] == ("whole.pth", len(DATA), len(DATA)) and len(seen) > 2


@pytest.mark.parametrize(
    ("name", "sha256", "said"),
    [
        ("whole.pth", "0123", "gave another file than the published one"),
        ("short.pth", None, "ended after|cannot be fetched"),
        ("gone.pth", None, "the server answers 404 Not Found"),
    ],
)
def test_nothing_is_kept_of_what_is_not_right(
    server: str, tmp_path: Path, name: str, sha256: str | None, said: str
) -> None:
    with pytest.raises(EvaluationError, match=said):
        places.fetch(Web(f"{server}/web/{name}", name, sha256), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_server_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"cannot be fetched \(.*refused.*\); fetch it on another machine and put it to"
    ):
        places.fetch(Web("http://127.0.0.1:9/x", "x", None), tmp_path / "x")


def test_what_is_there_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Web("http://127.0.0.1:9/x.pth", "x.pth", SHA256)
    monkeypatch.setitem(ENCODERS, "sscd", dataclasses.replace(ENCODERS["sscd"], parts=(part,)))
    (tmp_path / "sscd").mkdir()
    (tmp_path / "sscd/x.pth").write_bytes(DATA)
    assert places.get("sscd", tmp_path) == {"x.pth": tmp_path / "sscd/x.pth"}
    (tmp_path / "sscd/x.pth").write_bytes(DATA[:-1])
    with pytest.raises(EvaluationError, match="is not the published file"):
        places.get("sscd", tmp_path)


def test_a_folder_that_was_copied_is_enough(tmp_path: Path) -> None:
    assert not places.is_here("clip-l14", tmp_path)
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / "clip-l14").mkdir(exist_ok=True)
        (tmp_path / "clip-l14" / name).write_text("{}")
    assert not places.is_here("clip-l14", tmp_path)
    (tmp_path / "clip-l14/pytorch_model.bin").write_bytes(b"x")
    assert places.locate("clip-l14", tmp_path)["pytorch_model.bin"] == tmp_path / "clip-l14/pytorch_model.bin"
    (tmp_path / "clip-l14/model.safetensors").write_bytes(b"x")
    assert "pytorch_model.bin" not in places.locate("clip-l14", tmp_path)  # safetensors come first


def test_the_folder_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDTUNE_ENCODERS", str(tmp_path / "weights"))
    assert places.home() == tmp_path / "weights"
    monkeypatch.delenv("SDTUNE_ENCODERS")
    monkeypatch.setenv("SDTUNE_CACHE", str(tmp_path))
    assert places.home() == tmp_path / "encoders"


def test_a_metric_says_what_it_lacks(tmp_path: Path) -> None:
    assert places.missing_for("kid", tmp_path) == []  # the shipped scorer will do
    (lacking,) = places.missing_for("fid", tmp_path)
    assert lacking.encoder == "inception" and "sdtune metrics --get inception" in lacking.remedy
    both = places.missing_for("aesthetic", tmp_path)
    assert [m.encoder for m in both] == ["clip-l14", "aesthetic"]
