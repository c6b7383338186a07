"""TensorRT-RTX builds every segment of captured models, for three GPUs at once and without one."""

from __future__ import annotations

import shutil

import pytest
from prompted import PIPELINES, TOKENS

from l2c_export.backends import builds
from l2c_export.backends.building import BuildSettings
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options

pytest.importorskip("tensorrt_rtx")
TARGETS = ("sm86", "sm89", "sm120")


def check_built(folder):
    built = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=TARGETS))
    (made,) = built.builds.values()
    assert made.targets == TARGETS
    assert set(made.engines) == set(built.denoiser.segments)
    assert all((folder / file).stat().st_size > 1000 for file in made.engines.values())


@pytest.mark.parametrize("family", ["pixart", "flux", "sana"])
def test_segments_of_compiled_models_build(family, request, tmp_path):
    shutil.copytree(request.getfixturevalue(family).out, tmp_path / "e")
    check_built(tmp_path / "e")


@pytest.mark.parametrize("family", ["sd35", "auraflow", "qwenimage"])
def test_segments_of_models_without_weights_build(family, tmp_path):
    each = PIPELINES[family]
    compile_artefact(Options(
        schedule="every:2", steps=2, model=str(each.folder(tmp_path / "model")), out=tmp_path / "e", tokens=TOKENS,
        size=each.size, weights="none",
    ))  # fmt: skip
    check_built(tmp_path / "e")
