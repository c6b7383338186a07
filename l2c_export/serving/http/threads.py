"""Work beside the event loop, in a thread that the end of the process does not wait for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises.  Raises CancelledError, and leaves it alone, where the task is cancelled."""
    loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def settle(act: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            act(value)

    def run() -> None:
        try:
            value = work()
        except BaseException as error:
            outcome = future.set_exception, error
        else:
            outcome = future.set_result, value  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="l2c-work", daemon=True).start()
    return await future  # type: ignore[no-any-return]
