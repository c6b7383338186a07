"""Connections: so many at once, and none that waits for ever for the rest of its request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # in which the head of a request has to arrive


def bounded_connections(most: int, head_seconds: float = HEAD_SECONDS) -> type[H11Protocol]:
    """Uvicorn's protocol with these bounds: it has none of its own for a client that sends nothing, or half a head."""

    class BoundedConnection(H11Protocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._patience:
                self._patience.cancel()

        def _wait(self) -> None:
            """From the first byte of a head to its last."""
            if self._patience is None and self._idle:
                self._patience = self.loop.call_later(head_seconds, self._give_up)

        @property
        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _give_up(self) -> None:
            self._patience = None
            if self._idle and self.timeout_keep_alive_task is None:
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            """OpenAI's body for what is no HTTP, too."""
            body = {"error": {"message": msg, "type": "invalid_request_error", "param": None, "code": "invalid_http"}}
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                          h11.Data(data=msgspec.json.encode(body)), h11.EndOfMessage()):  # fmt: skip
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return BoundedConnection
