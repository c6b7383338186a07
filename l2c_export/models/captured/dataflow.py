"""What every value of a captured model depends on, and which of its additions are residual."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from .export import Exported

aten = torch.ops.aten
LATENTS, TIME, REQUEST, STORED = "latents", "time", "request", "stored"


class Addition(NamedTuple):
    """stream + gate * branch, or stream + branch."""

    sum: Node
    stream: Node
    branch: Node  # without its gate
    gate: Node | None
    gated: Node  # with it


class Flow:
    """Data flow through an exported model."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        self.nodes = [node for node in exported.graph.nodes if node.op != "output"]
        self.order = {node: n for n, node in enumerate(self.nodes)}
        self.needs: dict[Node, frozenset[str]] = {}
        self._behind: dict[Node, int] = {}  # the nodes that a value depends on, as bits
        for node in self.nodes:
            inputs = node.all_input_nodes
            reads = [i for i in inputs if has_numbers(i)] if has_numbers(node) else []
            self.needs[node] = self._own(node) | _joined(self.needs[i] for i in reads)
            self._behind[node] = 1 << self.order[node]
            for i in inputs:
                self._behind[node] |= self._behind[i]

    def _own(self, node: Node) -> frozenset[str]:
        if node in self.exported.stored:
            return frozenset([STORED])
        name = self.exported.inputs.get(node)
        return frozenset() if name is None else frozenset([{"x": LATENTS, "t": TIME}.get(name, REQUEST)])

    def late(self, node: Node) -> bool:
        """Whether it depends on the latents."""
        return LATENTS in self.needs[node]

    def early(self, node: Node) -> frozenset[str]:
        """What of time and request it depends on, where it is known before the loop."""
        return self.needs[node] - {STORED} if not self.late(node) else frozenset()

    def descends(self, node: Node, ancestor: Node) -> bool:
        return bool(self._behind[node] >> self.order[ancestor] & 1)

    def additions(self) -> list[Addition]:
        """The residual ones: of a stream and what was computed from it, or from the stream before its last addition."""
        additions: list[Addition] = []
        streams: set[Node] = set()
        for node in self.nodes:
            pair = self._pair(node, streams)
            if pair:
                additions.append(self._addition(node, *pair))
                streams.add(node)
        return additions

    def _pair(self, node: Node, streams: set[Node]) -> tuple[Node, Node] | None:
        """Stream and branch of an addition that is residual."""
        if node.target is not aten.add.Tensor or not self.late(node) or len(node.args) != 2:
            return None
        a, b = node.args
        if not isinstance(a, Node) or not isinstance(b, Node):
            return None
        if not all(str(i.meta["val"].shape) == str(node.meta["val"].shape) for i in (a, b)):
            return None
        pairs = [(stream, branch) for stream, branch in ((a, b), (b, a)) if self.late(branch)]  # a prompt's stream begins early
        onward = (pair for pair in pairs if self.descends(pair[1], pair[0]))
        parallel = (pair for pair in pairs if pair[0] in streams and pair[1] not in streams)
        return next(onward, None) or next(parallel, None)

    def _addition(self, node: Node, stream: Node, gated: Node) -> Addition:
        if gated.target is aten.mul.Tensor and len(gated.users) == 1:
            for gate, branch in (gated.args, gated.args[::-1]):
                if isinstance(gate, Node) and isinstance(branch, Node) and self.early(gate) and self.late(branch):
                    return Addition(node, stream, branch, gate, gated)
        return Addition(node, stream, gated, None, gated)


def has_numbers(node: Node) -> bool:
    """Whether it is a tensor, or several, and no size."""
    value = node.meta.get("val")
    return isinstance(value, (Tensor, tuple, list))


def is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _joined(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)
