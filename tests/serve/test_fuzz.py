"""Requests that a machine makes up from our own OpenAPI, good and bad: none breaks the server, all errors have one form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase

from tests.serve.conftest import App, run

MINE = hypothesis.settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
WORK = ("/api/work", "/api/runs", "/api/schema", "/api/presets", "/api/check", "/api/datasets")
WAITING = ("/generate/", "/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img")
"""Routes that answer when it is drawn."""
STATUSES = {200, 201, 202, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 503}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("work", "examples"), [(False, 15), (True, 6)], ids=["drawings", "trainings"])
def test_nothing_that_openapi_allows_or_forbids_breaks_it(
    make_app: Callable[..., App], work: bool, examples: int
) -> None:
    app = make_app()
    schema = schemathesis.openapi.from_dict(run(app.client.get("/openapi.json")).json())
    tried = 0
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # ours has no broken ones
        if operation.path.endswith("/events") or operation.path == "/api/estimate":
            continue  # of a known job it does not end; each reads a model
        if operation.path.startswith(WORK) != work:
            continue
        for mode in schemathesis.GenerationMode:

            @hypothesis.settings(MINE, max_examples=examples)
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal tried
                tried += 1
                _check(app, case)

            with suppress(hypothesis.errors.Unsatisfiable):  # a route without fields has no wrong ones
                ask()
    assert tried > 100


def _check(app: App, case: Any) -> None:
    sent = case.as_transport_kwargs(base_url="http://127.0.0.1:7860")
    sent = {k: v for k, v in sent.items() if k in ("method", "url", "params", "json", "data", "headers", "files")}
    headers = {k: v for k, v in (sent.pop("headers", None) or {}).items() if _plain(k) and _plain(str(v))}
    if "files" in sent:  # a form's numbers are text
        sent["files"] = [(k, (name, v if isinstance(v, bytes) else str(v))) for k, (name, v, *_) in sent["files"] or ()]
    data = sent.pop("data", None)
    content: dict[str, Any] = (
        {"content": data if isinstance(data, bytes) else str(data).encode("utf-8", "replace")}
        if data is not None
        else {}
    )
    try:
        request = app.client.build_request(**sent, **content, headers=headers)
    except (UnicodeError, ValueError, TypeError):
        return  # no client can send that
    answer = run(_answer(app, request, waits=case.path in WAITING))
    assert answer.status_code in STATUSES, (case, answer.text)
    if answer.status_code >= 400 and case.path != "/readyz":
        assert set(answer.json()["error"]) - {"field"} == {"code", "message", "type", "param", "request_id"}


async def _answer(app: App, request: httpx.Request, *, waits: bool) -> httpx.Response:
    """Nothing draws here: what waits for pictures is told that somebody has cancelled them."""
    asked = asyncio.create_task(app.client.send(request))
    while waits and not asked.done():
        for job in app.server.queue.waiting():
            app.server.dispatcher.cancel(job)
        await asyncio.sleep(0.001)
    return await asked


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
