"""Too little memory: how it is told from other errors."""

from __future__ import annotations

import torch

from sdtune.errors import SdtuneError

_WORDS = ("can't allocate memory", "not enough memory", "out of memory")
"""Of CPU, CPU on Windows, MPS and CUDA's own calls."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there was too little memory. For some accelerators torch has a class; elsewhere words tell it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    plain = isinstance(error, RuntimeError) and not isinstance(error, SdtuneError)
    return plain and any(some in str(error) for some in _WORDS)
