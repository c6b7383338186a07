"""What scripts/ may import: the public names of the package, and what is listed here with the reason for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import l2c_export

SCRIPTS = {path.name: ast.parse(path.read_text()) for path in sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))}

EAGER = {"models", "pytorch.eager"}
INSIDE = {
    # attack the readers behind the public functions, one by one
    "fuzz.py": {"artefact", "models", "schedules"},
    "altered.py": {"artefact", "artefact.records", "compiler.request", "compiler.source", "ir.inputs", "runtime.pipeline",
                   "schedules.values"},
    "torture.py": {"artefact", "artefact.records", "backends.descriptors", "compiler.compile", "compiler.request",
                   "compiler.source", "models", "schedules"},
    # train and sample the demo on a GPU: the package's own network in PyTorch, which its users have no use for
    "train_demo.py": {*EAGER, "models.family"},
    "sampling.py": {"compiler.passes.levels", "compiler.record", "models.family", "pytorch.eager", "samplers.noise",
                    "schedules.forecast", "schedules.resolve", "schedules.values"},
    "quality.py": {"models", "support", "support.figure"},  # and its palette, and the machine as benchmarks name it
    "quality_fp8.py": {*EAGER, "artefact.products", "models.primitives", "pytorch.calibrate", "pytorch.stored",
                       "verification.products", "weights"},
    "serve_load.py": {"support.figure"},
    # are the servers that they measure, and break
    "emoji_quality.py": {"runtime.prompts"},
    "fleet_faults.py": {"serving.fleet", "serving.fleet.app", "serving.fleet.options", "serving.http.answers",
                        "serving.http.server", "serving.http.settings", "support.machine", "support.own_ray"},
    "serving_cpu.py": {"serving.triton", "support.machine"},
    "forecasts.py": {"samplers.scheduler_config", "schedules.rules", "support.figure"},
    # time PyTorch with an artefact's weights beside its engines
    "gpu_prompted.py": {"artefact", "artefact.records", "backends.descriptors", "schedules.schedule", "weights.layout"},
    "gpu_check.py": {*EAGER, "backends.descriptors", "pytorch.stored"},
    # is a backend of its own
    "torch_backend.py": {"backends", "backends.contract", "backends.cuda.device", "backends.descriptor", "backends.host",
                         "backends.nvidia.graphs", "ir.graph", "models", "models.primitives", "pytorch.stored"},
    # takes a family that is written by hand for one that is not
    "captured_cpu.py": {"models"},
    # `bench` compares only what did the same work; this one compares precisions, too
    "bench_cpu.py": {"backends.descriptors", "benchmarks", "benchmarks.contenders", "benchmarks.measured", "benchmarks.process",
                     "support"},
}  # fmt: skip


def inside(tree: ast.AST) -> Iterator[str]:
    """The modules of the package that a script imports from, the package itself aside."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name.removeprefix("l2c_export.") for name in names if name.startswith("l2c_export."))


def public(tree: ast.AST) -> Iterator[str]:
    """The names of the package itself that a script uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "l2c_export":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "l2c_export":
            yield node.attr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_what_is_public_and_what_is_listed(script):
    assert set(inside(SCRIPTS[script])) == INSIDE.get(script, set())


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_names_that_a_script_uses_are_public(script):
    assert set(public(SCRIPTS[script])) <= {*l2c_export.__all__, "demo"}  # and the demo's files
