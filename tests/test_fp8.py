"""Artefacts in fp8, from end to end, on an oracle: primitives in PyTorch, one by one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from helpers import case
from in_pytorch import IN_PYTORCH

import l2c_export
from l2c_export.artefact import check, store
from l2c_export.artefact.products import input_scales, own_biases
from l2c_export.backends import descriptors
from l2c_export.benchmarks.twins import compile_twin
from l2c_export.compiler import link
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.passes.fp8 import with_fp8
from l2c_export.compiler.record import record
from l2c_export.errors import BackendError, MissingExtra, UsageError, WeightsError
from l2c_export.integrations.diffusers.same_weights import same
from l2c_export.ir.dtypes import E4M3, Types
from l2c_export.ir.graph import Primitive
from l2c_export.ir.inputs import usual
from l2c_export.models.primitives import PRIMITIVES, execute, quantise
from l2c_export.pytorch import calibrate
from l2c_export.pytorch.calibrate import InE4m3
from l2c_export.pytorch.eager import Converted
from l2c_export.pytorch.family import family_of
from l2c_export.pytorch.stored import stored, unscaled
from l2c_export.verification.error import TOLERANCE
from l2c_export.weights import e4m3
from l2c_export.weights.checkpoint import open_checkpoint
from l2c_export.weights.layout import WEIGHTS, Layout, mapped
from l2c_export.weights.random import random

CASE = "dit_tiny_odd_resetN"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, own_cache):
    folder = tmp_path_factory.mktemp("fp8") / "engines"
    compile_artefact(case(CASE).options(folder, precision="fp8", backend="cuda"))
    return folder


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setattr(descriptors, "BACKENDS", (*descriptors.BACKENDS, IN_PYTORCH))
    return IN_PYTORCH.name


def numbers(folder):
    tensors = store.read(folder).denoiser.tensors
    view = mapped(folder / WEIGHTS, tensors)
    return {name: np.array(view(name)) for name in tensors}


@pytest.mark.parametrize("link", ["shared", "static"])
def test_every_call_is_within_its_tolerance_and_not_within_that_of_bf16(link, narrow, oracle):
    pipe = l2c_export.load(narrow, backend=oracle, link=link)
    verdict = l2c_export.verify(pipe, golden=case(CASE).path)
    worst = max(call.fed.relative for call in verdict.calls)
    assert verdict.passed
    assert (verdict.atol, verdict.rtol) == (TOLERANCE["fp8"],) * 2
    assert TOLERANCE["bf16"] < worst < TOLERANCE["fp8"] / 2
    assert l2c_export.check(pipe).passed


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tensorrt"])
def test_other_backends_refuse_it_by_name(name, narrow):
    with pytest.raises(BackendError, match=f"^{name}: it has no fp8: use backend='cuda' or compile with precision='bf16'"):
        l2c_export.load(narrow, backend=name)


def test_what_nothing_here_runs_is_refused_by_every_name(narrow):
    with pytest.raises(BackendError, match=r"no backend can run this: .*onnxruntime: it has no fp8"):
        l2c_export.load(narrow, backend="auto", device="cpu")


@pytest.mark.parametrize(("backend", "targets", "says"), [
    ("cuda", ("sm80", "sm90"), "targets='sm80': fp8 needs sm89 or newer"),
    ("tensorrt-rtx", ("sm86", "sm89"), "targets='sm86': fp8 needs sm89 or newer"),
])  # fmt: skip
def test_gpus_without_it_are_refused_by_name(backend, targets, says, narrow):
    if backend != "cuda":
        pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UsageError, match=says):
        l2c_export.build(narrow, backend, targets=targets)


def test_large_products_are_e4m3_and_all_else_is_not(narrow):
    arrays = numbers(narrow)
    narrowed = {name for name, value in arrays.items() if str(value.dtype) == E4M3}
    kinds = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = {name.split(".")[1] for name in arrays if name.startswith("blocks.")}
    assert narrowed == {f"blocks.{n}.{kind}.weight" for n in blocks for kind in kinds}
    assert input_scales(store.read(narrow)) == {name: e4m3.input_scale(name) for name in narrowed}
    for name in narrowed:
        assert 224 <= np.abs(arrays[name].astype(np.float32)).max() <= e4m3.MOST
        for scale in (arrays[e4m3.weight_scale(name)], arrays[e4m3.input_scale(name)]):
            assert scale[0] * scale[1] == 1
            assert np.log2(scale[0]) % 1 == 0


def test_a_manifest_that_says_something_else_is_refused(narrow):
    manifest = store.read(narrow)
    name = next(name for name, tensor in manifest.denoiser.tensors.items() if tensor.dtype == E4M3)
    own = manifest.denoiser.tensors

    def problem(tensors, **changes):
        denoiser = msgspec.structs.replace(manifest.denoiser, tensors=tensors)
        return check.problem(msgspec.structs.replace(manifest, denoiser=denoiser, **changes))

    def changed(tensor, **changes):
        return {**own, tensor: msgspec.structs.replace(own[tensor], **changes)}

    scale = e4m3.weight_scale(name)
    sizes = {"size": manifest.files[WEIGHTS]}
    assert problem(own) is None
    for tensors in (
        changed(scale, scale=msgspec.UNSET), changed(scale, scale="input"), changed(scale, dtype="bfloat16"),
        changed(scale, shape=(1,)), changed(name, stored="int8"), changed(name, shape=(*own[name].shape, 1)),
        changed(name, dtype="bfloat16"), {n: t for n, t in own.items() if n != scale},
        {**own, "pos_embed.scale": own[scale]}, changed("pos_embed", dtype=E4M3),
    ):  # fmt: skip
        assert problem(tensors), sizes
    assert "is float8_e4m3fn, which it cannot be" in problem(own, precision="bf16")

    def corrected(changes):
        denoiser = msgspec.structs.replace(manifest.denoiser, corrected=changes)
        return check.problem(msgspec.structs.replace(manifest, denoiser=denoiser))

    assert corrected({"blocks.0.mlp.fc1.bias": 0.1}) is None
    for changes in ({"blocks.9.mlp.fc1.bias": 0.1}, {"blocks.0.mlp.fc1.weight": 0.1}, {scale: 0.1},
                    {"blocks.0.mlp.fc1.bias": -1.0}, {"blocks.0.mlp.fc1.bias": np.inf}):  # fmt: skip
        assert "which it cannot be" in corrected(changes)


def test_linking_other_weights_calibrates_again(narrow, tmp_path):
    options = case(CASE).options(tmp_path / "fresh", precision="fp8", backend="cuda", weights="random:5")
    compile_artefact(options)
    compile_artefact(case(CASE).options(tmp_path / "linked", precision="fp8", backend="cuda"))
    l2c_export.link(tmp_path / "linked", weights="random:5")
    assert (tmp_path / "fresh" / WEIGHTS).read_bytes() == (tmp_path / "linked" / WEIGHTS).read_bytes()
    before, after = numbers(narrow), numbers(tmp_path / "linked")
    assert any(before[name][0] != after[name][0] for name in before if name.endswith(".input.scale"))


def unscaled_weights(folder):
    kept = numbers(folder)
    return {n: e4m3.widened(v, kept[e4m3.weight_scale(n)]) for n, v in kept.items() if v.dtype == E4M3}


def rounded_to_the_nearest(folder, own):
    """By weight in e4m3: whether it lies in the file as the nearest to the tensors `own`."""
    kept = numbers(folder)
    nearest = ((name, e4m3.rounded(value, kept[e4m3.weight_scale(name)])) for name, value in own if kept[name].dtype == E4M3)
    return {name: np.array_equal(value.view(np.uint8), kept[name].view(np.uint8)) for name, value in nearest}


def test_weights_are_rounded_for_their_products_and_random_ones_to_the_nearest(narrow, tmp_path):
    options = case(CASE).options(tmp_path / "random", precision="fp8", backend="cuda", weights="random:5")
    shapes = compile_artefact(options).denoiser.shapes
    assert set(rounded_to_the_nearest(tmp_path / "random", random(shapes, 5)).values()) == {True}
    checkpoint = list(open_checkpoint(Path(case(CASE).options("").weights)).tensors(shapes))
    assert set(rounded_to_the_nearest(narrow, checkpoint).values()) == {False}
    kept, largest = numbers(narrow), 0.0
    for name, value in ((name, value) for name, value in checkpoint if kept[name].dtype == E4M3):
        wide = e4m3.widened(kept[name], kept[e4m3.weight_scale(name)])
        largest = max(largest, np.linalg.norm(wide - value) / np.linalg.norm(value))
    assert 0.03 < largest < 0.1, "and they are still the checkpoint's"


def test_linking_rounds_a_checkpoint_as_compiling_does_and_not_twice(narrow, tmp_path):
    options = case(CASE).options(tmp_path / "linked", precision="fp8", backend="cuda", weights="random:5")
    compile_artefact(options)
    l2c_export.link(tmp_path / "linked", weights=case(CASE).options("").weights)
    assert (tmp_path / "linked" / WEIGHTS).read_bytes() == (narrow / WEIGHTS).read_bytes()
    assert store.read(tmp_path / "linked").denoiser.corrected == store.read(narrow).denoiser.corrected
    link.bind(tmp_path / "linked", None)
    before, after = (unscaled_weights(folder) for folder in (narrow, tmp_path / "linked"))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    biases = own_biases(store.read(narrow))
    before, after = (numbers(folder) for folder in (narrow, tmp_path / "linked"))
    assert all(np.array_equal(before[name].view(np.uint16), after[name].view(np.uint16)) for name in biases)
    assert store.read(tmp_path / "linked").denoiser.corrected == store.read(narrow).denoiser.corrected, "of the model's"
    l2c_export.link(tmp_path / "linked", weights="random:5")
    assert not store.read(tmp_path / "linked").denoiser.corrected


def wide(bias):
    return bias.astype(np.float32)


@pytest.fixture
def multiplied(monkeypatch):
    """What calibration multiplies with every weight, rows of float32 by the weight's name; filled when it is done."""
    rows, by_name, add, said = {}, {}, calibrate.Seen.add, calibrate.said

    def adding(product, x, weight, bias):
        rows.setdefault(id(product), []).append(x.reshape(-1, x.shape[-1]).numpy())
        return add(product, x, weight, bias)

    def saying(seen, over):
        by_name.update((name, np.concatenate(rows[id(product)]).astype(np.float64)) for name, product in seen.items())
        return said(seen, over)

    monkeypatch.setattr(calibrate.Seen, "add", adding)
    monkeypatch.setattr(calibrate, "said", saying)
    return by_name


