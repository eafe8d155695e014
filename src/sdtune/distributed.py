"""Several processes, one run. The only file that knows ranks.

Every process holds the whole model and sees the whole batch of latents, but computes its share of the rows; noise and order are
those of the whole batch, so N processes train as one does. Gradients lie in one flat buffer: adding them up is one operation.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

from sdtune.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PATIENCE = timedelta(days=7)
"""For one process to encode the pictures while the others wait. A process that dies is noticed at once all the same."""
GRACE_S = 30.0
"""For the others to end by themselves after one has."""


def rank() -> int:
    """This process's number in the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes the run has (torchrun's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine: the number of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def primary() -> bool:
    """Whether this process writes the files and draws the progress."""
    return rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, the processes can add up tensors and wait for each other. Does nothing for a single process.

    Raises TrainingError where another process has died.
    """
    if size() == 1:
        yield
        return
    import torch
    from torch import distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    except dist.DistBackendError as error:
        raise TrainingError(f"{_LOST} ({str(error).splitlines()[0]})") from error
    except RuntimeError as error:
        if "gloo" not in str(error).lower() and "connection" not in str(error).lower():
            raise
        raise TrainingError(_LOST) from error
    finally:
        dist.destroy_process_group()  # without it a process may never exit


_LOST = "another process of this run has ended; the same command goes on from the last checkpoint"


def rows(total: int) -> slice:
    """This process's share of `total` rows: the shares are as equal as can be, and in the order of the ranks."""
    return slice(rank() * total // size(), (rank() + 1) * total // size())


def add_up(tensor: Tensor) -> None:
    """Replace `tensor` in every process by the sum over all of them."""
    if size() > 1:
        from torch import distributed as dist

        dist.all_reduce(tensor)


def gather(tensor: Tensor) -> list[Tensor]:
    """What `tensor` is in each process. It must have the same shape in all."""
    if size() == 1:
        return [tensor]
    import torch
    from torch import distributed as dist

    out = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(out, tensor)
    return out


def any_of(flag: bool) -> bool:
    """Whether `flag` is set in any process. All have to ask."""
    return bool(sum_of(int(flag)))


def sum_of(number: int) -> int:
    """What the processes' numbers add up to. All have to ask, or to ask `any_of`: the two meet."""
    if size() == 1:
        return number
    import torch

    total = torch.tensor(number)
    add_up(total)
    return int(total)


def wait() -> None:
    """Go on when all processes are here."""
    any_of(False)


# ---- starting the processes


def launch(devices: int, arguments: Sequence[str]) -> int:
    """Run `sdtune ARGUMENTS` in `devices` processes on this machine; returns the exit code of the first that failed, or 0.

    Signals are passed on to all. When one process ends badly, the others are given time to save and are ended then.
    """
    shared = {"WORLD_SIZE": str(devices), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "sdtune", *arguments],
            env={**os.environ, **shared, "RANK": str(n), "LOCAL_RANK": str(n)},
            start_new_session=True,  # a terminal's Ctrl-C reaches them through us, once
        )
        for n in range(devices)
    ]

    def pass_on(number: int, _: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _await(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _await(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """The first bad exit code, when all have ended or have had their time."""
    failed, ends = 0, float("inf")
    while any(p.poll() is None for p in processes) and time.monotonic() < ends:
        if not failed and (codes := [p.returncode for p in processes if p.returncode]):
            failed, ends = codes[0], time.monotonic() + GRACE_S
        time.sleep(0.05)
    failed = failed or next((p.returncode for p in processes if p.returncode), 0)
    return failed if failed >= 0 else 128 - failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
