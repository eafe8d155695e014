"""The proxies of docs/deploying.md, as they stand there, in front of a real server."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serve.browser import browsing
from tests.serve.conftest import Live, serving

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs" / "deploying.md"
NAME = "pictures.example.org"
TOKEN = "a-token-for-the-proxy"


def config_of(kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def certificate(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}", "-addext",
         f"subjectAltName=DNS:{NAME}", "-keyout", str(folder / "pictures.key"), "-out", str(folder / "pictures.pem")],
        check=True, capture_output=True,
    )  # fmt: skip


def nginx(folder: Path, port: int, server: str) -> list[str]:
    """The command of an nginx that needs no rights; the part of the docs is changed in nothing but places."""
    text = config_of("nginx").replace("listen 443", f"listen 127.0.0.1:{port}").replace("/etc/ssl", str(folder))
    text = text.replace("127.0.0.1:7860", server.partition("://")[2])
    text = text.replace(
        "proxy_buffering off;", f'proxy_buffering off;\nproxy_set_header Authorization "Bearer {TOKEN}";'
    )
    temporary = "".join(f"{n}_temp_path {folder}/{n};\n" for n in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.geteuid() == 0 else ""  # or its worker is nobody, who cannot write what it buffers
    head = f"{user}daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}"
    (folder / "nginx.conf").write_text(f"{head}{text}\n}}\n", encoding="utf-8")
    return [
        shutil.which("nginx") or "/usr/sbin/nginx",
        "-c",
        str(folder / "nginx.conf"),
        "-e",
        str(folder / "error.log"),
    ]


def caddy(folder: Path, port: int, server: str) -> list[str]:
    text = config_of("caddy").replace("127.0.0.1:7860", server.partition("://")[2])
    text = text.replace(
        f"{NAME} {{", f"{NAME}:{port} {{\n    bind 127.0.0.1\n    tls {folder}/pictures.pem {folder}/pictures.key"
    )
    text = text.replace("flush_interval -1", f'flush_interval -1\n        header_up Authorization "Bearer {TOKEN}"')
    head = f"{{\n    admin off\n    auto_https disable_redirects\n    storage file_system {folder}/caddy\n}}\n"
    (folder / "Caddyfile").write_text(head + text, encoding="utf-8")
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


PROXIES = {"nginx": nginx, "caddy": caddy}


@dataclass
class Front:
    live: Live
    http: httpx.Client
    port: int


@pytest.fixture(scope="module", params=PROXIES)
def front(request: pytest.FixtureRequest, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A server with a token, behind a proxy that knows it."""
    if not (shutil.which(request.param) or Path(f"/usr/sbin/{request.param}").exists()):
        pytest.skip(f"needs {request.param}")
    folder = tmp_path_factory.mktemp(request.param)
    certificate(folder)
    (folder / "token").write_text(TOKEN, encoding="utf-8")
    with serving(
        runs, folder / "folder", "--allow-host", NAME, "--token-file", str(folder / "token"), "--queue", "3"
    ) as live:
        live.http.headers["authorization"] = f"Bearer {TOKEN}"
        live.ready()
        port = free_port()
        command = PROXIES[request.param](folder, port, str(live.http.base_url).rstrip("/"))
        with (folder / "proxy.log").open("w") as log:
            proxy = subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, "HOME": str(folder)})
        try:
            live.until(lambda: proxy.poll() is not None or is_open(port), 30)
            assert proxy.poll() is None, (folder / "proxy.log").read_text()
            with client(port) as http:
                yield Front(live, http, port)
        finally:
            proxy.terminate()
            proxy.wait(10)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def client(port: int) -> httpx.Client:
    """One that finds the proxy under its name; its certificate is nobody's."""

    class Found(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            request.extensions = {**request.extensions, "sni_hostname": NAME}
            request.url = request.url.copy_with(host="127.0.0.1")
            return super().handle_request(request)

    return httpx.Client(base_url=f"https://{NAME}:{port}", transport=Found(verify=False), timeout=60)


def noise(side: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def test_events_come_one_by_one(front: Front) -> None:
    name = front.http.post("/api/jobs", json={"prompt": "a", "steps": 60, "seeds": [1, 2, 3], "model": "model"}).json()[
        "id"
    ]
    told, times = list[str](), list[float]()
    with front.http.stream("GET", f"/api/jobs/{name}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                told.append(line[7:])
                times.append(time.monotonic())
    assert told[-1] == "done" and told.count("picture") == 3 and "step" in told
    pictures = [t for event, t in zip(told, times, strict=True) if event == "picture"]
    assert times[-1] - times[0] > 0.1 and pictures[0] < times[-1]


def test_uploads_go_through_up_to_the_servers_limit(front: Front) -> None:
    headers = {"content-type": "image/png"}
    body = noise(2300)  # 15 MiB
    assert 15 * 2**20 < len(body) < 16 * 2**20
    assert front.http.post("/api/uploads", content=body, headers=headers).status_code == 201
    with suppress(httpx.WriteError):  # it was refused while it was still being sent
        assert front.http.post("/api/uploads", content=noise(2440), headers=headers).status_code == 413


def test_a_full_queue_says_when_to_come_again(front: Front) -> None:
    wish = {"prompt": "a", "steps": 150, "seeds": list(range(16))}
    answers = [front.http.post("/api/jobs", json=wish) for _ in range(6)]  # more than may wait
    last, names = answers[-1], [a.json()["id"] for a in answers if a.status_code == 202]
    assert last.status_code == 429 and last.json()["error"]["code"] == "queue_full"
    assert int(last.headers["retry-after"]) > 0
    for name in names:
        assert front.http.delete(f"/api/jobs/{name}").status_code == 200
    front.live.until(
        lambda: not [j for j in front.http.get("/api/jobs").json()["jobs"] if j["state"] in ("queued", "running")]
    )


def test_the_servers_own_headers_come_through(front: Front) -> None:
    answer = front.http.get("/api/models")
    assert (
        answer.status_code == 200
        and answer.headers["x-content-type-options"] == "nosniff"
        and "x-request-id" in answer.headers
    )
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_strangers_are_refused_behind_it_too(front: Front) -> None:
    evil = front.http.post("/api/jobs", json={"prompt": "a"}, headers={"origin": "https://evil.example"})
    assert evil.status_code == 403 and evil.json()["error"]["code"] == "origin"
    other = front.http.get("/api/models", headers={"host": "evil.example"})
    assert other.status_code in (200, 403) and "models" not in other.text  # Caddy answers other names with nothing
    assert front.live.http.get("/api/models", headers={"authorization": "Bearer no"}).status_code == 401


def test_the_web_app_works_over_its_websocket(front: Front) -> None:
    with browsing(f"https://{NAME}:{front.port}", f"--host-resolver-rules=MAP {NAME} 127.0.0.1") as browser:
        page = browser.page("/ui/status", ignore_https_errors=True)
        page.locator(".pill", has_text="ready").wait_for()
        page.wait_for_function("window.socket && window.socket.connected")
        assert page.evaluate("window.socket.io.engine.transport.name") == "websocket"
        wish = {"prompt": "seen", "steps": 150, "seeds": list(range(16)), "model": "model"}
        name = front.http.post("/api/jobs", json=wish).json()["id"]
        page.get_by_role("button", name="Cancel: 16 pictures with model").click()
        front.live.until(lambda: front.http.get(f"/api/jobs/{name}").json()["state"] == "cancelled")
