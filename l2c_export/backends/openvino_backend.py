"""OpenVINO: the fastest backend for CPUs, and the way to Intel GPUs and NPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cache import writable_folder
from ..errors import BackendError
from . import Arrays, Nodes, Request, Run, SegmentFile, needs

ov = needs("openvino", "openvino")

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
# The sampler's update amplifies rounding up to 150 times, and timesteps up to 999 need more than 8 bits.
ALWAYS_FP32 = ("update", "time", "condition")


class OpenVinoEngine:
    """One compiled model; every binding has an inference request of its own over the caller's memory."""

    def __init__(self, compiled: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self._compiled, self._inputs, self._outputs = compiled, inputs, outputs

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        request = self._compiled.create_infer_request()
        for i, name in enumerate(self._inputs):
            request.set_input_tensor(i, ov.Tensor(inputs[name], shared_memory=True))
        for i, name in enumerate(self._outputs):
            request.set_output_tensor(i, ov.Tensor(outputs[name], shared_memory=True))
        keep = (dict(inputs), dict(outputs))

        def run() -> None:
            _ = keep  # the request holds addresses only
            request.start_async()
            request.wait()

        return run


class OpenVinoBackend:
    """Models compiled for one device with a latency hint."""

    name = "openvino"

    def __init__(self, request: Request) -> None:
        self._core = ov.Core()
        self._device = (request.device or "cpu").upper()
        self._precision = request.precision
        self._threads = request.threads or len(os.sched_getaffinity(0))
        self._check()
        self._cache = writable_folder("openvino")

    def _check(self) -> None:
        """Refuse what the device has no instructions for: OpenVINO would take the hint and silently run in float32."""
        if self._device not in self._core.available_devices:
            found = ", ".join(d.lower() for d in self._core.available_devices)
            raise BackendError(f"openvino: no device {self._device.lower()!r} on this machine: use {found}")
        able = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        if self._precision.upper() not in (*able, "FP32"):
            raise BackendError(
                f"openvino: this {self._device} has no {self._precision} and would run fp32 instead: use --precision fp32"
            )

    def describe(self) -> str:
        able = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        extra = "bf16 too" if "BF16" in able else "no bf16: refused"
        return f"{self._core.get_property(self._device, 'FULL_DEVICE_NAME')}, {self._threads} threads, {extra}"

    def load(self, segment: SegmentFile) -> OpenVinoEngine:
        name = segment.path.name
        precision = "fp32" if name.startswith(ALWAYS_FP32) else self._precision
        # compiled segments are some KB and the same for all weights, so they are worth keeping between loads
        cache = {"CACHE_DIR": str(self._cache)} if self._cache else {}
        config = {"INFERENCE_PRECISION_HINT": HINTS[precision], **cache}
        return self._compile(segment.path, self._read(segment.path), segment.inputs, segment.outputs, config)

    def link(
        self,
        path: Path,
        nodes: Nodes,
        segments: Mapping[str, SegmentFile],
        outputs: tuple[str, ...],
        weights: Arrays,
    ) -> OpenVinoEngine:
        """Stitch the segments together in OpenVINO's own representation: its ONNX reader knows no local functions."""
        read = {name: self._read(segment.path) for name, segment in segments.items() if any(n.op == name for n in nodes)}
        made: dict[str, Any] = {name: ov.op.Constant(array, shared_memory=True).output(0) for name, array in weights.items()}
        parameters = {}
        for node in nodes:
            segment, model = segments[node.op], read[node.op].clone()
            for parameter, name in zip(model.get_parameters(), node.inputs, strict=True):
                if name not in made:
                    parameters[name], made[name] = parameter, parameter.output(0)
                else:
                    for reader in parameter.output(0).get_target_inputs():
                        reader.replace_source_output(made[name])
            results = [result.input_value(0) for result in model.get_results()]
            made.update(zip(node.outputs, results, strict=True))
            assert len(segment.outputs) == len(results)
        whole = ov.Model([made[name] for name in outputs], list(parameters.values()), path.stem)
        # never cached: a compiled graph holds its weights, so every graph of every checkpoint would stay on the disk
        config = {"INFERENCE_PRECISION_HINT": HINTS[self._precision]}
        return self._compile(path, whole, tuple(parameters), outputs, config)

    def _read(self, path: Path) -> Any:
        try:
            return self._core.read_model(path)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} cannot read {path}: {_reason(error)}") from None

    def _compile(
        self, path: Path, model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], config: dict[str, Any]
    ) -> OpenVinoEngine:
        threads = {"INFERENCE_NUM_THREADS": self._threads} if self._device == "CPU" else {}
        settings = {"PERFORMANCE_HINT": "LATENCY", **threads, **config}
        try:
            return OpenVinoEngine(self._core.compile_model(model, self._device, settings), inputs, outputs)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} cannot compile {path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The line of OpenVINO's message that says something: the first ones name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [repr(error)])[0]


def open_backend(request: Request) -> OpenVinoBackend:
    return OpenVinoBackend(request)
