"""What a client may ask to be drawn: checked wholly before it is queued."""

from __future__ import annotations

import json
import secrets
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from sdtune.samplers import SAMPLERS
from sdtune.serve.errors import ApiError
from sdtune.serve.limits import Limits

Kind = Literal["txt2img", "img2img", "inpaint", "compare"]


class On(BaseModel):
    """One more adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    id: str = Field(max_length=100, description="Of an adapter that GET /api/models lists.")
    strength: float = Field(1.0, ge=-4, le=4)


class Wish(BaseModel):
    """A drawing, in the words of `sdtune.config.SampleConfig`. Names models and pictures by their ids alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    kind: Kind = Field("txt2img", description="compare: original and tuned model from the same noise.")
    model: str | None = Field(None, max_length=100, description="An id of GET /api/models. Unset: the first of them.")
    prompt: str = Field(min_length=1)
    negative: str = ""
    prompt_weights: bool = Field(False, description="Read (word:1.3) as web UIs do.")
    seeds: tuple[int, ...] | None = Field(None, description="A picture for each. Unset: one by chance.")
    steps: int = 20
    guidance: float = 5.0
    scheduler: str = Field("dpm++2m", json_schema_extra={"enum": list(SAMPLERS)})
    width: int | None = Field(None, description="Unset: the model's own size.")
    height: int | None = Field(None, description="Unset: the model's own size.")
    strength: float = Field(1.0, description="Of what was trained: 0 is the original.")
    adapters: tuple[On, ...] = Field((), description="More adapters; their changes add up.")
    image: str | None = Field(None, max_length=100, description="The id of an upload or a picture to begin with.")
    mask: str | None = Field(None, max_length=100, description="The id of an upload: white is painted anew.")
    denoising_strength: float = Field(0.75, gt=0, le=1, description="With image: how far the result may go from it.")
    previews: bool = Field(True, description="Whether events show the picture on its way.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needs = {"img2img": ("image",), "inpaint": ("image", "mask")}.get(self.kind, ())
        if missing := [key for key in needs if getattr(self, key) is None]:
            raise ValueError(f"{missing[0]}: {self.kind} needs one")
        if self.kind == "txt2img" and (self.image or self.mask):
            raise ValueError("kind: txt2img begins with noise; with an image it is img2img or inpaint")
        if self.kind == "img2img" and self.mask:
            raise ValueError("mask: img2img has none; with a mask it is inpaint")
        if self.mask and not self.image:
            raise ValueError("image: a mask needs the picture that it lies on")
        if self.scheduler not in SAMPLERS:
            raise ValueError(f"scheduler: unknown; known: {', '.join(SAMPLERS)}")
        if any("\ud800" <= c <= "\udfff" or c == "\0" for c in self.prompt + self.negative):
            raise ValueError("prompt: holds half characters or NUL")
        return self

    def dumped(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


@cache
def limited(limits: Limits) -> type[Wish]:
    """The same with maxima, which its JSON schema then says, too."""
    side = Annotated[int | None, Field(ge=16, le=limits.side)]
    some: dict[str, Any] = {
        "prompt": (Annotated[str, Field(min_length=1, max_length=limits.text)], ...),
        "negative": (Annotated[str, Field(max_length=limits.text)], ""),
        "seeds": (
            Annotated[
                tuple[Annotated[int, Field(ge=0, le=limits.seed)], ...] | None,
                Field(min_length=1, max_length=limits.seeds),
            ],
            None,
        ),
        "steps": (Annotated[int, Field(ge=1, le=limits.steps)], 20),
        "guidance": (Annotated[float, Field(ge=0, le=limits.guidance)], 5.0),
        "width": (side, None),
        "height": (side, None),
        "strength": (Annotated[float, Field(ge=0, le=limits.strength)], 1.0),
        "adapters": (Annotated[tuple[On, ...], Field(max_length=limits.adapters)], ()),
    }
    helps = {name: Wish.model_fields[name].description for name in some}
    for name, (annotation, default) in some.items():
        some[name] = (Annotated[annotation, Field(description=helps[name])] if helps[name] else annotation, default)
    made: type[Wish] = create_model("Job", __base__=Wish, __doc__=Wish.__doc__, **some)
    return made


def read(body: bytes, kind: type[Wish], limits: Limits) -> Wish:
    """The wish in a request's body. Raises ApiError that names the field and the limit, and quotes no more than a number."""
    try:
        wish = kind.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error) from None
    check_pixels(wish, limits)
    return wish


def check_pixels(wish: Wish, limits: Limits) -> None:
    """What no single field says. Raises ApiError."""
    if (wish.width or 0) * (wish.height or 0) > limits.pixels:
        raise ApiError(422, "invalid", f"width, height: together more than {limits.pixels} pixels", field="width")


def with_seeds(wish: Wish) -> Wish:
    """The same with a seed by chance where none was asked for."""
    return wish if wish.seeds is not None else wish.model_copy(update={"seeds": (secrets.randbelow(2**32),)})


def refusal(error: ValidationError) -> ApiError:
    """The first fault for people; the field for programs."""
    fault = error.errors(include_url=False)[0]
    path = ".".join(map(str, fault["loc"]))[:100]
    if fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
        return ApiError(422, "invalid", message, field=message.partition(":")[0])
    if fault["type"] == "json_invalid":
        return ApiError(400, "invalid_json", "the body is not valid JSON")
    value = fault.get("input")
    shown = f"{json.dumps(value)[:40]}: " if isinstance(value, int | float) and abs(value) < 1e300 else ""
    message = f"{path}: {shown}{fault['msg'][0].lower()}{fault['msg'][1:]}" if path else fault["msg"]
    return ApiError(422, "invalid", message, field=path)
