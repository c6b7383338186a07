"""What can be cached: names, blocks, ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from version2 import SUBLAYERS

from l2c_export.errors import ScheduleError
from l2c_export.models.dit import DiT, DiTArch
from l2c_export.models.uvit import UViT, UViTArch
from l2c_export.schedules import values
from l2c_export.schedules.values import Cacheable, sublayers_of, values_of


@pytest.mark.parametrize(("cacheable", "says"), [
    ((), "cacheable lists no sublayer: list all of the model's"), (("output", "stack"), "lists no sublayer"),
    (("a", ""), "cacheable has an empty name: name each value by its module"),
    (("a", "b", "a"), "cacheable lists 'a' twice: name each value once"),
    (("a.0.x", "a.1.x", "stack[0:3]"), r"'stack\[0:3\]' is no range of the 2 blocks: use stack\[F:L\] with 0 <= F < L <= 2"),
    (("a", "stack[1:1]"), r"'stack\[1:1\]' is no range of the 1 block"), (("a", "stack[0:1"), "is no range"),
    (("a", "stack[-1:1]"), "is no range"), (("a", "stack[0:1]x"), "is no range"), (("a", "stack[:1]"), "is no range"),
    (tuple(map(str, range(values.MOST + 1))), "16385 cacheable values: no model has more than 16384"),
])  # fmt: skip
def test_names_that_no_schedule_has(cacheable, says):
    with pytest.raises(ScheduleError, match=f"^schedule: .*{says}"):
        values_of(cacheable)


def test_columns_are_the_sublayers_in_their_order():
    cacheable = values_of(("output", "x.1.b", "stack", "x.0.a"))
    assert (cacheable.sublayers, cacheable.levels) == (("x.1.b", "x.0.a"), ("output", "stack"))


@pytest.mark.parametrize(("sublayers", "blocks"), [
    (SUBLAYERS, (0, 0, 1, 1, 2, 2)),
    (("in_blocks.0.attn", "in_blocks.0.mlp", "mid_block.attn", "mid_block.mlp", "out_blocks.0.attn"), (0, 0, 1, 1, 2)),
    (("transformer_blocks.0.attn", "transformer_blocks.0.ff.net.2", "single_blocks.0", "single_blocks.1"),
     (0, 0, 1, 2)),
    (("0", "1", "2"), (0, 1, 2)), (("b4.1x.attn", "b4.1x.mlp", "b4.2x.mlp"), (0, 0, 1)), (("attn", "mlp"), (0, 1)),
])  # fmt: skip
def test_blocks_are_counted_as_they_appear(sublayers, blocks):
    assert values.block_numbers(sublayers) == blocks


def test_a_level_spans_the_columns_of_its_blocks():
    cacheable = values_of((*SUBLAYERS, "stack", "stack[1:2]", "output"))
    assert [cacheable.spanned(level) for level in cacheable.levels] == [list(range(6)), [2, 3], list(range(6))]


@pytest.mark.parametrize(("level", "derived", "whole"), [
    ("output", [], True), ("output", ["stack"], True), ("output", ["output"], False), ("output", ["stack[0:3]"], True),
    ("stack", ["output"], False), ("stack", ["stack"], False), ("stack", ["stack[0:2]"], True),
    ("stack", ["stack[0:3]"], False),
    ("stack[0:2]", ["stack"], False), ("stack[0:2]", ["stack[2:3]"], True), ("stack[0:2]", ["stack[1:3]"], False),
    ("stack[0:2]", ["stack[1:2]"], True), ("stack[0:2]", ["stack[1:2]", "stack[0:1]"], True),
    ("stack[1:2]", ["stack[0:2]"], False), ("stack[1:2]", ["stack[0:1]", "output"], False),
])  # fmt: skip
def test_a_call_has_a_level_of_its_own_unless_it_jumps_over_an_end_of_it(level, derived, whole):
    ranges = ("stack[0:1]", "stack[0:2]", "stack[0:3]", "stack[1:2]", "stack[1:3]", "stack[2:3]")
    assert values_of((*SUBLAYERS, "stack", "output", *ranges)).is_whole(level, derived) == whole


@given(st.integers(1, 40))
def test_the_columns_of_a_model_without_names_are_its_sublayers(depth):
    dit = DiT(DiTArch(depth=depth))
    assert sublayers_of("dit", len(dit.sublayers)) == dit.sublayers
    uvit = UViT(UViTArch(depth=depth))
    assert sublayers_of("uvit", len(uvit.sublayers)) == uvit.sublayers
    assert sublayers_of("uvit", len(uvit.sublayers) + 2)[: len(uvit.sublayers)][:depth] == uvit.sublayers[:depth]


@given(st.sampled_from(["dit", "uvit", "third"]), st.integers(1, 200))
def test_every_number_of_columns_has_names(family, columns):
    names = sublayers_of(family, columns)
    assert len(values_of(names).sublayers) == columns
    assert sublayers_of(family, names) == names


@pytest.mark.parametrize("columns", [0, -1, 10**12])
def test_a_number_of_columns_that_no_model_has(columns):
    with pytest.raises(ScheduleError, match=f"{columns} columns: a model has 1 to 16384 sublayers"):
        sublayers_of("dit", columns)


def test_patterns_are_of_fnmatchcase():
    assert values.matched("blocks.[01].*", SUBLAYERS) == {*SUBLAYERS[:4]}
    assert values.matched("*.MLP", SUBLAYERS) == frozenset()
    assert values.matched("blocks.?.mlp", SUBLAYERS) == {*SUBLAYERS[1::2]}


def test_columns_by_number_or_name():
    cacheable = Cacheable(("a", "b", "c"), (), (0, 1, 2))
    assert values.columns_of(cacheable, ["c", 0, 2]) == (0, 2)
