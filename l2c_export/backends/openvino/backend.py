"""OpenVINO: the fastest backend for CPUs, and the way to Intel GPUs and NPUs."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import ArtefactError, BackendError, RunError
from ...ir.dtypes import BFLOAT16
from ...support.cache import cached
from ...support.extras import needs
from ...support.machine import cores
from ...support.words import counted
from ..contract import Arrays, Nodes, Request, Run, SegmentFile
from ..host import OnHost

ov = needs("openvino", "openvino")

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class Part(NamedTuple):
    """One compiled model, with its inputs and outputs by name."""

    compiled: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OpenVinoEngine:
    """Compiled models that run one after the other; every binding has inference requests over the caller's memory."""

    def __init__(self, parts: list[Part], path: Path) -> None:
        self._parts, self._path = parts, path

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        try:
            return self._bind(inputs, outputs)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} cannot run {self._path}: {_reason(error)}") from None

    def _bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        requests: list[Any] = []
        links: list[tuple[Any, int, Any, int]] = []  # which input is which output of an earlier part
        sources: dict[str, tuple[Any, int]] = {}
        for part in self._parts:
            request = part.compiled.create_infer_request()
            for i, name in enumerate(part.inputs):
                if name in inputs:
                    request.set_input_tensor(i, tensor(inputs[name]))
                else:  # made by an earlier part, which gives it a shape when it first runs
                    links.append((request, i, *sources[name]))
            for i, name in enumerate(part.outputs):
                if name in outputs:
                    request.set_output_tensor(i, tensor(outputs[name]))
                sources[name] = request, i
            requests.append(request)
        keep = (dict(inputs), dict(outputs))

        def run() -> None:
            _ = keep  # the requests hold addresses only
            for request in requests:
                for reader, i, maker, j in links:
                    if reader is request:
                        request.set_input_tensor(i, maker.get_output_tensor(j))
                try:
                    request.start_async()
                    request.wait()
                except RuntimeError as error:
                    raise RunError(f"OpenVINO {ov.__version__}: {_reason(error)}") from None

        return run


def tensor(array: np.ndarray) -> Any:
    """The same memory as OpenVINO sees it, which takes bfloat16 as 16 bits of a type that is told."""
    if array.dtype == BFLOAT16:
        return ov.Tensor(array.view(np.uint16), array.shape, ov.Type.bf16)
    return ov.Tensor(array, shared_memory=True)


