"""Who may ask, and how much: the security rules, each as a request. Nothing draws here."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from sdtune.errors import ConfigError
from sdtune.serve import run as running
from sdtune.serve.limits import Limits
from sdtune.serve.store import Store
from tests.serve.conftest import App, run

Make = Callable[..., App]
TOKEN = "0123456789abcdef0123"
PNG = {"content-type": "image/png"}


def refused(answer: httpx.Response, status: int, code: str, field: str = "") -> str:
    """An error in the one form; returns its message."""
    assert answer.status_code == status, answer.text
    (error,) = answer.json().values()
    assert error["code"] == code
    assert error.get("field", "") == field
    assert error["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return str(error["message"])


# ---- S4, F42: where a request comes from


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "127.0.0.1@evil", "[::2]"]
)
def test_a_rebound_host_is_refused(make_app: Make, host: str) -> None:
    refused(run(make_app().client.get("/api/models", headers={"host": host})), 403, "host")


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "LOCALHOST:7860", "[::1]:7860"])
def test_this_machine_is_known_by_its_names(make_app: Make, host: str) -> None:
    assert run(make_app().client.get("/api/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://127.0.0.1:7860.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_a_page_of_another_site_changes_nothing(make_app: Make, headers: dict[str, str], method: str) -> None:
    app = make_app()
    refused(run(app.client.request(method, "/api/jobs", json={"prompt": "a"}, headers=headers)), 403, "origin")
    assert app.server.queue.jobs() == []


def test_its_own_page_may(make_app: Make) -> None:
    assert run(make_app().post({"prompt": "a"}, origin="http://127.0.0.1:7860")).status_code == 202


@pytest.mark.parametrize("headers", [[(b"origin", b"https://evil.example")], [(b"host", b"evil.example")]])
def test_a_web_socket_of_another_site_is_closed(make_app: Make, headers: list[tuple[bytes, bytes]]) -> None:
    sent = list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    own = [] if headers[0][0] == b"host" else [(b"host", b"127.0.0.1:7860")]
    scope = {"type": "websocket", "path": "/ws", "headers": [*own, *headers], "client": ("127.0.0.1", 1)}
    run(make_app().app(scope, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_no_other_site_may_read_answers(make_app: Make) -> None:
    answer = run(make_app().client.get("/api/models", headers={"origin": "https://evil.example"}))
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "set-cookie" not in answer.headers


def test_every_answer_carries_the_headers(make_app: Make) -> None:
    app = make_app()
    for path in ("/api/models", "/nowhere", "/livez", "/openapi.json"):
        headers = run(app.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert len(headers["x-request-id"]) == 16


# ---- the token


@pytest.mark.parametrize("given", ["", "Bearer wrong", "Bearer", f"bearer {TOKEN}x", "Basic !!!", f"Digest {TOKEN}"])
def test_without_the_token_nothing_is_told(make_app: Make, given: str) -> None:
    app = make_app(token=TOKEN)
    for path in ("/api/models", "/api/jobs", "/metrics", "/openapi.json", "/nowhere"):
        answer = run(app.client.get(path, headers={"authorization": given}))
        refused(answer, 401, "token")
        assert TOKEN not in answer.text
    assert run(app.client.get("/livez")).status_code == 200


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()])
def test_with_the_token(make_app: Make, given: str) -> None:
    assert run(make_app(token=TOKEN).client.get("/api/models", headers={"authorization": given})).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my.host"])
def test_another_address_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        running.check_address(host, "")
    running.check_address(host, TOKEN)


def test_loopback_needs_none() -> None:
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        running.check_address(host, "")


def test_a_short_token_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    for text in ("", "short", "x" * 15, "\u00e4" * 20):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="at least 16"):
            running.token_of(file)
    file.write_text(TOKEN + "\n", encoding="utf-8")
    assert running.token_of(file) == TOKEN
    monkeypatch.setenv("SDTUNE_TOKEN", TOKEN[::-1])
    assert running.token_of(None) == TOKEN[::-1]


# ---- S5, F38: how much


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"width": 100_000}, "width"),
        ({"height": -8}, "height"),
        ({"width": 2048, "height": 2048}, "width"),
        ({"width": 33}, "width"),
        ({"steps": 10**9}, "steps"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"seeds": list(range(1000))}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [2**80]}, "seeds.0"),
        ({"seeds": [-1]}, "seeds.0"),
        ({"guidance": 1e9}, "guidance"),
        ({"strength": 5}, "strength"),
        ({"denoising_strength": 0}, "denoising_strength"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"negative": "x" * 4001}, "negative"),
        ({"scheduler": "best"}, "scheduler"),
        ({"stepz": 3}, "stepz"),
        ({"kind": "trian"}, "kind"),
        ({"kind": "img2img"}, "image"),
        ({"kind": "inpaint"}, "image"),
        ({"kind": "compare", "model": "model"}, "model"),
        ({"image": "0" * 32}, "kind"),
        ({"adapters": [{"id": "lora"}] * 5}, "adapters"),
        ({"adapters": [{"id": "lora", "strength": 9}]}, "adapters.0.strength"),
        ({"model": "full", "adapters": [{"id": "full"}]}, "adapters"),
    ],
)
def test_what_is_too_much_is_refused_by_its_name(make_app: Make, wish: dict[str, Any], field: str) -> None:
    app = make_app()
    status, code = (404, "not_found") if wish == {"model": "full", "adapters": [{"id": "full"}]} else (422, "invalid")
    message = refused(run(app.post({"prompt": "a", **wish})), status, code, field)
    assert len(message) < 300
    assert app.server.queue.jobs() == []


@pytest.mark.parametrize("body", ['{"prompt": "a", "guidance": NaN}', '{"prompt": "a", "guidance": Infinity}'])
def test_no_number_is_no_guidance(make_app: Make, body: str) -> None:
    refused(run(make_app().post(body)), 422, "invalid", "guidance")


@pytest.mark.parametrize("body", ["", "{", "\x00", '{"prompt": "a"', "[" * 100_000])
def test_what_is_no_json(make_app: Make, body: str) -> None:
    refused(run(make_app().post(body)), 400, "invalid_json")


@pytest.mark.parametrize("body", ["[]", "3", "null", '"a"', '{"prompt": "\\ud800"}'])
def test_what_is_no_wish(make_app: Make, body: str) -> None:
    assert run(make_app().post(body)).status_code in (400, 422)


def test_a_long_body_is_refused_before_it_is_read(make_app: Make) -> None:
    refused(run(make_app().post(b"x" * (2**20 + 1))), 413, "too_large")


def test_a_body_that_does_not_say_its_length_ends_too(make_app: Make) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 2**22:
            sent += 2**16
            yield b"x" * 2**16

    answer = run(make_app().client.post("/api/jobs", content=endless(), headers={"content-type": "application/json"}))
    refused(answer, 413, "too_large")
    assert sent < 2**21


def test_a_body_that_never_comes_is_not_waited_for(make_app: Make) -> None:
    app, sent = make_app(replace(Limits(), seconds=0.05)), list[Any]()

    async def never() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"9")]
    scope = {
        "type": "http", "method": "POST", "path": "/api/jobs", "raw_path": b"/api/jobs", "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860), "scheme": "http", "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    run(app.app(scope, never, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_another_site_cannot_send_jobs(make_app: Make, kind: str) -> None:
    refused(run(make_app().post({"prompt": "a"}, **{"content-type": kind})), 415, "media_type", "Content-Type")


# ---- the queue's limits


def test_a_full_queue_says_when_to_come_again(make_app: Make) -> None:
    app = make_app(replace(Limits(), queue=2))
    assert [run(app.post({"prompt": "a"})).status_code for _ in range(2)] == [202, 202]
    answer = run(app.post({"prompt": "a"}))
    refused(answer, 429, "queue_full")
    assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_one_client_does_not_take_all_of_it(make_app: Make) -> None:
    app = make_app(replace(Limits(), client=1))
    assert run(app.post({"prompt": "a"})).status_code == 202
    refused(run(app.post({"prompt": "a"})), 429, "client_full")


def test_a_full_disk_takes_no_job(make_app: Make) -> None:
    refused(run(make_app(replace(Limits(), room=2**62)).post({"prompt": "a"})), 507, "disk_full")


# ---- S2, F41: ids, never paths

STRANGE = [
    "../../x",
    "/etc/passwd",
    "http://127.0.0.1:9/x",
    "lora/../lora",
    "C:\\x",
    "..%2f..%2fx",
    "\u0000",
    "lora\n",
    "LORA",
    "*",
]


@pytest.mark.parametrize("name", STRANGE)
def test_only_ids_name_models_and_pictures(make_app: Make, name: str) -> None:
    app = make_app()
    refused(run(app.post({"prompt": "a", "model": name})), 404, "not_found", "model")
    refused(run(app.post({"prompt": "a", "adapters": [{"id": name}]})), 404, "not_found", "adapters")
    refused(run(app.post({"prompt": "a", "kind": "img2img", "image": name})), 404, "not_found", "image")
    for place in ("models", "jobs", "pictures"):
        answer = run(app.client.get(f"/api/{place}/{quote(name, safe='')}"))
        assert answer.status_code in (404, 405), name
    assert app.server.queue.jobs() == []


def test_an_adapter_in_the_prompt_is_text(make_app: Make) -> None:
    app = make_app()
    assert run(app.post({"prompt": "a <lora:../x:1> apple"})).status_code == 202
    (job,) = app.server.queue.jobs()
    assert job.wish["prompt"] == "a <lora:../x:1> apple" and job.wish["adapters"] == []


@pytest.mark.parametrize(
    "path", ["/api/jobs/{}", "/api/jobs/{}/events", "/api/pictures/{}", "/api/pictures/{}/file", "/api/models/{}"]
)
def test_foreign_ids_are_unknown(make_app: Make, path: str) -> None:
    refused(run(make_app().client.get(path.format("0" * 32))), 404, "not_found")


def test_models_are_told_without_their_places(make_app: Make, named: Path) -> None:
    answer = run(make_app().client.get("/api/models"))
    assert [m["id"] for m in answer.json()["models"]] == ["full", "lora", "model"]
    assert str(named.parent) not in answer.text and "place" not in answer.text


# ---- S6, F19, F44: uploads


def picture(size: tuple[int, int] = (32, 32), kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(file, kind, **options)
    return file.getvalue()


def test_an_upload_is_made_anew(make_app: Make) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "secret", 6
    exif.get_ifd(0x8825)[1] = "N"
    app = make_app()
    sent = picture((40, 20), "JPEG", exif=exif) + b"<script>tail</script>"
    answer = run(app.client.post("/api/uploads", content=sent, headers={"content-type": "image/jpeg"}))
    assert answer.status_code == 201 and answer.json()["width"] == 20  # upright
    served = run(app.client.get(f"/api/pictures/{answer.json()['id']}/file"))
    assert served.headers["content-type"] == "image/png"
    assert b"secret" not in served.content and b"script" not in served.content
    image = Image.open(io.BytesIO(served.content))
    assert image.size == (20, 40) and not image.getexif() and not image.info


@pytest.mark.parametrize(
    "sent",
    [b"", b"GIF89a", b"<svg/>", b"<html><script>", picture()[:60], picture((5000, 5000))],
    ids=["empty", "gif", "svg", "html", "cut", "huge"],
)
def test_what_is_no_usable_picture(make_app: Make, sent: bytes) -> None:
    app = make_app()
    message = refused(run(app.client.post("/api/uploads", content=sent, headers=PNG)), 422, "picture")
    assert str(app.server.store.folder) not in message
    assert list(app.server.store.uploads.iterdir()) == []


def test_an_upload_has_its_own_limit(make_app: Make) -> None:
    app = make_app(replace(Limits(), upload=1000))
    refused(run(app.client.post("/api/uploads", content=b"x" * 1001, headers=PNG)), 413, "too_large")
    refused(
        run(app.client.post("/api/uploads", content=picture(), headers={"content-type": "image/svg+xml"})),
        415,
        "media_type",
        "Content-Type",
    )


def upload(app: App, sent: bytes) -> str:
    answer = run(app.client.post("/api/uploads", content=sent, headers=PNG))
    return str(answer.json()["id"])


def test_old_uploads_go_but_not_those_in_use(make_app: Make) -> None:
    app = make_app(replace(Limits(), uploads=2))
    first = upload(app, picture())
    assert run(app.post({"prompt": "a", "kind": "img2img", "image": first})).status_code == 202
    rest = [upload(app, picture()) for _ in range(4)]
    left = {p.id for p in app.server.queue.uploads()}
    assert left == {first, *rest[-2:]} | (left & {rest[-3]}) and len(left) <= 4
    refused(run(app.client.delete(f"/api/pictures/{first}")), 409, "in_use")
    assert run(app.client.delete(f"/api/pictures/{rest[-1]}")).status_code == 204
    assert not app.server.store.path(rest[-1], "upload").exists()


def test_a_mask_is_as_large_as_its_picture(make_app: Make) -> None:
    app = make_app()
    names = {"image": upload(app, picture()), "mask": upload(app, picture((16, 16)))}
    refused(run(app.post({"prompt": "a", "kind": "inpaint", **names})), 422, "invalid", "mask")


# ---- S7: faults tell no more than their number


def test_a_fault_of_ours_tells_no_details(
    make_app: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()

    def broken(name: str) -> None:
        raise RuntimeError("/srv/secret")

    monkeypatch.setattr(app.server.queue, "get", broken)
    answer = run(app.client.get(f"/api/jobs/{'0' * 32}"))
    refused(answer, 500, "internal")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text  # and there it is


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("PUT", "/api/jobs", 405), ("GET", "/docs", 404), ("GET", "/", 404)],
)
def test_errors_have_one_form(make_app: Make, method: str, path: str, status: int) -> None:
    answer = run(make_app().client.request(method, path))
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "type", "param", "request_id"}


# ---- what clients rely on


def test_a_key_makes_one_job(make_app: Make) -> None:
    app = make_app()
    first, again = (run(app.post({"prompt": "a"}, **{"idempotency-key": "k"})) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == f"/api/jobs/{first.json()['id']}"
    refused(run(app.post({"prompt": "b"}, **{"idempotency-key": "k"})), 409, "key_reused")


def test_openapi_says_the_limits_and_shows_examples(make_app: Make) -> None:
    told = run(make_app(replace(Limits(), steps=77)).client.get("/openapi.json")).json()
    body = told["paths"]["/api/jobs"]["post"]["requestBody"]["content"]["application/json"]
    drawing, *others = body["schema"]["anyOf"]
    assert drawing["properties"]["steps"]["maximum"] == 77
    assert drawing["additionalProperties"] is False
    assert [kind["properties"]["kind"] for kind in others] == [{"const": "train"}, {"const": "evaluate"}]
    assert "#/$defs" not in json.dumps(told)
    assert len(body["examples"]) == 6
    known = {
        "/api/jobs",
        "/api/jobs/{job}",
        "/api/jobs/{job}/events",
        "/api/models",
        "/api/pictures",
        "/livez",
        "/readyz",
        "/metrics",
    }
    assert known <= set(told["paths"])


def test_the_examples_are_wishes(make_app: Make) -> None:
    from sdtune.serve.app import EXAMPLES
    from sdtune.serve.wish import limited

    drawings = [example for example in EXAMPLES.values() if "prompt" in example["value"]]
    assert len(drawings) == 4
    for example in drawings:
        limited(Limits()).model_validate_json(json.dumps(example["value"]))


def test_it_is_not_ready_before_the_worker_is(make_app: Make) -> None:
    app = make_app()
    answer = run(app.client.get("/readyz"))
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert run(app.client.get("/livez")).status_code == 200


def test_figures_are_prometheus(make_app: Make) -> None:
    app = make_app()
    run(app.post({"prompt": "a"}))
    lines = run(app.client.get("/metrics")).text.splitlines()
    assert "sdtune_queue_jobs 1" in lines and "sdtune_jobs_taken_total 1" in lines
    assert 'sdtune_answers_total{status="202"} 1' in lines
    assert all(line.startswith(("# HELP sdtune_", "# TYPE sdtune_", "sdtune_")) for line in lines)


def test_a_waiting_job_is_cancelled_at_once(make_app: Make) -> None:
    app = make_app(replace(Limits(), queue=1))
    name = run(app.post({"prompt": "a"})).json()["id"]
    assert run(app.client.delete(f"/api/jobs/{name}")).json()["state"] == "cancelled"
    assert run(app.post({"prompt": "a"})).status_code == 202  # its place is free


def test_a_folder_is_served_once(tmp_path: Path) -> None:
    from sdtune.errors import RunError
    from sdtune.serve.store import held

    with held(tmp_path), pytest.raises(RunError, match="another"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.pictures / ".x.png.abc.tmp").write_bytes(b"half")
    store.tidy()
    assert list(store.pictures.iterdir()) == []


def test_the_server_process_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, sdtune.serve.app, sdtune.serve.run, sdtune.serve.registry; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_taken_port_is_said(named: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    with socket.create_server(("127.0.0.1", 0)) as other:
        command = [
            sys.executable,
            "-m",
            "sdtune",
            "serve",
            str(named),
            "--port",
            str(other.getsockname()[1]),
            "--folder",
            str(tmp_path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "--port" in done.stderr and "Traceback" not in done.stderr