def test_rounding_a_weight_leaves_the_mean_of_its_product(tmp_path, multiplied):
    """But for half a step of its bias, which is bfloat16; without the correction it is off by more."""
    manifest = compile_artefact(case(CASE).options(tmp_path / "e", precision="fp8", backend="cuda"))
    own = dict(open_checkpoint(Path(case(CASE).options("").weights)).tensors(manifest.denoiser.shapes))
    kept, rounded, biases = numbers(tmp_path / "e"), unscaled_weights(tmp_path / "e"), own_biases(manifest)
    assert biases == {f"{name.removesuffix('weight')}bias": name for name in input_scales(manifest)}
    assert set(manifest.denoiser.corrected) == set(biases)
    before, after = 0.0, 0.0
    for bias, weight in biases.items():
        lost = (multiplied[weight] @ (rounded[weight] - own[weight]).T.astype(np.float64)).mean(0)
        change = wide(kept[bias]) - own[bias]
        assert np.all(np.abs(lost + change) <= 2.0**-8 * np.abs(wide(kept[bias])) + 1e-7), bias
        assert manifest.denoiser.corrected[bias] == pytest.approx(np.abs(change).max(), rel=1e-6)
        before, after = before + np.square(lost).sum(), after + np.square(lost + change).sum()
    assert after < before / 10


