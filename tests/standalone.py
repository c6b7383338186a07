"""The loop over an artefact's graphs as other tools run them, in a process that need not have loaded anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from l2c_export.artefact import store
from l2c_export.ir.names import split_at

Values = dict[str, np.ndarray]


def session(path: Path | bytes, options: onnxruntime.SessionOptions | None = None) -> Callable[[Values], Values]:
    """A graph by ONNX Runtime: a function that takes what it needs of the given values, and makes the outputs by name."""
    engine = onnxruntime.InferenceSession(path, options)
    names = [o.name for o in engine.get_outputs()]
    return lambda values: dict(
        zip(names, engine.run(names, {i.name: values[i.name] for i in engine.get_inputs()}), strict=True)
    )


def denoise(
    folder: Path,
    latents: np.ndarray,
    labels: list[int],
    scale: float,
    read: Callable[[Path], Callable[[Values], Values]] = session,
) -> np.ndarray:
    """Guided latents; whatever lives between two calls is in a dictionary."""
    manifest = store.read(folder)
    graphs = {n: read(folder / g.file) for n, g in manifest.program().graphs.items()}

    n = len(latents)
    index = np.arange(n, dtype=np.int32)
    guided = np.array(manifest.guidance.channels(latents.shape[1]), np.float32)
    inputs = {
        "rows": np.tile(index, 2),
        "conditional": index,
        "unconditional": index + n,
        "request.class_labels": np.array([*labels, *manifest.inputs[0].without(n)], np.int32),
        "guidance": np.tile(np.float32(scale - 1) * guided.reshape(1, -1, 1, 1), (n, 1, 1, 1)),
    }
    rows = []
    for call in manifest.program().calls:
        known = {**inputs, "t": np.full(2 * n, call.timestep, np.float32)}
        for before_the_loop in manifest.program().before_loop:
            known |= graphs[before_the_loop](known)
        rows.append(known)
    x = base = latents
    cache: dict[int, np.ndarray] = {}
    for k, call in enumerate(manifest.program().calls):
        values = {"x": x, "base": base, "coefficients": np.array(call.coefficients, np.float32)}
        for name in manifest.program().graphs[call.graph].inputs:
            value, ahead = split_at(name)
            if name in call.reads:
                values[name] = cache[call.reads[name]]
            elif name not in values and value in rows[k]:
                values[name] = rows[k + ahead][value]
        outputs = graphs[call.graph](values)
        cache |= {slot: outputs[name] for name, slot in call.writes.items()}
        x = outputs["x.next"]
        base = x if call.ends_step else base
    return x
