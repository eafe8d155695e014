"""What holds for every test: CPU, one thread, no network, warnings are errors (pyproject.toml)."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

_hub = tempfile.TemporaryDirectory(prefix="sdtune-hub-")  # empty: no test may lean on a cache that happens to be here

# Before the first import of torch or a Hugging Face library, and inherited by subprocesses.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",  # golden losses are exact for one thread
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": _hub.name,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
)
os.environ.pop("HF_TOKEN", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew, compare nothing")


def pytest_unconfigure() -> None:
    _hub.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := _no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    return f"needs a CUDA device; torch {torch.__version__} sees none"


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written (`make golden`) rather than compared with."""
    return bool(request.config.getoption("--update-golden"))


# ---- the socket guard: an attempt is refused at once, and fails the test even where the tested code swallows errors


class NetworkRefused(OSError):
    """A test reached for the network."""


_attempts: list[str] = []


def _check(host: object) -> None:
    if isinstance(host, bytes | bytearray):
        host = bytes(host).decode(errors="replace")
    if host in (None, "", "localhost", socket.gethostname()):
        return
    try:
        if ipaddress.ip_address(str(host).partition("%")[0]).is_loopback:
            return
    except ValueError:
        pass  # a name: to look it up would be network already
    _attempts.append(str(host))
    raise NetworkRefused(f"tests use no network; refused: {host}")


class GuardedSocket(socket.socket):
    """A socket that reaches this machine only."""

    def _guard(self, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])

    def connect(self, address: Any) -> None:
        self._guard(address)
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        self._guard(address)
        return super().connect_ex(address)

    def sendto(self, data: Any, *rest: Any) -> int:
        self._guard(rest[-1])
        return super().sendto(data, *rest)


_getaddrinfo = socket.getaddrinfo


def _guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    _check(host)
    return _getaddrinfo(host, *args, **kwargs)


socket.socket = GuardedSocket  # type: ignore[misc]
socket.getaddrinfo = _guarded_getaddrinfo


@pytest.fixture(autouse=True)
def network_attempts() -> Iterator[list[str]]:
    """Hosts that the test tried to reach; any left at its end fails it."""
    _attempts.clear()
    yield _attempts
    if _attempts:
        pytest.fail(f"tests use no network, but this one tried to reach {', '.join(_attempts)}")