def test_biases_of_random_weights_stay(tmp_path):
    manifest = compile_artefact(case(CASE).options(tmp_path, precision="fp8", backend="cuda", weights="random:5"))
    own, kept = dict(random(manifest.denoiser.shapes, 5)), numbers(tmp_path)
    assert not manifest.denoiser.corrected
    for name in own_biases(manifest):
        assert np.array_equal(kept[name], own[name].astype(kept[name].dtype))


def test_a_bias_that_something_else_reads_stays(narrow, tmp_path):
    manifest = store.read(narrow)
    shared, other = "blocks.0.mlp.fc1.bias", "blocks.1.mlp.fc1.bias"
    (size_name, size), = manifest.denoiser.sizes.items()  # fmt: skip
    origins = {n: msgspec.structs.replace(o, of=shared) if o.of == other else o for n, o in size.origins.items()}
    sizes = {size_name: msgspec.structs.replace(size, origins=origins)}
    joined = msgspec.structs.replace(manifest, denoiser=msgspec.structs.replace(manifest.denoiser, sizes=sizes))
    assert own_biases(joined) == {b: w for b, w in own_biases(manifest).items() if b not in (shared, other)}
    own = dict(open_checkpoint(Path(case(CASE).options("").weights)).tensors(manifest.denoiser.shapes))
    (tmp_path / WEIGHTS).write_bytes((narrow / WEIGHTS).read_bytes())
    changes = calibrate.calibrate(tmp_path, joined, own.items(), id)
    before, after = numbers(narrow), mapped(tmp_path / WEIGHTS, manifest.denoiser.tensors)
    assert set(changes) == set(own_biases(joined))
    assert np.array_equal(before[shared], after(shared)), "which is what lay there"
    parts = {n: msgspec.structs.replace(o, first=0, last=8) if o.of == other else o for n, o in size.origins.items()}
    sizes = {size_name: msgspec.structs.replace(size, origins=parts)}
    parted = msgspec.structs.replace(manifest, denoiser=msgspec.structs.replace(manifest.denoiser, sizes=sizes))
    assert other not in own_biases(parted)


