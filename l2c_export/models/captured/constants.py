"""What follows from a configuration alone, computed: the numbers of a node that depends on no input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from .dataflow import Flow


def constant(flow: Flow, node: Node) -> Tensor:
    """The numbers of what follows from the configuration alone."""
    known = flow.exported.constants.get(node)
    if known is not None:
        return known

    def read(argument: Any) -> Any:
        return constant(flow, argument) if isinstance(argument, Node) else argument

    assert callable(node.target), f"{node.name} has no numbers"
    arguments, options = arguments_of(node, read)
    target = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
    value: Tensor = target(*arguments, **options)
    return value


def arguments_of(node: Node, read: Callable[[Any], Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of a node, each as it is read."""
    arguments: Any = map_aggregate(node.args, read)
    options: Any = map_aggregate(node.kwargs, read)
    return arguments, options
