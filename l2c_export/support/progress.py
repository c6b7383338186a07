"""How far a long piece of work is, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Step = Callable[..., object]  # told of every part that is done, or of the number of parts that are
Progress = Callable[[str, int], Step]  # told what begins ("writing weights"), and how many parts it has
Watch = Callable[[str, float], object]  # told of the phase that the present part is in, and the share of it that is done


def unseen(stage: str, parts: int) -> Step:
    """Progress that nobody looks at."""
    return unsaid


def unsaid(parts: int = 1) -> None:
    """Parts that are done, of which nobody is told."""


def unwatched(phase: str, share: float) -> None:
    """A part that nobody watches."""
