"""Primitives that somebody has changed are refused in words, or compute the same types and are counted the same."""

from __future__ import annotations

import copy
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import GOLDEN

from l2c_export.artefact import check, store
from l2c_export.artefact.manifest import VERSION, Manifest
from l2c_export.artefact.records import FILE
from l2c_export.ir.signatures import TABLE

RAW = json.loads((GOLDEN / f"v{VERSION}" / "engines" / FILE).read_text())
SEGMENTS = sorted(RAW["denoiser"]["segments"])
ATTENTION = next(name for name in SEGMENTS if name.startswith("attn"))
JUNK = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 2**31, 2**62, 0.0, 0.5, -1e300, 1e-6, "", "float16", "../../x", "i0", "\x00", True]),
    st.text(max_size=5), st.integers(), st.floats(allow_nan=False), st.none(), st.lists(st.integers(), max_size=2),
)  # fmt: skip


def problem(segments):
    """What is said of the manifest with other segments."""
    raw = {**RAW, "denoiser": {**RAW["denoiser"], "segments": segments}}
    return check.problem(msgspec.convert(raw, Manifest))


def changed(name, change):
    segments = copy.deepcopy(RAW["denoiser"]["segments"])
    change(segments[name])
    return problem(segments)


def test_what_was_compiled_agrees_with_itself():
    assert problem(RAW["denoiser"]["segments"]) is None
    assert store.read(GOLDEN / "v1" / "engines"), "and has no primitives"


def set_attribute(n, value):
    def change(segment):
        segment["primitives"][n][1][0][1] = value

    return change


def set_part(n, part, value):
    def change(segment):
        segment["primitives"][n][part] = value

    return change


def set_field(**fields):
    return lambda segment: segment.update(fields)


@pytest.mark.parametrize(("change", "says"), [
    (set_part(0, 0, "sudo"), "there is no primitive 'sudo'"), (set_part(0, 0, "gelu"), "gelu has the attributes"),
    (set_attribute(0, 2.0), "eps is 2.0, not between 0 and 1"), (set_attribute(2, 5), "24 rows are not 5 equal parts"),
    (set_attribute(2, 2), "linear makes 2 values, not 3"), (set_attribute(3, 3), "not a multiple of 3 heads"),
    (set_part(1, 2, ["o0.v7", "i1", "i9"]), "reads 'i9', which nothing makes"), (set_part(1, 3, ["i0"]), "'i0' is made twice"),
    (set_part(6, 3, ["elsewhere"]), "do not make 'o1'"), (set_field(precision="float16"), "the weights are float32"),
    (set_field(kind="a b"), "a kind of 3 letters"), (set_field(primitives=[]), "it has 0 primitives"),
    (set_field(flops=1), "are not 1 FLOPs"), (set_field(inputs=["i0"] * 8), "one name"),
])  # fmt: skip
def test_the_contradiction_is_named(change, says):
    assert says in (changed(ATTENTION, change) or "")


@st.composite
def changes(draw):
    """Segments with some entry changed, dropped or doubled, somewhere."""
    segments = copy.deepcopy(RAW["denoiser"]["segments"])
    for _ in range(draw(st.integers(1, 2))):
        segment = segments[draw(st.sampled_from(SEGMENTS))]
        primitives = segment["primitives"]
        whole = isinstance(primitives, list) and all(isinstance(p, list) for p in primitives)
        if not whole or not primitives or draw(st.integers(0, 3)) == 0:
            segment[draw(st.sampled_from(["kind", "precision", "flops", "inputs", "outputs", "primitives"]))] = draw(JUNK)
            continue
        n = draw(st.integers(0, len(primitives) - 1))
        primitive = primitives[n]
        what = draw(st.sampled_from(["drop", "double", "move", "op", "attribute", "name", "names"]))
        primitive = primitives[n] if isinstance(primitives, list) else None
        if primitive is None:
            continue
        if what == "drop":
            del primitives[n]
        elif what == "double":
            primitives.insert(n, copy.deepcopy(primitive))
        elif what == "move":
            primitives.insert(draw(st.integers(0, len(primitives) - 1)), primitives.pop(n))
        elif what == "op":
            primitive[0] = draw(st.sampled_from(sorted(TABLE)) | st.text(max_size=8))
        elif what == "attribute":
            primitive[1] = [[draw(st.sampled_from(["eps", "parts", "heads", "patch"]) | st.text(max_size=3)), draw(JUNK)]]
        elif what == "name":
            primitive[draw(st.sampled_from([2, 3]))] = draw(
                st.lists(st.sampled_from(["i0", "i1", "o0", "v1", "../x"]), max_size=4)
            )
        else:
            primitive[draw(st.sampled_from([0, 1, 2, 3]))] = draw(JUNK)
    return segments


@settings(max_examples=1000, deadline=None)
@given(changes())
def test_changed_primitives_are_refused_in_words_or_harmless(segments):
    try:
        said = problem(segments)
    except msgspec.ValidationError:
        return  # what is no manifest is refused when it is read
    if said is None:  # the same kind of segment, in another notation
        for name, segment in segments.items():
            before = RAW["denoiser"]["segments"][name]
            assert all(segment[field] == before[field] for field in ("precision", "flops", "file"))
    else:
        assert "\n" not in said
        assert len(said) < 1000
