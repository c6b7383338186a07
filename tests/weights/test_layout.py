"""The file of the weights: what any reader of safetensors finds in it, and views of it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from l2c_export.errors import WeightsError
from l2c_export.ir.dtypes import BYTES, Types
from l2c_export.ir.precisions import DTYPES
from l2c_export.weights import layout
from l2c_export.weights.checkpoint import open_checkpoint
from l2c_export.weights.layout import Layout, mapped
from l2c_export.weights.recipe import Recipe, TensorRecord, TensorSource, records

SHAPES = {"blocks.0.attn.w": (6, 3), "blocks.0.mlp.w": (4, 5), "blocks.1.attn.w": (3,), "a": (2, 1, 3)}


def written(path, tensors):
    """A file of random numbers, and these."""
    values = {
        name: np.random.default_rng(n).standard_normal(r.shape, np.float32) for n, (name, r) in enumerate(tensors.items())
    }
    layout.write(path, Layout(tensors), sorted(values.items()))
    return values


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("fp32", [(), ("blocks.0.mlp",)])
def test_every_reader_and_every_view_finds_the_same_numbers(tmp_path, precision, fp32):
    tensors = records(SHAPES, Types(DTYPES[precision], fp32), {})
    values = written(tmp_path / "w", tensors)
    theirs, ours = load_file(tmp_path / "w"), mapped(tmp_path / "w", tensors)
    assert theirs.keys() == tensors.keys()
    for name, value in values.items():
        want = torch.from_numpy(value).to(getattr(torch, tensors[name].dtype))
        assert torch.equal(theirs[name], want)
        assert ours(name).dtype == tensors[name].dtype
        assert np.array_equal(ours(name).astype(np.float32), want.float().numpy())
        place, whole = (Layout(tensors).place(name, rows) for rows in (slice(1, 2), slice(None)))
        assert place.offset == whole.offset + place.bytes
        assert place.shape == (1, *whole.shape[1:])
    assert {name for name, t in tensors.items() if t.dtype != DTYPES[precision]} == (
        {"blocks.0.mlp.w"} if fp32 and precision != "fp32" else set()
    )
    assert (tmp_path / "w").stat().st_size == Layout(tensors).bytes
    assert all(BYTES[t.dtype] * values[n].size == t.bytes for n, t in tensors.items())


def test_views_are_of_one_mapping_that_is_never_written_back(tmp_path):
    tensors = records(SHAPES, Types(), {})
    written(tmp_path / "w", tensors)
    before, view = (tmp_path / "w").read_bytes(), mapped(tmp_path / "w", tensors)
    assert np.shares_memory(view("a"), view("a")[0])
    view("a")[...] = 7
    assert np.all(view("a") == 7)
    assert (tmp_path / "w").read_bytes() == before


def test_the_file_of_other_tensors_of_the_same_sizes_is_refused(tmp_path):
    """They would lie in another order."""
    tensors = records(SHAPES, Types(), {})
    written(tmp_path / "w", tensors)
    others = {"z" if name == "a" else name: tensor for name, tensor in tensors.items()}
    assert Layout(others).bytes == Layout(tensors).bytes
    with pytest.raises(WeightsError, match="holds other tensors than the manifest says"):
        mapped(tmp_path / "w", others)


def test_a_recipe_is_kept_where_it_says_more_than_the_name():
    recipes = {"a": Recipe.of("a"), "b": Recipe.of("theirs"), "c": Recipe.of("a", "a"), "d": Recipe((TensorSource("d", 1),))}
    kept = records(dict.fromkeys("abcde", (2, 2)), Types("float16"), recipes)
    assert {name for name, tensor in kept.items() if tensor.recipe} == set("bcd")
    assert msgspec.json.encode(kept["a"]) == b'{"shape":[2,2],"dtype":"float16"}'
    for tensor in kept.values():
        assert msgspec.json.decode(msgspec.json.encode(tensor), type=TensorRecord) == tensor


def test_float32_checkpoints_are_read_in_place_and_others_are_widened(tmp_path):
    tensors = records(SHAPES, Types("bfloat16", ("blocks.0.attn", "blocks.1.attn")), {})
    values = written(tmp_path / "w", tensors)
    checkpoint = open_checkpoint(tmp_path / "w")
    for name, tensor in tensors.items():
        assert checkpoint.read(name).dtype == np.float32
        rounded = torch.from_numpy(values[name]).to(getattr(torch, tensor.dtype)).float().numpy()
        assert np.array_equal(checkpoint.read(name), rounded)
        in_place = tensor.dtype == "float32" and checkpoint.read(name).flags.aligned
        assert np.shares_memory(checkpoint.read(name), checkpoint.read(name)) is in_place


def test_tensors_at_odd_places_of_a_file_are_read(tmp_path):
    """A header of any length is allowed, and some writers do not fill it up."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    head = b'{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    head += b" " * (-len(head) % 4 + 1)
    (tmp_path / "w").write_bytes(len(head).to_bytes(8, "little") + head + values.tobytes())
    read = open_checkpoint(tmp_path / "w").read("w")
    assert np.array_equal(read, values)
    assert read.flags.aligned


def test_a_torch_checkpoint_is_read_in_place_where_it_can_be(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"plain": base, "across": base.t(), "half": base.half()}, tmp_path / "w.pt")
    checkpoint = open_checkpoint(tmp_path / "w.pt")
    assert np.array_equal(checkpoint.read("across"), base.t().numpy())
    assert checkpoint.read("across").flags.c_contiguous
    assert [np.shares_memory(checkpoint.read(n), checkpoint.read(n)) for n in ("plain", "across", "half")] == [
        True,
        False,
        False,
    ]
