"""Collecting pictures, against a real server on this machine that answers in the shape of each service."""

from __future__ import annotations

import functools
import io
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from sdtune import cli
from sdtune.data import images
from sdtune.data.collect import fetch, folder, gather, sources
from sdtune.data.collect.fetch import Client, FetchError, Halted, public
from sdtune.data.collect.folder import JOURNAL, Credit, Folder, credits_text, slug
from sdtune.data.collect.folder import credits as credits_of
from sdtune.data.collect.gather import Outcome, Wish, collect, look, preview
from sdtune.data.collect.keys import key, read_env
from sdtune.data.collect.licences import allowed, licence
from sdtune.data.collect.sources import (
    Commons,
    Flickr,
    Found,
    Openverse,
    Source,
    Unsplash,
    UnsplashLite,
    UrlList,
    plain,
)
from sdtune.data.readers import read
from sdtune.errors import ConfigError, DataError

COMMAND = [sys.executable, "-m", "sdtune"]
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def scene(seed: int, kind: str = "PNG", size: tuple[int, int] = (96, 64), **options: Any) -> bytes:
    """A picture file with a likeness of its own."""
    rows = np.random.default_rng(seed).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rows).resize(size, Image.Resampling.NEAREST).save(file, kind, **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


# ---- a server whose answers are listed


Answer = bytes | tuple[int, dict[str, str], bytes] | Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers by path; of several answers to one path the last one is repeated."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def give(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return self.url + path

    def paths(self) -> list[str]:
        return [urlsplit(path).path for path, _ in self.asked]

    def queries(self) -> list[dict[str, str]]:
        return [{k: v[0] for k, v in parse_qs(urlsplit(path).query).items()} for path, _ in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients leave in the middle on purpose


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path) or self.server.answers.get(urlsplit(self.path).path)
        answer: Answer = (404, {}, b"") if not answers else answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer(self)
            return
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def near_client(**changes: Any) -> Client:
    """A client that may reach this machine, and does not wait long."""
    return Client(**{**NEAR, **changes})


NEAR: dict[str, Any] = {
    "permitted": lambda address: address.is_loopback,
    "timeout": 5.0,
    "api_interval": 0.0,
    "file_interval": 0.0,
    "backoff": 0.01,
}


class Listed:
    """A source of given pictures."""

    size: int | None = None
    endless = captioned = False
    notice = ""

    def __init__(self, found: list[Found], name: str = "listed", breaks: bool = False) -> None:
        self.name, self._found, self._breaks = name, found, breaks

    def search(self, query: str, limit: int) -> Iterator[Found]:
        yield from self._found[:limit]
        if self._breaks:
            raise FetchError("answers 500")

    def fetched(self, found: Found) -> None:
        pass


def listed(server: Server, count: int, first: int = 0) -> list[Found]:
    given = licence("https://creativecommons.org/licenses/by/4.0/")
    return [
        Found("listed", str(i), server.give(f"/{i}.png", scene(i)), f"Thing {i}", author="A", licence=given, page="https://a.example/")
        for i in range(first, first + count)
    ]  # fmt: skip


def whats(outcomes: list[Outcome]) -> list[str]:
    return [o.what for o in outcomes]


def filled(out: Path, wanted: list[Source], client: Client | None = None, **wish: Any) -> list[Outcome]:
    return list(collect(Wish(**{"query": "a thing", **wish}), wanted, out, client or near_client()))


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


# ---- which addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "fec0::1",
        "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::1", "64:ff9b::10.0.0.1",
        "64:ff9b:1::1", "2001:0:7f00:1::", "::7f00:1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:4700::1111", "::ffff:93.184.216.34", "64:ff9b::93.184.216.34"]
)
def test_public_addresses(address: str) -> None:
    assert public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a.png", "http://localhost:{port}/a.png", "http://[::1]:{port}/a.png",
        "http://[::ffff:127.0.0.1]:{port}/a.png", "http://10.0.0.1/a.png", "http://169.254.169.254/latest/meta-data",
    ],
)  # fmt: skip
def test_a_plain_client_reaches_nothing_near(server: Server, url: str) -> None:
    server.give("/a.png", scene(1))
    with pytest.raises(FetchError, match="no public address"):
        Client().file(url.format(port=server.server_port), 10**6)
    assert not server.asked


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "file: only http"),
        ("ftp://a.example/b", "ftp: only http"),
        ("data:image/png;base64,AAAA", "data: only http"),
        ("//a.example/b", "no scheme"),
        ("http://user:secret@a.example/", "a user's name"),
        ("http:///a.png", "without a host"),
        ("http://a.example:99999/", "can be read"),
        ("http://[::1", "can be read"),
    ],
)
def test_odd_addresses(url: str, why: str) -> None:
    with pytest.raises(FetchError, match=why) as error:
        Client().file(url, 10)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "to", ["http://127.0.0.2/", "http://10.0.0.1/", "http://[::1]/", "http://[::ffff:10.0.0.1]/", "file:///etc/passwd"]
)
def test_a_redirect_leads_to_no_private_place(server: Server, to: str) -> None:
    """The first hop stands for a public one."""
    url = server.give("/go", (302, {"Location": to}, b""))
    client = near_client(permitted=lambda a: str(a) == "127.0.0.1" or public(a))
    with pytest.raises(FetchError, match=r"no public address|only http"):
        client.file(url, 100)


