"""What a page of the web app may do in the browser: run this server's scripts, ask this server, and nothing else."""

from __future__ import annotations

import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""NiceGUI makes functions out of the events that it sends to the page, hence 'unsafe-eval'; a script that a stranger's text brought
into a page has no nonce, and does not run."""


class Policy:
    """ASGI middleware of NiceGUI's app: each page gets a nonce of its own, in its header and in its script tags."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        page = b""

        async def sending(message: Message) -> None:
            nonlocal start, page
            if message["type"] == "http.response.start" and _is_page(message):
                start = message
            elif start is None:
                await send(message)
            else:
                page += message.get("body", b"")
                if not message.get("more_body"):
                    await _send_page(start, page, send)

        await self.app(scope, receive, sending)


def _is_page(message: Message) -> bool:
    return any(k.lower() == b"content-type" and v.startswith(b"text/html") for k, v in message["headers"])


async def _send_page(start: Message, page: bytes, send: Send) -> None:
    nonce = secrets.token_urlsafe(16)
    page = page.replace(b"<script", f'<script nonce="{nonce}"'.encode())  # texts of strangers stand escaped in it
    own = (b"content-length", b"content-security-policy", b"cache-control")
    headers = [
        *((k, v) for k, v in start["headers"] if k.lower() not in own),
        (b"content-length", str(len(page)).encode()),
        (b"content-security-policy", POLICY.format(nonce=nonce).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": page})
