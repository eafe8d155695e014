"""The device and the precision of a run, its threads, and what it does with freed memory."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import torch

from sdtune import devices
from sdtune.config import TrainConfig
from sdtune.devices import choose, set_up_cpu
from sdtune.errors import ConfigError


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def available(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(devices, "cpu_is_fast_at_bf16", lambda: bf16)


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_cuda_comes_before_mps_before_the_cpu(
    cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    available(monkeypatch, cuda=cuda, mps=mps)
    assert choose(TrainConfig())[0].type == chosen


@pytest.mark.parametrize(("device", "says"), [("cuda", "torch sees no CUDA device"), ("mps", "this machine has none")])
def test_a_device_that_is_not_there_is_refused(device: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch)
    with pytest.raises(ConfigError, match=rf"train.device: {device} was asked for, but {says}"):
        choose(TrainConfig(device=device))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "bf16", "precision", "dtype"),
    [
        ("cuda", True, "auto", torch.bfloat16), ("cuda", False, "auto", torch.float32), ("cpu", True, "auto", torch.bfloat16),
        ("cpu", False, "auto", torch.float32), ("mps", True, "auto", torch.float32), ("cpu", False, "bf16", torch.bfloat16),
        ("cuda", True, "fp16", torch.float16), ("cuda", True, "fp32", torch.float32),
    ],
)  # fmt: skip
def test_auto_is_bf16_where_that_is_fast(
    device: str, bf16: bool, precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    available(monkeypatch, cuda=True, mps=True, bf16=bf16)
    assert choose(TrainConfig(device=device, precision=precision))[1] == dtype  # type: ignore[arg-type]


def test_threads_are_as_asked_else_as_the_environment_says_else_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_up_cpu(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which torch has read at its start
    assert set_up_cpu(None) == 3, "torch is left as it is"
    monkeypatch.delenv("OMP_NUM_THREADS")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert set_up_cpu(None) == max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@pytest.mark.parametrize(("refused", "kept"), [((), True), (((-3, 2**30),), True), (((-3, 2**30), (-3, 2**25)), False)])
def test_all_that_malloc_can_be_told_is_told(
    refused: tuple[tuple[int, int], ...], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A C library that takes no threshold of a GiB, as older glibc does not, stands in here: 2**25 is the most it takes."""
    told = list[tuple[int, int]]()

    class Library:
        def __init__(self, name: None) -> None: ...

        def mallopt(self, key: int, value: int) -> int:
            told.append((key, value))
            return (key, value) not in refused

    monkeypatch.setattr("ctypes.CDLL", Library)
    monkeypatch.setattr(sys, "platform", "linux")
    assert devices.keep_freed_memory() == kept
    assert told == [(-3, 2**30), *[(-3, 2**25)] * bool(refused), (-1, 2**30), (-2, 2**26)]


FAULTS = """
import resource, sys, torch
from sdtune.devices import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
def faults():
    torch.ones(2**24)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = [faults() for _ in range(4)][-1]
print([faults() for _ in range(4)][-1] - first)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_kept() -> None:
    """Taken again, it costs no page fault; else the kernel gives new pages each time."""

    def faults(what: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, text=True, check=False)
        if done.returncode == 3:
            pytest.skip("another C library than glibc")
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    plain, kept = faults("plain"), faults("keep")
    assert kept < plain / 5 and plain > 100
