"""Graphs written as ONNX text, an interpreter for them, and the golden cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator
from recorded import OWN_CASES, Case, all_cases, case  # noqa: F401  (tests find everything here)

from l2c_export.artefact import store
from l2c_export.backends.choose import Opened
from l2c_export.backends.contract import SegmentFile
from l2c_export.backends.host import OnHost
from l2c_export.compiler.compile import compile_artefact
from l2c_export.ir.graph import CACHE, PROLOGUE, REQUEST, STATE, TIME, WEIGHT, Graph, Node, Value
from l2c_export.ir.names import split_at
from l2c_export.runtime.loaded import load_engines
from l2c_export.runtime.pipeline import Pipeline

KINDS = {"w": WEIGHT, "t": TIME, "y": REQUEST, "row": PROLOGUE}


def needs_precision(backend: str, precision: str) -> None:
    """Skip a test whose precision OpenVINO refuses on this processor."""
    if backend == "openvino":
        core = pytest.importorskip("openvino").Core()
        if precision.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip(f"this processor has no {precision}")


def compiled(name: str, folder: Path, **options) -> Path:
    """A golden case, compiled to `folder`."""
    compile_artefact(case(name).options(folder, **options))
    return folder


def parse(text: str, sublayers: tuple[str | tuple[str, ...], ...] = ()) -> Graph:
    """A graph from ONNX text.  Quoted names may hold dots and @.

    An input's kind follows from its name: w* is a weight, t a timestep, y labels, row* hoisted, *@-k cached, the rest is
    the loop's.  All values are float[R].
    """
    plain = onnx.parser.parse_graph(text.replace(".", "_dot_").replace("@-", "_back_").replace("@+", "_ahead_"))

    def name(n: str) -> str:
        return n.replace("_dot_", ".").replace("_back_", "@-").replace("_ahead_", "@+")

    def kind(n: str) -> str:
        if split_at(n)[1] < 0:
            return CACHE
        base = split_at(n)[0]
        return next(
            (
                k
                for prefix, k in KINDS.items()
                if base == prefix or ((len(prefix) > 1 or prefix == "w") and base.startswith(prefix))
            ),
            STATE,
        )

    nodes = tuple(Node(n.op_type, name(n.output[0]), tuple(map(name, n.input)), tuple(map(name, n.output))) for n in plain.node)
    values = {name(i.name): Value(("R",), kind=kind(name(i.name))) for i in plain.input}
    values |= {o: Value(("R",)) for n in nodes for o in n.outputs}
    return Graph(nodes, values, tuple(name(o.name) for o in plain.output), _columns(sublayers))


def _columns(sublayers: tuple[str | tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """A sublayer of one value may be written as that."""
    return tuple((value,) if isinstance(value, str) else value for value in sublayers)


def lines(graph: Graph) -> list[str]:
    """The nodes, one line each, for comparison."""
    return [f"{', '.join(n.outputs)} = {n.op}({', '.join(n.inputs)})" for n in graph.nodes]


Op = Callable[..., np.ndarray]


def evaluate(graph: Graph, inputs: Mapping[str, np.ndarray], ops: Mapping[str, Op]) -> dict[str, np.ndarray]:
    """Every value of a graph whose operations are numpy functions."""
    known = {"Add": np.add, "Mul": np.multiply, **ops}
    values = dict(inputs)
    for node in graph.nodes:
        values[node.outputs[0]] = known[node.op](*(values[i] for i in node.inputs))
    return values


class FaithfulBackend(OnHost):
    """onnx's own evaluator: every operator in its stated type.  ONNX Runtime computes float16 in float32 on a CPU."""

    name = "faithful"

    def describe(self) -> str:
        return "onnx.reference"

    def load(self, segment: SegmentFile) -> FaithfulEngine:
        return FaithfulEngine(ReferenceEvaluator(str(segment.path)))


@dataclass(frozen=True)
class FaithfulEngine:
    evaluator: ReferenceEvaluator

    def bind(self, inputs, outputs):
        def run():
            with np.errstate(all="ignore"):
                results = self.evaluator.run(list(outputs), dict(inputs))
            for out, value in zip(outputs.values(), results, strict=True):
                out[...] = value

        return run


def faithful(folder: Path) -> Pipeline:
    backend = FaithfulBackend()
    return Pipeline(load_engines(folder, store.read(folder), backend), Opened(backend, "as asked"))
