"""torch.export of a whole model: one dynamic batch axis, everything else of fixed size; and what changes nothing taken out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from ...errors import ModelError
from ...support.log import quiet
from .rotated import in_real_numbers

aten = torch.ops.aten
ROWS = 3  # of the examples: a batch of one would be specialised
CAPTURES = (2, 13)  # the PyTorch that does
INPUTS = ("x", "t")  # the latents and the timestep; what a request says follows


@dataclass(frozen=True)
class Exported:
    """A model as a graph of ATen operations.

    `inputs` names its placeholders, `stored` those of a checkpoint's tensors; `constants` are the numbers of all others.
    """

    graph: Graph
    result: Node
    inputs: Mapping[Node, str]
    stored: Mapping[Node, str]
    constants: Mapping[Node, Tensor]


class Called(nn.Module):
    """A model behind the call of its adapter."""

    def __init__(self, model: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor, t: Tensor, request: Mapping[str, Tensor]) -> Tensor:
        return self.call(self.model, x, t, **request)


def export(model: nn.Module, call: Callable[..., Tensor], x: Tensor, t: Tensor, request: Mapping[str, Tensor]) -> Exported:
    """The graph of `call(model, x, t, **request)`, whose arguments are examples of `ROWS` rows.  Raises ModelError."""
    rows = torch.export.Dim("R", min=2, max=2**20)
    shapes = ({0: rows}, {0: rows}, {name: {0: rows} for name in request})
    try:
        with quiet("torch.export"), torch.no_grad():
            trace = torch.export.export(Called(model, call), (x, t, dict(request)), dynamic_shapes=shapes, strict=False)
            program = trace.run_decompositions({})
    except Exception as error:  # whatever the model raises while it is traced
        said = f"{type(model).__name__} cannot be captured: {type(error).__name__}: {_line(error)}"
        raise ModelError(f"{said}: check size and tokens{_or_newer(torch.__version__)}") from None
    return _read(program, (*INPUTS, *request))


def _or_newer(version: str) -> str:
    """The other remedy where PyTorch is older than the one that captures every family: 2.11 fixes some batch sizes."""
    major, minor, *_ = (int(part) for part in version.partition("+")[0].split(".")[:2])
    return "" if (major, minor) >= CAPTURES else f", or use PyTorch {'.'.join(map(str, CAPTURES))} instead of {version}"


def _read(program: Any, names: tuple[str, ...]) -> Exported:
    graph = program.graph
    in_real_numbers(graph)
    simplify(graph)
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    inputs = dict(zip((nodes[name] for name in program.graph_signature.user_inputs), names, strict=True))
    stored, constants = {}, {}
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            continue
        node = nodes[spec.arg.name]
        if spec.target in program.state_dict:
            stored[node] = spec.target.removeprefix("model.")
        else:
            constants[node] = program.constants[spec.target]
    (output,) = (node for node in graph.nodes if node.op == "output")
    return Exported(graph, output.args[0][0], inputs, stored, constants)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no reason"


# What may leave its input as it is.
IDENTITIES = {
    aten.squeeze.dim, aten.squeeze.dims, aten.alias.default, aten.clone.default, aten.dropout.default, aten.expand.default,
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._to_copy.default, aten.to.dtype,
    aten.slice.Tensor, aten.contiguous.default, aten.lift_fresh_copy.default, aten.detach_.default, aten.detach.default,
    aten.type_as.default,
}  # fmt: skip
SCALARS = {(aten.mul.Tensor, 1), (aten.div.Tensor, 1), (aten.add.Tensor, 0), (aten.sub.Tensor, 0)}  # that leave a number


def simplify(graph: Graph) -> None:
    """Take out what changes nothing.  A squeeze of a long axis is nothing in PyTorch, and an error in ONNX."""
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.op == "call_function" and node.args and isinstance(node.args[0], Node):
            same = _same(node)
            if same is not None:
                node.replace_all_uses_with(same)
        if node.target is aten.slice.Tensor and (first := _first(node)) is not None:
            node.replace_all_uses_with(first)
        elif node.target is aten.cat.default and (whole := _whole(node)) is not None:
            node.replace_all_uses_with(whole)
        if node.target in (aten.ones.default, aten.zeros.default):
            _one_row(graph, node)
        if node.target is aten.view.default:
            _broadcast(graph, node)
    graph.eliminate_dead_code()


def _one_row(graph: Graph, node: Node) -> None:
    """What is filled with one number for every row, as a row that is repeated: that is known before."""
    shape, target = node.args[0], node.target
    assert isinstance(shape, (tuple, list))
    assert callable(target)
    rows, *axes = shape
    if not isinstance(rows, Node):
        return
    with graph.inserting_before(node):
        row = graph.call_function(target, ([1, *axes],), node.kwargs)
        rows_of_it = graph.call_function(aten.repeat.default, (row, [rows, *(1 for _ in axes)]))
    row.meta, rows_of_it.meta = {**node.meta, "val": node.meta["val"][:1]}, node.meta
    node.replace_all_uses_with(rows_of_it)


def _broadcast(graph: Graph, node: Node) -> None:
    """A mask that is repeated for every head, along the batch: attention broadcasts it."""
    repeated = node.args[0]
    if not isinstance(repeated, Node) or repeated.target is not aten.repeat_interleave.self_int:
        return
    mask, count, *axis = repeated.args
    masks = all(user.target is aten.scaled_dot_product_attention.default for user in node.users)
    if axis != [0] or node.meta["val"].shape[1] != count or not masks:
        return
    assert isinstance(mask, Node)
    with graph.inserting_before(node):
        once = graph.call_function(aten.unsqueeze.default, (mask, 1))
    once.meta = {**node.meta, "val": mask.meta["val"].unsqueeze(1)}
    node.replace_all_uses_with(once)


def _same(node: Node) -> Node | None:
    """The input that a node hands on unchanged."""
    source = node.args[0]
    assert isinstance(source, Node)
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dtype != after.dtype:
        return None
    if [str(n) for n in before.shape] != [str(n) for n in after.shape]:
        return None
    is_scalar = len(node.args) == 2 and not isinstance(node.args[1], Node) and (node.target, node.args[1]) in SCALARS
    return source if node.target in IDENTITIES or is_scalar else None


def _first(node: Node) -> Node | None:
    """The one row of what is repeated for all rows, where the first is taken."""
    source = node.args[0]
    if not isinstance(source, Node) or source.target is not aten.expand.default or node.args[1:] != (0, 0, 1):
        return None
    row = source.args[0]
    assert isinstance(row, Node)
    return row if row.meta["val"].shape == node.meta["val"].shape else None


def _whole(node: Node) -> Node | None:
    """What was cut into slices that are joined again."""
    parts: Any = node.args[0]
    axis: Any = node.args[1] if len(node.args) > 1 else 0
    if not all(isinstance(p, Node) and p.target is aten.slice.Tensor for p in parts):
        return None
    whole: Node = parts[0].args[0]
    axis %= whole.meta["val"].ndim
    position = 0
    for p in parts:
        source, dim, first = (*p.args, 0, 0)[:3]
        if source is not whole or dim != axis or first != position:
            return None
        position += p.meta["val"].shape[axis]
    return whole if position == whole.meta["val"].shape[axis] else None
