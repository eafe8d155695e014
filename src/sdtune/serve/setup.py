"""What the server tells its worker at the start. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setup:
    """What the server tells its worker at the start."""

    entries: list[dict[str, Any]]
    folder: str
    device: str = "auto"
    """auto, cuda (all that are visible), cuda:0,cuda:1, mps or cpu; to a worker its own."""
    precision: str = "auto"
    threads: int | None = None
    batch: int = 0
    """Pictures drawn at once; 0: one on a CPU, where each is then the same to the bit as alone, and 8 elsewhere."""
    keep: int = 1
    """Originals that stay in memory."""
    workers: int = 1
    """Processes that draw, if it is a CPU."""

    @property
    def devices(self) -> list[str]:
        """Those that are known without asking torch, one for each worker; further ones start when the first knows where it is."""
        return ["cpu"] * self.workers if self.device == "cpu" else self.device.split(",")
