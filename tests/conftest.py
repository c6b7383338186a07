from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings

# by the clock an example takes as long as the neighbours want
settings.register_profile("beside others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside others")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Exported segments are cached for this run only, and shared between the workers."""
    root = tmp_path_factory.getbasetemp()
    os.environ["L2C_CACHE"] = str((root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root) / "l2c-cache")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session", autouse=True)
def volatile():
    """No test cuts the power: waiting for the disk at every compilation would only take time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, own_cache):
    """A compiled golden case, for tests that only read it: (folder, case)."""
    from helpers import case

    from l2c_export.compiler.compile import compile_artefact

    chosen = case("dit_tiny_odd_resetN")
    folder = tmp_path_factory.mktemp("tiny") / "engines"
    compile_artefact(chosen.options(folder))
    return folder, chosen


@pytest.fixture(scope="session")
def pixels(tmp_path_factory, own_cache):
    """A tiny U-ViT that works on RGB pixels, with random weights: its folder.  It evaluates twice per solver step."""
    from l2c_export.compiler.compile import compile_artefact
    from l2c_export.compiler.request import Options

    folder = tmp_path_factory.mktemp("pixels")
    arch = {"img_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}
    (folder / "model.json").write_text(json.dumps({"family": "uvit", "arch": arch}))
    chosen = {"schedule": "every:2", "steps": 4, "model": str(folder / "model.json"), "weights": "random:1", "batch": 2}
    compile_artefact(Options(**chosen, out=folder / "engines", backend="onnxruntime"))
    return folder / "engines"


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not cuda_devices():
        pytest.skip("no CUDA GPU here")


def cuda_devices() -> int:
    try:
        from cuda.bindings import runtime
    except ImportError:
        return 0
    error, count = runtime.cudaGetDeviceCount()
    return count if error == runtime.cudaError_t.cudaSuccess else 0


@pytest.fixture(scope="module")
def one_thread():
    """Products this small gain nothing from more, and lose much on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def neighbour():
    """Other programs that want every processor: no descendants of this one, as those of a neighbour are none."""
    from l2c_export.support import neighbours

    if neighbours.everybody() is None:
        pytest.skip("nobody counts here what others use")
    spin = "import os, time\nend = time.monotonic() + 120\nwhile time.monotonic() < end: pass"
    start = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {spin!r}], stdout=-3).pid)"
    pids = [int(subprocess.check_output([sys.executable, "-c", start])) for _ in neighbours.processors()]
    yield
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
