"""Progress bars on stderr, and lines above them; without a terminal there are no bars."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Display

Done = Callable[[float], object]  # told of the amount that was just done
Progress = Callable[[str, float | None], Done]  # begins a stage, of that size if it is known

_shown: list[Display] = []  # the bars on the screen, of which there is one display at most


class Bar:
    """One stage as a callback: one step further."""

    def __init__(self, display: Display, what: str, total: float | None) -> None:
        self._display, self._what, self._done = display, what, 0.0
        self._task = display.add_task(what, total=total)

    def __call__(self, *_: object) -> None:
        self.by(1)

    def by(self, amount: float) -> None:
        self._done += amount
        self._display.update(self._task, completed=self._done, description=self._what)

    def within(self, phase: str, share: float) -> None:
        """What the present step is doing, and the share of it that is done."""
        self._display.update(self._task, completed=self._done + share, description=f"{self._what}: {phase}")


@contextlib.contextmanager
def stages(visible: bool = True) -> Iterator[Progress]:
    """Bars for work in stages: each takes the place of the one before."""
    with _display(visible) as display:

        def begin(stage: str, total: float | None) -> Done:
            for task in display.task_ids:
                display.remove_task(task)
            return Bar(display, stage, total).by

        yield begin


@contextlib.contextmanager
def progress(what: str, total: int, visible: bool = True) -> Iterator[Bar]:
    """A bar for one stage."""
    with _display(visible) as display:
        yield Bar(display, what, total)


def above() -> Callable[[str], object] | None:
    """What prints a line above the bars, if there are some."""
    if not _shown:
        return None
    console = _shown[-1].console
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _display(visible: bool) -> Iterator[Display]:
    from rich.console import Console
    from rich.progress import Progress as Display

    seen = visible and sys.stderr.isatty()
    with Display(console=Console(stderr=True), disable=not seen, transient=True) as display:
        if not seen:
            yield display
            return
        _shown.append(display)
        try:
            yield display
        finally:
            _shown.remove(display)
