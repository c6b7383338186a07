"""Rotary positions by complex numbers, as some modules write them, in real ones: (a + b i) (c + d i)."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten


def in_real_numbers(graph: Graph) -> None:
    """Write view_as_real(view_as_complex(x) factor) without complex activations, where the factor is a constant."""
    for node in list(graph.nodes):
        pair = _product(node)
        if pair is None:
            continue
        x, factor = pair
        with graph.inserting_before(node):
            a, b, c, d = (_part(graph, of, n) for of in (x, _call(graph, aten.view_as_real.default, factor)) for n in (0, 1))
            real = _call(graph, aten.sub.Tensor, _product_of(graph, a, c), _product_of(graph, b, d))
            imaginary = _call(graph, aten.add.Tensor, _product_of(graph, a, d), _product_of(graph, b, c))
            node.replace_all_uses_with(_call(graph, aten.stack.default, [real, imaginary], -1))
    graph.eliminate_dead_code()


def _product(node: Node) -> tuple[Node, Node] | None:
    """The real activations and the complex factor of a rotation."""
    if node.target is not aten.view_as_real.default:
        return None
    product = node.args[0]
    if not isinstance(product, Node) or product.target is not aten.mul.Tensor:
        return None
    for turned, factor in (product.args, product.args[::-1]):
        if isinstance(turned, Node) and turned.target is aten.view_as_complex.default and isinstance(factor, Node):
            assert isinstance(turned.args[0], Node)
            return turned.args[0], factor
    return None


def _part(graph: Graph, pairs: Node, n: int) -> Node:
    return _call(graph, aten.select.int, pairs, -1, n)


def _product_of(graph: Graph, x: Node, y: Node) -> Node:
    return _call(graph, aten.mul.Tensor, x, y)


def _call(graph: Graph, target: Any, *arguments: Any) -> Node:
    """A node, and what is known of its value."""
    node = graph.call_function(target, arguments)

    def value(argument: Any) -> Any:
        return argument.meta["val"] if isinstance(argument, Node) else argument

    known = [[value(a) for a in argument] if isinstance(argument, list) else value(argument) for argument in arguments]
    first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
    with first.meta["val"].fake_mode:
        node.meta = {**first.meta, "val": target(*known)}
    return node