def test_a_bias_that_another_primitive_reads_is_not_its_products_own(narrow):
    manifest = store.read(narrow)
    own, (size,) = manifest.denoiser.segments, manifest.denoiser.sizes.values()
    name = next(name for name, segment in own.items() if any(p.op == "linear_fp8" for p in segment.primitives))
    bias = next(p for p in own[name].primitives if p.op == "linear_fp8").inputs[4]
    more = msgspec.structs.replace(own[name], primitives=(*own[name].primitives, Primitive("gelu", (), (bias,), ("more",))))
    changed = msgspec.structs.replace(manifest.denoiser, segments={**own, name: more})
    place = own[name].inputs.index(bias)
    called = [node.inputs[place] for graph in size.graphs.values() for node in graph.nodes if node.op == name]
    kept = own_biases(msgspec.structs.replace(manifest, denoiser=changed))
    assert own_biases(manifest).keys() - kept.keys() == {size.origins[tensor].of for tensor in called}


def test_a_live_transformer_is_known_by_weights_that_were_rounded_for_their_products(narrow):
    shapes = store.read(narrow).denoiser.shapes
    own, kept = dict(open_checkpoint(Path(case(CASE).options("").weights)).tensors(shapes)), unscaled_weights(narrow)
    for name, array in kept.items():
        assert same(array, own[name], E4M3, 0.0)
        assert not same(array, own[name] * 1.2, E4M3, 0.0)
        assert not same(array, own[name][::-1], E4M3, 0.0)
        assert not same(array, own[name].T[:1], E4M3, 0.0)
    biases, changes = numbers(narrow), store.read(narrow).denoiser.corrected
    for name, change in changes.items():
        assert same(biases[name], own[name], "bfloat16", 0.0, corrected=change)
        assert not same(
            biases[name], own[name] + 3 * change + 2.0**-5 * np.abs(own[name]).max(), "bfloat16", 0.0, corrected=change
        )
    assert any(not same(biases[name], own[name], "bfloat16", 0.0) for name in changes)
    assert same(np.ones(4), np.full(4, 1 + 5e-7), "float32", 0.0)
    assert not same(np.ones(4), np.full(4, 1.01), "float32", 0.0)


def test_linking_without_pytorch_is_refused_before_anything_is_written(narrow, monkeypatch):
    def missing(library, extra):
        raise MissingExtra(f"needs {library}", extra)

    monkeypatch.setattr(link, "needs", missing)
    before = (narrow / WEIGHTS).stat().st_mtime_ns
    with pytest.raises(MissingExtra, match="needs torch"):
        l2c_export.link(narrow, weights="random:5")
    assert (narrow / WEIGHTS).stat().st_mtime_ns == before


def test_a_sublayer_may_stay_in_bf16(oracle, tmp_path):
    manifest = compile_artefact(case(CASE).options(tmp_path / "e", precision="fp8", backend="cuda", bf16=("blocks.0.mlp",)))
    kinds = {name: tensor.dtype for name, tensor in manifest.denoiser.tensors.items() if name.startswith("blocks.")}
    assert kinds["blocks.0.mlp.fc1.weight"] == "bfloat16"
    assert "blocks.0.mlp.fc1.weight.scale" not in kinds
    assert kinds["blocks.0.attn.qkv.weight"] == kinds["blocks.1.mlp.fc1.weight"] == E4M3
    assert l2c_export.verify(l2c_export.load(tmp_path / "e", backend=oracle), golden=case(CASE).path).passed


