"""A call as a manifest has it: what it computes, what it reads of earlier calls, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .record import Record

Terms = tuple[tuple[int, float], ...]  # (calls ago, coefficient)


class BankRecord(Record, frozen=True, kw_only=True):
    """What a call does with a bank of sums: it takes the one in `slot`, or it keeps those in `kept`, adds
    (slot, in how many calls that sum is read, coefficient), and forgets the others.
    """

    slot: int | msgspec.UnsetType = msgspec.UNSET
    kept: tuple[int, ...] = ()
    adds: tuple[tuple[int, int, float], ...] = ()


class CallRecord(Record, frozen=True, kw_only=True):
    """One network evaluation; `reads` and `writes` say which cache slots its cached values use.

    What it neither computes nor reuses of the sublayers, nor has in `derived`, lies inside a level that it derives.
    """

    timestep: float
    computed: tuple[int, ...]
    reused: tuple[int, ...]
    graph: str
    coefficients: tuple[float, ...]
    ends_step: bool
    reads: dict[str, int]
    writes: dict[str, int]
    earlier: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET  # how many calls ago each call was that it reads from
    later: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET  # in how many calls each call comes that reads from it
    derived: dict[str, Terms] | msgspec.UnsetType = msgspec.UNSET  # value -> ((calls ago, coefficient), ..), where not reused
    banks: dict[str, BankRecord] | msgspec.UnsetType = msgspec.UNSET  # by the name of the bank's value
    forecast: dict[str, float] | msgspec.UnsetType = msgspec.UNSET  # the coefficients by the names that its graph has for them

    def distance(self, offset: int) -> int:
        """Calls from this one to that which an origin's offset means; negative for an earlier one.

        Raises LookupError where it has no such call.
        """
        related = self.earlier if offset < 0 else self.later
        if not offset or related is msgspec.UNSET:
            return offset
        calls = related[abs(offset) - 1]
        return -calls if offset < 0 else calls


def computed_share(calls: Sequence[CallRecord], columns: int) -> float:
    """The share of the sublayers, `columns` in each call, that these calls compute."""
    return sum(len(call.computed) for call in calls) / (columns * len(calls))