class OpenVinoBackend(OnHost):
    """Models compiled for one device with a latency hint."""

    name = "openvino"

    def __init__(self, request: Request) -> None:
        self._core = ov.Core()
        self._device = (request.device or "cpu").upper()
        self._precision = request.precision
        self._threads = request.threads or cores()
        self._check()

    def _check(self) -> None:
        """Refuse what the device has no instructions for: OpenVINO would take the hint and silently run in float32."""
        if self._device not in self._core.available_devices:
            devices = ", ".join(d.lower() for d in self._core.available_devices)
            raise BackendError(f"openvino: no device {self._device.lower()!r} on this machine: use {devices}")
        capabilities = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        if self._precision.upper() not in (*capabilities, "FP32"):
            raise BackendError(f"openvino: this {self._device} has no {self._precision} and runs fp32: compile with that")

    def describe(self) -> str:
        capabilities = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        extra = "bf16 too" if "BF16" in capabilities else "no bf16: refused"
        return f"{self._core.get_property(self._device, 'FULL_DEVICE_NAME')}, {counted(self._threads, 'thread')}, {extra}"

    def load(self, segment: SegmentFile) -> OpenVinoEngine:
        """Segments are the same for all weights and kept compiled, in our own cache: OpenVINO's would run a damaged entry."""
        if segment.weights_inside:
            model = self._compile(segment.path, self._read(segment), self._settings(segment))
            return OpenVinoEngine([Part(_checked(model, segment), segment.inputs, segment.outputs)], segment.path)
        data, settings = segment.read(), self._settings(segment)
        name = self._core.get_property(self._device, "FULL_DEVICE_NAME")
        key = [self.name, hashlib.sha256(data).hexdigest(), settings, ov.__version__, self._device, name]

        def exported() -> bytes:
            blob = io.BytesIO()
            self._compile(segment.path, self._read(segment), settings).export_model(blob)
            return blob.getvalue()

        try:
            compiled = self._core.import_model(io.BytesIO(cached("engines", key, exported)), self._device, settings)
        except RuntimeError:  # not every device can export
            compiled = self._compile(segment.path, self._read(segment), settings)
        return OpenVinoEngine([Part(_checked(compiled, segment), segment.inputs, segment.outputs)], segment.path)

    def link(
        self, path: Path, nodes: Nodes, segments: Mapping[str, SegmentFile], outputs: tuple[str, ...], weights: Arrays
    ) -> OpenVinoEngine:
        """Stitch the segments together in OpenVINO's own representation, around the one copy of the weights.

        The precision is a property of a compiled model, so the float32 islands are models of their own.
        """
        parts = [tuple(part) for _, part in itertools.groupby(nodes, lambda node: self._precision_of(segments[node.op]))]
        readers = [set(outputs)]  # what is read after a part
        for part in reversed(parts):
            readers.insert(0, readers[0] | {name for node in part for name in node.inputs})
        compiled = []
        for part, later in zip(parts, readers[1:], strict=True):
            names = [name for node in part for name in node.outputs if name in later]
            compiled.append(self._stitch(path, part, segments, tuple(names), weights))
        return OpenVinoEngine(compiled, path)

    def _stitch(
        self, path: Path, nodes: Nodes, segments: Mapping[str, SegmentFile], outputs: tuple[str, ...], weights: Arrays
    ) -> Part:
        """One compiled model of some nodes, the weights shared in place."""
        models = {name: _checked(self._read(segments[name]), segments[name]) for name in {node.op for node in nodes}}
        names = {name for node in nodes for name in node.inputs if name in weights}
        ports: dict[str, Any] = {n: ov.op.Constant(tensor(weights[n]), shared_memory=True).output(0) for n in names}
        parameters = {}
        for node in nodes:
            model = models[node.op].clone()
            for parameter, name in zip(model.get_parameters(), node.inputs, strict=True):
                if name not in ports:
                    parameters[name], ports[name] = parameter, parameter.output(0)
                else:
                    for reader in parameter.output(0).get_target_inputs():
                        reader.replace_source_output(ports[name])
            ports.update(zip(node.outputs, (result.input_value(0) for result in model.get_results()), strict=True))
        stitched = ov.Model([ports[name] for name in outputs], list(parameters.values()), path.stem)
        # never cached: a compiled graph holds its weights, so every graph of every checkpoint would stay on the disk
        return Part(self._compile(path, stitched, self._settings(segments[nodes[0].op])), tuple(parameters), outputs)

    def _precision_of(self, segment: SegmentFile) -> str:
        return "fp32" if segment.island or segment.weights_inside else self._precision

    def _read(self, segment: SegmentFile) -> Any:
        try:
            return self._core.read_model(segment.read(), b"")
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} cannot read {segment.path}: {_reason(error)}") from None

    def _settings(self, segment: SegmentFile) -> dict[str, Any]:
        threads = {"INFERENCE_NUM_THREADS": self._threads} if self._device == "CPU" else {}
        hint = HINTS[self._precision_of(segment)]
        return {"PERFORMANCE_HINT": "LATENCY", **threads, "INFERENCE_PRECISION_HINT": hint}

    def _compile(self, path: Path, model: Any, settings: dict[str, Any]) -> Any:
        try:
            return self._core.compile_model(model, self._device, settings)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} cannot compile {path}: {_reason(error)}") from None


def _checked(model: Any, segment: SegmentFile) -> Any:
    """A model that has what the manifest says, in that order: it is given arrays by number.  Raises ArtefactError."""
    for what, ports, names in (("inputs", model.inputs, segment.inputs), ("outputs", model.outputs, segment.outputs)):
        if len(ports) != len(names) or any(name not in port.get_names() for port, name in zip(ports, names, strict=True)):
            own = ", ".join(port.any_name for port in ports)
            said = f"not {', '.join(names)} as manifest.json says"
            raise ArtefactError(f"{segment.path} has the {what} {own}, and {said}; run l2c-export again")
    return model


def _reason(error: Exception) -> str:
    """The line of OpenVINO's message that says what is wrong: those before it say where, in its own source and in the model."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '", "While validating"))]
    return (telling or lines or [repr(error)])[0]


def open_backend(name: str, request: Request) -> OpenVinoBackend:
    return OpenVinoBackend(request)
