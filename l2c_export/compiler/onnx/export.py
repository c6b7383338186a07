"""PyTorch function -> ONNX: each kind of operation is exported once, with its weights as inputs.

The exported bodies are kept in the user's cache folder under the hash of everything that they depend on, so that a
second export of the same architecture does not export again.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import onnx
import torch

from ...ir.graph import PLAIN_OPS, Graph, Node, Value
from ...models import family as base
from ...models import layers, updates
from ...models.family import Family
from ...support.cache import cached
from ...support.progress import Progress, unseen
from . import opset
from .opset import EXPORTED, downgrade

EXAMPLE = {"B": 2, "R": 3}  # a batch of one would be specialised


def export_bodies(family: Family, call: Graph, progress: Progress = unseen) -> dict[str, onnx.ModelProto]:
    """An ONNX model for every operation kind that the call uses, keyed by kind.

    Its graph inputs are i0, i1, .. and its output is o0; batch axes are symbolic.  `progress` counts kinds.
    """
    kinds: dict[str, Node] = {}
    for node in call.nodes:
        if node.op not in PLAIN_OPS:
            kinds.setdefault(node.op, node)
    step = progress("exporting operations", len(kinds))
    bodies: dict[str, onnx.ModelProto] = {}
    for op, node in kinds.items():
        bodies[op] = _cached(family, op, [call.values[i] for i in node.inputs])
        step()
    return bodies


def _cached(family: Family, op: str, inputs: Sequence[Value]) -> onnx.ModelProto:
    modules = (sys.modules[type(family).__module__], base, updates, layers, opset, sys.modules[__name__])
    sources = [inspect.getsource(module) for module in modules]
    versions = (str(torch.__version__), onnx.__version__, *map(version, ("onnxscript", "onnx-ir")))
    key = (*versions, op, family.arch, inputs, *sources)
    export = lambda: _export(base.operation_of(family, op).function, op, inputs).SerializeToString()  # noqa: E731
    return onnx.load_from_string(cached("segments", key, export))


def _export(function: object, op: str, inputs: Sequence[Value]) -> onnx.ModelProto:
    """Trace one function with symbolic batch axes and return it as a checked opset 17 model."""

    class Module(torch.nn.Module):
        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return function(*values)  # type: ignore[operator,no-any-return]

    axes = {name: torch.export.Dim(name) for name in EXAMPLE}
    arguments, dynamic = [], []
    for value in inputs:
        shape = [EXAMPLE[n] if isinstance(n, str) else n for n in value.shape]
        arguments.append(torch.zeros(shape, dtype=getattr(torch, value.dtype)))
        dynamic.append({i: axes[n] for i, n in enumerate(value.shape) if isinstance(n, str)} or None)
    with quiet():
        program = torch.onnx.export(
            Module().eval(),
            tuple(arguments),
            dynamo=True,
            opset_version=EXPORTED,
            dynamic_shapes=(tuple(dynamic),),
            input_names=[f"i{i}" for i in range(len(inputs))],
            output_names=["o0"],
            verbose=False,
        )
    assert program is not None
    return downgrade(program.model_proto, op)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns about torchvision and renamed axes, neither of which concerns a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
