"""Matrices that are stored narrower: what lies in the file, what comes back, and what that has cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from l2c_export.errors import WeightsError
from l2c_export.ir.dtypes import BYTES, Types
from l2c_export.weights import layout, narrow
from l2c_export.weights.layout import Layout, mapped
from l2c_export.weights.recipe import records
from l2c_export.weights.stored import stored_as

SHAPES = {
    "a.fc.weight": (65, 67), "a.fc.bias": (65,), "b.conv.weight": (32, 16, 3, 3), "norm.weight": (8192,),
    "pos_embed": (1, 90, 64), "small.weight": (3, 5), "wide.weight": (64, 64),
}  # fmt: skip
MATRICES = {"a.fc.weight", "b.conv.weight"}


def values(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of very different sizes, one of them of zeros."""
    random = np.random.default_rng(seed)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays["a.fc.weight"] *= np.geomspace(1e-6, 1e3, 65, dtype=np.float32)[:, None]
    arrays["a.fc.weight"][7] = 0
    return arrays


def stored(path, kind, dtype="float32"):
    tensors = stored_as(records(SHAPES, Types(dtype), {}), kind, kept=("wide",))
    arrays = values()
    cost = layout.write(path, Layout(tensors), sorted(arrays.items()))
    return tensors, arrays, cost


@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8"])
def test_matrices_alone_are_narrower_and_other_readers_find_them(tmp_path, kind):
    tensors, arrays, cost = stored(tmp_path / "w", kind)
    assert {name for name, record in tensors.items() if record.stored} == MATRICES
    theirs, ours, lost = load_file(tmp_path / "w"), mapped(tmp_path / "w", tensors), {}
    for name, value in arrays.items():
        tensor = theirs[name]
        if name in MATRICES and kind == "int8":
            assert tensor.dtype == torch.int8
            rows = theirs[f"{name}.scale"].reshape(-1, *[1] * (tensor.ndim - 1))
            assert torch.equal(theirs[f"{name}.scale"] * 127 >= 0, torch.ones(len(rows), dtype=bool))
            assert int(tensor.abs().amax()) == 127
            assert np.abs(value - (tensor.double() * rows.double()).numpy()).max() <= 0.5001 * rows.max()
            tensor = tensor.float() * rows
        assert ours(name).dtype == np.float32
        assert np.array_equal(ours(name), tensor.float().numpy())
        assert np.array_equal(ours(name), value) == (name not in MATRICES)
        lost[name] = np.linalg.norm((ours(name) - value).astype(np.float64)) / np.linalg.norm(value.astype(np.float64))
    assert cost.matrices == 2
    assert cost.worst == max(lost, key=lost.get)
    assert cost.worst_error == pytest.approx(lost[cost.worst], rel=1e-4)
    total = [np.linalg.norm([np.linalg.norm(part) for part in group]) for group in (
        [ours(name) - arrays[name] for name in MATRICES], [arrays[name] for name in MATRICES])]  # fmt: skip
    assert cost.error == pytest.approx(total[0] / total[1], rel=1e-3)
    assert not (ours("a.fc.weight")[7] != 0).any()


def test_every_row_has_a_scale_of_its_own(tmp_path):
    """Rows a billion times smaller than others are as exact as they."""
    tensors, arrays, _ = stored(tmp_path / "w", "int8")
    got, want = mapped(tmp_path / "w", tensors)("a.fc.weight"), arrays["a.fc.weight"]
    for n, row in enumerate(want):
        assert np.abs(got[n] - row).max() <= np.abs(row).max() / 127 * 0.5001


def test_what_was_stored_is_stored_again_to_the_same_bits(tmp_path):
    tensors, _, _ = stored(tmp_path / "w", "int8")
    view = mapped(tmp_path / "w", tensors)
    cost = layout.write(tmp_path / "again", Layout(tensors), ((name, view(name)) for name in sorted(tensors)))
    again = mapped(tmp_path / "again", tensors)
    assert all(np.allclose(view(name), again(name), rtol=1e-6, atol=0) for name in tensors)
    assert cost.error < 1e-6
    old, new = (load_file(tmp_path / name) for name in ("w", "again"))
    assert all(torch.equal(old[name], new[name]) for name in MATRICES)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3.4e38, -3.4e38])
def test_rows_of_any_size(value):
    row = np.full((2, 3), value, np.float32)
    scale = narrow.scales(row)
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
    back = narrow.widened(narrow.quantised(row, scale), scale, "float32")
    assert np.isfinite(back).all()
    assert np.abs(back - row).max() <= max(abs(value) / 127, 1e-44)


def test_a_matrix_is_widened_once_and_the_rest_is_not_copied(tmp_path):
    tensors, _, _ = stored(tmp_path / "w", "int8")
    view = mapped(tmp_path / "w", tensors)
    assert view("a.fc.weight") is view("a.fc.weight")
    assert view("a.fc.weight").flags.c_contiguous
    assert isinstance(view("wide.weight").base, np.ndarray), "a view of the file"
    for name in tensors:
        assert view(name).ctypes.data % 4 == 0, "behind bytes of odd counts numbers would not be where engines take them"


def test_what_is_computed_in_16_bits_is_stored_in_8(tmp_path):
    tensors, arrays, _ = stored(tmp_path / "w", "int8", "float16")
    view = mapped(tmp_path / "w", tensors)
    assert {str(view(name).dtype) for name in tensors} == {"float16"}
    assert np.abs(view("b.conv.weight").astype(np.float32) - arrays["b.conv.weight"]).max() < 0.03
    plain = stored_as(records(SHAPES, Types("float16"), {}), "bf16")
    assert not any(record.stored for record in plain.values()), "16 bits are no narrower"
    assert sum(entry.bytes for entry in Layout(plain).entries.values()) == sum(
        BYTES["float16"] * int(np.prod(shape)) for shape in SHAPES.values()
    )


def test_numbers_that_cannot_be_stored_are_refused(tmp_path):
    tensors = stored_as(records({"a.weight": (64, 64)}, Types(), {}), "fp16")
    large, odd = np.full((64, 64), 1e5, np.float32), np.full((64, 64), np.nan, np.float32)
    with pytest.raises(WeightsError, match=r"4,096 values of a.weight do not fit into float16: use store='bf16' or int8"):
        layout.write(tmp_path / "w", Layout(tensors), [("a.weight", large)])
    with pytest.raises(WeightsError, match=r"4,096 values of a.weight are NaN"):
        layout.write(tmp_path / "w", Layout(stored_as(tensors, "int8")), [("a.weight", odd)])
    assert not (tmp_path / "w").exists()
