"""Recipes: what numpy's slicing and concatenation would make, written down, checked against shapes and read piece by piece."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.errors import WeightsError
from l2c_export.weights.checkpoint import Checkpoint
from l2c_export.weights.recipe import Recipe, TensorSource


def checkpoint(tensors, asked=None):
    """Arrays as a checkpoint; `asked` is told every read."""

    def read(name):
        if asked is not None:
            asked.append(name)
        return tensors[name]

    return Checkpoint(Path("w"), {name: value.shape for name, value in tensors.items()}, read)


def array(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@st.composite
def mixtures(draw):
    """Arrays, a recipe over them, and what numpy makes of it."""
    rank = draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    shape = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    tensors, sources, parts = {}, [], []
    for n in range(draw(st.integers(1, 4))):
        if n and draw(st.booleans()):  # the same once more
            sources.append(sources[0])
            parts.append(parts[0])
            continue
        size = [*shape[:axis], draw(st.integers(1, 4)), *shape[axis + 1 :]]
        cut, before, after = draw(st.integers(0, rank - 1)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
        first, last = before, before + size[cut]
        tensors[f"t{n}"] = array([*size[:cut], last + after, *size[cut + 1 :]], n)
        sources.append(TensorSource(f"t{n}", first, last if after or draw(st.booleans()) else None, cut))
        parts.append(tensors[f"t{n}"][(slice(None),) * cut + (slice(first, last),)])
    return tensors, Recipe(tuple(sources), axis), np.concatenate(parts, axis)


@given(mixtures())
def test_parts_that_are_joined_are_what_numpy_makes(mixture):
    tensors, recipe, want = mixture
    result = checkpoint(tensors).by_recipe({"a": recipe})
    assert result.shapes == {"a": want.shape}
    got = result.read("a")
    assert got.dtype == np.float32
    assert np.array_equal(got, want)


@given(mixtures())
def test_a_recipe_that_was_written_is_the_same(mixture):
    recipe = mixture[1]
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe
    assert msgspec.json.encode(Recipe.of("a", "b")) == b'{"sources":[{"tensor":"a"},{"tensor":"b"}]}'


def test_nothing_is_read_before_its_tensor_is_asked_for_and_a_whole_one_is_not_copied():
    asked, tensors = [], {name: array((2, 3), n) for n, name in enumerate("abc")}
    result = checkpoint(tensors, asked).by_recipe(
        {"x": Recipe.of("a", "b"), "y": Recipe.of("c"), "z": Recipe((TensorSource("c", 1),))}
    )
    assert not asked
    assert result.read("x").shape == (4, 3)
    assert asked == ["a", "b"]
    assert result.read("y") is tensors["c"]
    assert np.shares_memory(result.read("z"), tensors["c"])
    assert result.recipes["y"] == Recipe.of("c")


def test_one_source_is_in_memory_at_a_time():
    size = 2**20
    big = Checkpoint(Path("w"), dict.fromkeys("abcd", (size,)), lambda name: np.full(size, ord(name), np.float32))
    tracemalloc.start()
    try:
        tensor = big.by_recipe({"x": Recipe.of(*"abcd")}).read("x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert tensor.shape == (4 * size,)
    assert peak < tensor.nbytes + 2 * 4 * size + 2**16, "the tensor, a source, and the next one before the last goes"


SHAPES = {"a": (4, 3), "b": (4, 2), "c": (), "d": (4, 3, 1)}
MISFITS = {
    "missing": (Recipe.of("a", "z"), "z is missing"),
    "too far": (Recipe((TensorSource("a", 2, 5),)), "a has shape [4, 3]: there is no 2 to 5 along axis 0"),
    "behind the end": (Recipe((TensorSource("a", 4),)), "a has shape [4, 3]: there is no 4 to 4 along axis 0"),
    "no such axis": (Recipe((TensorSource("a", 1, 2, axis=2),)), "a has shape [4, 3]: there is no 1 to 2 along axis 2"),
    "a number": (Recipe((TensorSource("c", 0, 1),)), "c has shape []: there is no 0 to 1 along axis 0"),
    "other width": (Recipe.of("a", "b"), "b gives [4, 2], a [4, 3]: not along axis 0"),
    "other height": (Recipe((TensorSource("a"), TensorSource("b", 1)), axis=1), "b gives [3, 2], a [4, 3]: not along axis 1"),
    "other rank": (Recipe.of("a", "d"), "d gives [4, 3, 1], a [4, 3]: not along axis 0"),
    "joined nowhere": (Recipe((TensorSource("a"), TensorSource("a")), axis=2), "a gives [4, 3], a [4, 3]: not along axis 2"),
    "numbers joined": (Recipe.of("c", "c"), "c gives [], c []: not along axis 0"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_cannot_be_made_is_one_line_that_names_tensor_and_shape(misfit):
    recipe, says = MISFITS[misfit]
    stored = Checkpoint(Path("w.safetensors"), SHAPES, lambda name: pytest.fail("read"))
    with pytest.raises(WeightsError) as error:
        stored.by_recipe({"blocks.0.w": recipe})
    assert str(error.value) == f"w.safetensors does not fit its model, for blocks.0.w: {says}"


@pytest.mark.parametrize("damaged", [
    {"sources": []}, {"sources": [{"tensor": "a"}], "axis": -1}, {"sources": [{"tensor": "a", "axis": -1}]},
    {"sources": [{"tensor": "a", "first": -1}]}, {"sources": [{"tensor": "a", "first": 3, "last": 3}]},
    {"sources": [{"tensor": "a", "last": 0}]}, {"sources": [{"tensor": "a"}], "cast": "float8"},
    {"sources": [{"tensor": "a", "scale": 2}]}, {"sources": [{"tensor": 1}]}, {"sources": [{"first": 1}]}, {},
], ids=str)  # fmt: skip
def test_a_damaged_recipe_is_refused_when_it_is_read(damaged):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(damaged, Recipe)


def test_recipes_of_recipes_read_through():
    tensors = {"qkv": array((6, 2), 0)}
    third = checkpoint(tensors).by_recipe(
        {head: Recipe((TensorSource("qkv", 2 * i, 2 * i + 2),)) for i, head in enumerate("qkv")}
    )
    assert np.array_equal(third.by_recipe({"w": Recipe.of(*"vqk")}).read("w"), tensors["qkv"][[4, 5, 0, 1, 2, 3]])
