"""What a request's guidance means for the model's batch."""

from __future__ import annotations

import numpy as np
import pytest
from manifests import changed
from msgspec.structs import replace
from recorded import GOLDEN

from l2c_export.artefact import store
from l2c_export.artefact.guidance import guided_labels

MANIFEST = store.read(GOLDEN / "v2" / "engines", verify=False)


@pytest.mark.parametrize(
    ("mode", "guided", "rows"), [("first3", True, 6), ("all", True, 6), ("all", False, 3), ("none", True, 3)]
)
def test_guidance_doubles_the_rows_of_a_batch(mode, guided, rows):
    manifest = replace(MANIFEST, guidance=replace(MANIFEST.guidance, mode=mode))
    assert manifest.program().rows(3, guided) == rows
    assert manifest.program().rows(3) == (3 if mode == "none" else 6)


@pytest.mark.parametrize(("mode", "channels"), [("first3", [2.5, 2.5, 2.5, 0]), ("all", [2.5] * 4)])
def test_the_unconditional_half_is_last_and_the_scale_counts_above_one(mode, channels):
    manifest = changed(MANIFEST, latent=(4, 8, 8), null_label=10, guidance=replace(MANIFEST.guidance, mode=mode))
    labels, strength = guided_labels(manifest, [3, 7], 3.5)
    assert labels.tolist() == [3, 7, 10, 10]
    assert (labels.dtype, strength.dtype) == (np.int32, np.float32)
    assert strength.tolist() == channels
    assert guided_labels(manifest, [3], 3.5, "float64").strength.dtype == np.float64


def test_without_guidance_there_is_one_half():
    labels, strength = guided_labels(MANIFEST, [1, 2], 1)
    assert labels.tolist() == [1, 2]
    assert not strength.any()
