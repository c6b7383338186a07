"""What a schedule costs, told before anything is built: arithmetic, bytes, memory, time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from recorded import REFERENCE

from l2c_export.artefact import store
from l2c_export.backends.choose import open_backend
from l2c_export.backends.host import OnHost
from l2c_export.compiler.compile import compile_artefact, lower
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import UsageError
from l2c_export.inspection.dry_run import predict_both
from l2c_export.inspection.predict import comparison, graph_weight_bytes, predict
from l2c_export.runtime import loaded
from l2c_export.runtime.loops import Loops

NOWHERE = Path("nowhere")


def lowered(**options):
    chosen = Options(out=NOWHERE, **options)
    return lower(chosen, resolve(chosen)).manifest


def test_flops_are_those_of_the_formula():
    """2 T (4 D^2 + 2 T D) for an attention, 2 T 8 D^2 for an MLP, for each of two rows."""
    manifest = lowered(schedule="every:2", steps=4, model="DiT-S/2")
    t, d, depth = 256, 384, 12
    layers = 2 * depth * (2 * t * (4 * d**2 + 2 * t * d) + 2 * t * 8 * d**2)
    ends = 2 * t * 16 * d + 2 * 2 * t * d * 32  # the embedding of one image, the final layer of two rows
    full, cached = predict(manifest.program()).calls[:2]
    assert full.flops == pytest.approx(layers + ends, rel=1e-5)
    assert cached.flops == pytest.approx(ends, rel=1e-2)


class Counting(OnHost):
    """A backend that runs nothing and counts the bytes that each segment is given."""

    def __init__(self):
        self.bound: Counter[str] = Counter()

    def load(self, segment):
        def bind(inputs, outputs):
            self.bound[segment.path.stem] += sum(a.nbytes for a in (*inputs.values(), *outputs.values()))
            return lambda: None

        return SimpleNamespace(bind=bind)


def test_bytes_are_those_of_the_arrays_that_the_loop_binds(tiny, monkeypatch):
    manifest, backend, taken = store.read(tiny[0]), Counting(), []
    empty = type(backend.memory).empty
    monkeypatch.setattr(type(backend.memory), "empty", lambda *arguments: (taken.append(empty(*arguments)), taken[-1])[1])
    loop = Loops(loaded.load_engines(tiny[0], manifest, backend)).loop(manifest.program(), images=2, guided=True)
    predicted = predict(manifest.program(), images=2)
    assert sum(array.nbytes for array in taken) == pytest.approx(predicted.peak_bytes - predicted.weight_bytes, rel=0.1)
    prologue = {node.op for node in manifest.program().graphs[manifest.program().prologue].nodes}
    assert sum(backend.bound[op] for op in prologue) == predicted.prologue.bytes
    backend.bound.clear()
    for index in range(len(manifest.program().calls)):
        loop.bound(index)
    assert backend.bound.total() == pytest.approx(sum(cost.bytes for cost in predicted.calls), rel=0.05)


def test_a_calibrated_prediction_is_close_to_what_is_measured(tmp_path):
    """Within a factor of three on a busy machine; l2c-export --dry-run --calibrate on a quiet one is within 20 %."""
    import time

    import l2c_export

    options = Options(schedule="every:2", steps=4, model="DiT-S/4", weights="random", out=tmp_path / "e")
    for _ in range(10):  # neighbours may come between the two calibrations
        predicted, uncached = predict_both(options, "cpu", calibrated=True)
        if predicted.total.seconds < uncached.total.seconds:
            break
    assert not (tmp_path / "e").exists()
    compile_artefact(options)
    pipe = l2c_export.load(tmp_path / "e")
    seconds = np.inf
    for _ in range(20):  # until one image is left alone
        started = time.perf_counter()
        pipe([0])
        seconds = min(seconds, time.perf_counter() - started)
        if predicted.total.seconds > seconds / 2:
            break
    assert 1 / 3 < predicted.total.seconds / seconds < 3
    assert predicted.total.flops < 0.6 * uncached.total.flops
    assert predicted.total.seconds < uncached.total.seconds


def test_the_comparison_is_a_table():
    cached, twin = predict_both(Options(schedule="every:2", steps=4, model="DiT-S/2"), "h100", calibrated=False)
    table = {row[0]: row[1:] for row in comparison(cached, twin)}
    assert table["network evaluations"] == ("4", "4", "1.00")
    assert table["distinct graphs"] == ("2", "1", "2.00")
    assert float(table["TFLOP"][2]) == pytest.approx(0.5, abs=0.01)


def test_unknown_devices_are_refused():
    with pytest.raises(UsageError, match="gtx"):
        predict(lowered(schedule="every:2", steps=4, model="DiT-S/2"), device="gtx")


RELEASED = {  # cache bytes against one tensor per skipped sublayer: at most
    "dit_ddim20_real": 0.12,
    "dit_ddim50_real": 0.13,
    "uvit_dpm20_real": 0.55,
    "uvit_dpm50_real": 0.55,
}


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the released routers (L2C_REFERENCE)")
def test_what_folding_saves_for_the_released_routers(name):
    router = str(REFERENCE / name / "router.pt")

    def traffic(**options):
        program = lowered(schedule=router, **options).program()
        return program, [sum(program.value_bytes(n, 2) for n in (*c.reads, *c.writes)) for c in program.calls]

    program, folded = traffic()
    _, plain = traffic(fold=False)
    assert sum(folded) <= RELEASED[name] * sum(plain)
    for call in program.calls:
        assert len(call.reads) == runs(call.reused, program.denoiser)
    if program.denoiser.family == "dit":
        in_loop = max(graph_weight_bytes(program, call.graph) for call in program.calls)
        assert in_loop <= 0.67 * program.denoiser.weight_bytes


def runs(reused, model) -> int:
    """Maximal runs of skipped sublayers; a U-ViT's end with their block, since a long skip reads or joins the stream there."""
    return sum(j - 1 not in reused or (j % 2 == 0 and model.family == "uvit") for j in reused)


def test_slots_are_shared_between_values_that_do_not_live_together():
    manifest = lowered(schedule="every:2", steps=20, model="DiT-S/2")
    assert len(manifest.program().cache_bytes) == 1
    graph = manifest.program().graphs[manifest.program().calls[0].graph]
    assert len(graph.slot_bytes) <= 5 < len(graph.nodes)
    assert np.prod(manifest.program().latent) > 0


def test_open_backend_is_what_calibration_uses():
    assert open_backend("onnxruntime").backend.name == "onnxruntime"
