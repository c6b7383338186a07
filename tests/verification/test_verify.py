"""Verification finds planted faults and names the place; it finds none where there are none."""

from __future__ import annotations

import gc
import json

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import case, faithful
from recorded import asked
from safetensors.numpy import load_file, save_file

import l2c_export
from l2c_export.cli import main
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.link import bind
from l2c_export.pytorch.eager import Converted
from l2c_export.pytorch.reference import Reference, of_case
from l2c_export.runtime.loaded import Bound
from l2c_export.verification.compare import compare, summary, table
from l2c_export.verification.error import Error, Tolerance
from l2c_export.verification.locate import locate

STRICT = 1e-5


@pytest.fixture
def dit(tiny):
    """A freshly loaded DiT to break, and a request with two different labels."""
    folder, chosen = tiny
    pipe = l2c_export.load(folder, backend="onnxruntime")
    return pipe, Reference(folder, pipe.manifest, pipe.noise(2, 0), asked([1, 2]), 3.0), chosen


def loop_of(pipe, reference):
    return pipe.generation(reference.inputs, reference.guidance_scale, len(reference.noise)).loop


def filling_call(manifest):
    """A call that fills the cache, and the one that reads it."""
    reader = next(n for n, call in enumerate(manifest.program().calls) if call.reads)
    return reader - 1, reader


def test_a_right_artefact_passes_at_the_default_tolerance(dit):
    pipe, reference, _ = dit
    verdict = compare(pipe, reference)
    assert verdict.passed
    assert verdict.place is None
    assert all(0 < check.fed.relative < 1e-5 and check.fed.psnr > 100 for check in verdict.calls)


@pytest.mark.parametrize("name", ["dit_tiny_lowvar", "uvit_tiny_oddnfe", "uvit_tiny_variant"])
@pytest.mark.parametrize("link", ["shared", "static"])
def test_golden_cases_pass(name, link, tmp_path):
    """The recorded steps of the reference implementation, not our PyTorch, decide."""
    chosen = case(name)
    compile_artefact(chosen.options(tmp_path / "e", link=link, backend="onnxruntime"))
    pipe = l2c_export.load(tmp_path / "e")
    verdict = compare(pipe, of_case(chosen.path, tmp_path / "e", pipe.manifest))
    assert verdict.passed, summary(verdict)


def own(run) -> Bound:
    """Something else that runs in the loop, and makes no value."""
    return Bound("a test's", "a test's", (), (), run)


def test_a_stale_cache_is_found_in_the_call_that_reads_it(dit):
    pipe, reference, _ = dit
    loop, (filler, reader) = loop_of(pipe, reference), filling_call(pipe.manifest)
    kept = []
    engines = loop.bound(filler)
    engines.insert(0, own(lambda: kept.append([slot.copy() for slot in loop.caches])))

    def forget():
        for slot, before in zip(loop.caches, kept.pop(), strict=True):
            slot[...] = before

    engines.append(own(forget))
    verdict = compare(pipe, reference, STRICT, STRICT)
    assert verdict.place.call == reader
    assert f"which call {filler} filled: that value is wrong or stale" in verdict.place.cause


def test_a_swapped_pair_of_rows_is_found_where_it_is_first_read(dit):
    pipe, reference, _ = dit
    loop = loop_of(pipe, reference)
    wanted = "blocks.1.attn.shift"

    def swap():
        rows = loop.hoisted.row(wanted, 2, of=2)
        rows[[0, 1]] = rows[[1, 0]]

    loop.hoisted.engines[0].append(own(swap))
    place = compare(pipe, reference, STRICT, STRICT).place
    assert (place.call, place.sublayer) == (2, "blocks.1.attn")
    assert f"it reads {wanted}, which was computed before the loop" in place.cause


def test_a_gate_applied_twice_is_found(dit):
    pipe, reference, _ = dit
    loop = loop_of(pipe, reference)

    def square():
        gate = loop.hoisted.row("blocks.2.mlp.gate", 0, of=0)
        gate *= gate

    loop.hoisted.engines[0].append(own(square))
    place = compare(pipe, reference, STRICT, STRICT).place
    assert place.call == 0
    assert "blocks.2.mlp.gate" in place.cause


def test_one_weight_tensor_off_by_a_percent_is_found(dit, tmp_path):
    """The artefact's own weights cannot show it; the checkpoint does."""
    pipe, _, chosen = dit
    folder = tmp_path / "e"
    compile_artefact(chosen.options(folder, backend="onnxruntime"))
    tensors = load_file(chosen.path / "model.safetensors")
    tensors["blocks.1.mlp.fc1.weight"] = tensors["blocks.1.mlp.fc1.weight"] * np.float32(1.01)
    save_file(tensors, tmp_path / "wrong.safetensors")
    bind(folder, str(tmp_path / "wrong.safetensors"))
    pipe = l2c_export.load(folder)
    request = folder, pipe.manifest, pipe.noise(1, 0), asked([3]), 3.0
    assert compare(pipe, Reference(*request), STRICT, STRICT).passed
    place = compare(pipe, Reference(*request, chosen.path / "model.safetensors"), STRICT, STRICT).place
    assert place.sublayer == "blocks.1.mlp"
    assert "blocks.1.mlp.fc1.weight" in place.cause


