"""Hostile files are refused in one line; random ones, too; nothing in them is executed, and nothing huge is made of them."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import hostile
import manifests
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from version2 import EXAMPLE

from l2c_export.artefact import integrity, store, user_weights
from l2c_export.artefact.check import problem
from l2c_export.artefact.check_origins import MOST_HISTORY
from l2c_export.artefact.records import FILE, CompilationRecord, Origin
from l2c_export.backends.contract import FUSED, SegmentFile
from l2c_export.compiler import link
from l2c_export.errors import ArtefactError, L2CError, ModelError, ScheduleError, UsageError, WeightsError
from l2c_export.models import families, lookup
from l2c_export.schedules import routers, schedule
from l2c_export.weights import checkpoint, layout

GOLDEN = Path(__file__).parents[1] / "golden" / "v2" / "engines"


@pytest.fixture
def engines(tmp_path):
    return shutil.copytree(GOLDEN, tmp_path / "engines")


def refused(case: hostile.Hostile) -> str:
    with pytest.raises(L2CError) as error:
        case.read()
    return str(error.value)


@pytest.mark.parametrize("kind", [hostile.pickles, hostile.archives, hostile.texts, hostile.tensors, hostile.artefacts])
def test_hostile_files_are_refused_in_one_line_and_nothing_happens(engines, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    monkeypatch.setitem(copyreg._inverted_registry, 240, ("posix", "system"))
    cases = list(kind(tmp_path / "files", engines))
    before = {p for p in tmp_path.rglob("*") if ".l2c-ready" not in p.parts}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in cases:
        assert "\n" not in refused(case), case.name
    assert {p for p in tmp_path.rglob("*") if ".l2c-ready" not in p.parts} == before
    assert not list(tmp_path.rglob("*EXECUTED*/*"))
    assert store.read(engines) == store.read(GOLDEN)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 400_000, "KB"


@pytest.mark.parametrize("kind", hostile.CONTAINERS)
def test_the_hostile_pickles_would_work_on_a_careless_reader(tmp_path, monkeypatch, kind):
    """Else the test above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("global", "stack-global", "inst", "obj", "exec", "dotted", "neighbour", "build-setstate"):
        path = tmp_path / f"{name}.pt"
        path.write_bytes(hostile.CONTAINERS[kind](hostile.PICKLES[name] + b"."))
        with contextlib.suppress(Exception):
            import pickle

            pickle.loads(path.read_bytes()) if kind == "plain" else torch.load(path, weights_only=False)
        assert (tmp_path / "EXECUTED").exists(), name
        (tmp_path / "EXECUTED").unlink()


def test_an_honest_tensor_made_by_the_same_means_is_read(tmp_path):
    path = tmp_path / "r.pt"
    path.write_bytes(hostile._zip(hostile._tensor(4, 0, (4,), (1,)), data__0=np.arange(4, dtype=np.float32).tobytes()))
    assert routers.read(path).logits.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("factory", [
    lambda: torch.zeros(4).to_sparse(), lambda: torch.zeros(4, device="meta"),
    lambda: torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.quint8), lambda: torch.zeros(2**14 + 2),
], ids=["sparse", "meta", "quantized", "wide"])  # fmt: skip
def test_tensors_of_other_kinds_are_refused(tmp_path, engines, factory):
    torch.save({"0.prob": factory()}, tmp_path / "x.pt")
    with pytest.raises(ScheduleError, match=r"x\.pt"):
        routers.read(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt"):
        link.bind(engines, str(tmp_path / "x.pt"))


def test_names_that_are_no_text_are_refused(tmp_path, engines):
    torch.save({3: torch.zeros(4)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="expected named tensors"):
        link.bind(engines, str(tmp_path / "x.pt"))


@pytest.mark.parametrize("name", [*hostile.OUTSIDE, "CON:", "a\\b", "ä", "a b", "x/.l2c", "x/..", "/etc/passwd", "a\n"])
def test_a_name_that_may_mean_another_place_is_not_one_of_ours(tmp_path, name):
    assert not store.staging.inside(tmp_path, name)


@pytest.mark.parametrize("name", ["manifest.json", "segments/attn-mul-add.7f5154.onnx", "tensorrt-rtx-1.7.0+cu13-sm86/x.plan"])
def test_our_own_names_are(tmp_path, name):
    assert store.staging.inside(tmp_path, name)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_file_is_not_read(engines, kind):
    path = engines / "step-000.onnx"
    path.unlink()
    {"fifo": os.mkfifo, "folder": os.mkdir, "device": lambda p: os.symlink("/dev/zero", p)}[kind](path)
    with pytest.raises(L2CError, match=r"step-000\.onnx"):
        store.read(engines)


def test_every_form_of_a_segment_is_checked_when_it_is_read(tmp_path):
    path, fused = tmp_path / "a.onnx", tmp_path / f"a{FUSED}"
    path.write_bytes(b"plain")
    fused.write_bytes(b"fused")
    segment = SegmentFile(path, (), (), integrity.info(path), integrity.info(fused))
    assert [segment.read(), segment.read(fused=True)] == [b"plain", b"fused"]
    fused.write_bytes(b"other")
    with pytest.raises(ArtefactError, match=r"a\.fused\.onnx does not match its hash"):
        segment.read(fused=True)
    path.write_bytes(b"..location..")
    with pytest.raises(ArtefactError, match=r"a\.onnx keeps data outside weights\.safetensors"):
        SegmentFile(path, (), ()).read()


def test_a_name_from_a_file_neither_breaks_the_line_nor_speaks_to_the_terminal():
    for kind in (L2CError, ArtefactError, UsageError):
        assert str(kind("names 'a\nb\x1b[31m\u202e\0'")) == r"names 'a\nb\x1b[31m\u202e\x00'"
    assert str(L2CError("größer als 5 µs")) == "größer als 5 µs"


# fuzzing: any bytes, and good ones with a change


def changed(good: bytes) -> st.SearchStrategy[bytes]:
    """Bytes cut, doubled or replaced."""

    def change(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = good
        for position, length, insert in edits:
            position %= len(good) + 1
            data = data[:position] + insert + data[position + length :]
        return data

    return st.builds(change, st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 40), st.binary(max_size=8)), max_size=3))


