"""Building engines with TensorRT 8.6 to 11 and TensorRT-RTX: one ONNX file in, one plan out.

The graphs state every type themselves.  Versions that know strongly typed networks take them as they are; 8.6 has to be
told of every layer.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import BackendError, UsageError
from ...ir.precisions import FP8
from ...support.progress import Watch, unwatched
from ...support.source_hash import source_hash
from ..building import BuildSettings, Port, Range
from ..cuda.device import OLDEST_FP8, Cuda
from ..descriptors import named
from .backend import logger
from .monitor import Interrupt, monitor
from .pointwise import give_to_myelin
from .types import fix_interface, multiplies, state_types

# Builder optimisation of 8.6: for products of matrices in the loop, and for the rest.  The library's own 3 takes three times
# as long for DiT-XL/2 on an H100, and what it makes is no faster.
LEVEL, QUICK_LEVEL = 2, 0
SOURCES = ("backends/tensorrt", "backends/building.py")  # the code that decides what a plan is
WORKSPACE = 128 * 2**20  # bytes of scratch that a kernel may ask for at least; so many times the largest value of its model,
VALUES = 3  # if that is more: attention that is not fused over 4,096 tokens makes values of gigabytes


class Builder:
    """A `building.EngineBuilder` of either flavour."""

    def __init__(self, name: str, settings: BuildSettings, watch: Watch = unwatched) -> None:
        self.name, self.settings = name, settings
        self.gpus, self.card = built_for(name, settings)  # first: who has none is not told to install the library
        self._trt: Any = named(name).imported()
        self._log = logger(self._trt)
        self.strong = hasattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        self._check()
        self._interrupt = Interrupt()
        self._monitor = monitor(self._trt, watch, self._interrupt)
        self.known = b""  # the timing cache of builds before this one
        self.seconds: dict[str, float] = {}  # what the plan of every model took

    @functools.cached_property
    def _builder(self) -> Any:
        """Made when it is first needed: that takes seconds, and 8.6 may crash at the end of a process that built nothing."""
        try:
            return self._trt.Builder(self._log)
        except TypeError:  # the library made none
            raise BackendError(
                f"{self.name} {self.version} cannot start: {self._log.last or 'it needs a GPU and its driver'}"
            ) from None

    @functools.cached_property
    def _cache(self) -> Any:
        return None if self.name == "tensorrt-rtx" else self._config().create_timing_cache(self.known)

    def _check(self) -> None:
        if self.settings.precision == "bf16" and not self.strong:
            raise BackendError(f"{self.name} {self.version} has no bf16: use precision='fp16' or fp32")
        if self.settings.targets and self.name != "tensorrt-rtx":
            raise UsageError(f"targets={','.join(self.settings.targets)!r}: {self.name} builds for the GPU it runs on")
        if self.name == "tensorrt-rtx" and self.settings.version_compatible:
            raise UsageError(
                "version_compatible=True: the engines of tensorrt-rtx are for its own version: build them with each"
            )
        if self.name == "tensorrt-rtx" and self.settings.hardware_compatible:
            raise UsageError("hardware_compatible=True: tensorrt-rtx builds for the GPUs that targets=.. names")
        old = [target for target in self.settings.targets if int(target.removeprefix("sm")) < OLDEST_FP8]
        if self.settings.precision == FP8 and old:
            raise UsageError(f"targets={old[0]!r}: {FP8} needs sm{OLDEST_FP8} or newer: name those with targets=..")
        capabilities = getattr(self._trt, "ComputeCapability", None)
        for target in self.settings.targets:
            # Turing has no float32 products there, and the last layer is one in any precision
            names = [n.lower() for n in capabilities.__members__ if n.startswith("SM") and n != "SM75"] if capabilities else []
            if target not in names:
                raise UsageError(f"targets={target!r}: {self.name} {self.version} builds for {', '.join(names)}")

    @property
    def version(self) -> str:
        return str(self._trt.__version__)

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.name, self.version, self.settings, source_hash(*SOURCES))

    def build(self, model: Path, ports: Sequence[Port], ranges: Mapping[str, Range], once: bool = False) -> bytes:
        start = time.perf_counter()
        with self._interrupt:
            plan = self._build(model, ports, ranges, once)
        self.seconds[model.name] = time.perf_counter() - start
        return plan

    def _build(self, model: Path, ports: Sequence[Port], ranges: Mapping[str, Range], once: bool) -> bytes:
        trt = self._trt
        kinds = trt.NetworkDefinitionCreationFlag
        network = self._builder.create_network(1 << int(kinds.STRONGLY_TYPED if self.strong else kinds.EXPLICIT_BATCH))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(model)):
            raise BackendError(f"{self.name} {self.version} cannot read {model.name}: {reasons(parser)}")
        config = self._config()
        room = VALUES * largest(network, max((sizes.most for sizes in ranges.values()), default=1))
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, max(WORKSPACE, room))
        if not self.strong:
            state_types(trt, network)
            give_to_myelin(trt, network)
            if fix_interface(trt, network):
                config.set_flag(trt.BuilderFlag.DIRECT_IO)
            if self.settings.level is None:
                config.builder_optimization_level = LEVEL if multiplies(trt, network) and not once else QUICK_LEVEL
        config.add_optimization_profile(self._profile(ports, ranges))
        if self._cache is not None and not config.set_timing_cache(self._cache, ignore_mismatch=False):
            self._cache = config.create_timing_cache(b"")  # the one that was known is of another GPU or version
            config.set_timing_cache(self._cache, ignore_mismatch=False)
        plan = self._builder.build_serialized_network(network, config)
        if plan is None and not self.strong and config.get_flag(trt.BuilderFlag.DIRECT_IO):
            # no kernel reads or writes some tensor as it is, which happens to the prologue of a static link
            config.clear_flag(trt.BuilderFlag.DIRECT_IO)
            plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendError(f"{self.name} {self.version} cannot build {model.name}: {self._log.last}")
        return bytes(plan)

    def timing_cache(self) -> bytes:
        cache = vars(self).get("_cache")
        return b"" if cache is None else bytes(cache.serialize())

    def _config(self) -> Any:
        trt, config = self._trt, self._builder.create_builder_config()
        config.max_aux_streams = 0  # engines share one scratch memory: nothing may run beside them
        if not self.strong:  # 8.6: contexts for several batch sizes may use the one profile
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if self.settings.level is not None:
            config.builder_optimization_level = self.settings.level
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
        if self._monitor:
            config.progress_monitor = self._monitor
        if not self.strong:
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            if self.settings.precision == "fp16":
                config.set_flag(trt.BuilderFlag.FP16)
        if self.settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if self.settings.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if self.settings.targets:
            config.num_compute_capabilities = len(self.settings.targets)
            for i, target in enumerate(self.settings.targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i)
        return config

    def _profile(self, ports: Sequence[Port], ranges: Mapping[str, Range]) -> Any:
        profile = self._builder.create_optimization_profile()
        for port in ports:
            if any(isinstance(n, str) for n in port.shape):
                shapes = [port.at({axis: r[i] for axis, r in ranges.items()}) for i in range(3)]
                profile.set_shape(port.name, *shapes)
        return profile


def built_for(name: str, settings: BuildSettings) -> tuple[tuple[str, ...], str]:
    """The architectures, and the card if it is the one in this machine."""
    if settings.targets:
        return settings.targets, ""
    gpu = Cuda("cuda", name)
    return (gpu.architecture,), "-".join(re.findall(r"\w+", gpu.name))


def reasons(parser: Any) -> str:
    """The parser's errors on one line, each with its node."""
    errors = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        operator = f"{error.node_operator()} " if hasattr(error, "node_operator") else ""
        errors.append(f"{' '.join(error.desc().split())} ({operator}node {error.node()})")
    return "; ".join(errors) or "no reason given"


def open_builder(name: str, settings: BuildSettings, watch: Watch) -> Builder:
    return Builder(name, settings, watch)


def largest(network: Any, most: int) -> int:
    """Bytes of the largest value of a network in float32, where every open axis is `most`."""
    layers = (network.get_layer(n) for n in range(network.num_layers))
    shapes = (layer.get_output(n).shape for layer in layers for n in range(layer.num_outputs))
    return 4 * max((math.prod(most if size < 0 else size for size in shape) for shape in shapes), default=0)
