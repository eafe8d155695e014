"""A server on this machine that gives files, and answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

DATA = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(DATA).hexdigest()
COMMIT = "a" * 40


class Server(BaseHTTPRequestHandler):
    """Files below /web/, and as much of the Hub's interface as fetching a file needs."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        if "/tree/" in self.path:
            names = ("config.json", "pytorch_model.bin", "README.md")
            tree = [{"type": "file", "path": name, "size": len(DATA), "oid": SHA256[:40]} for name in names]
            self.send(json.dumps(tree).encode(), body, "application/json")
        elif self.path.startswith("/api/models/"):
            files = [{"rfilename": name} for name in ("config.json", "pytorch_model.bin", "README.md")]
            self.send(json.dumps({"id": "a/b", "sha": COMMIT, "siblings": files}).encode(), body, "application/json")
        elif self.path.endswith(("/whole.pth", "pytorch_model.bin", "config.json")):
            self.send(DATA, body)
        elif self.path == "/web/short.pth":
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA) + 5))
            self.end_headers()
            self.wfile.write(DATA)
        else:
            self.send_error(404, "Not Found")

    def send(self, data: bytes, body: bool, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
