"""Engines for GPUs are built, kept, replaced and removed: TensorRT-RTX compiles them on a machine without a GPU."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
from helpers import case, compiled

import l2c_export
from l2c_export.artefact import manifest, store
from l2c_export.backends import builds
from l2c_export.backends.building import BuildSettings
from l2c_export.backends.tensorrt import builder
from l2c_export.backends.tensorrt.builder import Builder
from l2c_export.benchmarks.twins import compile_twin
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.link import bind
from l2c_export.errors import ArtefactError, BackendError, UsageError

trt = pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(("name", "precision"), [
    ("dit_tiny_lowvar", "fp32"), ("dit_tiny_lowvar", "fp16"), ("dit_tiny_lowvar", "bf16"),
    ("uvit_tiny_variant", "fp32"), ("uvit_tiny_variant", "fp16"),
])  # fmt: skip
def test_every_segment_builds_for_three_gpus_at_once(name, precision, tmp_path):
    folder = compiled(name, tmp_path / "e", precision=precision)
    built = builds.build(folder, "tensorrt-rtx", BuildSettings())
    (record,) = built.builds.values()
    assert record.targets == ("sm86", "sm89", "sm120")
    assert set(record.engines) == set(built.program().segments)
    assert store.read(folder) == built  # complete, and every plan as hashed
    assert all((folder / file).stat().st_size > 1000 for file in record.engines.values())
    attention = [(folder / file).read_bytes() for name, file in record.engines.items() if name.startswith("attn")]
    fused = precision != "fp32"  # the library has such kernels for half precision only
    assert attention
    assert all((b"_gemm_mha" in plan) == fused for plan in attention)


def test_a_library_that_has_nothing_to_build_is_not_started(half, monkeypatch, tmp_path):
    """Starting 8.6 takes ten seconds, and it crashes at the end of a process that has built nothing."""
    shutil.copytree(half, tmp_path / "e")
    builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    monkeypatch.setattr(trt, "Builder", None)
    said = []
    built = builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86",)), report=said.append)
    assert store.read(tmp_path / "e") == built
    assert said[-1].endswith("all of them were built before")


def test_static_link_builds_whole_graphs_with_their_weights(tmp_path):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link="static", precision="fp16")
    graph = onnx.load(folder / "step-000.onnx", load_external_data=False)
    assert not graph.functions  # which TensorRT 8.6 cannot read
    assert all(node.domain == "" for node in graph.graph.node)
    built = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    (record,) = built.builds.values()
    program = built.program()
    assert set(record.engines) == set(program.graphs)
    step = program.calls[0].graph
    weights = sum(program.tensor_bytes(i) for i in program.graphs[step].inputs if program.is_weight(i))
    assert built.files[record.engines[step]].bytes > 0.9 * weights


def test_a_graph_that_is_too_much_for_the_library_comes_with_a_way_out(tmp_path, monkeypatch):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link="static")
    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "cache"))

    def cannot(*_):
        raise BackendError("cannot build step-000.onnx: no implementation")

    monkeypatch.setattr(Builder, "build", cannot)
    with pytest.raises(BackendError, match="no implementation: compile it with link='shared', whose engines are smaller"):
        builds.build(folder, "tensorrt-rtx", BuildSettings())


def test_other_weights_take_static_engines_with_them(tmp_path):
    """They hold the old ones; shared engines are given theirs when they run."""
    for link in ("shared", "static"):
        folder, said = compiled("uvit_tiny_oddnfe", tmp_path / link, link=link), []
        built = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
        (record,) = built.builds.values()
        linked = bind(folder, "random:7", said.append)
        assert store.read(folder) == linked
        plans = [(folder / file).exists() for file in record.engines.values()]
        if link == "shared":
            assert linked.builds == built.builds
            assert all(plans)
        else:
            assert linked.builds == {}
            assert not any(plans)
            again = f"run l2c_export.build({str(folder)!r}, backend='tensorrt-rtx') again"
            assert said[-2] == f"its engines for tensorrt-rtx held the old weights: {again}"


@pytest.mark.parametrize(("link", "times"), [("shared", 1), ("static", 2)])
def test_new_weights_need_new_engines_where_they_are_part_of_them(tmp_path, built, link, times):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link=link)
    for weights in ("random:7", "random:8"):
        bind(folder, weights)
        builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    assert set(map(built.count, built)) == {times}


def test_engines_that_were_kept_are_not_used_for_another_range_of_images(half, tmp_path, built):
    shutil.copytree(half, tmp_path / "e")
    for batch in ("1:1:2", "1:1:1", "1:1:2"):
        builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86",)), batch)
    assert {built.count(name) for name in built if name.startswith("attn")} == {2}
    assert {built.count(name) for name in built if name.startswith("time")} == {1}, "what has no images is the same"


def test_static_engines_need_weights(tmp_path):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link="static", weights=None)
    with pytest.raises(ArtefactError, match=r"has no weights yet: bind them with l2c_export.link"):
        builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))


def test_a_twin_has_the_engines_that_the_artefact_has(half, tmp_path):
    shutil.copytree(half, tmp_path / "e")
    builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86", "sm120"), level=1), "1:1:1")
    manifest = store.read(tmp_path / "e")
    compile_twin(tmp_path / "e", manifest, tmp_path / "twin", cache=False)
    mine, other = (next(iter(store.read(tmp_path / name).builds.values())) for name in ("e", "twin"))
    assert (other.backend, other.targets, other.images, other.level) == (mine.backend, mine.targets, mine.images, mine.level)
    assert set(other.engines) == set(store.read(tmp_path / "twin").denoiser.segments)


def test_builds_are_added_and_replaced_and_go_with_the_artefact(half, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    said = []
    one = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)), report=said.append)
    two = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm89",)), report=said.append)
    again = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",), level=1), report=said.append)
    assert len(one.builds) == 1
    assert not any("replace" in line for line in said)
    assert list(two.builds) != list(one.builds)
    assert set(again.builds) == set(two.builds)
    assert next(b.level for b in again.builds.values() if b.targets == ("sm86",)) == 1
    assert store.read(folder) == again
    most = again.batch
    builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)), batch="1:1:1", report=said.append)
    assert f"replace those for 1 to {most} images, fastest at {most}: they are for 1 image" in said[-1]
    compile_artefact(case("dit_tiny_lowvar").options(folder))  # another artefact in its place
    assert not list(folder.glob("tensorrt*"))


def test_a_build_is_removed_with_its_files_and_nothing_else(half, tmp_path):
    folder, said = tmp_path / "e", []
    shutil.copytree(half, folder)
    one = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    both = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm89",)))
    (kept,), gone = one.builds, both.builds.keys() - one.builds.keys()
    with pytest.raises(UsageError, match=f"nope: .*e has no such build: it holds {kept}, {next(iter(gone))}$"):
        builds.remove(folder, [kept, "nope"])
    assert store.read(folder) == both
    (folder / next(iter(both.builds[next(iter(gone))].engines.values()))).write_bytes(b"damaged")  # one reason to remove it
    assert builds.remove(folder, list(gone), said.append) == one
    assert store.read(folder) == one
    assert {path.name for path in folder.glob("tensorrt*")} == {kept}
    assert re.fullmatch(rf".*e: \d\.\d MB removed; it holds {kept}", said[-1])
    builds.remove(folder, [kept], said.append)
    assert store.read(folder) == store.read(half)
    assert not list(folder.glob("tensorrt*"))
    assert said[-1].endswith("no build is left: l2c_export.build adds one")


def test_a_damaged_plan_is_not_loaded(half, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    (record,) = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",))).builds.values()
    plan = folder / next(iter(record.engines.values()))
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(l2c_export.L2CError, match="does not match its hash"):
        l2c_export.load(folder)


@pytest.mark.parametrize(
    ("backend", "settings", "batch", "message"),
    [
        ("onnxruntime", {}, None, "backend='onnxruntime': nothing to build; use one of tensorrt, tensorrt-rtx"),
        ("tensorrt-rtx", {"targets": ("sm90",)}, None, r"targets='sm90': tensorrt-rtx .* builds for sm80, .*sm120"),
        ("tensorrt-rtx", {"targets": ("sm75",)}, None, r"targets='sm75': tensorrt-rtx .* builds for sm80, "),
        ("tensorrt-rtx", {}, "8", "batch='8': give MIN:OPT:MAX images, for example 1:1:"),
        ("tensorrt-rtx", {}, "2:1:2", "batch='2:1:2': give MIN:OPT:MAX"),
        ("tensorrt-rtx", {}, "1:1:99", "batch='1:1:99': the artefact was compiled for at most"),
        ("tensorrt-rtx", {"version_compatible": True}, None, "version_compatible=True: the engines of tensorrt-rtx"),
        ("tensorrt-rtx", {"hardware_compatible": True}, None, "hardware_compatible=True: tensorrt-rtx builds for"),
    ],
)
def test_wrong_wishes_are_refused(half, backend, settings, batch, message):
    with pytest.raises(UsageError, match=message):
        builds.build(half, backend, BuildSettings(**settings), batch)


def test_a_timing_cache_that_cannot_be_used_is_refused_before_the_work(half, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"timing_cache='t': tensorrt-rtx measures nothing when it builds: leave it out"):
        builds.build(half, "tensorrt-rtx", BuildSettings(), timing_cache=Path("t"))
    monkeypatch.setattr(builder, "Builder", None)
    with pytest.raises(UsageError, match=r"timing_cache='.*/no/t': there is no folder .*/no: make it first"):
        builds.build(half, "tensorrt", BuildSettings(), timing_cache=tmp_path / "no" / "t")


def test_what_was_measured_on_another_gpu_of_the_architecture_is_not_used(half, tmp_path, monkeypatch, empty_cache):
    """A stand-in for TensorRT's builder, which only runs on its GPU."""
    built = []

    class Fake(Builder):
        version = identity = "10.3.0"

        def __init__(self, *_):
            self.gpus, self.card, self.known, self.seconds = ("sm89",), card, b"", {}

        def build(self, model, *_):
            self.seconds[model.name] = 1.0
            built.append(self.known)
            return b"plan"

        def timing_cache(self):
            return card.encode()

    monkeypatch.setattr(builder, "Builder", Fake)
    count = len(store.read(half).denoiser.segments)
    for card, times in (("NVIDIA-L4", 1), ("NVIDIA-GeForce-RTX-4090", 2), ("NVIDIA-L4", 2)):
        folder = tmp_path / f"{card} {times}"
        shutil.copytree(half, folder)
        builds.build(folder, "tensorrt", BuildSettings())
        assert built == [b""] * times * count
    shutil.rmtree(empty_cache / "plans")
    builds.build(folder, "tensorrt", BuildSettings())
    assert built[2 * count :] == [b"NVIDIA-L4"] * count


@pytest.mark.parametrize(
    ("changes", "architecture", "version", "runs"),
    [
        ({}, "sm90", "10.3.0", True),
        ({}, "sm89", "10.3.0", False),
        ({}, "sm90", "10.4.0", False),
        ({"version_compatible": True}, "sm90", "10.4.0", True),
        ({"version_compatible": True}, "sm90", "11.0.0", False),
        ({"version_compatible": True}, "sm90", "10.2.9", False),
        ({"version_compatible": True}, "sm90", "10.10.0", True),
        ({"hardware_compatible": True}, "sm89", "10.3.0", True),
        ({"hardware_compatible": True}, "sm75", "10.3.0", False),
    ],
)
def test_where_a_build_runs(changes, architecture, version, runs):
    plain = manifest.Build(backend="tensorrt", version="10.3.0", targets=("sm90",), images=(1, 1, 1), level=None,
                           version_compatible=False, hardware_compatible=False, engines={})  # fmt: skip
    assert msgspec.structs.replace(plain, **changes).runs_on(architecture, version) is runs
