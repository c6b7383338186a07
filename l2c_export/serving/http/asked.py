"""The body of `POST /v1/images/generations`, and the jobs that it stands for."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from ...errors import UsageError
from ...runtime import inputs
from ..job import Job
from .says import sizes_of, steps_of

if TYPE_CHECKING:
    from .shelf import ServedModel

LONGEST_PROMPT = 4000  # characters
MOST_IMAGES = 10  # of one request
MOST_PREVIEWS = 100
LARGEST_SEED = 2**53 - 1  # what JavaScript's numbers hold exactly
Text = Annotated[StrictStr, Field(max_length=LONGEST_PROMPT)]
Name = Annotated[StrictStr, Field(max_length=200)]


class ImagesRequest(BaseModel):
    """OpenAI's request for images.  Behind `stream` are extensions of this server, and what it takes and does not need."""

    model_config = ConfigDict(extra="forbid", title="ImagesRequest")

    prompt: Annotated[Text | StrictInt, Field(description="A text, or the name or number of a class, as the model takes it.")]
    model: Annotated[Name | None, Field(description="A name of GET /v1/models; the first of them by default.")] = None
    n: Annotated[StrictInt | None, Field(ge=1, le=MOST_IMAGES)] = None
    size: Annotated[Name | None, Field(description="WIDTHxHEIGHT, one that the model has, or auto.")] = None
    response_format: Literal["b64_json"] | None = None
    stream: StrictBool | None = None
    partial_images: Annotated[StrictInt | None, Field(ge=0, le=MOST_PREVIEWS, description="Pictures on the way.")] = None

    seed: Annotated[StrictInt | None, Field(ge=0, le=LARGEST_SEED, description="Of the first image; the next has one more.")]
    seed = None
    guidance_scale: Annotated[StrictFloat | StrictInt | None, Field(ge=-1000, le=1000, allow_inf_nan=False)] = None
    negative_prompt: Text | None = None
    num_inference_steps: Annotated[StrictInt | None, Field(ge=1, le=100_000)] = None

    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    output_format: Literal["png"] | None = None
    output_compression: Annotated[StrictInt | None, Field(ge=100, le=100)] = None
    user: Name | None = None


def jobs_of(request: ImagesRequest, model: ServedModel) -> list[Job]:
    """A job for every image.  Raises UsageError for what the model does not make, in the words of the request."""
    count, manifest = request.n or 1, model.pipe.manifest
    if count > model.engine.max_queue:
        raise UsageError(f"n={count}: at most {model.engine.max_queue} images may wait here: ask for fewer at once")
    if request.stream and count > 1:
        raise UsageError(f"n={count}: a stream shows one image: leave n out, or ask without stream")
    if request.partial_images and not request.stream:
        raise UsageError(f"partial_images={request.partial_images}: only a stream has them: use stream=true")
    steps, able = request.num_inference_steps, steps_of(manifest)
    if steps is not None and steps not in able:
        raise UsageError(f"num_inference_steps={steps}: {model.name} was compiled for {_or(able)}: use that")
    height, width = _size(request.size, model)
    told = _told(request, model)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    return [
        Job(told, seed + n, request.guidance_scale, steps, height, width, request.partial_images or 0) for n in range(count)
    ]


def _size(asked: str | None, model: ServedModel) -> tuple[int | None, int | None]:
    """Height and width."""
    if asked in (None, "auto"):
        return None, None
    sizes = sizes_of(model.pipe.manifest)
    if asked not in sizes:
        raise UsageError(f"size={asked!r}: {model.name} makes pictures of {_or(sizes)}: use that, or auto")
    return sizes[asked]


def _told(request: ImagesRequest, model: ServedModel) -> dict[str, Any]:
    """What the model is told of an image."""
    said, negative = model.said, request.negative_prompt
    if negative and not said.negative:
        raise UsageError(f"negative_prompt=..: {model.name} does not take one: leave it out")
    if said.label:
        return {said.label.name: inputs.choice(said.label, request.prompt)}
    if said.kind == "nothing":
        if request.prompt != "":
            raise UsageError(f'prompt=..: {model.name} cannot be told what to draw: use prompt=""')
        return {}
    return {"prompt": str(request.prompt)} | ({"negative_prompt": negative} if negative else {})


def _or(values: Any) -> str:
    return " or ".join(map(str, values))
