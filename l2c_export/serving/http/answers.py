"""What clients are answered: OpenAI's bodies, for images, for their events, and for every error."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from fastapi import Response
from pydantic import BaseModel

from ...errors import Draining, Full, L2CError, RunError, UsageError
from ...runtime.images import as_bytes, picture

if TYPE_CHECKING:
    from ..job import Drawing, Job
    from ..previews import Preview

LONGEST_WAIT = 60  # seconds, that a client is told to wait at most


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's body of every error."""

    error: ErrorDetail


class Refusal(Exception):
    """An answer other than what was asked for."""

    def __init__(self, status: int, kind: str, message: str, code: str | None = None, param: str | None = None,
                 headers: dict[str, str] | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.code, self.param, self.headers = code, param, headers or {}


def refusal(error: Exception, expected_seconds: float = 0.0) -> Refusal:
    """What a client is told of an error: in one line, with nothing of the server's folders and code."""
    if isinstance(error, Refusal):
        return error
    wait = {"Retry-After": str(min(LONGEST_WAIT, max(1, math.ceil(expected_seconds))))}
    if isinstance(error, UsageError):
        return Refusal(400, "invalid_request_error", str(error), "invalid_value", _param(str(error)))
    if isinstance(error, Full):
        return Refusal(429, "rate_limit_error", str(error), "queue_full", headers=wait)
    if isinstance(error, Draining):
        message = "the server is being stopped: ask another one, or again later"
        return Refusal(503, "server_error", message, "draining", headers={**wait, "Connection": "close"})
    if isinstance(error, RunError) and "NaN" in str(error):
        return Refusal(500, "server_error", str(error), "generation_failed")
    if isinstance(error, L2CError):
        return Refusal(500, "server_error", "the generation failed: the server's log says why", "generation_failed")
    return Refusal(500, "server_error", "something went wrong in the server: its log says what", "internal_error")


def _param(message: str) -> str | None:
    """The name that a message begins with, where it does: "size='1x1': .."; a class label is told by the prompt."""
    name = message.partition("=")[0]
    return name if name.isidentifier() else "prompt" if message.startswith("class label ") else None


def error_response(refused: Refusal) -> Response:
    detail = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
    return json_response({"error": detail}, refused.status, refused.headers)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


# images


def encoded(pixels: np.ndarray) -> str:
    """Pixels (H, W, C) in 0..1 as a PNG in base64."""
    return base64.b64encode(picture(as_bytes(pixels)[None])).decode()


def images_body(jobs: Sequence[Job], images: Sequence[Drawing]) -> bytes:
    """OpenAI's ImagesResponse.  Every image says its seed, and what it took."""
    data = [
        {"b64_json": encoded(_pixels(image)), "seed": job.seed, "l2c": took(image)}
        for job, image in zip(jobs, images, strict=True)
    ]
    body = {"created": int(time.time()), "data": data, "background": "opaque", "output_format": "png",
            "size": size_of(_pixels(images[0])), "usage": usage()}  # fmt: skip
    return msgspec.json.encode(body)


def partial_event(index: int, preview: Preview) -> bytes:
    """OpenAI's event of a picture on the way."""
    assert preview.pixels is not None
    return event("image_generation.partial_image", preview.pixels,
                 {"partial_image_index": index, "l2c": {"step": preview.step, "steps": preview.steps}})  # fmt: skip


def completed_event(job: Job, image: Drawing) -> bytes:
    """OpenAI's event of the picture itself."""
    return event("image_generation.completed", _pixels(image), {"usage": usage(), "seed": job.seed, "l2c": took(image)})


def error_event(refused: Refusal) -> bytes:
    detail = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
    return sent("error", {"error": detail})


def event(kind: str, pixels: np.ndarray, more: dict[str, Any]) -> bytes:
    common = {"type": kind, "b64_json": encoded(pixels), "created_at": int(time.time()), "size": size_of(pixels),
              "quality": "auto", "background": "opaque", "output_format": "png"}  # fmt: skip
    return sent(kind, {**common, **more})


def sent(name: str, data: Any) -> bytes:
    """A server-sent event."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def _pixels(image: Drawing) -> np.ndarray:
    assert image.pixels is not None
    return image.pixels


def size_of(pixels: np.ndarray) -> str:
    height, width, _ = pixels.shape
    return f"{width}x{height}"


def took(image: Drawing) -> dict[str, Any]:
    """Seconds, and how many images were made together."""
    return {"queued_seconds": round(image.queued_seconds, 6), "run_seconds": round(image.run_seconds, 6), "batch": image.batch}


def usage() -> dict[str, Any]:
    """Tokens, which nobody counts here: clients of OpenAI's need the fields."""
    none = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "input_tokens_details": none, "output_tokens": 0, "total_tokens": 0}