def edited(good: object) -> st.SearchStrategy[bytes]:
    """JSON with one leaf or branch replaced by something else."""
    places = list(paths(good))
    odd = st.sampled_from(
        [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e300, -1.5, "", "x", "../x", [], {}, [[]], ["x"], {"x": 1}]
    )

    def change(place: tuple[object, ...], value: object) -> bytes:
        copy = json.loads(json.dumps(good))
        *above, last = place
        functools.reduce(lambda at, step: at[step], above, copy)[last] = value
        return json.dumps(copy).encode()

    return st.builds(change, st.sampled_from(places), odd)


def paths(value: object, here: tuple[object, ...] = ()):
    if here:
        yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*here, key))


SCHEDULE, RULES = (GOLDEN / "schedule.json").read_bytes(), EXAMPLE.encode()
MANIFEST = (GOLDEN / FILE).read_bytes()
MODEL = {"family": "dit", "arch": {**hostile.ARCH, "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "learn_sigma": True}}


T = TypeVar("T")


def tolerant(read: Callable[[], T], refusal: type[L2CError]) -> T | None:
    """What is read, or None where it is refused in one line; both without computing for long."""
    began = time.process_time()
    try:
        return read()
    except refusal as error:
        if "\n" in str(error):
            raise AssertionError(f"more than a line: {error}") from None
        return None
    finally:
        assert time.process_time() - began < 2


@settings(max_examples=150)
@given(
    st.binary(max_size=80) | st.sampled_from([SCHEDULE, RULES]).flatmap(lambda data: changed(data) | edited(json.loads(data)))
)
def test_a_schedule_is_refused_or_one(data):
    if result := tolerant(lambda: schedule.Schedule.from_json(data), ScheduleError):
        assert schedule.Schedule.from_json(result.to_json()) == result


@settings(max_examples=150)
@given(edited(json.loads(MANIFEST)))
def test_a_manifest_of_somebody_who_knows_the_checksum_is_refused_or_agrees_with_itself(data):
    raw = json.loads(data)
    data = json.dumps({**raw, "checksum": store.checksum(raw)}).encode() if isinstance(raw, dict) else data
    if result := tolerant(lambda: store.parse(data, "m.json"), ArtefactError):
        assert problem(result) is None


@settings(max_examples=100)
@given(edited(MODEL) | changed(json.dumps(MODEL).encode()))
def test_a_model_description_is_refused_or_a_model(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.json"
        path.write_bytes(data)
        if result := tolerant(lambda: lookup.resolve(str(path), None, None, None), ModelError):
            assert result[0].tensors()


@settings(max_examples=80)
@given(changed((GOLDEN / layout.WEIGHTS).read_bytes()[:4000]))
def test_a_safetensors_header_is_refused_or_read(head):
    rest = (GOLDEN / layout.WEIGHTS).read_bytes()[4000:]
    manifest = store.read(GOLDEN, verify=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        path.write_bytes(head + rest)
        if result := tolerant(lambda: dict(user_weights.tensors(path, manifest)), WeightsError):
            assert {n: v.shape for n, v in result.items()} == manifest.denoiser.shapes


@settings(max_examples=80)
@given(st.data())
def test_a_pickle_is_refused_or_a_router(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.pt"
        path.write_bytes(data.draw(changed(hostile.sound(path))))
        if router := tolerant(lambda: routers.read(path), ScheduleError):
            assert router.logits.dtype == torch.float32
            assert router.logits.isfinite().all()


# huge and contradictory models


replace = msgspec.structs.replace


def calls_of(manifest):
    return manifest.program().calls


@pytest.mark.parametrize(("contradiction", "words"), [
    (lambda m: {"calls": (replace(calls_of(m)[0], computed=calls_of(m)[0].computed[1:]), *calls_of(m)[1:])},
     "call 0: it does not say of"),
    (lambda m: {"segments": {n: replace(s, outputs=(*s.outputs, "more")) for n, s in m.denoiser.segments.items()}},
     "fit its segment"),
    (lambda m: {"cache_bytes": tuple(size - 1 for size in m.program().cache_bytes)}, "does not fit into its slot"),
    (lambda m: {"inputs": (replace(m.inputs[0], unconditional=msgspec.UNSET),)}, "guidance, but no input has an"),
    (lambda m: {"history": MOST_HISTORY + 1}, "3 earlier predictions"),
    (lambda m: {"asked": CompilationRecord(max_graphs=0, computed=((),) * len(calls_of(m)))}, "asked for other calls"),
    (lambda m: {"asked": CompilationRecord(max_graphs=1, computed=((),))}, "asked for other calls"),
    (lambda m: {"asked": CompilationRecord(max_graphs=1, computed=((0, 99),) * len(calls_of(m)))}, "asked for other calls"),
    (lambda m: {"origins": {**m.program().size.origins, "w": Origin("weight", "pos_embed", 0, 2, 99)}}, "'w' is from nowhere"),
    (lambda m: {"origins": {**m.program().size.origins, "w": Origin("cache", "x.next", 1)}}, "'w' is from nowhere"),
    (lambda m: {"origins": {k: o for k, o in m.program().size.origins.items() if o.kind != "cache"}}, "nothing is known of"),
    (lambda m: {"programs": {"9": m.program().program}}, "the program '9' has 4 steps"),
    (lambda m: {"programs": {}}, "programs is 0"),
    (lambda m: {"schedule": "other.json"}, "it does not list other.json, which it uses"),
], ids=["unsaid sublayer", "more outputs", "small cache", "guided without null", "long history", "no graphs", "other calls",
        "more than computed", "too many rows", "a later cache", "unknown caches", "other steps", "no program",
        "no schedule"])  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_told_where(contradiction, words):
    sound = store.read(GOLDEN)
    change = contradiction(sound)
    manifest = replace(sound, **change) if "programs" in change else manifests.changed(sound, **change)
    assert words in (problem(manifest) or "nothing")


def retyped(manifest, kind, **change):
    """The values of one kind of origin with another type."""
    size = manifest.program().size
    names = [name for name, origin in size.origins.items() if origin.kind == kind]
    return {"values": {n: replace(v, **change) if n in names else v for n, v in size.values.items()}}


@pytest.mark.parametrize(("contradiction", "words"), [
    (lambda m: {"inputs": (*m.inputs, m.inputs[0])}, "two inputs have one name"),
    (lambda m: {"inputs": (replace(m.inputs[0], name="steps"),)}, "an input is called 'steps'"),
    (lambda m: {"inputs": (replace(m.inputs[0], name="others"),)}, "is from nowhere: request 'class_labels'"),
    (lambda m: {"inputs": (replace(m.inputs[0], shape=(2,)),)}, "is from nowhere: request 'class_labels'"),
    (lambda m: retyped(m, "request", dtype="float32"), "is from nowhere: request 'class_labels'"),
    (lambda m: {"origins": {**m.program().size.origins, "request.class_labels": Origin("request", "class_labels", 1)}},
     "is from nowhere: request 'class_labels' +1"),
    (lambda m: retyped(m, "guidance", shape=("R", 4, 1, 1)), "guidance of shape ('R', 4, 1, 1)"),
    (lambda m: retyped(m, "guidance", shape=("B", 4, 1)), "guidance of shape ('B', 4, 1)"),
    (lambda m: retyped(m, "guidance", dtype="float16"), "guidance of shape ('B', 4, 1, 1)"),
], ids=["twice", "reserved", "other name", "other shape", "floats", "of a later call", "of rows", "other rank",
        "halves"])  # fmt: skip
def test_what_a_request_says_fits_the_graphs_that_read_it(contradiction, words):
    sound = store.read(GOLDEN)
    assert words in (problem(manifests.changed(sound, **contradiction(sound))) or "nothing")


@pytest.mark.parametrize(
    "sizes", [{"depth": 10**9}, {"hidden_size": 2**62}, {"num_classes": 10**15}, {"in_channels": -1}], ids=str
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(sizes):
    with pytest.raises(ModelError, match=next(iter(sizes))):
        families.build("dit", {**hostile.ARCH, **sizes})


def test_a_checkpoint_whose_shapes_are_absurd_is_refused(tmp_path):
    """A tensor may claim any shape without holding it."""
    shapes = {"x_embedder.proj.weight": (2**40, 4, 2, 2), "pos_embed": (1, 4, 2**40), "blocks.0.mlp.fc1.weight": (2**42, 2**40)}
    shapes |= {"y_embedder.embedding_table.weight": (11, 2**40), "final_layer.linear.weight": (32, 2**40)}
    with pytest.raises(ModelError, match="hidden_size is 1099511627776: must be from 0 to 1048576"):
        lookup.resolve(None, None, None, checkpoint.Checkpoint(tmp_path, shapes, np.zeros))
