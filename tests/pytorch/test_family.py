"""What PyTorch builds is the model of the artefact's graphs, or none."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from recorded import GOLDEN

from l2c_export.artefact import store
from l2c_export.errors import ArtefactError
from l2c_export.pytorch.family import family_of

SOUND = store.read(GOLDEN / "v2" / "engines")


def with_arch(**fields):
    return replace(SOUND, denoiser=replace(SOUND.denoiser, arch={**SOUND.denoiser.arch, **fields}))


def test_it_has_the_tensors_of_the_graphs():
    assert family_of(SOUND).tensors() == SOUND.denoiser.shapes


@pytest.mark.parametrize(("manifest", "words"), [
    (with_arch(depth=3), "its tensors are not those of a dit"),
    (with_arch(depth="3"), "describes no model"),
    (with_arch(depth=10**9), "describes no model"),
    (with_arch(width=3), "describes no model"),
    (replace(SOUND, denoiser=replace(SOUND.denoiser, family="../x")), "describes no model"),
    (replace(SOUND, denoiser=replace(SOUND.denoiser, sublayers=SOUND.denoiser.sublayers[::-1])), "its sublayers are not"),
    (replace(SOUND, inputs=(replace(SOUND.inputs[0], name="others"),)), "its inputs are not"),
], ids=["depth", "text", "huge", "unknown", "no family", "sublayers", "inputs"])  # fmt: skip
def test_an_architecture_of_another_model_is_refused(manifest, words):
    with pytest.raises(ArtefactError, match=words) as error:
        family_of(manifest)
    assert "\n" not in str(error.value)
