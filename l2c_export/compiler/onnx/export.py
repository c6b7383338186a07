"""PyTorch function -> ONNX: each kind of operation is exported once, with its weights as inputs.

The exported bodies are kept in the user's cache folder under the hash of everything that they depend on, so that a
second export of the same architecture does not export again.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version

import msgspec
import onnx
import torch

from ...ir.graph import Body
from ...models.primitives import execute
from ...support.cache import cached
from ...support.progress import Progress, unseen
from ...support.source_hash import source_hash
from .opset import EXPORTED, downgrade

EXAMPLE = {"B": 2, "R": 3}  # a batch of one would be specialised
SOURCES = ("ir", "models", "compiler/onnx")  # the folders whose code decides what is exported


def export_bodies(kinds: Mapping[str, Body], progress: Progress = unseen) -> dict[str, onnx.ModelProto]:
    """An ONNX model for every operation kind that a call uses, keyed by kind.

    Its graph inputs are i0, i1, .. and its outputs o0, o1, ..; batch axes are symbolic.  `progress` counts kinds.
    """
    step = progress("exporting operations", len(kinds))
    models: dict[str, onnx.ModelProto] = {}
    for op, body in kinds.items():
        models[op] = export(body)
        step()
    return models


def export(body: Body) -> onnx.ModelProto:
    """One operation as a checked opset 17 model, from the user's cache or traced."""
    versions = (str(torch.__version__), onnx.__version__, *map(version, ("onnxscript", "onnx-ir")))
    key = (*versions, msgspec.json.encode(body, order="deterministic"), source_hash(*SOURCES))
    return onnx.load_from_string(cached("segments", key, lambda: traced(body).SerializeToString()))


class Module(torch.nn.Module):
    """A body that is computed by PyTorch."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self._body = body

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = execute(self._body.primitives, dict(zip(self._body.inputs, values, strict=True)))
        return tuple(made[name] for name in self._body.outputs)


def traced(body: Body) -> onnx.ModelProto:
    """Trace it with symbolic batch axes."""
    axes = {name: torch.export.Dim(name) for name in EXAMPLE}
    arguments, dynamic = [], []
    for value in (body.values[name] for name in body.inputs):
        shape = [EXAMPLE[n] if isinstance(n, str) else n for n in value.shape]
        arguments.append(torch.zeros(shape, dtype=getattr(torch, value.dtype)))
        dynamic.append({i: axes[n] for i, n in enumerate(value.shape) if isinstance(n, str)} or None)
    module = Module(body).eval()
    with torch.no_grad():
        module(*arguments)  # makes the tables that are part of it
    keep_operators()
    with quiet():
        program = torch.onnx.export(
            module,
            tuple(arguments),
            dynamo=True,
            opset_version=EXPORTED,
            dynamic_shapes=(tuple(dynamic),),
            input_names=[f"i{i}" for i in range(len(arguments))],
            output_names=[f"o{i}" for i in range(len(body.outputs))],
            verbose=False,
        )
    assert program is not None
    return downgrade(program.model_proto, body.kind)


def keep_operators() -> None:
    """Torch's exporter parses the 500 functions of its own operators again for every model, which is a third of the time: once
    is enough.  Where another version does it elsewhere, nothing is changed."""
    found = getattr(sys.modules.get("torch.onnx._internal.exporter._registration"), "onnxscript_apis", None)
    parse = getattr(found, "get_torchlib_ops", None)
    if found is not None and parse is not None and not hasattr(parse, "cache_info"):
        found.get_torchlib_ops = functools.cache(parse)


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
