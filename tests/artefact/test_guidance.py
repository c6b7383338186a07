"""What a request's guidance means for the model's batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as changed
from recorded import GOLDEN, asked

from l2c_export.artefact import store
from l2c_export.artefact.guidance import guided_request, halves, strength
from l2c_export.artefact.records import Guidance
from l2c_export.ir.inputs import RequestInput, class_labels

COMPILED = store.read(GOLDEN / "v1" / "engines", verify=False).program()


@pytest.mark.parametrize(
    ("mode", "guided", "rows"), [("first3", True, 6), ("all", True, 6), ("all", False, 3), ("none", True, 3)]
)
def test_guidance_doubles_the_rows_of_a_batch(mode, guided, rows):
    compiled = replace(COMPILED, guidance=changed(COMPILED.guidance, mode=mode))
    assert compiled.rows(3, guided) == rows
    assert compiled.rows(3) == (3 if mode == "none" else 6)


@pytest.mark.parametrize(("mode", "channels"), [("first3", [2.5, 2.5, 2.5, 0]), ("all", [2.5] * 4)])
def test_the_unconditional_half_is_last_and_the_scale_counts_above_one(mode, channels):
    inputs, guidance = (class_labels(10, 10),), changed(COMPILED.guidance, mode=mode)
    request = guided_request(replace(COMPILED, inputs=inputs, guidance=guidance), asked([3, 7]), np.array([3.5, 1]))
    assert request.inputs["class_labels"].tolist() == [3, 7, 10, 10]
    assert request.inputs["class_labels"].dtype == np.int32
    assert request.strength.shape == (2, 4, 1, 1)
    assert request.strength[:, :, 0, 0].tolist() == [channels, [0] * 4]
    assert request.strength.dtype == np.float32
    assert guided_request(COMPILED, asked([1]), np.array([3.5]), "float64").strength.dtype == np.float64


def test_without_guidance_there_is_one_half():
    request = guided_request(COMPILED, asked([1, 2]), np.ones(2))
    assert request.inputs["class_labels"].tolist() == [1, 2]
    assert not request.strength.any()
    assert len(guided_request(COMPILED, asked([1, 2]), np.array([1, 1.5])).inputs["class_labels"]) == 4, "one image is enough"


def test_what_has_no_unconditional_value_is_the_same_in_both_halves():
    declared = (RequestInput(name="vector", shape=(2,), unconditional=(5, 6)), RequestInput(name="size", shape=(1,)))
    both = halves(declared, {"vector": np.array([[1, 2]], np.float32), "size": np.array([[9]], np.float32)})
    assert {name: values.tolist() for name, values in both.items()} == {"vector": [[1, 2], [5, 6]], "size": [[9], [9]]}
    assert {values.dtype for values in both.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("latent", [(4,), (4, 8), (4, 8, 8), (4, 2, 8, 8)], ids=str)
def test_a_strength_has_the_rank_of_the_latents(latent):
    strengths = strength(Guidance(mode="first3", scale=1), latent, [2, 1])
    assert strengths.shape == (2, 4, *[1] * (len(latent) - 1))
    assert strengths.reshape(2, 4).tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
