from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of PyTorch, also in commands: two workers and their threads wait for each other

with contextlib.suppress(ImportError):  # where test_gpu.py runs alone there need be no hypothesis
    from hypothesis import HealthCheck, settings

    # by the clock an example takes as long as the neighbours want
    settings.register_profile("beside others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("beside others")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Exported segments are cached for this run only, and shared between the workers."""
    root = tmp_path_factory.getbasetemp()
    os.environ["L2C_CACHE"] = str((root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root) / "l2c-cache")


@pytest.fixture(scope="session", autouse=True)
def one_pool():
    """ONNX Runtime's pool has the size that a process first asks for: one thread, whichever test is the first."""
    if importlib.util.find_spec("onnxruntime"):
        from l2c_export.backends.onnxruntime.session import share_pool

        share_pool(1)


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


@pytest.fixture(scope="session")
def prompted_by(tmp_path_factory, own_cache):
    """A pipeline with text encoders by its family, compiled with them, for tests that only read it.

    Its first program is every:2 of 2 steps, the other one every:1 of 3.
    """

    @functools.cache
    def export_of(family):
        import texts

        root, full = tmp_path_factory.mktemp(family), (("every:1", 3),)
        return texts.exported(family, root / "model", root / "out", with_vae=family.startswith("pixart"), further=full)

    return export_of


@pytest.fixture
def copy(tmp_path):
    """A small artefact of one's own."""
    from folders import GOLDEN

    return shutil.copytree(GOLDEN, tmp_path / "engines")


@pytest.fixture
def other(tmp_path):
    """Another one, with more files and other weights."""
    import msgspec
    from folders import GOLDEN

    from l2c_export.artefact import integrity, store
    from l2c_export.artefact.records import FILE
    from l2c_export.compiler.link import bind

    folder = shutil.copytree(GOLDEN, tmp_path / "other")
    bind(folder, "random:9")
    manifest = store.read(folder)
    (folder / "extra").mkdir()
    (folder / "extra" / "new.plan").write_bytes(b"plan")
    more = {**manifest.files, "extra/new.plan": integrity.info(folder / "extra" / "new.plan")}
    store.write_json(folder / FILE, msgspec.structs.replace(manifest, files=more))
    return folder


@pytest.fixture
def disk(monkeypatch):
    """What is moved where, and which file's bytes or folder's names are waited for, in order."""
    from l2c_export.artefact import staging
    from l2c_export.support import files

    events: list[tuple[str, Path]] = []

    def noted(kind, act):
        return lambda *paths: (events.append((kind, Path(paths[-1]))), act(*paths))[1]

    sync = noted("sync", files.sync)
    for module, name, act in (
        (os, "rename", noted("move", os.rename)),
        (os, "replace", noted("move", os.replace)),
        (files, "sync", sync),
        (staging, "sync", sync),
    ):
        monkeypatch.setattr(module, name, act)
    return events


@pytest.fixture(scope="session")
def worlds(tmp_path_factory, own_cache):
    """Pipelines of diffusers by the name of their scheduler, and what is compiled from them: compiled once, so only read."""
    from small_pipelines import SCHEDULERS, World, small_pipeline

    root = tmp_path_factory.mktemp("diffusers")
    return {name: World(root, root / name, small_pipeline(root / name, name), name) for name in SCHEDULERS}


@pytest.fixture(scope="session")
def world(worlds):
    return worlds["ddim"]


@pytest.fixture(scope="session")
def saved(world):
    """The folder of a pipeline of diffusers."""
    return world.folder


@pytest.fixture
def own_folder(saved, tmp_path):
    """One of one's own."""
    return shutil.copytree(saved, tmp_path / "pipe")


@pytest.fixture(scope="module")
def pipe(tiny):
    """A DiT on 8 x 8 latents, 10 classes, 7 steps, compiled for a batch of 2 with guidance of 4."""
    import l2c_export

    return l2c_export.load(tiny[0], backend="onnxruntime")


def pytest_collection_modifyitems(items):
    """The whole way comes first: where it is broken, little else is worth waiting for."""
    items.sort(key=lambda item: item.path.name != "test_tiny.py")


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
