"""Manifests that contradict themselves, with a checksum that is right."""

from __future__ import annotations

import msgspec
import pytest
from manifests import changed
from recorded import GOLDEN

from l2c_export.artefact import store
from l2c_export.artefact.check import problem
from l2c_export.artefact.records import FILE, DecoderRecord, FileInfo, Origin
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


def contradiction(**fields):
    """What is said of the golden artefact with other fields."""
    return problem(changed(store.read(GOLDEN / "v2" / "engines"), **fields)) or "nothing"


def test_every_call_has_the_coefficients_that_its_graph_takes_and_the_last_ends_a_step():
    *calls, last = store.read(GOLDEN / "v2" / "engines").program().calls
    less = msgspec.structs.replace(last, coefficients=last.coefficients[1:])
    assert "it has 2 coefficients, and its graphs take (3,)" in contradiction(calls=(*calls, less))
    assert "its last call ends no step" in contradiction(calls=(*calls, msgspec.structs.replace(last, ends_step=False)))


def test_latents_have_the_shape_that_the_graphs_take():
    assert "latents of shape (4, 4, 7), which its graphs take as" in contradiction(latent=(4, 4, 7))


def test_a_decoder_is_for_pictures():
    manifest = store.read(GOLDEN / "v2" / "engines")
    decoder = DecoderRecord(file="vae/decoder.onnx", scale=2, channels=3, scaling_factor=1.0, tile=8)
    files = {**manifest.files, decoder.file: FileInfo(bytes=1, sha256="0" * 64)}
    assert contradiction(decoder=decoder, files=files) == "nothing"
    assert "a decoder for latents of shape (4, 4)" in contradiction(decoder=decoder, files=files, latent=(4, 4))
    flat = msgspec.structs.replace(decoder, tile=0)
    assert "a decoder of 3 channels, scale 2 and tiles of 0" in contradiction(decoder=flat, files=files)


@pytest.mark.parametrize(("name", "origin"), [
    ("pos_embed", Origin("weight", "pos_embed", 1)),
    ("pos_embed", Origin("weight", "pos_embed", 0, None, 1)),
    ("x", Origin("state", "x", -1)),
    ("latents", Origin("state", "x")),
    ("x", Origin("state", "x", 0, 0, 1)),
    ("t", Origin("time", "t", 1)),
    ("request.class_labels", Origin("request", "class_labels", -1)),
    ("coefficients", Origin("coefficients", "coefficients", 1)),
], ids=str)  # fmt: skip
def test_what_the_loop_provides_is_of_this_call_and_under_the_name_that_it_has_there(name, origin):
    origins = store.read(GOLDEN / "v2" / "engines").program().size.origins
    assert f"{name!r} is from nowhere" in contradiction(origins={**origins, name: origin})


def test_the_graphs_before_the_loop_read_what_is_of_their_own_call():
    size = store.read(GOLDEN / "v2" / "engines").program().size
    (name,) = size.graphs["constants"].outputs
    assert name in size.graphs["prologue"].inputs
    origins = {**size.origins, name: Origin("prologue", name, 1)}
    assert f"prologue: {name!r} is of another call" in contradiction(origins=origins)
