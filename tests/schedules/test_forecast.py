"""Rules as sums: the published formulas, and polynomials in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.schedules.forecast import fault, is_reuse, order_of, shown, taylor, terms_of

steps = st.integers(1, 60)


@given(steps, steps)
def test_order_1_is_the_published_formula(k, d0):
    assert taylor((k, k + d0)) == ((k, pytest.approx(1 + k / d0)), (k + d0, pytest.approx(-k / d0)))


@given(steps, steps, steps)
def test_order_2_is_the_published_formula(k, d0, d1):
    want = [
        1 + k / d0 + k**2 / (2 * d0**2),
        -k / d0 - k**2 / 2 * (1 / d0**2 + 1 / (d0 * d1)),
        k**2 / (2 * d0 * d1),
    ]
    ages = (k, k + d0, k + d0 + d1)
    assert [age for age, _ in taylor(ages)] == list(ages)
    assert [c for _, c in taylor(ages)] == pytest.approx(want, rel=1e-12)


@st.composite
def ages(draw, most=10):
    """Of calls that computed a value, ascending."""
    distances = [draw(steps)]
    for gap in draw(st.lists(steps, max_size=most - 1)):
        distances.append(distances[-1] + gap)
    return tuple(distances)


@given(ages(), st.integers(-9, 9), st.integers(-9, 9))
def test_what_is_constant_or_linear_is_forecast_exactly(when, level, slope):
    """At the calls -age the value is level - slope * age; a forecast is its value at 0."""
    terms = taylor(when)
    want = level if len(when) > 1 else level - slope * when[0]
    size = sum(abs(c) * (abs(level) + abs(slope) * age) for age, c in terms) + 1
    assert abs(sum(c * (level - slope * age) for age, c in terms) - want) < 1e-12 * size


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.lists(st.integers(-5, 5), min_size=1, max_size=7))
def test_even_spacing_is_the_series_of_backward_differences(order, k, d, polynomial):
    """sum of (k/d)^i / i! nabla^i p: where p has no more than that degree, nabla^order p is its constant derivative."""

    def p(call):
        return sum(Fraction(c) * call**i for i, c in enumerate(polynomial))

    def nabla(i, call):
        return p(call) if i == 0 else nabla(i - 1, call) - nabla(i - 1, call - d)

    want = sum(Fraction(k, d) ** i / math.factorial(i) * nabla(i, -k) for i in range(order + 1))
    terms = taylor(tuple(k + d * i for i in range(order + 1)))
    size = sum(abs(c) * abs(p(-age)) for age, c in terms) + 1
    assert abs(sum(c * p(-age) for age, c in terms) - want) < 1e-11 * size


@given(ages(4), st.lists(st.fractions(-5, 5, max_denominator=8), min_size=4, max_size=4))
def test_uneven_spacing_is_the_recursion_on_values(when, known):
    """With the values themselves, not coefficients: what TaylorSeer keeps while it samples."""
    factors = [list(known[: len(when)])]
    while len(factors[-1]) > 1:
        rows = factors[-1]
        i = len(factors)
        factors.append([(rows[j] - rows[j + 1]) / (when[j + 1] - when[j]) for j in range(len(rows) - 1)])
        assert len(factors) == i + 1
    want = sum(Fraction(when[0]) ** i / math.factorial(i) * row[0] for i, row in enumerate(factors))
    size = sum(abs(c) * 5 for _, c in taylor(when)) + 1
    assert abs(sum(c * float(v) for (_, c), v in zip(taylor(when), known, strict=False)) - float(want)) < 1e-11 * size


def test_reuse_is_an_expansion_of_order_0():
    assert taylor((3,)) == ((3, 1.0),)
    for rule in ("reuse", "taylor:0"):
        assert is_reuse(rule)
        assert terms_of(rule, 9, [0, 4, 7]) == ((2, 1.0),)
    assert not is_reuse("taylor:1")
    assert not is_reuse(((1, 1.0),))


def test_an_expansion_takes_the_last_calls_and_fewer_while_there_are_fewer():
    assert terms_of("taylor:2", 9, [0, 1, 4, 7]) == taylor((2, 5, 8))
    assert terms_of("taylor:2", 9, [4, 7]) == taylor((2, 5))
    assert terms_of("taylor:2", 9, [7]) == ((2, 1.0),)
    assert (order_of("taylor:9"), order_of("reuse")) == (9, 0)


def test_explicit_terms_are_of_calls_that_computed():
    assert terms_of(((5, -0.5), (2, 1.5)), 9, [0, 4, 7]) == ((2, 1.5), (5, -0.5))
    with pytest.raises(ValueError, match=r"^6$"):
        terms_of(((2, 1.0), (3, 1.0)), 9, [0, 4, 7])


@pytest.mark.parametrize(("rule", "says"), [
    ("again", "'again' is no rule: use reuse, taylor:M with M from 0 to 9, or"), ("taylor:10", "is no rule"),
    ("taylor:-1", "is no rule"), ("taylor:", "is no rule"), ("taylor:1 ", "is no rule"),
    ("taylor:٣", "is no rule"), ("", "is no rule"),
    ((), r"terms of the ages \[\]: give one or more ages, each once, 1 for the call before"),
    (((0, 1.0),), r"terms of the ages \[0\]"), (((-1, 1.0),), r"ages \[-1\]"), (((2, 1.0), (2, 0.5)), r"ages \[2, 2\]"),
    (((1, float("nan")),), r"terms with the coefficients \[nan\]: they must be finite numbers"),
    (((1, 1e39),), "must be finite"), (((1, float("-inf")),), "must be finite"),
])  # fmt: skip
def test_rules_that_are_none(rule, says):
    import re

    assert re.search(says, fault(rule) or "")


@pytest.mark.parametrize("rule", ["reuse", "taylor:0", "taylor:9", ((1, 0.0),), ((3, 3e38), (1, -1.0))])
def test_rules(rule):
    assert fault(rule) is None
    assert shown(rule) == (rule if isinstance(rule, str) else "explicit terms")
