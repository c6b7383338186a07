"""The application: what is asked where, and who answers it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from ...errors import Draining, L2CError
from ...support.log import LOG
from ...version import __version__
from .answers import ErrorBody, Refusal, error_response, json_response, refusal
from .asked import ImagesRequest, jobs_of
from .described import ImagesAnswer, ModelList, ModelObject, ScheduleObject, without_422
from .generation import EventStream, whole
from .logs import note
from .metrics import CONTENT_TYPE, Metrics
from .says import about
from .schedule import schedule_of
from .threads import in_thread

if TYPE_CHECKING:
    from .settings import ServerSettings
    from .shelf import ServedModel, Shelf

PAGE = Path(__file__).with_name("page")
FILES = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css"),
         "/favicon.svg": ("favicon.svg", "image/svg+xml")}  # fmt: skip
EVERYWHERE: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody}, 401: {"model": ErrorBody}, 403: {"model": ErrorBody}, 503: {"model": ErrorBody},
}  # fmt: skip
OF_BODIES: dict[int | str, dict[str, Any]] = {
    **EVERYWHERE, **{status: {"model": ErrorBody} for status in (404, 408, 413, 415, 429, 500)},
}  # fmt: skip


class ServerLife:
    """Whether a server is being stopped."""

    draining = False


def application(shelf: Shelf, settings: ServerSettings, life: ServerLife, metrics: Metrics) -> FastAPI:
    """Everything but the guard."""
    app = FastAPI(title="l2c serve", version=__version__, docs_url=None, redoc_url=None, responses=EVERYWHERE,
                  description="Images of compiled diffusion transformers, by OpenAI's images API.")  # fmt: skip

    def model_of(name: str | None) -> ServedModel:
        """A model by its name; None is the first."""
        if life.draining:
            raise Draining
        name = shelf.places[0].name if name is None else name
        if name not in {place.name for place in shelf.places}:
            raise Refusal(404, "invalid_request_error", "there is no model of this name: see GET /v1/models", "model_not_found",
                          "model")  # fmt: skip
        if name not in shelf.models:
            raise Refusal(503, "server_error", f"{name} is being loaded: ask again soon", "loading",
                          headers={"Retry-After": "2"})  # fmt: skip
        note(model=name)
        return shelf.models[name]

    @app.post("/v1/images/generations", responses={200: {"model": ImagesAnswer}, **OF_BODIES}, operation_id="generate")
    async def generate(asked: ImagesRequest, request: Request) -> Response:
        """Draw images.  With `stream` they come as server-sent events, pictures on the way among them."""
        model = model_of(asked.model)
        jobs = jobs_of(asked, model)
        note(images=len(jobs))
        try:
            return EventStream(model, jobs[0]) if asked.stream else await whole(model, jobs, request)
        except L2CError as error:
            note(error=str(error))
            return error_response(refusal(error, model.engine.expected_seconds))

    @app.get("/v1/models", responses={200: {"model": ModelList}}, operation_id="models")
    async def models() -> Response:
        """The models that can be asked, and what each takes."""
        return json_response({"object": "list", "data": [described(model) for model in shelf.models.values()]})

    @app.get("/v1/models/{model}", responses={200: {"model": ModelObject}, 404: {"model": ErrorBody}}, operation_id="model")
    async def one_model(model: str) -> Response:
        return json_response(described(model_of(model)))

    @app.get("/v1/models/{model}/schedule", responses={200: {"model": ScheduleObject}, 404: {"model": ErrorBody}},
             operation_id="schedule")  # fmt: skip
    async def schedule(model: str, num_inference_steps: int | None = None) -> Response:
        """What every call computes, reuses and forecasts, by sublayer."""
        return json_response(await asyncio.to_thread(schedule_of, model_of(model).pipe.manifest, num_inference_steps))

    @app.get("/health/live", operation_id="live")
    async def live() -> Response:
        """Whether the process answers."""
        return json_response({"status": "live"})

    @app.get("/health/ready", operation_id="ready")
    async def ready() -> Response:
        """Whether it may be asked for images: 503 while it loads and once it is being stopped."""
        status = "draining" if life.draining else "ready" if shelf.ready else "loading"
        return json_response({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics", response_class=PlainTextResponse, operation_id="metrics")
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.post("/admin/reload", responses={409: {"model": ErrorBody}, **OF_BODIES}, operation_id="reload")
    async def reload() -> Response:
        """Load every model again from its folder, and exchange it between two batches.  It takes a key."""
        if not settings.keys:
            raise Refusal(403, "invalid_request_error", "reloading is off: start the server with --api-key-file", "off")
        if life.draining or not shelf.ready:
            raise Draining
        return json_response({"reloaded": await in_thread(lambda: reloaded(shelf, metrics))})

    for path, (name, kind) in FILES.items():
        _file(app, path, (PAGE / name).read_bytes(), kind)

    handlers: dict[int | type[Exception], Any] = {
        HTTPException: _http_error, RequestValidationError: _validation_error, Refusal: _other_error,
        L2CError: _other_error, Exception: _other_error,
    }  # fmt: skip
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)
    app.openapi = without_422(app.openapi)  # type: ignore[method-assign]
    return app


def described(model: ServedModel) -> dict[str, Any]:
    """OpenAI's model object, and under "l2c" what this one takes."""
    own = about(model.pipe.manifest, model.said, model.pipe.backend.partition(" ")[0])
    return {"id": model.name, "object": "model", "created": model.loaded, "owned_by": "l2c-export", "l2c": own}


def reloaded(shelf: Shelf, metrics: Metrics) -> list[str]:
    """Reload.  Raises Refusal, which does not say what was wrong where: the log does."""
    try:
        names = shelf.reload()
    except Exception as error:
        metrics.reloaded(False)
        LOG.error("reloading failed, what runs stays: %s", error)
        message = "a model could not be loaded again, and what ran before still runs: the server's log says why"
        raise Refusal(409, "invalid_request_error", message, "reload_failed") from None
    metrics.reloaded(True)
    return names


def _file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    async def answer() -> Response:
        return Response(content, media_type=kind)

    app.add_api_route(path, answer, methods=["GET"], include_in_schema=False)


async def _other_error(_: Request, error: Exception) -> Response:
    return error_response(refusal(error))


async def _http_error(_: Request, error: Exception) -> Response:
    """What the framework refuses itself: a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    words = {404: "there is nothing at this path", 405: "this path is asked otherwise", 400: "the body cannot be read as JSON"}
    words_of_it = words.get(status, "refused")
    return error_response(Refusal(status, "invalid_request_error", words_of_it, headers=dict(error.headers or {})))


async def _validation_error(_: Request, error: Exception) -> Response:
    """The first of what is wrong with a body."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = place[0][:100] if place and first["type"] != "json_invalid" else None
    wrong = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "extra_forbidden":
        wrong = "there is no such field: leave it out"
    if first["type"] == "json_invalid":
        wrong = "the body is no JSON"
    message = wrong if param is None else f"{param}: {wrong}"
    return error_response(Refusal(400, "invalid_request_error", message[:500], "invalid_value", param))
