"""What a family declares of a request: sound, or refused before anything is made of it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from l2c_export.ir.inputs import RequestInput, class_labels, guided, named, names_of, usual

VECTOR = RequestInput(name="vector", shape=(3,), unconditional=(0.5, -1, 2))
TOKENS = RequestInput(name="tokens", shape=(2, 2), dtype="int32")


def test_what_is_declared_is_read_back_as_it_was_written():
    for declaration in (class_labels(10, 10), class_labels(10, None), VECTOR, TOKENS):
        assert msgspec.json.decode(msgspec.json.encode(declaration), type=RequestInput) == declaration
    assert msgspec.json.decode(msgspec.json.encode(class_labels(10, None)))["choices"] == 10
    assert "unconditional" not in msgspec.json.decode(msgspec.json.encode(TOKENS))
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"name": "vector", "kind": "text"}', type=RequestInput)


def test_the_unconditional_value_is_given_to_every_image():
    assert class_labels(10, 10).without(2).tolist() == [10, 10]
    assert class_labels(10, 10).without(2).dtype == np.int32
    assert VECTOR.without(2).tolist() == [[0.5, -1, 2]] * 2
    zeros = RequestInput(name="matrix", shape=(2, 2), unconditional=0)
    assert zeros.without(3).shape == (3, 2, 2)
    assert zeros.without(3).dtype == np.float32
    assert guided([TOKENS, VECTOR])
    assert not guided([TOKENS, class_labels(10, None)])


def test_a_usual_request_is_one_whatever_the_batch():
    inputs = (class_labels(10, 10), VECTOR, TOKENS)
    several, one = usual(inputs, 4), usual(inputs, 1)
    assert several["class_labels"].tolist() == [7, 8, 9, 0]
    for declaration in inputs:
        assert several[declaration.name].shape == (4, *declaration.shape)
        assert several[declaration.name].dtype == declaration.dtype
        assert np.array_equal(several[declaration.name][:1], one[declaration.name])
    assert len(np.unique(several["vector"])) == 12


def test_names_are_those_of_the_first_input_with_choices():
    others = RequestInput(name="others", dtype="int32", choices=5)
    inputs = named((VECTOR, class_labels(10, 10), others), {"cat": 3})
    assert [declaration.names or None for declaration in inputs] == [None, {"cat": 3}, None]
    assert names_of(inputs) == {"cat": 3}
    assert names_of(named((class_labels(10, 10),), {})) == {}


@pytest.mark.parametrize("declaration", [class_labels(10, 10), class_labels(1, None), VECTOR, TOKENS,
                                         RequestInput(name="x", unconditional=0)])  # fmt: skip
def test_a_sound_declaration(declaration):
    assert declaration.problem() is None


@pytest.mark.parametrize(("wrong", "says"), [
    ({"name": ""}, "called ''"), ({"name": "a b"}, "called 'a b'"), ({"name": "../x"}, "called"),
    ({"name": "x" * 101}, "called"), ({"shape": (0,)}, "shape"), ({"shape": (2**31,)}, "shape"),
    ({"shape": (2**16, 2**16)}, "shape"), ({"choices": 0, "dtype": "int32"}, "0 choices"),
    ({"choices": 2**31, "dtype": "int32"}, "choices"), ({"choices": 3}, "float32"),
    ({"choices": 3, "dtype": "int32", "names": {"cat": 3}}, "names of no choice"),
    ({"names": {"cat": 0}}, "names of no choice"), ({"choices": 3, "dtype": "int32", "unconditional": 4}, "does not fit"),
    ({"choices": 3, "dtype": "int32", "unconditional": -1}, "does not fit"),
    ({"dtype": "int32", "unconditional": 0.5}, "not fit"), ({"dtype": "int32", "unconditional": 2**31}, "does not fit"),
    ({"unconditional": float("nan")}, "does not fit"), ({"unconditional": 10**400}, "does not fit"),
    ({"shape": (3,), "unconditional": (1, 2)}, "does not fit"), ({"unconditional": ()}, "does not fit"),
], ids=str)  # fmt: skip
def test_a_declaration_that_is_none_is_told_why(wrong, says):
    assert says in (RequestInput(**{"name": "vector", **wrong}).problem() or "nothing")
