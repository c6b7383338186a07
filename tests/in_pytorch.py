"""A backend that runs primitives in PyTorch, one by one: an oracle for artefacts that only a GPU runs, as those in fp8."""

from __future__ import annotations

import torch

from l2c_export.backends.descriptor import CPU, Descriptor, Site
from l2c_export.backends.host import OnHost
from l2c_export.backends.nvidia.graphs import inlined
from l2c_export.models import bank, updates  # noqa: F401  (more primitives)
from l2c_export.models.primitives import execute
from l2c_export.pytorch.stored import as_tensor

EVERY = ("fp32", "bf16", "fp16", "fp8")
IN_PYTORCH = Descriptor(name="in-pytorch", home=__name__, library="torch", extra="export", precisions=EVERY,
                        sites=(Site(CPU, "torch"),))  # fmt: skip


class PrimitivesEngine:
    def __init__(self, primitives, weights):
        self.primitives, self.weights = primitives, {name: as_tensor(array) for name, array in weights.items()}

    def bind(self, inputs, outputs):
        tensors = {**self.weights, **{name: as_tensor(array) for name, array in inputs.items()}}
        results = {name: as_tensor(array) for name, array in outputs.items()}

        def run():
            with torch.no_grad():
                values = execute(self.primitives, tensors)
            for name, tensor in results.items():
                tensor.copy_(values[name])

        return run


class InPyTorch(OnHost):
    name = "in-pytorch"

    def describe(self):
        return f"PyTorch {torch.__version__}"

    def load(self, segment):
        return PrimitivesEngine(segment.primitives, {})

    def link(self, path, nodes, segments, outputs, weights):
        return PrimitivesEngine([p for node in nodes for p in inlined(node, segments[node.op])], weights)


def open_backend(name, request):
    return InPyTorch()
