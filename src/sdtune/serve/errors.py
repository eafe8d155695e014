"""What clients are told when something is wrong: one form, and no exception's text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An answer {error: {code, message, type, param, field?, request_id}}. The message is ours, and may be shown to strangers."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        told = {"code": self.code, "message": self.message, "type": self.type, "param": self.field or None}
        return {"error": {**told, **({"field": self.field} if self.field else {}), "request_id": request_id}}

    @property
    def type(self) -> str:
        """The kind, in the words of OpenAI's clients."""
        known = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return known.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


def not_found(what: str) -> ApiError:
    """The same whether it never was, is gone, or is no id at all."""
    return ApiError(404, "not_found", f"no such {what}")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "type", "param", "request_id"],
            "properties": {
                "code": {"type": "string", "description": "For programs; does not change."},
                "message": {"type": "string", "description": "For people."},
                "type": {"type": "string", "description": "The kind, in the words of OpenAI's clients."},
                "param": {"type": ["string", "null"], "description": "`field` again, for OpenAI's clients."},
                "field": {"type": "string", "description": "The field of the request that is meant, if it is one."},
                "request_id": {"type": "string", "description": "Stands in the server's log, too."},
            },
        }
    },
    "example": {
        "error": {
            "code": "invalid", "message": "steps: 1000000000 is more than 150", "type": "invalid_request_error", "param": "steps",
            "field": "steps", "request_id": "6f0c9a2b41d84c55",
        }
    },
}  # fmt: skip
