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
    (record,) = built.builds.values()
    assert record.targets == TARGETS
    assert set(record.engines) == set(built.denoiser.segments)
    assert all((folder / file).stat().st_size > 1000 for file in record.engines.values())


def test_segments_of_sana_build(sana, tmp_path):
    shutil.copytree(sana.out, tmp_path / "e")
    check_built(tmp_path / "e")


def test_segments_of_qwen_image_build(tmp_path):
    """Without weights, as it may be compiled from its configuration."""
    pipeline = PIPELINES["qwenimage"]
    compile_artefact(Options(
        schedule="every:1", steps=2, model=str(pipeline.folder(tmp_path / "model")), out=tmp_path / "e", tokens=TOKENS,
        size=pipeline.size, weights="none",
    ))  # fmt: skip
    check_built(tmp_path / "e")
