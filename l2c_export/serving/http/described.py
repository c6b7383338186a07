"""What is answered, for the server's own description of itself (GET /openapi.json)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel


class ImageObject(BaseModel):
    b64_json: str
    seed: int
    l2c: dict[str, Any]


class ImagesAnswer(BaseModel):
    created: int
    data: list[ImageObject]
    background: Literal["opaque"]
    output_format: Literal["png"]
    size: str
    usage: dict[str, Any]


class ModelObject(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    l2c: dict[str, Any]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelObject]


class ScheduleObject(BaseModel):
    steps: int
    sampler: str
    computed_share: float
    timesteps: list[float]
    ends_step: list[bool]
    sublayers: int
    names: list[str]
    cells: list[str]


def without_422(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The framework says of itself that it answers 422 where this server answers 400; and streams are of another type."""

    def description() -> dict[str, Any]:
        document = make()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for schema in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(schema, None)
        images = document["paths"]["/v1/images/generations"]["post"]["responses"]["200"]["content"]
        images["text/event-stream"] = {"schema": {"type": "string"}}
        return document

    return description
