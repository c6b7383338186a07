"""The backends.  To add one, describe it here: everybody else goes by this list."""

from __future__ import annotations

from ..errors import BackendError, UsageError
from .descriptor import CPU, GPU, Descriptor, Site

AUTO = "auto"

BACKENDS = (
    Descriptor(
        name="tensorrt",
        home=".tensorrt.backend",
        library="tensorrt",
        extra="tensorrt",
        precisions=("fp32", "bf16", "fp16"),
        sites=(Site(GPU, "tensorrt"),),
        builder=".tensorrt.builder",
    ),
    Descriptor(
        name="tensorrt-rtx",
        home=".tensorrt.backend",
        library="tensorrt_rtx",
        extra="tensorrt-rtx",
        precisions=("fp32", "bf16", "fp16", "fp8"),
        sites=(Site(GPU, "tensorrt-rtx"),),
        builder=".tensorrt.builder",
        targets=("sm86", "sm89", "sm120"),  # the consumer and edge GPUs of the last three generations
    ),
    Descriptor(
        name="cuda",
        home=".nvidia.backend",
        library="nvmath",
        extra="cuda",
        precisions=("fp32", "bf16", "fp16", "fp8"),
        sites=(Site(GPU, "nvmath-python"),),
        preparer=".nvidia.prepare",
        reads_onnx=False,
    ),
    Descriptor(
        name="openvino",
        home=".openvino.backend",
        library="openvino",
        extra="openvino",
        precisions=("fp32", "bf16", "fp16"),
        sites=(Site(CPU, "openvino"),),
    ),
    Descriptor(
        name="onnxruntime",
        home=".onnxruntime.cpu",
        library="onnxruntime",
        extra="onnxruntime",
        precisions=("fp32", "fp16"),
        sites=(Site(GPU, "onnxruntime-gpu"), Site(CPU, "onnxruntime", fastest=("fp32",))),
    ),
)


def names() -> tuple[str, ...]:
    return tuple(descriptor.name for descriptor in BACKENDS)


def built() -> tuple[str, ...]:
    """Those that run engines which `l2c build` has added to the artefact."""
    return tuple(descriptor.name for descriptor in BACKENDS if descriptor.builder)


def prepared() -> tuple[str, ...]:
    """Those that run any artefact, and at once where `l2c build` was there before."""
    return tuple(descriptor.name for descriptor in BACKENDS if descriptor.preparer)


def loaded() -> tuple[str, ...]:
    """Those that make their engines when an artefact is loaded, so that they run any."""
    return tuple(descriptor.name for descriptor in BACKENDS if not descriptor.builder)


def precisions() -> tuple[str, ...]:
    """Every one that some backend has."""
    return tuple(dict.fromkeys(precision for descriptor in BACKENDS for precision in descriptor.precisions))


def packages() -> tuple[str, ...]:
    """What pip calls their libraries."""
    return tuple(dict.fromkeys(site.package for descriptor in BACKENDS for site in descriptor.sites))


def sites(precision: str = "") -> list[tuple[Descriptor, Site]]:
    """Every site of every backend in the order to try them: GPUs, then the fastest, then as in the list."""
    pairs = [(descriptor, site) for descriptor in BACKENDS for site in descriptor.sites]
    return sorted(pairs, key=lambda pair: (pair[1].device != GPU, precision not in pair[1].fastest))


def named(name: str) -> Descriptor:
    """The backend of that name.  Raises BackendError."""
    for descriptor in BACKENDS:
        if descriptor.name == name:
            return descriptor
    raise BackendError(f"unknown backend {name!r}: known are {AUTO}, {', '.join(names())}")


def buildable(name: str) -> Descriptor:
    """The same, of one that something is built for.  Raises UsageError for all others."""
    if name not in (*built(), *prepared()):
        raise UsageError(f"backend={name!r}: nothing to build; use one of {', '.join((*built(), *prepared()))}")
    return named(name)
