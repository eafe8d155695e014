"""What a run cost: time, memory, parameters, size, and energy where the machine tells it. Imports no torch."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdtune.events import Encoding, Event, Finished, Started, Step
from sdtune.files import write_json
from sdtune.runs import Run

POWERCAP = Path("/sys/class/powercap")
NOT_READABLE = "not readable"


@dataclass(frozen=True)
class Cost:
    """Of one run. What is not known is None."""

    seconds: float | None
    """From the first step to the result, validation and previews included, over all sittings."""
    images_per_second: float | None
    """In training steps alone, without the first, which warms up."""
    peak_memory_mb: float | None
    """Of the training: the device's allocations on CUDA, the process's resident memory elsewhere."""
    trainable: int | None
    total: int | None
    size_mb: float | None
    """Of the result's files."""
    joules: float | None
    energy: str
    """Where the energy was read, or why it was not."""
    device: str
    steps: int

    def record(self) -> dict[str, Any]:
        return dict(vars(self))


def cost(run: Run, events: Iterable[Event] | None = None) -> Cost:
    """What the log (`events`, if it is read already), the result and resources.json of a run say."""
    started: Started | None = None
    seconds = opened = last = 0.0
    steps: list[float] = []
    peak = None
    for event in run.events() if events is None else events:
        if isinstance(event, Started):
            seconds += last - opened
            started, opened = event, event.time
        last = event.time if not isinstance(event, Encoding) and opened else opened
        if isinstance(event, Step):
            steps.append(event.seconds)
        elif isinstance(event, Finished) and event.peak_memory_mb is not None:
            peak = max(peak or 0.0, event.peak_memory_mb)
    seconds += last - opened
    told = _resources(run)
    busy = sum(steps[1:])
    return Cost(
        seconds=seconds if started else None,
        images_per_second=started.batch_size * (len(steps) - 1) / busy if started and busy > 0 else None,
        peak_memory_mb=peak,
        trainable=started.trainable if started else None,
        total=started.total if started else None,
        size_mb=size_of(run.final) / 1e6 if run.final.is_dir() else None,
        joules=told.get("joules"),
        energy=str(told.get("energy", NOT_READABLE)),
        device=started.device if started else "",
        steps=len(steps),
    )


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # a file of a living run, gone meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def resources_file(run: Run) -> Path:
    return run.path / "resources.json"


def _resources(run: Run) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(resources_file(run).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def wall(run: Run) -> float | None:
    """Seconds that the run took with model, pictures and comparison, over all sittings."""
    value = _resources(run).get("seconds")
    return float(value) if isinstance(value, int | float) else None


# ---- while it runs


class Meter:
    """Adds a sitting's time and energy to what the run's resources.json has of earlier ones."""

    def __init__(self, run: Run, *, shared: bool) -> None:
        """`shared`: other runs use the same processors at the same time, so that their energy cannot be told apart."""
        self.run, self.shared = run, shared
        self._began, self._energy = time.monotonic(), read_energy()

    def trained(self) -> None:
        """The training has ended: its energy is counted, that of the comparison is not."""
        self._write("joules", self._joules())

    def close(self) -> None:
        """The sitting has ended."""
        self._write("seconds", time.monotonic() - self._began)

    def _joules(self) -> tuple[float | None, str]:
        now = read_energy()
        if self._energy is None or now is None:
            return None, NOT_READABLE
        if self.shared and now.of == "processors":
            return None, "not told: several runs shared the processors"
        return now.since(self._energy), now.source

    def _write(self, key: str, value: Any) -> None:
        told = _resources(self.run)
        if key == "joules":
            joules, told["energy"] = value
            whole = key not in told or told[key] is not None
            told[key] = told.get(key, 0.0) + joules if joules is not None and whole else None
        else:
            told[key] = told.get(key, 0.0) + value
        if self.run.path.is_dir():
            write_json(resources_file(self.run), told)


@dataclass(frozen=True)
class Energy:
    """A reading of meters that only count upwards, in joules; `ranges` is where each begins anew."""

    of: str
    source: str
    joules: Mapping[str, float]
    ranges: Mapping[str, float]

    def since(self, before: Energy) -> float:
        total = 0.0
        for name, value in self.joules.items():
            gone = value - before.joules.get(name, value)
            total += gone + self.ranges.get(name, 0.0) if gone < 0 else gone
        return total


def read_energy() -> Energy | None:
    """The GPU's meter where torch uses one, else the processors' (RAPL). None where neither can be read."""
    return _nvml() or rapl(POWERCAP)


def rapl(root: Path) -> Energy | None:
    """The processors' packages, /sys/class/powercap/intel-rapl:N, which AMD's have too. Often for root alone."""
    joules, ranges = {}, {}
    try:
        for zone in sorted(root.glob("intel-rapl:*")):
            if zone.name.count(":") == 1:  # a package; the others are parts of one
                joules[zone.name] = int((zone / "energy_uj").read_text()) / 1e6
                ranges[zone.name] = int((zone / "max_energy_range_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None
    return Energy("processors", "processors (RAPL)", joules, ranges) if joules else None


def _nvml() -> Energy | None:
    """The first GPU that this process sees, if torch computes on it."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    return next((Energy("gpu", "GPU (NVML)", {uuid: mj / 1000}, {}) for mj in _nvml_millijoules(uuid)), None)


def _nvml_millijoules(uuid: str) -> Iterator[int]:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return
    handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlInit_v2() != 0:
        return
    found = library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) == 0
    if found and library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)) == 0:
        yield value.value
    library.nvmlShutdown()
