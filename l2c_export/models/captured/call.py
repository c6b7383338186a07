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
        made = computed(body, inputs)
        return made if len(made) > 1 else made[0]

    return Operation(function)


def call(pieces: Pieces, run: Runner, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
    """What the model predicts, as `Family.call` has it."""
    values = {"x": run(GATHER, x, rows), "t": t, **request}
    for step in pieces.steps:
        if isinstance(step, Sum):
            gate = None if step.gate is None else values[step.gate]
            values[step.made] = run.residual(values[step.stream], values[step.at], step.at, gate)
            continue
        given = [*(values[name] for name in step.inputs), *map(run.weight, step.weights)]
        made = (run.sublayer if step.cached else run)(step.op, *given, at="", name=step.name)
        values.update(zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=True))
    return values[pieces.result]
