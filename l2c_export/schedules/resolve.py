"""What the rules of a schedule mean, as numbers: every value as a sum over the calls that computed it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ScheduleError
from .calls import Call, applied
from .forecast import COMPUTED, Rule, Terms, terms_of
from .values import Cacheable, values_of


def resolve(cacheable: tuple[str, ...], calls: Sequence[Call]) -> tuple[dict[str, Terms], ...]:
    """For every call, what every value is: ((age, coefficient), ..) over earlier calls that computed it, ages ascending.

    A value that the call computes is ((0, 1.0),).  One that it jumps over, because it derives a level that spans it, is
    left out.  Derived values never enter a history.  Raises ScheduleError for a rule that has none.
    """
    values = values_of(cacheable)
    history: dict[str, list[int]] = {name: [] for name in cacheable}
    resolved = []
    for n, call in enumerate(calls):
        rules = applied(values, call.computed, call.rules, n)
        if n == 0 and rules:
            raise ScheduleError(
                f"schedule: call 0 must compute every sublayer, for nothing is cached before it: it does not compute "
                f"{next(iter(rules))!r}"
            )
        terms = {name: _terms(name, rule, n, history[name]) for name, rule in rules.items()}
        for name in computed_values(values, call):
            history[name].append(n)
            terms[name] = COMPUTED
        resolved.append(terms)
    return tuple(resolved)


def forecasts(cacheable: tuple[str, ...], calls: Sequence[Call]) -> list[dict[str, Terms]]:
    """Of every call, what follows from earlier ones otherwise than by the reuse of a sublayer."""
    sublayers = values_of(cacheable).sublayers
    reused = [{sublayers[j] for j in call.reused} for call in calls]
    return [
        {name: terms for name, terms in sums.items() if terms != COMPUTED and name not in own}
        for sums, own in zip(resolve(cacheable, calls), reused, strict=True)
    ]


def _terms(name: str, rule: Rule, n: int, computed: list[int]) -> Terms:
    try:
        return terms_of(rule, n, computed)
    except ValueError as error:
        raise ScheduleError(
            f"schedule: call {n} derives {name!r} from call {error}, which does not compute it: use one that does"
        ) from None


def computed_values(values: Cacheable, call: Call) -> list[str]:
    """The sublayers that a call computes, and the levels that it has without deriving them or what spans them."""
    derived = [level for level in values.levels if level in call.rules]
    own = [level for level in values.levels if values.is_whole(level, derived)]
    return [*(values.sublayers[j] for j in call.computed), *own]
