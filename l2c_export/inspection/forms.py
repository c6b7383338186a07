"""In which form the calls of a program read what they forecast: sums from a bank, sums of their own, or the values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from ..artefact.call_record import CallRecord
from ..artefact.compiled import Compiled
from ..ir.names import split_at
from ..support.words import counted


def forms(program: Compiled) -> list[str]:
    """A line for every form, such as "forecasts: 38 calls read sums out of 1 bank of 12"; none without forecasts."""
    forecasting = [call for call in program.calls if call.derived]
    calls = Counter(form for call in forecasting for form in read_by(call))
    slots = defaultdict[str, set[int]](set)
    for name, bank in banks_of(forecasting):
        slots[name].add(bank)
    told = {
        "bank": f"sums out of {counted(len(slots), 'bank')} of {' and '.join(str(len(of)) for of in slots.values())}",
        "sum": "sums that each call they read from has added up for them",
        "value": "values of earlier calls, which they add up themselves",
    }
    return [f"forecasts: {counted(calls[form], 'call')} read {how}" for form, how in told.items() if calls[form]]


def read_by(call: CallRecord) -> set[str]:
    """The forms that one call reads."""
    banks = call.banks or {}
    names = {split_at(name)[0] for name in call.reads}
    return {"bank" if name in banks else "value" if name in (call.derived or {}) else "sum" for name in names}


def banks_of(calls: Iterable[CallRecord]) -> list[tuple[str, int]]:
    """(bank, slot) of every sum that is taken."""
    banks = ((name, bank.slot) for call in calls for name, bank in (call.banks or {}).items())
    return [(name, slot) for name, slot in banks if slot is not msgspec.UNSET]
