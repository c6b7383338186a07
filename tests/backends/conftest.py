from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def half(tmp_path_factory, own_cache):
    """A compiled golden case in half precision, for tests that only read it."""
    from helpers import compiled

    return compiled("dit_tiny_odd_resetN", tmp_path_factory.mktemp("half") / "e", precision="fp16")


@pytest.fixture
def built(monkeypatch, tmp_path):
    """The models that are built anew, by a builder that does no work and has kept nothing from before the test."""
    from l2c_export.backends.tensorrt.builder import Builder

    models = []
    monkeypatch.setattr(Builder, "identity", [str(tmp_path)])
    monkeypatch.setattr(Builder, "build", lambda self, model, *_: models.append(model.name) or b"plan")
    return models


@pytest.fixture
def cudart(monkeypatch):
    """CUDA's runtime without a GPU: its device memory is the host's."""
    pytest.importorskip("cuda.bindings.runtime")
    from fake_cuda import FakeCudart

    from l2c_export.backends.cuda import device, dlpack

    fake = FakeCudart()
    monkeypatch.setattr(device, "needs", lambda package, extra: fake)
    monkeypatch.setattr(dlpack, "CUDA", 1)  # DLPack's number of the host
    return fake
