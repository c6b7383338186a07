"""Progress bars on stderr, and lines above them; without a terminal there are no bars."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..support.progress import Step

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_shown: list[Progress] = []  # what is on the screen now: one at most


class Bars:
    """The stages of some work: a bar each, in place of the one before."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._stage, self._done = "", 0.0
        self._task: TaskID | None = None

    def progress(self, stage: str, parts: int) -> Step:
        if self._task is not None:
            self._display.remove_task(self._task)
        self._stage, self._done = stage, 0.0
        self._task = self._display.add_task(stage, total=parts)
        return self.step

    def step(self, parts: int = 1) -> None:
        self._done += parts
        self._show(self._stage, self._done)

    def watch(self, phase: str, share: float) -> None:
        """What the present part is doing, and the share of it that is done."""
        self._show(f"{self._stage}: {phase}", self._done + share)

    def _show(self, text: str, done: float) -> None:
        if self._task is not None:
            self._display.update(self._task, completed=done, description=text)


@contextlib.contextmanager
def bars() -> Iterator[Bars]:
    from rich.console import Console
    from rich.progress import Progress

    seen = sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=not seen, transient=True) as display:
        if seen:
            _shown.append(display)
        try:
            yield Bars(display)
        finally:
            _shown.clear()


def above() -> Callable[[str], object] | None:
    """What prints a line above the bar, if there is one."""
    if not _shown:
        return None
    console = _shown[0].console
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
