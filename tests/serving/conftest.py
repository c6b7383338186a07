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
