"""From the operations of ATen that only move numbers to primitives: more rules of `lower.py`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ..tape import Recorded
from .build import PrimitiveBuilder
from .lower import rule, unknown

aten = torch.ops.aten


def axis_of(x: Recorded, axis: int) -> int:
    return axis % len(x.shape)


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim,
      aten.squeeze.dims, aten.flatten.using_ints, aten.unflatten.int)  # fmt: skip
def reshape(b: PrimitiveBuilder, node: Node, x: Recorded, *_: Any) -> Any:
    first, *others = node.meta["val"].shape
    batch = isinstance(x.shape[0], str)
    assert batch == isinstance(first, torch.SymInt), "a batch axis that moves"
    return b.reshape(x, (x.shape[0] if batch else int(first), *map(int, others)))


@rule(aten.transpose.int)
def transpose(b: PrimitiveBuilder, node: Node, x: Recorded, one: int, other: int) -> Any:
    axes = list(range(len(x.shape)))
    one, other = axis_of(x, one), axis_of(x, other)
    axes[one], axes[other] = axes[other], axes[one]
    return b.permute(x, axes)


@rule(aten.permute.default)
def permute(b: PrimitiveBuilder, node: Node, x: Recorded, axes: Sequence[int]) -> Any:
    return b.permute(x, [axis_of(x, axis) for axis in axes])


@rule(aten.repeat.default)
def repeat(b: PrimitiveBuilder, node: Node, x: Recorded, counts: Sequence[Any]) -> Any:
    """Of what is the same for all rows, for every row."""
    once = [*x.shape[:1], *counts] == [1, None, *(1 for _ in x.shape[1:])]  # None: the rows
    assert once, f"a repetition by {counts}"
    rows = b.rows()
    return b.apply("add", b.reshape(rows, (rows.shape[0], *(1 for _ in x.shape[1:]))), x)


@rule(aten.einsum.default)
def einsum(b: PrimitiveBuilder, node: Node, equation: str, values: Sequence[Recorded]) -> Any:
    """Where it is a permutation."""
    before, _, after = equation.replace(" ", "").partition("->")
    permuted = len(values) == 1 and sorted(before) == sorted(after)
    assert permuted, f"the sum {equation}"
    return b.permute(values[0], [before.index(letter) for letter in after])


@rule(aten.slice.Tensor)
def part(b: PrimitiveBuilder, node: Node, x: Recorded, axis: int = 0, first: Any = 0, last: Any = None, step: int = 1) -> Any:
    axis = axis_of(x, axis)
    length = x.shape[axis]
    assert isinstance(length, int), "a slice of the batch"
    assert step == 1, "a slice with strides"
    start, stop, _ = slice(first, last).indices(length)
    return b.part(x, axis, start, stop)


def rows_of(b: PrimitiveBuilder, node: Node, x: Recorded, axis: int, rows: Sequence[int]) -> Any:
    """Entries of an axis by their numbers, where those are the middle of a grid: equal runs at equal distances."""
    ends = [n for n, row in enumerate(rows[1:], 1) if row != rows[n - 1] + 1]
    run = ends[0] if ends else len(rows)
    line = rows[run] - rows[0] if ends else run
    count, first, length = len(rows) // run, rows[0], int(x.shape[axis])
    if list(rows) != [first + line * n + k for n in range(count) for k in range(run)] or first + line * count > length:
        raise unknown(node, "rows in no order")
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    lines = b.reshape(b.part(x, axis, first, first + line * count), (*before, count, line, *after))
    return b.reshape(b.part(lines, axis + 1, 0, run), (*before, count * run, *after))


@rule(aten.select.int)
def select(b: PrimitiveBuilder, node: Node, x: Recorded, axis: int, index: int) -> Any:
    axis = axis_of(x, axis)
    return _squeezed(b, x, axis, index % int(x.shape[axis]))


def _squeezed(b: PrimitiveBuilder, x: Recorded, axis: int, index: int) -> Recorded:
    return b.reshape(b.part(x, axis, index, index + 1), (*x.shape[:axis], *x.shape[axis + 1 :]))


@rule(aten.split.Tensor, aten.chunk.default, aten.split_with_sizes.default)
def split(b: PrimitiveBuilder, node: Node, x: Recorded, _: Any, axis: int = 0) -> Any:
    axis, position, parts = axis_of(x, axis), 0, []
    for value in node.meta["val"]:
        length = int(value.shape[axis])
        parts.append(b.part(x, axis, position, position + length))
        position += length
    return tuple(parts)


@rule(aten.unbind.int)
def unbind(b: PrimitiveBuilder, node: Node, x: Recorded, axis: int = 0) -> Any:
    axis = axis_of(x, axis)
    return tuple(_squeezed(b, x, axis, n) for n in range(int(x.shape[axis])))


@rule(operator.getitem)
def item(b: PrimitiveBuilder, node: Node, values: tuple[Recorded, ...], n: int) -> Any:
    return values[n]


@rule(aten.cat.default)
def concat(b: PrimitiveBuilder, node: Node, values: Sequence[Recorded], axis: int = 0) -> Any:
    return b.joined(values, axis_of(values[0], axis))


@rule(aten.stack.default)
def stack(b: PrimitiveBuilder, node: Node, values: Sequence[Recorded], axis: int = 0) -> Any:
    axis = axis % (len(values[0].shape) + 1)
    wide = [b.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in values]
    return b.joined(wide, axis)


@rule(aten.clone.default, aten.alias.default, aten.contiguous.default, aten.detach.default)
def kept(b: PrimitiveBuilder, node: Node, x: Recorded, *_: Any, **__: Any) -> Any:
    return x
