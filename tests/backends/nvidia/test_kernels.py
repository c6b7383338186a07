"""Segments as plans of libraries and kernels: what they make on the host is what PyTorch makes of their primitives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from kernels_on_host import COMPILER, Host, together
from segments import F16, F32, FAMILIES, LARGER, LOOSE, Segment, alone, bodies, in_e4m3, of_body, off_by

from l2c_export.artefact import store
from l2c_export.backends.nvidia import compiling, kernels
from l2c_export.backends.nvidia.compiling import compiled
from l2c_export.backends.nvidia.facts import COVERED, MOST_READS
from l2c_export.backends.nvidia.graphs import inlined
from l2c_export.backends.nvidia.plan import MOST_TOGETHER, plan
from l2c_export.compiler.compile import lower
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.ir.dtypes import E4M3
from l2c_export.ir.graph import Primitive, Value
from l2c_export.ir.signature import Misfit
from l2c_export.ir.signatures import TABLE
from l2c_export.models.primitives import MOST_E4M3, execute
from l2c_export.runtime.loaded import segment_file

pytestmark = pytest.mark.usefixtures("one_thread")
SHARED = [  # what threads make together: tiles that are not full, a mask, weights for several calls, a value without a gate
    ("bank", [F32(14, 3), *[F16("R", 5, 6)] * 2, F16(3, "R", 1, 6), F32(14), F32("R", 6, 14, 5)], {"gated": (0, 1)}),
    ("bank", [F32(13, 2), *[F32("R", 9, 35)] * 3, *[F16(2, "R", 1, 35)] * 3], {"gated": (1, 1, 1)}),  # an odd width
    ("linear_attention", [F32(2, 7, 16)] * 3, {"heads": 2}),
    ("sdpa", [F32(1, 17, 8), F32(1, 33, 8), F32(1, 33, 8), F32(1, 1, 17, 33)], {"heads": 2}),
]
TOLERANCE = {"float32": 1e-5, "float16": 3e-2, "bfloat16": 6e-2}


@pytest.fixture
def one_thread_a_row(monkeypatch):
    monkeypatch.setattr(kernels, "WARP", 1)
    monkeypatch.setattr(kernels, "MOST_WARPS", 1)


def same(segments, folder, tolerance, own_attention=False, otherwise=False):
    """That plans make what PyTorch makes."""
    plans = [plan(segment.primitives, segment.concrete, segment.outputs) for segment in segments]
    host = Host(plans, folder)
    for segment, own_plan in zip(segments, plans, strict=True):
        inputs = segment.some()
        wanted = execute(segment.primitives, inputs)
        outputs = {name: torch.full_like(wanted[name], 77).contiguous() for name in segment.outputs}
        host.run(own_plan, {**inputs, **outputs}, own_attention, otherwise)
        for name in segment.outputs:
            assert off_by(outputs[name], wanted[name]) < tolerance, (segment.primitives, name)


def test_every_primitive_is_covered():
    assert TABLE.keys() == COVERED


def test_no_name_reaches_a_kernel():
    """Kernels are made of known primitives and checked numbers, whatever a manifest calls its values."""
    for name, dtype in zip(FAMILIES, TOLERANCE, strict=True):
        for segment in (of_body(body) for body in bodies(name, dtype).values()):
            plain, hostile = (sources(renamed(segment, form)) for form in ("{}", '"); /* {} */ #include "x\\n'))
            assert plain == hostile


def with_attributes():
    """Every attribute of every primitive, with a primitive that has it."""
    e4m3 = [Value(("R", 16), E4M3), Value((32, 16), E4M3), F32(2), F32(2)]
    loose = (*LOOSE, *LARGER, ("linear_fp8", e4m3, {"parts": 1}))
    some = {op: alone(op, inputs, attributes) for op, inputs, attributes in loose}
    for body in (body for name, dtype in zip(FAMILIES, TOLERANCE, strict=True) for body in bodies(name, dtype).values()):
        for p in body.primitives:
            some.setdefault(p.op, Segment((p,), {name: body.values[name] for name in p.inputs}, p.outputs))
    return {(p.op, name): segment for segment in some.values() for p in segment.primitives for name, _ in p.attributes}


HOSTILE = [
    "", "1", "1.0f", "1); evil(", "float32; evil", '"\n#include <evil>', True, False, None, math.nan, math.inf, -math.inf,
    1e300, -1, 2**31, 2**64, (), ("1",), (0, "evil"), (True, False), (False, 1), (1, -1), (0.5,), (2**31,), (1,) * 9, [1],
    {"evil": 1},
]  # fmt: skip


def test_an_attribute_reaches_a_kernel_as_a_number_in_its_bounds_or_a_known_type():
    """Whatever has checked a manifest before: text, truth values and what is not finite never become a part of a source."""
    every = with_attributes()
    assert every.keys() == {(op, name) for op in TABLE for name in TABLE[op].attributes}
    allowed = set()
    for ((op, name), segment), hostile in itertools.product(every.items(), HOSTILE):
        (primitive,) = segment.primitives
        if TABLE[op].attributes[name].holds(hostile):
            allowed.add((name, hostile))
            continue
        changed = Primitive(op, tuple((n, hostile if n == name else value) for n, value in primitive.attributes),
                            primitive.inputs, primitive.outputs)  # fmt: skip
        with pytest.raises(Misfit, match=f"^{op}: {name} is "):
            plan([changed], segment.concrete, segment.outputs)
    assert allowed == {("axes", ()), ("gated", ()), ("gated", (1,) * 9)}  # of whole numbers, if of too few or too many


def sources(segment):
    return [kernel.source for kernel in plan(segment.primitives, segment.concrete, segment.outputs).kernels]


def renamed(segment, form):
    def named(names):
        return tuple(form.format(name) for name in names)

    primitives = [Primitive(p.op, p.attributes, named(p.inputs), named(p.outputs)) for p in segment.primitives]
    return Segment(primitives, dict(zip(named(segment.inputs), segment.inputs.values(), strict=True)), named(segment.outputs))


def test_a_long_sum_is_made_in_parts():
    terms = [f"v{n}" for n in range(40)]
    chain = ["v0", *(f"s{n}" for n in range(1, 40))]
    adds = [Primitive("add", (), (chain[n - 1], terms[n]), (chain[n],)) for n in range(1, 40)]
    kernels = plan(adds, {name: Value((2, 8)) for name in terms}, (chain[-1],)).kernels
    assert len(kernels) > 2
    assert max(len(kernel.buffers) for kernel in kernels) <= MOST_TOGETHER * (MOST_READS + 2)


def test_a_residual_is_made_by_the_product_or_with_the_norm_that_reads_it():
    """Of a gated sublayer, then one without a gate: h + g v with the next norm, h + v by the product of v."""
    primitives = [
        Primitive("linear", (("parts", 1),), ("h", "w", "b"), ("v",)), Primitive("mul", (), ("g", "v"), ("gv",)),
        Primitive("add", (), ("h", "gv"), ("h1",)), Primitive("layer_norm", (("eps", 1e-6),), ("h1",), ("n",)),
        Primitive("modulate", (), ("n", "s", "g"), ("m",)), Primitive("linear", (("parts", 1),), ("m", "w", "b"), ("u",)),
        Primitive("add", (), ("h1", "u"), ("h2",)),
    ]  # fmt: skip
    h, g = Value((2, 4, 8), "float16"), Value((2, 1, 8), "float16")
    types = {"h": h, "g": g, "s": g, "w": Value((8, 8), "float16"), "b": Value((8,), "float16")}
    steps = plan(primitives, types, ("h2",)).steps
    assert [type(step).__name__ for step in steps] == ["Product", "Kernel", "Product"]
    assert steps[1].writes == {"h1.temporary", "m.temporary"}
    assert steps[2].residual.buffer == "h1.temporary"
    apart = plan(primitives, types, ("u", "h2")).steps  # u is wanted, too
    assert [type(step).__name__ for step in apart] == ["Product", "Kernel", "Product", "Kernel"]
    assert apart[2].writes == {"u"}


def test_what_a_norm_makes_for_several_products_is_written_in_their_type_alone():
    primitives = [
        Primitive("layer_norm", (("eps", 1e-6),), ("h",), ("n",)), Primitive("modulate", (), ("n", "s", "s"), ("m",)),
        Primitive("linear", (("parts", 1),), ("m", "w"), ("u",)), Primitive("linear", (("parts", 1),), ("m", "w2"), ("v",)),
    ]  # fmt: skip
    types = {"h": Value((2, 4, 8)), "s": Value((2, 1, 8)), "w": Value((8, 8), "bfloat16"), "w2": Value((4, 8), "bfloat16")}
    first, *products = plan(primitives, types, ("u", "v")).steps
    assert first.writes == {products[0].x.buffer} == {products[1].x.buffer}
    assert products[0].x.dtype == "bfloat16"


def test_what_is_multiplied_in_e4m3_is_written_as_such_by_what_makes_it():
    """A norm, attention's output and GELU; where GELU is not the product's, by the one kernel for both."""
    attention, mlp = (plan(s.primitives, s.concrete, s.outputs) for s in map(of_body, in_e4m3("dit").values()))
    assert [type(step).__name__ for step in attention.steps] == ["Kernel", "Product", "Attention", "Kernel", "Product"]
    assert [type(step).__name__ for step in mlp.steps] == ["Kernel", "Product", "Product"]
    products = [step for own_plan in (attention, mlp) for step in own_plan.steps if hasattr(step, "scales")]
    assert {(step.x.dtype, step.weight.dtype) for step in products} == {(E4M3, E4M3)}
    assert [step.out.dtype for step in products] == ["bfloat16", "bfloat16", E4M3, "bfloat16"]
    plain, kernel = products[2].otherwise
    assert (plain.out.dtype, kernel.buffers[0], kernel.writes) == ("bfloat16", plain.out.buffer, {products[3].x.buffer})


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.usefixtures("one_thread_a_row")
class TestOnHost:
    def test_single_primitives(self, tmp_path):
        segments = [alone(*example) for example in LOOSE if example[0] not in {hard for hard, *_ in SHARED}]
        wide = [s for s in segments if all(v.dtype in ("float32", "int32") for v in s.concrete.values())]
        same(wide, tmp_path, TOLERANCE["float32"])
        same([s for s in segments if s not in wide], tmp_path, TOLERANCE["bfloat16"])

    @pytest.mark.parametrize("example", SHARED, ids=lambda example: example[0])
    def test_kernels_with_shared_memory(self, example, tmp_path):
        same([alone(*example)], tmp_path, TOLERANCE["float32"], own_attention=True)

    @pytest.mark.parametrize(("name", "dtype"), [*zip(FAMILIES, TOLERANCE, strict=True)])
    def test_families(self, name, dtype, tmp_path):
        same([of_body(body) for body in bodies(name, dtype).values()], tmp_path, TOLERANCE[dtype])

    @pytest.mark.parametrize("otherwise", [False, True], ids=["gelu in the product", "gelu by a kernel"])
    def test_products_in_e4m3(self, otherwise, tmp_path):
        segments = [of_body(body) for name in ("dit", "uvit") for body in in_e4m3(name).values()]
        same(segments, tmp_path, TOLERANCE["bfloat16"], otherwise=otherwise)

    def test_e4m3_is_rounded_as_pytorch_does(self, tmp_path):
        segment = alone("quantise", [F32("R", 4, 256), F32(2)], {})
        x = torch.randn(6, 4, 256, generator=torch.Generator().manual_seed(0)) * torch.exp2(torch.arange(256) / 8 - 20)
        steps = plan(segment.primitives, segment.concrete, segment.outputs)
        output = torch.zeros(x.shape, dtype=torch.float8_e4m3fn)
        inputs = {"i0": x, "i1": torch.tensor([0.25, 4.0])}
        Host([steps], tmp_path).run(steps, {**inputs, "o0": output})
        assert output.float().abs().max() == MOST_E4M3
        assert torch.equal(output.float(), execute(segment.primitives, inputs)["o0"].float())

    def test_a_captured_transformer_in_half_precision(self, tmp_path):
        """Streams and tables in float32, products in bfloat16: FLUX.1, with norms of queries and keys and rotary positions."""
        prompted = pytest.importorskip("prompted", reason="there is no diffusers")
        options = Options(schedule="every:1", steps=2, model=str(prompted.flux(tmp_path / "model")), out=tmp_path / "out",
                          precision="bf16", tokens=prompted.TOKENS, size=prompted.PIXELS)  # fmt: skip
        segments = [of_body(body) for body in lower(options, resolve(options)).whole.bodies.values()]
        same(segments, tmp_path, TOLERANCE["bfloat16"])

    def test_whole_graphs(self, tiny, tmp_path):
        folder, _ = tiny
        manifest = store.read(folder)
        compiled = manifest.program()
        files = {name: segment_file(folder, manifest, segment) for name, segment in compiled.segments.items()}
        segments = []
        for graph in (compiled.graphs[name] for name in (*compiled.step_graphs, compiled.prologue)):
            primitives = [p for node in graph.nodes for p in inlined(node, files[node.op])]
            types = {i: weight(manifest, compiled, i) if compiled.is_weight(i) else compiled.value(i) for i in graph.inputs}
            segments.append(Segment(primitives, types, graph.outputs))
        same(segments, tmp_path, 1e-3)  # of random weights, layer after layer


def weight(manifest, compiled, name):
    return Value(compiled.weight_shape(name), manifest.denoiser.tensors[compiled.origin(name).of].dtype)


def test_what_was_compiled_is_found_for_its_gpu_alone(empty_cache, monkeypatch):
    pytest.importorskip("cuda.core")
    compiled_for = []
    monkeypatch.setattr(compiling, "_compile", lambda core, text, gpu: compiled_for.append(gpu) or gpu.encode())
    assert [compiled("kernel", gpu) for gpu in ("sm80", "sm90", "sm80")] == [b"sm80", b"sm90", b"sm80"]
    assert compiled_for == ["sm80", "sm90"]


@pytest.mark.parametrize("architecture", ["sm80", "sm89", "sm90", "sm100"])
def test_kernels_are_compiled_without_a_gpu(architecture, empty_cache):
    pytest.importorskip("cuda.core")
    segments = [alone(*example) for example in (LOOSE if architecture in ("sm89", "sm90") else [*LOOSE, *LARGER])]
    segments += [of_body(body) for body in bodies("dit", "bfloat16").values()]
    segments += [of_body(body) for body in in_e4m3("dit").values()] if architecture != "sm80" else []
    plans = [plan(segment.primitives, segment.concrete, segment.outputs) for segment in segments]
    sources = list(dict.fromkeys(kernel.source for own_plan in plans for kernel in own_plan.kernels))
    code = compiled(together(sources), architecture)
    assert all(f"kernel{n}\0".encode() in code for n in range(len(sources)))
    (entry,) = empty_cache.rglob("*/*")
    assert entry.read_bytes().endswith(code)
