"""Cutting: a captured model becomes pieces between its residual additions, and pieces that are known before the loop."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch.fx import Node

from .dataflow import REQUEST, TIME, Addition, Flow, has_numbers, is_tensor

aten = torch.ops.aten
PRODUCTS = {aten.linear.default, aten.conv2d.default, aten.scaled_dot_product_attention.default, aten.matmul.default,
            aten.bmm.default, aten.mm.default, aten.addmm.default}  # fmt: skip
BLOCK = re.compile(r"((?:\w+\.)*?\w*(?:blocks|layers)\.\d+)(?:\.|$)")
PICTURE = "image"  # the rows of a joined stream that are the picture's
KINDS = {frozenset([TIME]): "time", frozenset([REQUEST]): "request", frozenset([TIME, REQUEST]): "condition"}


@dataclass(frozen=True, eq=False)
class Region:
    """Operations that become one piece, and those of their values that others read."""

    nodes: frozenset[Node]
    outputs: tuple[Node, ...]
    label: str = ""


@dataclass(frozen=True)
class Cut:
    """A model as regions and residual additions, neither in any order."""

    regions: tuple[Region, ...]
    additions: tuple[Addition, ...]
    finer: frozenset[Node] = frozenset()  # what modules of some names make, and nothing adds to a stream

    @property
    def branches(self) -> set[Node]:
        """What can be cached because it is added to a stream."""
        return {addition.branch for addition in self.additions}


def cut(flow: Flow, finer: str = "") -> Cut:
    """Regions end at the streams, at what is added to them, at what is read on of them, and at what is known before the loop;
    and at what modules make whose names are of the pattern `finer`.
    """
    additions = tuple(flow.additions())
    plain = {node for a in additions for node in ((a.sum, a.gated) if a.gate is not None else (a.sum,))}
    pictures = read_on(flow, additions)
    ends = {node for a in additions for node in (a.stream, a.branch)} | pictures | {flow.exported.result}
    paths = outputs_of(flow, re.compile(finer)) if finer else {}
    apart = {node: path for node, path in paths.items() if node not in ends | plain}
    ends |= apart.keys()
    stops = ends | plain
    late = [
        Region(region(flow, node, stops), (node,), PICTURE if node in pictures else within_block(apart.get(node, "")))
        for node in in_order(flow, ends - plain)
        if flow.late(node)
    ]
    loop = merged(late)
    read = {i for r in loop for node in r.nodes for i in node.all_input_nodes}
    read |= {node for a in additions for node in (a.stream, a.branch, a.gate) if node is not None}
    return Cut((*loop, *before_loop(flow, {node for node in read if flow.early(node)})), additions, frozenset(apart))


def read_on(flow: Flow, additions: Iterable[Addition]) -> set[Node]:
    """The part of a stream that is all that is read of it: the picture's rows, behind the last block of both."""
    sums = {addition.sum for addition in additions}
    parts = (node for node in flow.nodes if node.target is aten.slice.Tensor and node.args[0] in sums)
    return {node for node in parts if len(node.all_input_nodes[0].users) == 1}


def outputs_of(flow: Flow, names: re.Pattern[str]) -> dict[Node, str]:
    """What modules of these names make of the latents, each with the name of its own."""
    paths: dict[Node, str] = {}
    for node in flow.nodes:
        for path in filter(names.fullmatch, paths_of(node)):
            if flow.late(node) and is_tensor(node) and any(path not in paths_of(user) for user in node.users):
                paths[node] = path
    return paths


def region(flow: Flow, end: Node, stops: Collection[Node]) -> frozenset[Node]:
    """What computes a value from the stops before it."""
    nodes: set[Node] = set()
    ahead = [end]
    while ahead:
        node = ahead.pop()
        if node in nodes or node.op != "call_function" or not flow.late(node) or (node in stops and node is not end):
            continue
        nodes.add(node)
        ahead += [i for i in node.all_input_nodes if has_numbers(i)]
    return frozenset(nodes)


def merged(regions: Iterable[Region]) -> list[Region]:
    """Regions that share a product are one with several outputs; what is cheap is done twice instead."""
    groups: list[Region] = []
    for group in regions:
        shared = [other for other in groups if any(node.target in PRODUCTS for node in other.nodes & group.nodes)]
        for other in shared:
            group = Region(group.nodes | other.nodes, (*other.outputs, *group.outputs), other.label or group.label)
            groups.remove(other)
        groups.append(group)
    return groups


def before_loop(flow: Flow, read: Collection[Node]) -> list[Region]:
    """What leaves the loop: a region for every time at which something is known, and every block."""
    wanted: set[Node] = set()
    ahead = list(read)
    while ahead:
        node = ahead.pop()
        if node not in wanted and node.op == "call_function" and flow.early(node):
            wanted.add(node)
            ahead += node.all_input_nodes
    groups: dict[tuple[frozenset[str], str], set[Node]] = defaultdict(set)
    for node in wanted:
        groups[flow.early(node), block_of(path_of(node))].add(node)
    regions = []
    for (needs, _), nodes in groups.items():
        outside = {i for node in wanted - nodes for i in node.all_input_nodes} | set(read)
        outputs = tuple(node for node in in_order(flow, nodes) if is_tensor(node) and node in outside)
        regions.append(Region(frozenset(nodes), outputs, KINDS[needs]))
    return regions


def in_order(flow: Flow, nodes: Iterable[Node]) -> list[Node]:
    return sorted(nodes, key=flow.order.__getitem__)


def paths_of(node: Node) -> list[str]:
    """The modules of diffusers whose code an operation is in, the innermost last."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return [path.removeprefix("model").lstrip(".") for path in stack]


def path_of(node: Node) -> str:
    """The innermost of them."""
    stack = paths_of(node)
    return stack[-1] if stack else ""


def within_block(path: str) -> str:
    """`attn.to_q` of `transformer_blocks.3.attn.to_q`."""
    return path.removeprefix(block_of(path)).lstrip(".")


def block_of(path: str) -> str:
    """`transformer_blocks.3` of `transformer_blocks.3.attn.to_q`; nothing outside of blocks."""
    match = BLOCK.match(path)
    return match.group(1) if match else ""
