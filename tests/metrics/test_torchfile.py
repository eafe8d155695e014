"""Reading torch's files without running them: equal to torch for honest files, and inert for all others."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdtune.errors import EvaluationError
from sdtune.metrics import torchfile


def state() -> dict[str, Tensor]:
    """Several kinds of numbers, and a view into another tensor."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return {
        **net.state_dict(),
        "half": torch.randn(5).half(),
        "bf16": torch.randn(2, 2).bfloat16(),
        "turned": torch.arange(12).reshape(3, 4).T[1:],
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.5, dtype=torch.float64),
    }


def save(value: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)  # noqa: TID251 (what is to be read)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
def test_reads_what_torch_wrote(tmp_path: Path, zipped: bool, wrap: str) -> None:
    expected = state()
    moments = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1).state_dict()
    value = {wrap: expected, "epoch": 3, "optimizer": moments, "loss": 0.5} if wrap else expected
    found = torchfile.read(save(value, tmp_path / "w.pth", zipped))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_reads_parameters(tmp_path: Path) -> None:
    found = torchfile.read(save({"w": nn.Parameter(torch.ones(3))}, tmp_path / "w.pt"))
    assert torch.equal(found["w"], torch.ones(3))


class Payload:
    """What a hostile file does when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("zipped", [True, False])
def test_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    canary = tmp_path / "canary"
    path = save({"w": torch.ones(2), "x": Payload(canary)}, tmp_path / "w.pth", zipped)
    assert torch.equal(torchfile.read(path)["w"], torch.ones(2))
    with pytest.raises(EvaluationError, match="no dictionary of tensors"):
        torchfile.read(save(Payload(canary), tmp_path / "only.pth", zipped))
    assert not canary.exists()


def test_refuses_other_instructions() -> None:
    with pytest.raises(torchfile.Unsafe, match=r"the instruction \w+, which weights have no need of"):
        torchfile.run(b"(S'x'\nios\nsystem\n.")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read"),
        (b"<html>not found</html>", "cannot be read"),
        (b"\x80\x02}.", "neither a zip nor an older file"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "cannot be read"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    with pytest.raises(EvaluationError, match=said) as caught:
        torchfile.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_off(tmp_path: Path, zipped: bool) -> None:
    path = save({"w": torch.ones(1000)}, tmp_path / "w.pth", zipped)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - (100 if not zipped else 700)])
    with pytest.raises(EvaluationError, match="fetch it again"):
        torchfile.read(path)


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path: Path) -> None:
    path = save({"w": torch.ones(1).expand(10**12)}, tmp_path / "w.pth")
    with pytest.raises(EvaluationError, match="reaches beyond its numbers"):
        torchfile.read(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """A few bytes of one could fill the memory."""
    path, packed = save({"w": torch.zeros(1000)}, tmp_path / "w.pth"), tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(EvaluationError, match="it is compressed"):
        torchfile.read(packed)


def test_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    path, turned = save({"w": torch.zeros(3)}, tmp_path / "w.pth"), tmp_path / "turned.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(turned, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    with pytest.raises(EvaluationError, match="other byte order"):
        torchfile.read(turned)


def test_the_number_of_bytes_must_be_that_of_the_storage(tmp_path: Path) -> None:
    path = save({"w": torch.ones(4)}, tmp_path / "w.pth", zipped=False)
    data = path.read_bytes()
    at = data.rindex(struct.pack("<q", 4))
    path.write_bytes(data[:at] + struct.pack("<q", 3) + data[at + 8 :])
    with pytest.raises(EvaluationError, match="not those that it names"):
        torchfile.read(path)
