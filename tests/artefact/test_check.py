"""Manifests that contradict themselves, with a checksum that is right."""

from __future__ import annotations

import msgspec
import pytest
from manifests import changed

from l2c_export.artefact import store
from l2c_export.artefact.records import FILE
from l2c_export.errors import ArtefactError
from l2c_export.weights.recipe import Recipe, TensorSource

NAME = "blocks.0.attn.qkv.weight"


@pytest.mark.parametrize("spoilt", [
    {"dtype": "float8"}, {"dtype": "int32"}, {"dtype": ""}, {"shape": (0, 8)}, {"shape": (-24, -8)}, {"shape": (2**40, 8)},
], ids=str)  # fmt: skip
def test_a_stored_tensor_of_no_usable_type_is_refused(copy, spoilt):
    manifest = store.read(copy)
    tensors = {**manifest.denoiser.tensors, NAME: msgspec.structs.replace(manifest.denoiser.tensors[NAME], **spoilt)}
    store.write_json(copy / FILE, changed(manifest, tensors=tensors))
    with pytest.raises(ArtefactError, match=f"the weight '{NAME}' has no usable type") as error:
        store.read(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"dtype": "float16"}, {"shape": (24, 9)}], ids=str)
def test_tensors_make_as_many_bytes_as_the_file_has(copy, changes):
    manifest = store.read(copy)
    tensors = {**manifest.denoiser.tensors, NAME: msgspec.structs.replace(manifest.denoiser.tensors[NAME], **changes)}
    store.write_json(copy / FILE, changed(manifest, tensors=tensors))
    with pytest.raises(ArtefactError, match=r"its tensors make \d+ bytes, weights.safetensors has \d+"):
        store.read(copy)


@pytest.mark.parametrize("recipe", [
    {}, {"sources": []}, {"sources": [{"tensor": "w", "first": -1}]}, {"sources": [{"tensor": "w"}], "axis": -2},
    {"sources": [{"tensor": "w", "last": 0}]}, {"sources": [{"tensor": "../w", "path": "x"}]}, "w", ["w"], 7,
], ids=str)  # fmt: skip
def test_a_damaged_recipe_is_one_line(copy, recipe):
    raw = msgspec.json.decode((copy / FILE).read_bytes())
    raw["denoiser"]["tensors"][NAME]["recipe"] = recipe
    (copy / FILE).write_bytes(msgspec.json.encode({**raw, "checksum": store.checksum(raw)}))
    with pytest.raises(ArtefactError, match=r"manifest\.json is damaged: ") as error:
        store.read(copy)
    assert "\n" not in str(error.value)


def test_a_recipe_is_of_no_account_where_nothing_is_linked(copy):
    manifest = store.read(copy)
    huge = Recipe((TensorSource("w", 2**62, None, 2**62),), 2**62)
    tensors = {name: msgspec.structs.replace(tensor, recipe=huge) for name, tensor in manifest.denoiser.tensors.items()}
    store.write_json(copy / FILE, changed(manifest, tensors=tensors))
    assert store.read(copy).denoiser.shapes == manifest.denoiser.shapes
