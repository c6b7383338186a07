"""PyTorch over an artefact's own file of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from l2c_export.artefact import store
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.pytorch.stored import as_tensor, stored

MODEL = '{"family": "dit", "arch": {"input_size": 4, "hidden_size": 8, "depth": 1, "num_heads": 2, "num_classes": 3}}'


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def artefact(request, tmp_path_factory, own_cache):
    folder = tmp_path_factory.mktemp("reference")
    (folder / "model.json").write_text(MODEL)
    options = {"model": str(folder / "model.json"), "weights": "random:1", "steps": 2, "precision": request.param}
    return folder / "e", compile_artefact(Options(schedule="every:2", out=folder / "e", **options))


def test_the_weights_are_views_of_the_file(artefact):
    folder, manifest = artefact
    tensors, want = stored(folder, manifest), load_file(folder / "weights.safetensors")
    assert tensors.keys() == want.keys() == store.read(folder).denoiser.tensors.keys()
    assert all(torch.equal(tensors[name], want[name]) and tensors[name].dtype == want[name].dtype for name in want)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not show what is mapped")
    lines = [line.split() for line in maps.read_text().splitlines() if line.endswith(str(folder / "weights.safetensors"))]
    places = [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]
    assert all(any(tensor.data_ptr() in place for place in places) for tensor in tensors.values())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
def test_an_array_of_any_type_is_the_same_memory(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = as_tensor(array)
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    tensor[0, 0] = 7
    assert array[0, 0] == 7
