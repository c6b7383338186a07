"""What stands before the application: every request is checked, bounded, counted and logged here, whatever it asks for."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from ...support.log import LOG
from . import logs
from .access import Access
from .answers import Refusal, error_response, refusal

if TYPE_CHECKING:
    from .metrics import Metrics

LARGEST_BODY = 64 * 1024  # bytes
BODY_SECONDS = 10.0  # in which a body has to arrive
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
BODILESS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
ALWAYS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """An ASGI application around another one.  `most` requests are answered at the same time."""

    def __init__(self, app: FastAPI, access: Access, metrics: Metrics, most: int) -> None:
        self._app, self._access, self._metrics, self._most = app, access, metrics, most
        self.active = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        began, headers = time.perf_counter(), _headers(scope)
        header = headers.get("x-request-id", "")
        identity = header if REQUEST_ID.fullmatch(header) else uuid.uuid4().hex
        notes: dict[str, Any] = {"request_id": identity}
        token = logs.NOTES.set(notes)
        answer = Answer(send, identity)
        self.active += 1
        try:
            await self._answered(scope, headers, receive, answer)
        finally:
            self.active -= 1
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", None) or "other"
            self._metrics.answered(route, scope["method"], answer.status, seconds, notes)
            logs.about_request({"method": scope["method"], "path": scope["path"][:200], "status": answer.status,
                                "seconds": round(seconds, 6), **notes})  # fmt: skip
            logs.NOTES.reset(token)

    async def _answered(self, scope: Any, headers: Mapping[str, str], receive: Any, answer: Answer) -> None:
        try:
            self._access.check(scope["path"], headers)
            if self.active > self._most:
                raise Refusal(503, "server_error", "too many requests at once: ask again later", "overloaded",
                              headers={"Retry-After": "1", "Connection": "close"})  # fmt: skip
            if scope["method"] not in BODILESS:
                receive = await bounded(headers, receive)
            await self._app(scope, receive, answer)
        except Exception as error:
            refused = refusal(error)
            if refused.status >= 500 and not isinstance(error, Refusal):
                LOG.exception("a request failed")
            if not answer.status:  # or it is half sent, and can only be broken off
                await error_response(refused)(scope, receive, answer)


class Answer:
    """Where an application sends to: with the headers that every answer has.  `status` is 0 until it has begun."""

    def __init__(self, send: Any, identity: str) -> None:
        self._send, self._identity, self.status = send, identity.encode(), 0

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.get("headers", [])
            names = {name for name, _ in headers}
            more = [(b"x-request-id", self._identity), *(header for header in ALWAYS if header[0] not in names)]
            message = {**message, "headers": [*headers, *more]}
        await self._send(message)


def _headers(scope: Any) -> dict[str, str]:
    """By their names, in small letters; of several alike, which those that matter here never are, the first."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return headers


async def bounded(headers: Mapping[str, str], receive: Any) -> Any:
    """Read a body of JSON, and hand it on as one message.  Raises Refusal for one that is something else, or too large."""
    empty = headers.get("content-length", "") == "0" or not ("content-length" in headers or "transfer-encoding" in headers)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not empty:
        raise Refusal(415, "invalid_request_error", "Content-Type: must be application/json", "unsupported_media_type")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > LARGEST_BODY:
        raise _too_large()
    try:
        body = await asyncio.wait_for(_body(receive), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(408, "invalid_request_error", f"the body did not arrive within {BODY_SECONDS:g} s", "timeout",
                      headers={"Connection": "close"}) from None  # fmt: skip
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Any:
        return next(messages, None) or await receive()

    return replay


async def _body(receive: Any) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        more = message.get("more_body", False)
        if size > LARGEST_BODY:
            raise _too_large()
    return b"".join(parts)


def _too_large() -> Refusal:
    """What comes of it is thrown away: a connection that is closed on a client who still sends loses the answer."""
    message = f"the body is larger than {LARGEST_BODY} bytes: ask with a shorter prompt"
    return Refusal(413, "invalid_request_error", message, "too_large")
