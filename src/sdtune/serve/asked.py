"""What a request holds: its type, its JSON checked against a model, and how OpenAPI says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from sdtune.serve.errors import ApiError
from sdtune.serve.wish import refusal

M = TypeVar("M", bound=BaseModel)


def needs_type(request: Request, kinds: Collection[str]) -> str:
    """A form of another site can send text/plain without asking; these it cannot."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        raise ApiError(415, "media_type", f"Content-Type: {' or '.join(kinds)}", field="Content-Type")
    return kind


async def read_json(request: Request, model: type[M]) -> M:
    """The body. Raises ApiError that names the field. Not kept in the request, which may wait long: it can hold large pictures."""
    needs_type(request, ("application/json",))
    try:
        return model.model_validate_json(b"".join([chunk async for chunk in request.stream()]))
    except ValidationError as error:
        raise refusal(error) from None


def requested(
    model: type[BaseModel], examples: Mapping[str, Mapping[str, Any]], kind: str = "application/json"
) -> dict[str, Any]:
    """For OpenAPI: the body of a route that reads it itself."""
    told = {name: {"value": value} for name, value in examples.items()}
    schema = flat(model.model_json_schema())
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema, "examples": told}}}}


def flat(schema: dict[str, Any]) -> dict[str, Any]:
    """Without references, which in OpenAPI mean another place."""
    parts = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            ref = str(value.get("$ref", "")).rpartition("/")[2]
            return put(parts[ref]) if ref in parts else {k: put(v) for k, v in value.items()}
        return [put(v) for v in value] if isinstance(value, list) else value

    made: dict[str, Any] = put(schema)
    return made
