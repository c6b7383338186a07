from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def wide(tmp_path_factory, own_cache):
    """A DiT on 8 x 8 latents, 10 classes, for a batch of 4, with programs of 7 and of 4 steps: its folder."""
    from helpers import case

    from l2c_export.compiler.compile import compile_artefact
    from l2c_export.compiler.request import Wanted

    folder = tmp_path_factory.mktemp("wide") / "engines"
    chosen = {"schedule": "every:2", "steps": 7, "threshold": None, "further": (Wanted("every:2", 4),), "batch": 4}
    compile_artefact(case("dit_tiny_odd_resetN").options(folder, **chosen))
    return folder


@pytest.fixture(scope="module")
def wide_pipe(wide):
    import l2c_export

    return l2c_export.load(wide, backend="onnxruntime", threads=1)


@pytest.fixture(scope="session")
def rgb(tmp_path_factory, own_cache):
    """A U-ViT that draws 4 x 4 pixels, of 3 classes, 4 at once, in 4 or 2 steps: its folder."""
    import json

    from l2c_export.compiler.compile import compile_artefact
    from l2c_export.compiler.request import Options, Wanted

    folder = tmp_path_factory.mktemp("rgb")
    arch = {"img_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}
    (folder / "model.json").write_text(json.dumps({"family": "uvit", "arch": arch}))
    chosen = {"schedule": "every:2", "steps": 8, "model": str(folder / "model.json"), "weights": "random:1", "batch": 4}
    compile_artefact(Options(**chosen, further=(Wanted("every:1", 4),), out=folder / "engines", backend="onnxruntime"))
    return folder / "engines"


@pytest.fixture(scope="session")
def demo(own_cache):
    """The model that ships, compiled as `l2c serve --model demo` does it: its folder."""
    import l2c_export
    from l2c_export.serving.shipped import artefact_of

    return artefact_of("demo", l2c_export.compile)


@pytest.fixture
def running(rgb, monkeypatch):
    """A server in a thread, over a pipeline that can be held."""
    from served import in_thread

    with in_thread(rgb, monkeypatch, max_queue=6) as server:
        yield server
