"""A captured model called: its steps in order, by whoever runs pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..family import Operation, Runner
from ..primitives import gather
from .mixed import computed
from .pieces import PieceBody, Pieces, Sum

GATHER = "gather"  # the rows of the model's batch


def operations(pieces: Pieces) -> dict[str, Operation]:
    """What the model is made of, by kind."""
    return {GATHER: Operation(gather), **{op: operation(body) for op, body in pieces.bodies.items()}}


def operation(body: PieceBody) -> Operation:
    """A body as a function of its inputs."""

    def function(*inputs: Any) -> Any:
        outputs = computed(body, inputs)
        return outputs if len(outputs) > 1 else outputs[0]

    return Operation(function)


def call(pieces: Pieces, run: Runner, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
    """What the model predicts, as `Family.call` has it."""
    values = {"x": run(GATHER, x, rows), "t": t, **request}
    for step in pieces.steps:
        if isinstance(step, Sum):
            gate = None if step.gate is None else values[step.gate]
            values[step.output] = run.residual(values[step.stream], values[step.at], step.at, gate)
            continue
        inputs = [*(values[name] for name in step.inputs), *map(run.weight, step.weights)]
        output = (run.sublayer if step.cached else run)(step.op, *inputs, at="", name=step.name)
        values.update(zip(step.outputs, output if isinstance(output, tuple) else (output,), strict=True))
    return values[pieces.result]