def test_redirects_are_followed_five_times(server: Server) -> None:
    for i in range(7):
        server.give(f"/{i}", (301, {"Location": f"/{i + 1}"}, b""))
    server.give("/7", b"here")
    assert near_client().file(f"{server.url}/2", 100) == b"here"
    with pytest.raises(FetchError, match="redirected more than 5 times"):
        near_client().file(f"{server.url}/1", 100)


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Let the name pictures.example resolve to these addresses, one after the other; the list of lookups."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host == "pictures.example":
            asked.append(host)
            host = answers[min(len(asked), len(answers)) - 1]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        return real(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_a_name_that_resolves_otherwise_a_moment_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve(monkeypatch, "127.0.0.1", "10.0.0.1")
    server.give("/a", b"here")
    client, url = near_client(), f"http://pictures.example:{server.server_port}/a"
    assert client.file(url, 100) == b"here"
    assert asked == ["pictures.example"]
    assert server.asked[0][1]["Host"] == f"pictures.example:{server.server_port}"
    with pytest.raises(FetchError, match=r"pictures\.example: leads to 10\.0\.0\.1, which is no public address"):
        client.file(url, 100)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_certificates_are_checked_for_the_name(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resolve(monkeypatch, "127.0.0.1")
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-subj",
        "/CN=x",
    ]
    subprocess.run(
        [*made, "-addext", "subjectAltName=DNS:pictures.example"], cwd=tmp_path, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.give("/a", b"here")
    url = f"https://pictures.example:{server.server_port}/a"
    with pytest.raises(FetchError, match="certificate is not to be trusted"):
        near_client().file(url, 100)
    client = near_client()
    client._tls.load_verify_locations(tmp_path / "cert.pem")
    assert client.file(url, 100) == b"here"
    with pytest.raises(FetchError, match="certificate is not to be trusted"):
        client.file(url.replace("pictures.example", "127.0.0.1"), 100)


def test_a_key_goes_to_no_other_host(server: Server) -> None:
    with Server() as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        there = other.give("/there", b"{}")
        server.give("/here", (302, {"Location": "/again"}, b""))
        url = server.url + "/here"
        server.give("/again", (302, {"Location": there}, b""))
        near_client().json(url, headers={"Authorization": "Client-ID secret"})
        other.shutdown()
    assert [h.get("Authorization") for _, h in server.asked] == ["Client-ID secret"] * 2
    assert [h.get("Authorization") for _, h in other.asked] == [None]


# ---- how long, how often, how much


def test_busy_then_well(server: Server) -> None:
    url = server.give("/a", (429, {"Retry-After": "1"}, b""), (503, {}, b""), b"here")
    began = time.monotonic()
    assert near_client().file(url, 100) == b"here"
    assert 1 <= time.monotonic() - began < 5
    assert len(server.asked) == 3


def test_busy_for_long(server: Server) -> None:
    url = server.give("/a?key=secret", (429, {"Retry-After": "3600"}, b""))
    with pytest.raises(FetchError, match=r"/a: answers 429 Too Many Requests; it asks to wait 3600 seconds") as error:
        near_client().file(url, 100)
    assert "secret" not in str(error.value)
    server.give("/b", (500, {}, b""))
    with pytest.raises(FetchError, match="500 Internal Server Error \\(3 tries\\)"):
        near_client(tries=3).file(server.url + "/b", 100)


def test_gone_is_not_asked_for_again(server: Server) -> None:
    with pytest.raises(FetchError, match="404 Not Found") as error:
        near_client().file(server.url + "/none", 100)
    assert (error.value.status, len(server.asked)) == (404, 1)


def test_retry_after_may_be_a_date() -> None:
    assert fetch._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert fetch._retry_after("Fri, 21 Oct 2157 07:28:00 GMT") > 10**6  # type: ignore[operator]
    assert fetch._retry_after("soon") is None


def test_one_request_at_a_time_to_a_host(server: Server) -> None:
    url = server.give("/a", b"{}")
    client = near_client(api_interval=0.3, file_interval=0.1)
    began = time.monotonic()
    for _ in range(3):
        client.json(url)
    assert time.monotonic() - began >= 0.6


def test_stop_is_heard_while_waiting(server: Server) -> None:
    url = server.give("/a", (503, {"Retry-After": "60"}, b""))
    began = time.monotonic()
    with pytest.raises(Halted):
        near_client(stop=lambda: time.monotonic() - began > 0.3).file(url, 100)
    assert time.monotonic() - began < 3


def silent(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(2)


def dribbling_head(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(60):
        handler.wfile.write(b"X" if _ else b"HTTP/1.1 200 OK\r\nX: ")
        time.sleep(0.05)


def dribbling_body(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(60):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
    while True:
        handler.wfile.write(bytes(2**16))


def endless_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (silent, r"no answer within 0\.4 seconds \(2 tries\)"),
        (dribbling_head, "not done within 1 seconds"),
        (dribbling_body, "not done within 1 seconds"),
        (endless, "more than 1 MB"),
        (endless_chunks, "more than 1 MB"),
        ((200, {"Content-Length": "9000000"}, b"x"), "more than 1 MB"),
        ((200, {"Content-Length": "100"}, b"half"), "ends in the middle"),
        ((200, {"Content-Encoding": "gzip"}, b"x"), "compressed"),
        (lambda h: h.wfile.write(b"no HTTP\r\n\r\n"), "the connection failed"),
    ],
    ids=[
        "silent",
        "slow head",
        "slow body",
        "endless",
        "endless chunks",
        "large",
        "truncated",
        "compressed",
        "no http",
    ],
)
def test_bad_servers(server: Server, answer: Answer, why: str) -> None:
    url = server.give("/a", answer)
    began = time.monotonic()
    with pytest.raises(FetchError, match=why):
        near_client(timeout=0.4, deadline=1.0, tries=2).file(url, 2**20)
    assert time.monotonic() - began < 5


def test_the_agent_says_whom_to_tell(server: Server) -> None:
    near_client(contact="me@example.org").file(server.give("/a", b"x"), 10)
    agent = server.asked[0][1]["User-Agent"]
    assert agent.startswith("sdtune/") and agent.endswith("(collects pictures; me@example.org)")
    with pytest.raises(ConfigError, match="--contact"):
        Client("me\r\nX-Evil: 1")


# ---- the services


def openverse_item(server: Server, number: int, **more: Any) -> dict[str, Any]:
    """As in the reference of the API, shortened."""
    return {
        "id": f"0aff3595-8168-440b-83ff-7a80b65dea{number:02d}",
        "title": f"Red apple {number}",
        "indexed_on": "2020-06-27T11:25:36.555374Z",
        "foreign_landing_url": f"https://www.flickr.com/photos/5/{number}",
        "url": server.give(f"/ov{number}.png", scene(number)),
        "creator": "Jane <b>Doe</b>",
        "creator_url": "https://www.flickr.com/photos/5",
        "license": "by-sa",
        "license_version": "2.0",
        "license_url": "https://creativecommons.org/licenses/by-sa/2.0/",
        "provider": "flickr",
        "source": "flickr",
        "category": None,
        "filesize": None,
        "filetype": "jpg",
        "attribution": "...",
        "fields_matched": ["title"],
        "mature": False,
        "height": 64,
        "width": 96,
        **more,
    }


def openverse_page(items: list[dict[str, Any]], page: int, pages: int) -> bytes:
    whole = {"result_count": 40, "page_count": pages, "page_size": 20, "page": page, "results": items}
    return json.dumps(whole).encode()


@pytest.fixture
def openverse(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    first = [openverse_item(server, i) for i in range(3)]
    server.give("/v1/images/", openverse_page(first, 1, 2), openverse_page([openverse_item(server, 3)], 2, 2))
    monkeypatch.setattr(Openverse, "address", server.url + "/v1/images/")
    return server


def test_openverse(openverse: Server) -> None:
    found = list(Openverse(near_client(), "by-sa").search("red apple", 100))
    assert [f.title for f in found] == [f"Red apple {i}" for i in range(4)]
    first = found[0]
    assert (first.author, first.licence.code, first.licence.name) == ("Jane Doe", "by-sa", "CC BY-SA 2.0")
    assert (first.width, first.height, first.page) == (96, 64, "https://www.flickr.com/photos/5/0")
    asked = openverse.queries()
    assert [q["page"] for q in asked] == ["1", "2"]
    assert asked[0] == {"q": "red apple", "page_size": "20", "license": "by,by-sa,cc0,pdm", "page": "1"}
    assert not list(Openverse(near_client(), "cc0").search("red apple", 100))  # whatever a service sends


def test_openverse_ends_where_its_pages_end(server: Server, openverse: Server) -> None:
    page = openverse_page([openverse_item(server, 1)], 1, 50)
    server.give("/v1/images/", page, (401, {}, b'{"detail": "..."}'))
    assert len(list(Openverse(near_client()).search("apple", 100))) == 1
    server.give("/v1/images/", (401, {}, b""))
    with pytest.raises(FetchError, match="401"):
        list(Openverse(near_client()).search("apple", 100))


def commons_item(server: Server, number: int, **info: Any) -> dict[str, Any]:
    said = {
        "ObjectName": "Apple",
        "ImageDescription": f'A <i>red</i>   apple &amp; a leaf, no {number}<script>alert("x")</script>',
        "LicenseShortName": "CC BY-SA 4.0",
        "LicenseUrl": "https://creativecommons.org/licenses/by-sa/4.0",
        "Artist": '<a href="//commons.wikimedia.org/wiki/User:Someone" title="User:Someone">Some\none</a>',
        "UsageTerms": "Creative Commons Attribution-Share Alike 4.0",
    }
    whole = {
        "size": 3000000,
        "width": 4000,
        "height": 3000,
        "thumburl": server.give(f"/co{number}.png", scene(number + 20)),
        "thumbwidth": 1920,
        "thumbheight": 1440,
        "url": f"https://upload.wikimedia.org/wikipedia/commons/a/ab/Apple_{number}.jpg",
        "descriptionurl": f"https://commons.wikimedia.org/wiki/File:Apple_{number}.jpg",
        "mime": "image/jpeg",
        "extmetadata": {name: {"value": value, "source": "commons-desc-page"} for name, value in said.items()},
        **info,
    }
    return {
        "pageid": 100 + number,
        "ns": 6,
        "title": f"File:Apple {number}.jpg",
        "index": 50 - number,
        "imageinfo": [whole],
    }


def test_commons(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches; of the first one, a file's information comes in a second part."""
    monkeypatch.setattr(Commons, "address", server.url + "/w/api.php")
    one, two, three = (commons_item(server, i) for i in range(3))
    bare = {k: v for k, v in two.items() if k != "imageinfo"}
    drawing = commons_item(server, 4, mime="image/svg+xml")
    small = commons_item(server, 5, width=800, height=600, url=server.give("/small.png", scene(9)))
    parts = [
        {"continue": {"iicontinue": "Apple|x", "continue": "||"}, "query": {"pages": [one, bare]}},
        {"continue": {"gsroffset": 50, "continue": "gsroffset||"}, "query": {"pages": [bare, two]}},
        {"batchcomplete": True, "query": {"pages": [three, drawing, small]}},
    ]
    server.give("/w/api.php", *(json.dumps(part).encode() for part in parts))
    found = list(Commons(near_client()).search("red apple", 100))
    assert [f.id for f in found] == ["100", "101", "105", "102"]
    assert found[0].caption == "A red apple & a leaf, no 0" and found[0].title == "Apple 0"
    assert (found[0].author, found[0].licence.code) == ("Some one", "by-sa")
    assert (found[0].width, found[0].height) == (1920, 1440) and found[0].url.endswith("/co0.png")
    assert (found[2].width, found[2].url) == (800, server.url + "/small.png")
    asked = server.queries()
    assert asked[0]["gsrnamespace"] == "6" and asked[0]["iiurlwidth"] == "1920" and "extmetadata" in asked[0]["iiprop"]
    assert asked[1]["iicontinue"] == "Apple|x" and asked[2]["gsroffset"] == "50"
    server.give("/w/api.php", b'{"error": {"code": "ratelimited", "info": "You have exceeded your <b>limit</b>."}}')
    with pytest.raises(FetchError, match=r"^You have exceeded your limit\.$"):
        list(Commons(near_client()).search("red apple", 100))


def unsplash_item(server: Server, number: int) -> dict[str, Any]:
    return {
        "id": f"eOLpJytrbs{number}",
        "created_at": "2014-11-18T14:35:36-05:00",
        "width": 4000,
        "height": 3000,
        "color": "#A7A2A1",
        "blur_hash": "LaLXMa9Fx[D%~q%MtQM|kDRjtRIU",
        "description": "A man drinking a coffee.",
        "alt_description": "man with a cup",
        "user": {"id": "Ul0QVz12Goo", "username": "ugmonk", "name": "Jeff Sheldon"},
        "urls": {"raw": server.give(f"/un{number}.png", scene(number + 40)) + "?ixid=1&ixlib=rb", "regular": "x"},
        "links": {
            "html": f"https://unsplash.com/photos/eOLpJytrbs{number}",
            "download_location": f"{server.url}/photos/{number}/download?ixid=1",
        },
    }


@pytest.fixture
def unsplash(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("UNSPLASH_ACCESS_KEY", "s3cret-key")
    monkeypatch.setattr(Unsplash, "address", server.url + "/search/photos")
    whole = {"total": 2, "total_pages": 1, "results": [unsplash_item(server, i) for i in range(2)]}
    server.give("/search/photos", json.dumps(whole).encode())
    server.give("/photos/0/download", b'{"url": "https://images.unsplash.com/x"}')
    return server


def test_unsplash(unsplash: Server, tmp_path: Path) -> None:
    """The download of each picture is reported, until the service has enough of it."""
    unsplash.give("/photos/1/download", (403, {}, b"Rate Limit Exceeded"))
    outcomes = filled(tmp_path / "out", [Unsplash(near_client())], captions="source")
    assert whats(outcomes) == ["kept", "kept", "ended"]
    assert "50 an hour" in outcomes[2].why
    assert unsplash.paths() == ["/search/photos", "/un0.png", "/photos/0/download", "/un1.png", "/photos/1/download"]
    assert unsplash.queries()[1]["w"] == "1920"
    authorised = [bool(headers.get("Authorization") == "Client-ID s3cret-key") for _, headers in unsplash.asked]
    assert authorised == [True, False, True, False, True]
    row = rows(tmp_path / "out")[0]
    assert (row["text"], row["author"], row["licence"]) == ("man with a cup", "Jeff Sheldon", "Unsplash License")
    assert not any(b"s3cret" in p.read_bytes() for p in (tmp_path / "out").iterdir())
    unsplash.give("/search/photos", (401, {}, b"{}"))
    with pytest.raises(FetchError, match="UNSPLASH_ACCESS_KEY is not accepted") as error:
        list(Unsplash(near_client()).search("a", 1))
    assert "s3cret" not in str(error.value)


def test_flickr(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLICKR_API_KEY", "f-s3cret")
    monkeypatch.setattr(Flickr, "address", server.url + "/services/rest/")
    names = [
        ("0", "All Rights Reserved", "https://www.flickrhelp.com/hc/en-us/articles/10710266545556"),
        ("4", "Attribution License", "https://creativecommons.org/licenses/by/2.0/"),
        ("5", "Attribution-ShareAlike License", "https://creativecommons.org/licenses/by-sa/2.0/"),
        ("7", "No known copyright restrictions", "https://www.flickr.com/commons/usage/"),
        ("8", "United States Government Work", "http://www.usa.gov/copyright.shtml"),
        ("9", "Public Domain Dedication (CC0)", "https://creativecommons.org/publicdomain/zero/1.0/"),
        ("11", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
    ]
    licences = {
        "licenses": {"license": [dict(zip(("id", "name", "url"), n, strict=True)) for n in names]},
        "stat": "ok",
    }
    photo = {
        "id": "77", "owner": "12@N00", "secret": "a", "server": "1", "farm": 1, "title": "Apple", "license": "4",
        "description": {"_content": "An apple"}, "ownername": "Ann", "url_l": server.give("/fl.png", scene(60)),
        "height_l": 683, "width_l": "1024",
    }  # fmt: skip
    others = [{**photo, "id": "78", "url_l": None}, {**photo, "id": "79", "license": "0"}]
    photos = {"photos": {"page": 1, "pages": 1, "perpage": 100, "total": 3, "photo": [photo, *others]}, "stat": "ok"}
    refused = {"stat": "fail", "code": 100, "message": "Invalid API Key (f-s3cret)"}
    server.give("/services/rest/", *(json.dumps(part).encode() for part in (licences, photos, refused)))
    (found,) = Flickr(near_client(), "by").search("apple", 10)
    assert (found.width, found.height, found.author, found.licence.name) == (1024, 683, "Ann", "CC BY 2.0")
    assert found.page == "https://www.flickr.com/photos/12@N00/77/"
    asked = server.queries()[1]
    assert asked["method"] == "flickr.photos.search" and asked["license"] == "4,7,8,9,11" and "url_l" in asked["extras"]
    with pytest.raises(FetchError, match="FLICKR_API_KEY is not accepted") as error:
        list(Flickr(near_client()).search("apple", 10))
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b'{"results": 3}', b'{"results": [3]}', b"<html>", b"[" * 10**5, b'{"results": null}']
)
def test_a_service_that_answers_nonsense(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: bytes, tmp_path: Path
) -> None:
    monkeypatch.setattr(Openverse, "address", server.give("/v1/images/", answer))
    (outcome,) = filled(tmp_path, [Openverse(near_client())])
    assert outcome.what == "ended" and outcome.source == "openverse" and outcome.why


def test_list_of_addresses(tmp_path: Path) -> None:
    file = tmp_path / "urls.txt"
    file.write_text(
        "# mine\nhttps://a.example/1.jpg\tone  apple\n\nhttps://a.example/2.jpg\nhttps://a.example/1.jpg\tone  apple\n"
    )
    source = UrlList(file, "an apple")
    assert source.size == 2
    found = list(source.search("an apple", 10))
    assert [(f.url, f.caption, f.own) for f in found] == [
        ("https://a.example/1.jpg", "one apple", True),
        ("https://a.example/2.jpg", "", False),
    ]
    with pytest.raises(ConfigError, match=r"urls\.txt:4: no caption after a tab, and no QUERY"):
        UrlList(file, "")
    with pytest.raises(ConfigError, match="says nothing of licences; use --licence any"):
        UrlList(file, "a", "by")
    file.write_text("ok.jpg\n")
    with pytest.raises(ConfigError, match=r"urls\.txt:1: 'ok\.jpg' is no http or https address"):
        UrlList(file, "a")
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no address"):
        UrlList(file, "a")


def test_two_lists(server: Server, tmp_path: Path) -> None:
    """Both are called "urls"."""
    lists = list[Source]()
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(f"{server.give(f'/{i}.png', scene(i))}\tthing {i}\n")
        lists.append(UrlList(tmp_path / f"{i}.txt", ""))
    assert gather.expected(Wish(), lists) == 2
    assert whats(filled(tmp_path / "out", lists, query="")) == ["kept", "kept"]
    assert [row["text"] for row in rows(tmp_path / "out")] == ["thing 0", "thing 1"]


def test_how_many(server: Server, tmp_path: Path) -> None:
    """100 of a search; all of a file or folder."""
    (tmp_path / "urls.txt").write_text("https://a.example/1.jpg\ta\n")
    list_, service = UrlList(tmp_path / "urls.txt", ""), Openverse(near_client())
    assert Wish("a").most([list_]) is None and Wish("a").most([list_, service]) == 100
    assert Wish("a", 7).most([list_]) == Wish("a", 7).most([service]) == 7
    assert [gather.expected(Wish("a"), s) for s in ([list_], [service], [Listed([])])] == [1, 100, 0]


PHOTOS = (
    "photo_id\tphoto_url\tphoto_image_url\tphoto_width\tphoto_height\tphoto_description\tphotographer_username\t"
    "photographer_first_name\tphotographer_last_name\tai_description\n"
)


def lite(folder: Path, server: Server) -> None:
    lines = [
        f'aaa\thttps://unsplash.com/photos/aaa\t{server.give("/aaa", scene(1))}\t4000\t3000\t"An ""old"" tree"\tann\tAnn\tLee\tgreen tree',
        f"bbb\thttps://unsplash.com/photos/bbb\t{server.give('/bbb', scene(2))}\t800\t600\t\tbob\t\t\tlake at night",
        f"ccc\thttps://unsplash.com/photos/ccc\t{server.give('/ccc', scene(3))}\t800\t600\t\tcyd\t\t\t",
    ]
    folder.mkdir(exist_ok=True)
    (folder / "photos.tsv000").write_text(PHOTOS + "\n".join(lines) + "\n")
    head = "photo_id\tkeyword\tai_service_1_confidence\tai_service_2_confidence\tsuggested_by_user\n"
    words = "bbb\tgreen forest\t98.5\t\tf\nccc\tgreen\t3.5\t\tf\nccc\ttree\t\t\tt\n"
    (folder / "keywords.tsv000").write_text(head + words)


def test_unsplash_lite(server: Server, tmp_path: Path) -> None:
    lite(tmp_path / "lite", server)
    source = UnsplashLite(tmp_path / "lite")

    def ids(query: str) -> list[str]:
        return [f.id for f in source.search(query, 10)]

    assert ids("") == ["aaa", "bbb", "ccc"]
    assert ids("green") == ["aaa", "bbb"]  # of ccc a machine is not sure
    assert ids("Tree") == ["aaa", "ccc"]
    assert ids("green lake") == ["bbb"]  # one word a keyword, the other in the description
    outcomes = filled(tmp_path / "out", [source], query="", captions="source", limit=None)
    assert whats(outcomes) == ["kept", "kept", "left"] and outcomes[2].why.startswith("no caption")
    assert [path for path, _ in server.asked] == ["/aaa?w=1024", "/bbb?w=1024"]  # what cannot be kept is not fetched
    wish = Wish(captions="query")
    for begun in (collect(wish, [source], tmp_path / "b", near_client()), preview(wish, [source], tmp_path / "b")):
        with pytest.raises(ConfigError, match=r"^no QUERY: give one, or leave out --captions query$"):
            next(begun)
    assert len(server.asked) == 2 and not (tmp_path / "b").exists()
    first = next(iter(source.search("tree", 1)))
    assert (first.caption, first.author, first.width, first.height) == ('An "old" tree', "Ann Lee", 1024, 768)
    assert not list(UnsplashLite(tmp_path / "lite", "cc0").search("", 10))
    (tmp_path / "lite" / "photos.tsv000").write_text("a\tb\n1\t2\n")
    with pytest.raises(DataError, match="no column photo_id or photo_image_url"):
        list(source.search("", 1))


@pytest.mark.parametrize(
    ("url", "name", "code"),
    [
        ("https://creativecommons.org/licenses/by-nc-sa/2.0/", "", "by-nc-sa"),
        ("http://creativecommons.org/publicdomain/mark/1.0/", "", "pdm"),
        ("https://creativecommons.org/publicdomain/zero/1.0/deed.en", "", "cc0"),
        ("", "CC BY 3.0", "by"),
        ("", "CC0", "cc0"),
        ("", "Public domain", "pdm"),
        ("http://www.gnu.org/copyleft/fdl.html", "GFDL", "other"),
        ("javascript:alert(1)", "", "other"),
        ("https://evil.example/creativecommons.org/licenses/by/4.0/", "", "other"),
    ],
)
def test_licences(url: str, name: str, code: str) -> None:
    found = licence(url, name)
    assert found.code == code and found.name and not found.url.startswith("javascript")


def test_sets_of_licences() -> None:
    assert [c for c in ("cc0", "by", "by-sa", "by-nd", "by-nc", "other") if allowed("commercial", c)] == [
        "cc0",
        "by",
        "by-sa",
        "by-nd",
    ]
    assert [c for c in ("cc0", "by", "by-sa", "by-nd", "by-nc", "other") if allowed("free", c)] == [
        "cc0",
        "by",
        "by-sa",
    ]
    assert allowed("any", "other")
    with pytest.raises(ConfigError, match="--licence bye: no such set; one of any, cc0, by"):
        allowed("bye", "by")


# ---- keys and texts


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLICKR_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"^FLICKR_API_KEY is not set: get a key at https://www\.flickr\.com/.*, then put FLICKR_API_KEY=\.\.\. into \.env",
    ):
        Flickr(near_client())
    (tmp_path / ".env").write_text(
        "# keys\nA=1 # note\nexport FLICKR_API_KEY = 'from file' \nB=\"x#y\"\nnothing\n=3\nC='open\n"
    )
    assert read_env(tmp_path / ".env") == {"A": "1", "FLICKR_API_KEY": "from file", "B": "x#y", "C": "'open"}
    with pytest.raises(ConfigError, match="holds characters that no key has") as error:
        key("FLICKR_API_KEY", "there")
    assert "from file" not in str(error.value)
    monkeypatch.setenv("FLICKR_API_KEY", "from-environment")
    assert key("FLICKR_API_KEY", "there") == "from-environment"
    (tmp_path / ".env").write_bytes(b"A=\xff")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        read_env(tmp_path / ".env")


def test_texts_of_strangers() -> None:
    assert plain("a <b>c</b>&amp;d\x1b[31m\n\te\ud800 3 < 4") == "a c&d [31m e 3 < 4"
    assert plain("<style>p{}</style>one<br>two") == "one two"
    assert len(plain("word " * 1000)) <= 500
    assert slug("Ein Äpfelchen / ../../etc ") == "ein-apfelchen-etc" and slug("苹果") == "picture"
    owed = Credit(
        "a.png",
        "x | y",
        "[me](javascript:1) <b>",
        "CC BY 4.0",
        "https://a.example/by",
        "https://a.example/(1)|",
        "commons",
    )
    text = credits_text([owed, owed])
    assert "| [CC BY 4.0](https://a.example/by) | 2 |" in text
    assert r"| a.png | x \| y | \[me\](javascript:1) \<b\> |" in text
    assert "https://a.example/%281%29%7C" in text


# ---- filling a folder


def test_a_folder_that_training_reads(openverse: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcomes = filled(out, [Openverse(near_client())], query="red apple", limit=3)
    assert whats(outcomes) == ["kept"] * 3 and [o.done for o in outcomes] == [1, 2, 3]
    found = read(out, "text")
    assert not found.faults and len(found.entries) == 3
    assert found.entries[0].captions == ("red apple",)
    row = rows(out)[0]
    assert row["file_name"].endswith("-red-apple-0.png") and (out / row["file_name"]).read_bytes() == scene(0)
    assert row["licence_url"] == "https://creativecommons.org/licenses/by-sa/2.0/" and len(row["sha256"]) == 64
    assert {"text", "source", "page", "author", "licence", "query"} <= row.keys()
    assert (
        "| [CC BY-SA 2.0](https://creativecommons.org/licenses/by-sa/2.0/) | 3 |" in (out / "LICENSES.md").read_text()
    )
    assert [c.author for c in credits_of(out)] == ["Jane Doe"] * 3
    assert credits_of(tmp_path) == []


def test_the_same_command_goes_on(server: Server, tmp_path: Path) -> None:
    found = listed(server, 6)
    stopped = collect(Wish("a thing", 5), [Listed(found)], tmp_path, near_client())
    assert [next(stopped).what, next(stopped).what] == ["kept", "kept"]
    stopped.close()  # as Ctrl-C does
    assert len(rows(tmp_path)) == 2
    server.asked.clear()
    assert whats(filled(tmp_path, [Listed(found)], limit=5)) == ["there", "there", "kept", "kept", "kept"]
    assert len(server.asked) == 3
    assert filled(tmp_path, [Listed(found)], limit=5) == []  # it has all
    assert whats(filled(tmp_path, [Listed(found)], limit=6))[-1] == "kept"


def test_captions_edited_and_pictures_removed_by_hand(server: Server, tmp_path: Path) -> None:
    found = listed(server, 3)
    filled(tmp_path, [Listed(found[:2])])
    one, two = rows(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**one, "text": "my own words"}))
    (tmp_path / two["file_name"]).unlink()
    outcomes = filled(tmp_path, [Listed(found)])
    assert whats(outcomes) == ["there", "left", "kept"] and outcomes[1].why == "removed by hand, in an earlier run"
    assert [r["text"] for r in rows(tmp_path)] == ["my own words", "a thing"]
    assert whats(filled(tmp_path, [Listed(found)], retry=True)) == ["there", "kept", "there"]


def test_killed_in_the_middle(server: Server, tmp_path: Path) -> None:
    """SIGKILL while a picture comes in; what is there afterwards is whole, and nothing is fetched twice."""
    out, count = tmp_path / "out", 30
    urls = [server.give(f"/{i}.png", scene(i)) for i in range(count)]

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + scene(9)[:100])
        handler.wfile.flush()
        time.sleep(20)

    server.give("/9.png", slow)
    (tmp_path / "urls.txt").write_text("".join(f"{url}\tthing\n" for url in urls))
    code = (
        "import sys; from pathlib import Path; from sdtune.data.collect.fetch import Client\n"
        "from sdtune.data.collect import gather, sources\n"
        "near = Client(permitted=lambda a: a.is_loopback, file_interval=0)\n"
        "one = sources.UrlList(Path(sys.argv[1]), '')\n"
        "for _ in gather.collect(gather.Wish(limit=None), [one], Path(sys.argv[2]), near): pass\n"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "urls.txt"), str(out)])
    while "/9.png" not in server.paths():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    there = [p for p in out.iterdir() if p.suffix == ".png"]
    assert len(there) == 9 and not (out / "metadata.jsonl").exists()
    for path in there:
        Image.open(path).load()
    with (out / JOURNAL).open("ab") as journal:
        journal.write(b'\n{"row": {"file_na')  # a line that was cut off
    server.give("/9.png", scene(9))
    server.asked.clear()
    outcomes = filled(out, [UrlList(tmp_path / "urls.txt", "")], query="", limit=None)
    assert whats(outcomes) == ["there"] * 9 + ["kept"] * 21
    assert len(server.asked) == 21
    assert len(rows(out)) == count and not read(out, "text").faults
    assert not list(out.glob(".*.tmp"))


def test_what_is_no_picture(server: Server, tmp_path: Path) -> None:
    jpeg = scene(5, "JPEG", size=(400, 300), quality=95)
    answers: dict[str, tuple[Answer, str]] = {
        "page.jpg": (b"<!DOCTYPE html><p>no", "a web page, not a picture"),
        "bomb.png": (bomb(30_000), "pixels"),
        "big.png": (bomb(10_000), "10000x10000 is more than"),
        "half.jpg": ((200, {}, jpeg[: len(jpeg) // 2]), "damaged or cut off"),
        "cut.jpg": ((200, {"Content-Length": str(len(jpeg))}, jpeg[:500]), "ends in the middle"),
        "text.png": (b"hello", "text, not a picture"),
        "empty.png": (b"", "the file is empty"),
        "none.png": ((404, {}, b""), "404 Not Found"),
        "large.png": (bytes(300_000), "more than 0.25 MB"),
    }
    found = [Found("listed", name, server.give(f"/{name}", answer)) for name, (answer, _) in answers.items()]
    wished = {"max_bytes": 2**18, "client": near_client(tries=2)}
    outcomes = filled(tmp_path, [Listed(found)], **wished)  # type: ignore[arg-type]
    for outcome, (name, (_, why)) in zip(outcomes, answers.items(), strict=True):
        assert outcome.what == "failed" and why in outcome.why, (name, outcome.why)
    assert sorted(p.name for p in tmp_path.iterdir()) == [JOURNAL]
    assert whats(filled(tmp_path, [Listed(found)])) == ["left"] * len(found)
    server.give("/none.png", scene(1))
    retried = filled(tmp_path, [Listed(found)], retry=True, **wished)  # type: ignore[arg-type]
    assert [o.found.id for o in retried if o.what == "kept" and o.found] == ["none.png"]


def test_names_follow_what_a_file_is(server: Server, tmp_path: Path) -> None:
    kinds = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp"}
    for i, (kind, suffix) in enumerate(kinds.items()):
        assert look(scene(i, kind))[0] == suffix
    wrong = Found("listed", "x", server.give("/x.php?i=3", scene(1, "JPEG")), "../../Etc/passwd.html")
    (outcome,) = filled(tmp_path / "out", [Listed([wrong])])
    assert outcome.file.endswith("-etc-passwd-html.jpg") and (tmp_path / "out" / outcome.file).is_file()


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ("auto", ["a big dog", "dog", "mine"]),
        ("query", ["dog", "dog", "mine"]),
        ("source", ["a big dog", "DSC_1", "mine"]),
    ],
)
def test_the_caption_is_a_description_else_the_query(
    server: Server, tmp_path: Path, captions: str, expected: list[str]
) -> None:
    found = [
        Found("listed", str(i), server.give(f"/{i}.png", scene(i)), **said)  # type: ignore[arg-type]
        for i, said in enumerate(
            [
                {"title": "DSC_0", "caption": "a big dog", "description": "a big dog"},
                {"title": "DSC_1", "caption": "DSC_1"},
                {"caption": "mine", "own": True},
            ]
        )
    ]
    filled(tmp_path / "out", [Listed(found)], query="dog", captions=captions)
    assert [row["text"] for row in rows(tmp_path / "out")] == expected


def test_copies_and_look_alikes(server: Server, tmp_path: Path) -> None:
    found = listed(server, 1)
    picture = Image.open(io.BytesIO(scene(0)))
    file = io.BytesIO()
    picture.resize((48, 32)).save(file, "JPEG", quality=80)
    others = {"copy.png": scene(0), "smaller.jpg": file.getvalue(), "other.png": scene(1)}
    found += [Found("listed", name, server.give(f"/{name}", data)) for name, data in others.items()]
    found.append(Found("elsewhere", "same address", found[0].url))
    outcomes = filled(tmp_path / "a", [Listed(found)])
    assert whats(outcomes) == ["kept", "left", "left", "kept", "there"]
    assert outcomes[1].why.startswith("the same file as ") and outcomes[2].why.startswith("looks like ")
    assert whats(filled(tmp_path / "b", [Listed(found)], distance=-1)) == ["kept", "left", "kept", "kept", "there"]
    (tmp_path / "a" / JOURNAL).unlink()  # what a picture looks like is seen again
    assert whats(filled(tmp_path / "a", [Listed([*found[2:3]])])) == ["left"]


def test_what_pictures_look_like_is_seen_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one's own pictures, and not before it is needed."""
    (tmp_path / "mine.png").write_bytes(scene(0, size=(192, 128)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "mine.png", "text": "mine"}\n')
    seen, check, mine = list[int](), images.check, (tmp_path / "mine.png").read_bytes()

    def seeing(data: bytes, **options: Any) -> images.Checked:
        seen.extend([1] * (data == mine))
        return check(data, **options)

    monkeypatch.setattr(images, "check", seeing)
    found = listed(server, 2)
    assert whats(list(preview(Wish("a"), [Listed(found)], tmp_path))) == ["kept", "kept"]
    assert not (tmp_path / JOURNAL).exists()
    assert whats(filled(tmp_path, [Listed(found[1:])], distance=-1)) == ["kept"] and not seen
    for _ in range(2):
        outcomes = filled(tmp_path, [Listed(found)], retry=True)
        assert whats(outcomes) == ["left", "there"] and outcomes[0].why == "looks like mine.png"
    assert seen == [1]


def test_rows_come_soon_and_credits_at_the_end(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "WRITE_EVERY", -1.0)
    begun = collect(Wish("a thing"), [Listed(listed(server, 2))], tmp_path, near_client())
    next(begun)
    assert len(rows(tmp_path)) == 1 and not (tmp_path / "LICENSES.md").exists()
    begun.close()
    assert "1 picture." in (tmp_path / "LICENSES.md").read_text()


def test_small_ones_are_left(server: Server, tmp_path: Path) -> None:
    told = Found("listed", "told", server.give("/told.png", scene(0)), width=96, height=64)
    unknown = Found("listed", "unknown", server.give("/unknown.png", scene(1)))
    outcomes = filled(tmp_path, [Listed([told, unknown])], min_side=65)
    assert [o.why for o in outcomes] == ["96x64 is smaller than --min-side 65"] * 2
    assert server.paths() == ["/unknown.png"]
    assert whats(filled(tmp_path, [Listed([told])], min_side=64)) == ["kept"]


def test_sources_take_turns_and_one_may_break_off(server: Server, tmp_path: Path) -> None:
    first, second = listed(server, 2), [Found("b", str(i), server.give(f"/b{i}.png", scene(50 + i))) for i in range(3)]
    outcomes = filled(tmp_path, [Listed(first, breaks=True), Listed(second, "b")])
    assert [(o.source, o.what) for o in outcomes] == [
        ("listed", "kept"), ("b", "kept"), ("listed", "kept"), ("b", "kept"), ("listed", "ended"), ("b", "kept"),
    ]  # fmt: skip


def test_stopped_while_it_waits(server: Server, tmp_path: Path) -> None:
    found = listed(server, 2)
    server.give("/1.png", (503, {"Retry-After": "60"}, b""))
    began = time.monotonic()
    client = near_client(stop=lambda: time.monotonic() - began > 0.6)
    assert whats(filled(tmp_path, [Listed(found)], client)) == ["kept"]
    assert len(rows(tmp_path)) == 1
    assert whats(filled(tmp_path, [Listed(found[:1])], limit=None)) == ["there"]


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(scene(1))
    with pytest.raises(
        ConfigError, match=r"holds pictures without a metadata\.jsonl \(a\.png\); choose another folder"
    ):
        Folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ConfigError, match=r"has a metadata\.csv"):
        Folder(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        Folder(tmp_path / "a.png")
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata.parquet")
    with pytest.raises(ConfigError, match=r"has a metadata\.parquet; choose another folder"):
        Folder(tmp_path)
    (tmp_path / "metadata.parquet").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "mine"}\n{"file_name"')
    with pytest.raises(DataError, match=r"metadata\.jsonl:2: not valid JSON"):
        Folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"text": "mine"}\n')
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: no file_name; mend or remove the line"):
        Folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "mine"}')
    assert len(Folder(tmp_path).rows) == 1  # one's own pictures are added to
    assert credits_of(tmp_path) == []


# ---- the command


def run(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "collect", *arguments])
    assert left.value.code == code


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command with a client that reaches this machine: no option and no variable does that."""
    monkeypatch.setattr(fetch, "Client", functools.partial(Client, **NEAR))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command(openverse: Server, near: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("red apple", "--out", "out", "--limit", "2", "--contact", "me@example.org", "--dry-run")
    shown = capsys.readouterr().out
    assert "openverse  CC BY-SA 2.0  96x64  by Jane Doe  Red apple 0  http" in shown and "2 pictures" in shown
    assert not (near / "out").exists() and openverse.paths() == ["/v1/images/"]
    openverse.give("/v1/images/", openverse_page([openverse_item(openverse, i) for i in range(4)], 1, 1))
    run("red apple", "--out", "out", "--limit", "3", "--captions", "source")
    shown = capsys.readouterr().out
    assert "new       3 pictures" in shown and "data.path=out" in shown
    assert [r["text"] for r in rows(near / "out")] == ["Red apple 0", "Red apple 1", "Red apple 2"]
    run("red apple", "--out", "out", "--limit", "4", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("what") for line in lines] == ["there", "there", "there", "kept", None]
    assert {line.get("event") for line in lines[:4]} == {"Outcome"} and all(line["time"] > 1e9 for line in lines[:4])
    assert lines[-1] == {"folder": "out", "new": 1, "there": 3, "left": 0, "failed": 0, "dry_run": False}


def test_command_says_what_broke_off(
    server: Server, near: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Openverse, "address", server.give("/v1/images/", (403, {}, b"")))
    run("apple", code=3)
    assert (
        "error: openverse: 127.0.0.1/v1/images/: answers 403 Forbidden; what is there is kept"
        in capsys.readouterr().err
    )


@pytest.mark.usefixtures("unsplash")
def test_what_unsplash_wants_to_be_known_is_said_each_time(near: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--dry-run"], ["--limit", "1"]):
        run("cup", "-s", "unsplash", "--out", "out", *arguments)
        said = capsys.readouterr().err
        assert said.startswith("warning: Unsplash's API guidelines exclude training models and automated downloads")
    assert [row["text"] for row in rows(near / "out")] == ["man with a cup"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["apple", "-s", "bing"], 2, "--source bing: neither openverse, commons, unsplash, flickr, nor a file"),
        (["apple", "-s", "flickr"], 2, "FLICKR_API_KEY is not set: get a key at https://www.flickr.com/"),
        (["apple", "--licence", "mit"], 2, "--licence mit: no such set"),
        (["apple", "--captions", "mine"], 2, "--captions mine: auto, query or source"),
        ([], 2, "--source openverse: needs a QUERY"),
        (["-s", "lite", "--captions", "query"], 2, "error: no QUERY: give one, or leave out --captions query"),
        (
            ["-s", "lite", "--captions", "query", "--dry-run"],
            2,
            "error: no QUERY: give one, or leave out --captions query",
        ),
    ],
)
def test_command_refuses(
    near: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.delenv("FLICKR_API_KEY", raising=False)
    (near / "lite").mkdir()
    (near / "lite" / "photos.tsv000").write_text(PHOTOS)
    run(*arguments, code=code)
    assert said in capsys.readouterr().err
    assert not (near / "pictures").exists()


def test_the_real_command_reaches_nothing_near(server: Server, tmp_path: Path) -> None:
    """As users run it: no way to this machine, whatever a list or the environment says."""
    (tmp_path / "urls.txt").write_text(f"{server.give('/a.png', scene(1))}\ta\n")
    environment = {**os.environ, "http_proxy": server.url, "HTTP_PROXY": server.url}
    done = subprocess.run(
        [*COMMAND, "data", "collect", "-s", "urls.txt"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "leads to 127.0.0.1, which is no public address" in done.stdout, done.stderr
    assert not server.asked
    shown = subprocess.run(
        [*COMMAND, "data", "collect", "--help"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    purpose = shown[: shown.index("╭")]
    assert "Example  sdtune data collect" in purpose and "Writes   pictures/" in purpose
    assert not [line for line in purpose.splitlines() if len(line.rstrip()) > 80]


def test_ctrl_c(server: Server, tmp_path: Path) -> None:
    """The command itself, stopped while a server makes it wait."""
    code = (
        "import functools, sys; from sdtune import cli; from sdtune.data.collect import fetch\n"
        "fetch.Client = functools.partial(fetch.Client, permitted=lambda a: a.is_loopback, file_interval=0)\n"
        "cli.main(sys.argv[1:])\n"
    )
    urls = [server.give("/a.png", scene(1)), server.give("/b.png", (503, {"Retry-After": "60"}, b""))]
    (tmp_path / "urls.txt").write_text("".join(f"{url}\tthing\n" for url in urls))
    running = subprocess.Popen(
        [sys.executable, "-c", code, "data", "collect", "-s", "urls.txt"], cwd=tmp_path, text=True, **PIPES
    )  # fmt: skip
    while "/b.png" not in server.paths():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 130, err
    assert "go on with: sdtune data collect -s urls.txt" in err and "1 picture" in out
    assert len(rows(tmp_path / "pictures")) == 1


def test_only_one_place_decides_what_is_public() -> None:
    """The command makes its client without the switch of the tests."""
    text = (Path(cli.__file__).parent / "cli_data.py").read_text()
    assert "permitted" not in text
    assert Client()._permitted is public
    assert gather.MAX_PIXELS < 2 * 89_478_485 and sources.WIDTH == 1920
