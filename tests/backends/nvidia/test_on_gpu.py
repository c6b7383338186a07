"""Segments on a GPU against PyTorch on the CPU: products, attention, sums over rows, kernels that are written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segments import FAMILIES, LARGER, LOOSE, Segment, alone, bodies, in_e4m3, of_body, off_by

from l2c_export.backends.contract import Request, SegmentFile
from l2c_export.ir.dtypes import E4M3
from l2c_export.models.primitives import execute

pytestmark = pytest.mark.gpu
TOLERANCE = {"float32": 2e-5, "float16": 3e-2, "bfloat16": 6e-2}


@pytest.fixture(scope="module")
def backend():
    for package in ("nvmath", "cudnn", "cuda.core"):
        pytest.importorskip(package)
    from l2c_export.backends.nvidia.backend import open_backend

    return open_backend("cuda", Request("cuda"))


def as_array(dense):
    if dense.dtype in (torch.bfloat16, torch.float8_e4m3fn):
        name = str(dense.dtype).removeprefix("torch.")
        return dense.view(getattr(torch, f"int{8 * dense.itemsize}")).numpy().view(name)
    return dense.numpy()


def put(backend, tensor):
    dense = tensor.contiguous()
    values = as_array(dense)
    array = backend.memory.empty(values.shape, str(values.dtype))
    backend.memory.put(array, values)
    backend.memory.finish()
    return array


def got(backend, array):
    values = backend.memory.get(array)
    return torch.from_numpy(values.astype(np.float32))


def error(backend, segment: Segment) -> float:
    tensors = segment.some()
    wanted = execute(segment.primitives, tensors)
    file = SegmentFile(Path("segment.onnx"), tuple(tensors), segment.outputs, primitives=tuple(segment.primitives))
    inputs = {name: put(backend, tensor) for name, tensor in tensors.items()}
    outputs = {name: put(backend, torch.full_like(wanted[name], 77)) for name in segment.outputs}
    run = backend.load(file).bind(inputs, outputs)
    worst = 0.0
    for call in (run, backend.sequence([run])):  # once by itself, once in a CUDA graph
        call()
        backend.memory.finish()
        worst = max(worst, *(off_by(got(backend, outputs[name]), wanted[name]) for name in segment.outputs))
    return worst


def tolerance(segment):
    allowed = {**TOLERANCE, E4M3: TOLERANCE["bfloat16"]}
    return max(allowed.get(value.dtype, TOLERANCE["float32"]) for value in segment.inputs.values())


@pytest.mark.parametrize(
    "example", [*LOOSE, *LARGER], ids=lambda example: f"{example[0]}-{[(*v.shape, v.dtype) for v in example[1]]}"[:90]
)
def test_single_primitives(backend, example):
    segment = alone(*example)
    assert error(backend, segment) < tolerance(segment)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FAMILIES)
def test_families(backend, name, dtype):
    for kind, body in bodies(name, dtype).items():
        assert error(backend, of_body(body)) < TOLERANCE[dtype], kind


@pytest.mark.parametrize("name", ["dit", "uvit"])
def test_products_in_e4m3(backend, name):
    for op, body in in_e4m3(name).items():
        assert error(backend, of_body(body)) < TOLERANCE["bfloat16"], op
