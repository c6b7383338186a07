"""How far a long piece of work is, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Step = Callable[[], object]  # told of every part that is done
Progress = Callable[[int], Step]  # told of the number of parts before the first
Watch = Callable[[str, float], object]  # told of the phase that the present part is in, and the share of it that is done


def unseen(parts: int) -> Step:
    """Progress that nobody looks at."""
    return unsaid


def unsaid() -> None:
    """A part that is done, of which nobody is told."""


def unwatched(phase: str, share: float) -> None:
    """A part that nobody watches."""
