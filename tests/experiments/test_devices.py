"""Several runs at once: which device each process sees, and which share of the processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sdtune.experiments.events import Began, Broke, Planned
from sdtune.experiments.matrix import Matrix
from sdtune.experiments.run import _environment, experiment, tasks
from tests.experiments.conftest import TWO


@pytest.mark.parametrize(
    ("seen", "gpu", "told"),
    [
        (None, 0, "0"), (None, 3, "3"), ("", 1, "1"),
        ("4,6", 0, "4"), ("4,6", 1, "6"), ("GPU-aa,GPU-bb", 1, "GPU-bb"),  # of those that this process may see
        ("4,6", 2, "none"),  # more than there are: none, and the worker says so
    ],
)  # fmt: skip
def test_each_process_sees_one_device(seen: str | None, gpu: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert _environment(gpu, lanes=1) == {"CUDA_VISIBLE_DEVICES": told}
    assert "CUDA_VISIBLE_DEVICES" not in _environment(None, lanes=2)


@pytest.mark.parametrize(("cores", "lanes", "threads"), [(8, 2, "4"), (8, 3, "2"), (2, 4, "1"), (8, 1, None)])
def test_each_process_has_its_share_of_the_cores(
    cores: int, lanes: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _environment(None, lanes).get("OMP_NUM_THREADS") == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in _environment(None, lanes), "what the user has set stays"


def test_two_devices_have_a_run_each(
    made: Callable[..., Matrix], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: each is given its own device, and where torch sees none the run is noted with what to do."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "no-1,no-2")  # so that a machine with GPUs has none, either
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    matrix, out = made(TWO), tmp_path / "out"
    given, events = dict[str, dict[str, str]](), []
    for event in experiment(matrix, out, devices=2):
        events.append(event)
        if isinstance(event, Began):
            seen = {p.environ()["CUDA_VISIBLE_DEVICES"]: p.environ() for p in psutil.Process().children()}
            given[event.device] = seen[f"no-{event.number}"]
    share = str(max(1, (psutil.cpu_count(logical=False) or 1) // 2))
    assert {device: e["OMP_NUM_THREADS"] for device, e in given.items()} == {"cuda:0": share, "cuda:1": share}
    assert isinstance(events[0], Planned) and events[0].todo == 2
    broke = [event for event in events if isinstance(event, Broke)]
    assert sorted(event.message for event in broke) == [
        f"--devices: torch sees no CUDA device number {n}; ask for fewer, or leave it out" for n in (0, 1)
    ]
    assert [task.state for task in tasks(matrix, out)] == ["failed", "failed"]