def test_an_overflow_of_fp16_is_found_where_it_first_appears(tmp_path):
    chosen = case("dit_tiny_odd_resetN")
    tensors = load_file(chosen.path / "model.safetensors")
    large = np.float32(6e4) / np.abs(tensors["blocks.1.mlp.fc1.weight"]).max()
    tensors["blocks.1.mlp.fc1.weight"] *= large  # the hidden layer has values over 65504, all else has not
    tensors["blocks.1.mlp.fc2.weight"] /= large
    save_file(tensors, tmp_path / "large.safetensors")

    def verified(**options):
        narrow = {"weights": str(tmp_path / "large.safetensors"), "precision": "fp16", "backend": "onnxruntime", **options}
        compile_artefact(chosen.options(tmp_path / "e", **narrow))
        pipe = faithful(tmp_path / "e")
        return compare(pipe, Reference(tmp_path / "e", pipe.manifest, pipe.noise(1, 0), asked([3]), 3.0))

    verdict = verified()
    assert not verdict.place.finite
    assert verdict.place.sublayer == "blocks.1.mlp"
    assert "fp32='blocks.1.mlp'" in summary(verdict)
    kept = verified(fp32=("blocks.1.mlp",))
    assert kept.passed, summary(kept)


def test_the_command_says_where_and_fails(tiny):
    folder, chosen = tiny
    words = ["verify", str(folder), "--golden", str(chosen.path), "--backend", "onnxruntime"]
    right = CliRunner().invoke(main.l2c, [*words, "--json"])
    assert right.exit_code == 0
    assert json.loads(right.stdout)["passed"] is True
    strict = CliRunner().invoke(main.l2c, [*words, "--atol", "1e-12", "--rtol", "1e-12"])
    assert strict.exit_code == 1
    assert "call 0" in strict.stderr


def test_a_place_is_looked_for_in_a_call_that_is_fed_the_references_latents(dit):
    """Whatever the calls before it have made."""
    pipe, reference, _ = dit
    generation = pipe.generation(reference.inputs, reference.guidance_scale, len(reference.noise))

    def spoil():
        generation.loop.array(0, "x.next")[...] += 1

    generation.loop.bound(0).append(own(spoil))
    assert locate(generation, reference, reference.latents(), 1, Tolerance(1e-3, 1e-3)) is None


def test_pytorch_in_float32_is_fed_the_references_latents_too(dit):
    pipe, reference, _ = dit
    recorded = np.stack(reference.latents())
    recorded[0] += 1
    request = reference.noise, reference.inputs, reference.guidance_scale
    moved = Reference(pipe.path, pipe.manifest, *request, recorded=recorded)
    first, second = (
        np.abs(latents - want).max() for latents, want in zip(moved.in_float32()[:2], moved.latents(), strict=False)
    )
    assert min(first, second) > 1e-2, "the second call goes on from what was recorded"


def off(latents):
    return latents + np.float32(1e-4) * np.abs(latents).max()


def test_an_error_of_1e_4_is_excused_where_pytorch_in_float32_has_the_same(dit, monkeypatch):
    """And nowhere else: it is a fault."""
    pipe, reference, _ = dit
    loop = loop_of(pipe, reference)

    def wrong():
        loop.array(3, "x.next")[...] = off(loop.array(3, "x.next"))

    loop.bound(3).append(own(wrong))
    assert [check.passed for check in compare(pipe, reference).calls] == [True] * 3 + [False] + [True] * 3
    single = reference.in_float32()
    monkeypatch.setattr(reference, "in_float32", lambda: [*single[:3], off(single[3]), *single[4:]])
    verdict = compare(pipe, reference)
    assert verdict.passed
    assert [check.as_exact for check in verdict.calls] == [True] * 3 + [False] + [True] * 3
    assert "as is PyTorch in float32" in summary(verdict)
    assert table(verdict)[4][-1] == "of float32"
    monkeypatch.setattr(type(reference), "is_recorded", True)
    assert not compare(pipe, reference).passed, "where another implementation decides, ours is no excuse"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_does_not_excuse_an_error_of_a_tenth(dit, precision):
    pipe, reference, _ = dit
    loop = loop_of(pipe, reference)
    pipe.manifest = msgspec.structs.replace(pipe.manifest, precision=precision)

    def wrong():
        loop.array(3, "x.next")[...] *= np.float32(1.1)

    loop.bound(3).append(own(wrong))
    assert [check.passed for check in compare(pipe, reference).calls] == [True] * 3 + [False] + [True] * 3


def test_values_inside_a_call_are_never_allowed_more_than_its_latents():
    assert Tolerance(1e-9, 1e-9).inner("fp16") == Tolerance(1e-9, 1e-9)


def test_errors_of_nothing_and_of_nan():
    x = np.arange(6.0)
    assert Error.between(x, x) == Error(0.0, 0.0, pytest.approx(1.0), np.inf)
    assert Error.between(x * np.nan, x).relative == np.inf


def doubles():
    return [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.dtype == torch.float64]


def test_no_copy_of_the_model_in_float64_is_held(dit):
    """Of weights only those of an operation are in float64, and only while it computes."""
    pipe, reference, _ = dit
    before = {id(tensor): tensor for tensor in doubles()}  # of other tests, which are kept here so that no number is used twice
    compare(pipe, reference)
    held = [tensor for tensor in doubles() if id(tensor) not in before]
    shapes = {tuple(shape) for shape in pipe.manifest.denoiser.shapes.values() if len(shape) > 1}
    assert not [tensor.shape for tensor in held if tuple(tensor.shape) in shapes]
    weights = Converted({"w": torch.ones(2, dtype=torch.float16)}, torch.float64)
    assert weights["w"].dtype == torch.float64
    assert weights["w"] is not weights["w"]
