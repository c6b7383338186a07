"""Primitives of which every entry is an expression of a few entries of their inputs: arithmetic, and moving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...ir.graph import Attribute, Value
from .index import Index, broadcast, over, plus, reshaped, rest, times
from .views import shape_of


class Pulled(NamedTuple):
    """One entry of what a primitive makes: where it is, and how entries of the inputs are read."""

    where: Index
    result: Value
    inputs: tuple[Value, ...]
    attributes: Mapping[str, Attribute]
    read: Callable[[int, Index], str]  # the number of an input, and where in it -> an expression
    constant: Callable[[Index], str]  # an entry of the primitive's table of constants (`constants.py`)

    def same(self, number: int) -> str:
        """The entry of an input that is broadcast to the result."""
        return self.read(number, broadcast(self.where, shape_of(self.inputs[number])))

    def size(self, name: str) -> int:
        value = self.attributes[name]
        assert isinstance(value, int)
        return value


Expression = Callable[[Pulled], str]
POINTWISE: dict[str, Expression] = {}
MOVES = frozenset({"cast", "unsqueeze", "reshape", "permute", "part", "tail", "concat", "patchify", "unpatchify", "gather"})
ELEMENTWISE = frozenset({"add", "mul", "cast", "affine", "gelu", "gelu_tanh", "silu", "relu", "modulate", "quantise"})


def pointwise(function: Expression) -> Expression:
    POINTWISE[function.__name__] = function
    return function


def number(value: Any) -> str:
    """A float of C."""
    return f"{float(value)!r}f" if value >= 0 else f"({float(value)!r}f)"


# arithmetic, in float32


@pointwise
def add(e: Pulled) -> str:
    return f"({e.same(0)} + {e.same(1)})"


@pointwise
def mul(e: Pulled) -> str:
    return f"({e.same(0)} * {e.same(1)})"


@pointwise
def cast(e: Pulled) -> str:
    return f"((float){e.same(0)})"


@pointwise
def affine(e: Pulled) -> str:
    return f"({number(e.attributes['scale'])} * {e.same(0)} + {number(e.attributes['shift'])})"


@pointwise
def gelu(e: Pulled) -> str:
    return f"gelu({e.same(0)})"


@pointwise
def gelu_tanh(e: Pulled) -> str:
    return f"gelu_tanh({e.same(0)})"


@pointwise
def silu(e: Pulled) -> str:
    return f"silu({e.same(0)})"


@pointwise
def relu(e: Pulled) -> str:
    return f"relu({e.same(0)})"


@pointwise
def modulate(e: Pulled) -> str:
    return f"({e.same(0)} * (1.0f + {e.same(2)}) + {e.same(1)})"


@pointwise
def quantise(e: Pulled) -> str:
    """What is stored as e4m3 is rounded, and never infinite, when it is stored."""
    return f"({e.same(0)} * {e.read(1, ('1',))})"


# what ends a call


def _guided(e: Pulled) -> str:
    """The guided prediction: noise, latents, .., rows of the two halves, guidance behind them."""
    rows = len(e.inputs) - 4
    image, *place = e.where
    c, u = (e.read(0, (e.read(rows + half, (image,)), *place)) for half in (0, 1))
    return f"({c} + {e.same(rows + 2)} * ({c} - {u}))"


def _coefficient(e: Pulled, n: int) -> str:
    return e.read(len(e.inputs) - 1, (str(n),))


@pointwise
def update(e: Pulled) -> str:
    base, x, noise = (_coefficient(e, n) for n in range(3))
    return f"({base} * {e.same(2)} + {x} * {e.same(1)} + {noise} * {_guided(e)})"


@pointwise
def data(e: Pulled) -> str:
    return f"({_coefficient(e, 0)} * {e.same(1)} + {_coefficient(e, 1)} * {_guided(e)})"


@pointwise
def multistep(e: Pulled) -> str:
    terms = [f"{_coefficient(e, 2 + n)} * {e.same(n)}" for n in range(len(e.inputs) - 1)]
    return f"({' + '.join(terms)})"


# positions


@pointwise
def sinusoid(e: Pulled) -> str:
    row, k = e.where
    half = e.size("half")
    angle = f"({e.read(0, (row,))} * {e.constant((rest(k, half),))})"
    return f"({k} < {half} ? cosf({angle}) : sinf({angle}))"


@pointwise
def rope(e: Pulled) -> str:
    row, token, d = e.where
    size = _last(e.result) // e.size("heads")
    half = size // 2
    within, pair = rest(d, size), rest(rest(d, size), half)
    begin = plus(times(over(d, size), size), pair)
    first, second = e.read(0, (row, token, begin)), e.read(0, (row, token, plus(begin, str(half))))
    cosine, sine = e.constant(("0", token, pair)), e.constant(("1", token, pair))
    return f"({within} < {half} ? {first} * {cosine} - {second} * {sine} : {first} * {sine} + {second} * {cosine})"


def _last(value: Value) -> int:
    size = value.shape[-1]
    assert isinstance(size, int)
    return size


# moving


@pointwise
def unsqueeze(e: Pulled) -> str:
    axis = e.size("axis")
    return e.read(0, (*e.where[:axis], *e.where[axis + 1 :]))


@pointwise
def reshape(e: Pulled) -> str:
    return e.read(0, reshaped(e.where, shape_of(e.result), shape_of(e.inputs[0])))


@pointwise
def permute(e: Pulled) -> str:
    axes = e.attributes["axes"]
    assert isinstance(axes, tuple)
    return e.read(0, tuple(e.where[axes.index(axis)] for axis in range(len(axes))))


@pointwise
def part(e: Pulled) -> str:
    axis, first = e.size("axis"), e.size("first")
    return e.read(0, (*e.where[:axis], plus(e.where[axis], str(first)), *e.where[axis + 1 :]))


@pointwise
def tail(e: Pulled) -> str:
    row, token, d = e.where
    return e.read(0, (row, plus(token, str(e.size("start"))), d))


@pointwise
def concat(e: Pulled) -> str:
    """Every input is read where it has something, at its first or last entry elsewhere: reads stay inside."""
    axis, first, expression = e.size("axis"), 0, ""
    where = e.where[axis]
    for n, value in enumerate(e.inputs):
        length = value.shape[axis]
        assert isinstance(length, int)
        inside = f"within({where} - {first}, {length})"
        piece = e.read(n, (*e.where[:axis], inside, *e.where[axis + 1 :]))
        first += length
        expression += f"{where} < {first} ? {piece} : " if n < len(e.inputs) - 1 else piece
    return f"({expression})"


@pointwise
def patchify(e: Pulled) -> str:
    row, token, column = e.where
    patch, width = e.size("patch"), _last(e.inputs[0])
    across = width // patch
    y = plus(times(over(token, across), patch), rest(over(column, patch), patch))
    x = plus(times(rest(token, across), patch), rest(column, patch))
    return e.read(0, (row, over(column, patch * patch), y, x))


@pointwise
def unpatchify(e: Pulled) -> str:
    row, channel, y, x = e.where
    patch, channels, across = e.size("patch"), e.size("channels"), e.size("width") // e.size("patch")
    token = plus(times(over(y, patch), across), over(x, patch))
    within = plus(times(rest(y, patch), patch), rest(x, patch))
    return e.read(0, (row, token, plus(times(within, channels), channel)))


@pointwise
def gather(e: Pulled) -> str:
    axes = len(e.inputs[1].shape)
    return e.read(0, (e.read(1, e.where[:axes]), *e.where[axes:]))


@pointwise
def banked(e: Pulled) -> str:
    row, token, d = e.where
    return e.read(0, (row, d, e.read(1, ("0",)), token))