def test_its_uncached_twin_has_the_same_weights_and_scales(narrow, oracle, tmp_path):
    kept = tmp_path / "kept"
    compile_artefact(case(CASE).options(kept, precision="fp8", backend="cuda", bf16=("blocks.0.mlp",)))
    for folder in (narrow, kept):
        twin = tmp_path / f"{folder.name}-twin"
        compile_twin(folder, store.read(folder), twin, cache=False)
        assert (twin / WEIGHTS).samefile(folder / WEIGHTS)
        assert store.read(twin).denoiser.tensors == store.read(folder).denoiser.tensors
        assert l2c_export.verify(l2c_export.load(twin, backend=oracle)).passed


@pytest.mark.parametrize(("asked", "says"), [
    ({"precision": "bf16", "bf16": ("blocks.0.mlp",)}, "bf16='blocks.0.mlp': none of the model is e4m3"),
    ({"precision": "fp8", "bf16": ("blocks.99.mlp",)}, "bf16='blocks.99.mlp': no sublayer of the model"),
    ({"precision": "fp8", "backend": "openvino"}, "precision='fp8': backend='openvino' has none"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_it_is_compiled(asked, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        compile_artefact(case(CASE).options(tmp_path / "e", **asked))


def test_scales_have_room_for_twice_what_was_seen(narrow, oracle, monkeypatch):
    """On the trajectories that they were calibrated over, nothing is cut off, and no exponent more than needed is left."""
    largest = {}

    def seen(x, scale):
        largest[scale.data_ptr()] = max(largest.get(scale.data_ptr(), 0.0), float(x.abs().max() * scale[1]))
        return quantise(x, scale)

    monkeypatch.setitem(PRIMITIVES, "quantise", seen)
    pipe = l2c_export.load(narrow, backend=oracle)
    for n in range(calibrate.IMAGES):
        pipe(usual(pipe.manifest.inputs, n + 1)["class_labels"][n:], seed=n)
    assert len(largest) == len(set(input_scales(pipe.manifest).values()))
    assert all(100 < number < 250 for number in largest.values()), largest


def test_pytorch_emulates_a_sublayer_with_its_scales(narrow):
    """Nearer to what the artefact's primitives make than the same without e4m3: what is between is bfloat16."""
    manifest = store.read(narrow)
    tensors, kept, family = stored(narrow, manifest), unscaled(narrow, manifest), family_of(manifest)
    body = with_fp8(record(family, Types("bfloat16")), ()).bodies["attn_fp8"]
    parts = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
    scales = ("qkv.input.scale", "qkv.weight.scale", "proj.input.scale", "proj.weight.scale")
    activations = [torch.randn(2, n, 32, generator=torch.Generator().manual_seed(n)) for n in (16, 1, 1)]
    inputs = [*activations, *(kept[f"blocks.1.attn.{part}"] for part in (*parts, *scales))]
    output = execute(body.primitives, dict(zip(body.inputs, inputs, strict=True)))[body.outputs[0]].float()
    weights = InE4m3(tensors, torch.float32, input_scales(manifest)), Converted(tensors, torch.float32)
    same, plain = (family.attn(*activations, *(table[f"blocks.1.attn.{part}"] for part in parts)) for table in weights)
    assert 1e-2 < (plain - output).norm() / output.norm() < 1e-1
    assert (same - output).norm() < (plain - output).norm() / 2


def test_weights_that_make_nothing_of_use_are_refused_when_they_are_calibrated(narrow, tmp_path):
    manifest = store.read(narrow)
    layout = Layout(manifest.denoiser.tensors)
    data = bytearray((narrow / WEIGHTS).read_bytes())
    place = layout.place("blocks.1.attn.qkv.bias")
    data[place.offset : place.offset + place.bytes] = b"\xff" * place.bytes  # NaN
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(WeightsError, match=r"blocks\.\d\.\w+\.\w+\.weight is multiplied with NaN or infinite values"):
        calibrate.calibrate(tmp_path, manifest, (), id)
