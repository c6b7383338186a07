"""The list of backends, and that nothing else knows one by its name."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import ROOT

import l2c_export
from l2c_export.backends.descriptor import GPU
from l2c_export.backends.descriptors import BACKENDS, names, packages, sites
from l2c_export.ir.precisions import DTYPES

EXTRAS = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL).group(1)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_descriptor_says_what_is_there(backend):
    for home in filter(None, (backend.home, backend.builder)):
        assert importlib.util.find_spec(home, "l2c_export.backends"), f"{home} is no module"
    assert re.search(rf"^{backend.extra} = ", EXTRAS, re.MULTILINE), f"no extra {backend.extra}"
    assert all(f'"{site.package}' in EXTRAS for site in backend.sites)
    assert set(backend.precisions) <= set(DTYPES)
    assert bool(backend.targets) <= bool(backend.builder)


def test_names_are_used_once():
    assert len(set(names())) == len(BACKENDS)
    assert len(set(packages())) == len(sites())


def test_gpus_are_tried_first_and_then_what_is_fastest_in_a_precision():
    order = {p: [f"{backend.name} {site.device}" for backend, site in sites(p)] for p in ("fp32", "bf16")}
    assert order["fp32"] == [
        "tensorrt cuda",
        "tensorrt-rtx cuda",
        "cuda cuda",
        "onnxruntime cuda",
        "onnxruntime cpu",
        "openvino cpu",
    ]
    assert order["bf16"] == [*order["fp32"][:4], "openvino cpu", "onnxruntime cpu"]


def test_the_list_loads_no_library():
    code = "import sys, l2c_export.backends.descriptors; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(ast.literal_eval(done.stdout)) & {"numpy", "click", "cuda", *(backend.library for backend in BACKENDS)}


def test_a_backend_is_named_in_its_folder_and_in_the_list_only():
    package = Path(l2c_export.__file__).parent
    homes = {f"backends/{backend.home.split('.')[1]}" for backend in BACKENDS}
    for path in package.rglob("*.py"):
        module = path.relative_to(package).as_posix()
        if path.parent.relative_to(package).as_posix() in homes or module == "backends/descriptors.py":
            continue
        quoted = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not quoted & (set(names()) - {GPU}), module  # a backend may be called as its device is
