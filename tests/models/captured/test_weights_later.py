"""A captured model from its configuration alone: weights are bound to its artefact later."""

from __future__ import annotations

import shutil

import pytest
from prompted import PIPELINES, STEPS, TOKENS

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options

IMAGES = 2


def options(folder, out, **others):
    return Options(schedule="every:2", steps=STEPS, model=str(folder), out=out, batch=IMAGES, tokens=TOKENS,
                   size=PIPELINES["pixart"].size, **others)  # fmt: skip


def test_an_artefact_without_weights_becomes_the_one_with_them(pixart, tmp_path):
    shutil.copytree(pixart.folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(l2c_export.WeightsError, match="holds no weights: one of "):
        compile_artefact(options(tmp_path / "bare", tmp_path / "out"))
    compile_artefact(options(tmp_path / "bare", tmp_path / "out", weights="none"))
    assert not (tmp_path / "out" / "weights.safetensors").exists()
    l2c_export.link(tmp_path / "out", pixart.folder)
    bound, wanted = ((out / "weights.safetensors").read_bytes() for out in (tmp_path / "out", pixart.out))
    assert bound == wanted


def test_weights_that_a_folder_has_may_be_left_out(pixart, tmp_path):
    compile_artefact(options(pixart.folder, tmp_path / "out", weights="none"))
    assert not (tmp_path / "out" / "weights.safetensors").exists()
