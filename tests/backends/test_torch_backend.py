"""What `scripts/gpu_peers.py` times as our own calls under torch.compile computes what the engines compute."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import l2c_export
from l2c_export.backends import descriptors

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("link", ["shared", "static"])
def test_it_gives_the_latents_of_the_engines(tiny, monkeypatch, link):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    monkeypatch.setattr(descriptors, "BACKENDS", descriptors.BACKENDS)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # a compiler is tried on a GPU
    __import__("torch_backend").use_torch()
    folder, _ = tiny
    engines = l2c_export.load(folder, backend="onnxruntime")
    calls = l2c_export.load(folder, backend="torch", link=link)
    assert calls.backend.startswith("torch (torch.compile of PyTorch")
    request = {"seed": 3, "output_type": "latent"}
    np.testing.assert_allclose(calls([1, 2], 2.0, **request).latents, engines([1, 2], 2.0, **request).latents, atol=1e-4)
    assert "torch_backend" in sys.modules
