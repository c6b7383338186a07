"""Numbers and errors in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """ "1 image", "2 images", "1,000 images"; "2 entries" for a noun whose plural is given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """ "45 s", "12 minutes"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
