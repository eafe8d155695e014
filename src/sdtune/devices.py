"""Where a run computes, and in which precision."""

from __future__ import annotations

import ctypes
import os
import sys

import psutil
import torch

from sdtune import distributed
from sdtune.config import TrainConfig
from sdtune.errors import ConfigError
from sdtune.shortage import is_out_of_memory as is_out_of_memory


def choose(config: TrainConfig) -> tuple[torch.device, torch.dtype]:
    """The device and the denoiser's type. auto: CUDA, else MPS, else CPU; bf16 where the device is fast at it, else fp32."""
    return pick(config.device, config.precision)


def pick(name: str, precision: str, *, key: str = "train.device") -> tuple[torch.device, torch.dtype]:
    """`choose` by the values themselves; `key` is what messages call the device's. `name` may be one of several, "cuda:1"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{key}: cuda was asked for, but torch sees no CUDA device; use auto or cpu, or install a CUDA build of torch"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise ConfigError(
            f"{key}: {name} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices, from 0 on"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key}: mps was asked for, but this machine has none; use auto or cpu")
    device = (
        torch.device(name, distributed.local_rank())
        if name == "cuda" and distributed.size() > 1
        else torch.device(name)
    )
    fast = {
        "cuda": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": False,
        "cpu": cpu_is_fast_at_bf16(),
    }[kind]
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return device, kinds.get(precision, torch.bfloat16 if fast else torch.float32)


def cpu_is_fast_at_bf16() -> bool:
    """AMX tiles or AVX-512 bf16 dot products (then bf16 is about twice as fast as fp32)."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def set_up_cpu(threads: int | None) -> int:
    """Let this process keep freed memory, and set torch's threads: as asked, else OMP_NUM_THREADS, else the cores that it may use.

    Returns their number.
    """
    keep_freed_memory()
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        allowed = (
            len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
        )
        threads = max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to a GiB, for what it takes next (glibc: Linux). Returns whether it will.

    A training step on a CPU frees and takes the same tensors again and again; glibc hands them back to the kernel and gets new
    pages of zeros for them, some thousand times a step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that older versions take
    return all([mapped, mallopt(_M_TRIM_THRESHOLD, 2**30), mallopt(_M_TOP_PAD, 2**26)])  # a list: each is to be set


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Of malloc.h."""


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far: the device's allocations on CUDA, the process's resident memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
