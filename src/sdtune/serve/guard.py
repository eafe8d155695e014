"""What every request passes through: who may ask, from where, how much; and what every answer carries."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdtune.serve.errors import ApiError
from sdtune.serve.limits import Limits

OPEN = ("/livez", "/readyz")
"""Answered without a token: they tell nothing but whether the server works."""
CHANGES = ("POST", "PUT", "PATCH", "DELETE")
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""An answer may set one of these itself."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
log = logging.getLogger("sdtune.serve")


@dataclass(frozen=True)
class Rules:
    hosts: Collection[str] = LOOPBACK
    """Names that a request's Host may have: another one is a stranger's name for this machine (DNS rebinding)."""
    token: str = ""
    limits: Limits = field(default_factory=Limits)


class Guard:
    """ASGI middleware, the outermost one."""

    def __init__(self, app: ASGIApp, rules: Rules, answers: Counter[int]) -> None:
        self.app, self.rules, self.answers = app, rules, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            scope["state"]["client"] = self._check(scope, headers)
        except ApiError as error:
            await self._refuse(scope, receive, send, error, request_id)
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        await self._answer(scope, receive, send, headers, request_id)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], request_id: str
    ) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.answers[message["status"]] += 1
                own = {k.lower() for k, _ in message["headers"]}
                more = {**HEADERS, "x-request-id": request_id}
                message["headers"] = [
                    *((k, v) for k, v in message["headers"] if k.lower() != b"server"),
                    *((k.encode(), v.encode()) for k, v in more.items() if k.encode() not in own),
                ]
            await send(message)

        body = _Body(receive, scope, self.rules.limits)
        try:
            body.check_length(headers.get("content-length"))
            await self.app(scope, body.receive, sending)
        except ApiError as error:
            if not begun:
                await self._refuse(scope, receive, send, error, request_id)
        except Exception:
            log.exception("request %s: %s %s", request_id, scope["method"], scope["path"])
            if not begun:
                fault = ApiError(500, "internal", "a fault of the server; its log says more under this request_id")
                await self._refuse(scope, receive, send, fault, request_id)

    def _check(self, scope: Scope, headers: dict[str, str]) -> str:
        """Who asks, as far as that is known. Raises ApiError."""
        hosts = [v for k, v in scope["headers"] if k.lower() == b"host"]
        host = headers.get("host", "")
        if len(hosts) != 1 or _name(host) not in self.rules.hosts:
            raise ApiError(
                403, "host", "the Host of the request is not one of this server's; see `sdtune serve --allow-host`"
            )
        if scope["type"] == "websocket" or scope["method"] in CHANGES:
            self._check_origin(host, headers, browser=scope["type"] == "websocket")
        if (
            self.rules.token
            and scope["path"] not in OPEN
            and not _knows(self.rules.token, headers.get("authorization", ""))
        ):
            person = "text/html" in headers.get(
                "accept", ""
            )  # whose browser then asks for it: any name, the token as password
            asks = 'Basic realm="sdtune: any name, the token as password"' if person else "Bearer"
            raise ApiError(401, "token", "needs the server's token", headers={"www-authenticate": asks})
        client = scope.get("client")
        return str(client[0]) if client else "local"

    def _check_origin(self, host: str, headers: dict[str, str], *, browser: bool) -> None:
        """A page of another site must not act in the name of whoever looks at it. Programs send no Origin."""
        origin = headers.get("origin")
        foreign = origin is not None and re.sub(r"^https?://", "", origin).lower() != host.lower()
        if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(403, "origin", "the request comes from a page of another site")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: ApiError, request_id: str) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        self.answers[error.status] += 1
        content = json.dumps(error.body(request_id)).encode()
        more = {**HEADERS, **error.headers, "content-type": "application/json", "content-length": str(len(content))}
        more |= {"x-request-id": request_id, "connection": "close"}  # what is left of a body is not read
        headers = [(k.encode(), v.encode()) for k, v in more.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


class _Body:
    """A request's body with an end: of bytes, and of patience."""

    def __init__(self, receive: Receive, scope: Scope, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._most = limits.body_of(scope["path"])
        self._read, self._whole = 0, False

    def check_length(self, told: str | None) -> None:
        if told is not None and (not told.isdecimal() or len(told) > 15 or int(told) > self._most):
            raise self._too_large()

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._limits.seconds)
        except TimeoutError:
            raise ApiError(408, "slow", f"the body did not come within {self._limits.seconds:g} s") from None
        self._read += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._read > self._most:
            raise self._too_large()
        return message

    def _too_large(self) -> ApiError:
        return ApiError(413, "too_large", f"the body has more than {self._most} bytes")


def _name(host: str) -> str:
    """The name in a Host header, without the port; "" if it is none."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?", host)
    return found[1].strip("[]").lower() if found else ""


def _knows(token: str, authorization: str) -> bool:
    """Bearer, or Basic with the token as password, as some clients of web UIs send it."""
    kind, _, given = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), token.encode())


def described(rules: Rules) -> dict[str, Any]:
    """For OpenAPI."""
    return {"token": {"type": "http", "scheme": "bearer"}} if rules.token else {}
