"""The server's process: its address, its token, and how it ends."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from sdtune.errors import ConfigError
from sdtune.serve.dispatch import Dispatcher
from sdtune.serve.guard import LOOPBACK
from sdtune.serve.work import Work

SHORTEST = 16
"""Characters of a token."""


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token_of(file: Path | None) -> str:
    """The token in a file, or in SDTUNE_TOKEN; "" if there is none. Raises ConfigError."""
    if file is None:
        found, name = os.environ.get("SDTUNE_TOKEN", ""), "SDTUNE_TOKEN"
    else:
        try:
            found, name = file.expanduser().read_text(encoding="utf-8").strip(), f"--token-file {file}"
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"--token-file {file}: cannot be read") from None
    if (found or file) and (len(found) < SHORTEST or not found.isascii() or not found.isprintable()):
        raise ConfigError(f"{name}: a token has at least {SHORTEST} plain characters: openssl rand -hex 32")
    return found


def check_address(host: str, token: str) -> None:
    """Raises ConfigError for an address that others reach while anybody may draw."""
    if not is_loopback(host) and not token:
        raise ConfigError(
            f"--host {host}: others could reach it; give a token (--token-file FILE or SDTUNE_TOKEN), or stay at 127.0.0.1"
        )


def hosts(host: str, allowed: Sequence[str]) -> set[str]:
    """The names that requests may call this server by."""
    own = () if host in ("0.0.0.0", "::") else (host,)
    return {name.lower().strip("[]") for name in (*LOOPBACK, *own, *allowed)}


def listening(host: str, port: int) -> socket.socket:
    """A socket at the address, so that a port in use is told before anything is loaded. Raises ConfigError."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {(error.strerror or 'cannot be used').lower()}; choose another"
        ) from None
    return found


class Served(uvicorn.Server):
    """Ends by SIGINT or SIGTERM when what is being drawn is done, or after `drain` seconds; at once by the second."""

    def __init__(self, app: FastAPI, host: str, port: int, *, drain: float, say: Callable[[str], object]) -> None:
        super().__init__(
            uvicorn.Config(
                app, host=host, port=port, log_config=None, access_log=False, server_header=False, date_header=False,
                proxy_headers=False, timeout_keep_alive=15, timeout_graceful_shutdown=3, h11_max_incomplete_event_size=16384,
                limit_concurrency=1000, ws_max_size=2**20,
            )
        )  # fmt: skip
        self._dispatcher: Dispatcher = app.state.server.dispatcher
        self._work: Work = app.state.server.work
        self._drain, self._say = drain, say
        self._draining: asyncio.Task[None] | None = None
        self.signal = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.signal:
            self.should_exit = self.force_exit = True
            return
        self.signal = sig
        self._say(f"stopping: what is being drawn may take {self._drain:g} s more; the queue is kept")
        asyncio.get_running_loop().call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        self._draining = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        self._work.part()
        await self._dispatcher.drain(self._drain)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}; the model is being loaded")


def exit_code(number: int) -> int:
    return 128 + number if number in (signal.SIGINT, signal.SIGTERM) else 0
