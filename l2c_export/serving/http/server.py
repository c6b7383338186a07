"""A process that serves: it listens, loads, reloads and ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from ...errors import UsageError
from ...support.log import LOG
from .access import Access
from .answers import Refusal
from .app import ServerLife, application, reloaded
from .connection import bounded_connections
from .guard import Guard
from .logs import json_lines
from .metrics import Metrics
from .threads import in_thread

if TYPE_CHECKING:
    from .settings import ServerSettings
    from .shelf import Shelf

LAST_SECONDS = 5  # in which answers that are ready have to be sent
HEED_SECONDS = 0.1  # between two looks at who is told of signals, while models are loaded
LONGEST_HEAD = 16 * 1024  # bytes
BACKLOG = 128
WORKERS = 2  # threads that encode pictures; every further one keeps some megabytes for itself


def serve(shelf: Shelf, settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, and finish what was accepted.  SIGHUP reloads.

    Raises UsageError where it cannot listen, and what loading a model raises.
    """
    with json_lines(), listening(settings) as listener:
        server = server_of(shelf, settings)
        LOG.info("listening", extra={"facts": {"url": url_of(listener)}})
        server.run([listener])
    if server.failed:
        raise server.failed


def server_of(shelf: Shelf, settings: ServerSettings) -> LoadingServer:
    """Everything that a server is made of."""
    life, metrics = ServerLife(), Metrics(shelf)
    access = Access(settings.hosts, settings.keys)
    connections = shelf.connections
    guard = Guard(application(shelf, settings, life, metrics), access, metrics, connections)
    config = uvicorn.Config(
        guard, http=bounded_connections(connections), ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, backlog=BACKLOG, timeout_graceful_shutdown=LAST_SECONDS,
        h11_max_incomplete_event_size=LONGEST_HEAD,
    )  # fmt: skip
    return LoadingServer(config, shelf, settings, life, metrics, guard)


@contextlib.contextmanager
def listening(settings: ServerSettings) -> Any:
    """A socket that is bound.  Raises UsageError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except (OSError, OverflowError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"host={settings.host!r}, port={settings.port}: cannot listen there ({why}): use another one"
            ) from None
        yield listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class LoadingServer(uvicorn.Server):
    """Listens while it loads, and goes on answering while it drains: then `failed` is None."""

    def __init__(self, config: uvicorn.Config, shelf: Shelf, settings: ServerSettings, life: ServerLife, metrics: Metrics,
                 guard: Guard) -> None:  # fmt: skip
        super().__init__(config)
        self._shelf, self._settings, self._life, self._metrics, self._guard = shelf, settings, life, metrics, guard
        self._doing = set[asyncio.Task[None]]()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(WORKERS, "l2c-worker"))
        await super().startup(sockets)
        with contextlib.suppress(NotImplementedError, AttributeError, RuntimeError):  # Windows; a thread that is not the first
            self._loop.add_signal_handler(signal.SIGHUP, lambda: self._do(self._reload()))
        self._do(self._load())

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal drains; the second one ends it at once."""
        if self._life.draining or self._loop is None:
            self.should_exit = self.force_exit = True
        else:
            self._life.draining = True
            self._loop.call_soon_threadsafe(lambda: self._do(self._drain()))

    def _heed_signals(self) -> None:
        """Again, as libraries that are loaded (Ray is one) put handlers of their own in the place of ours."""
        if threading.current_thread() is threading.main_thread() and not self.should_exit:
            for number in HANDLED_SIGNALS:
                signal.signal(number, self.handle_exit)

    def _do(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _load(self) -> None:
        loading = asyncio.ensure_future(in_thread(self._shelf.load))
        while not loading.done():
            await asyncio.wait([loading], timeout=HEED_SECONDS)
            self._heed_signals()
        try:
            loading.result()
        except Exception as error:
            self.failed, self.should_exit = error, True
            return
        LOG.info("ready", extra={"facts": {"models": list(self._shelf.models)}})

    async def _reload(self) -> None:
        if self._shelf.ready and not self._life.draining:
            with contextlib.suppress(Refusal):  # it is in the log
                await in_thread(lambda: reloaded(self._shelf, self._metrics))

    async def _drain(self) -> None:
        LOG.info("draining", extra={"facts": {"drain_seconds": self._settings.drain_seconds}})
        finished = await in_thread(lambda: self._shelf.close(self._settings.drain_seconds))
        until = time.monotonic() + LAST_SECONDS
        while self._guard.active and time.monotonic() < until:
            await asyncio.sleep(0.01)
        counts = {name: dict(model.engine.counts) for name, model in self._shelf.models.items()}
        LOG.info("drained" if finished else "stopped in the middle of a batch", extra={"facts": {"images": counts}})
        self.should_exit = True
