"""What may import what: the runtime lives without the compiler's libraries, and every heavy library has one home."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "l2c_export"
MODULES = {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}

# library -> the modules that may import it; everything in models/ is the compiler's
HOMES = {
    "torch": {"routers.py", "segments.py", "reference.py", "baseline.py", "models/", "training/", "vae.py"},
    "diffusers": set(),
    "transformers": set(),
    "huggingface_hub": set(),
    "onnx": {"opset.py", "segments.py", "stepgraph.py", "fuse.py"},
    "onnxscript": {"segments.py"},
    "accelerate": {"training/workers.py"},
    "platformdirs": {"cache.py"},
    "onnxruntime": {"backends/onnxruntime_backend.py", "backends/onnxruntime_cuda.py"},
    "openvino": {"backends/openvino_backend.py"},
    "tensorrt": {"backends/tensorrt_backend.py"},
    "tensorrt_rtx": {"backends/tensorrt_rtx_backend.py", "backends/tensorrt_backend.py"},
    "matplotlib": {"plot.py"},
    "PIL": set(),
    "rich": {"console.py"},
    "click": {"cli.py", "cli_build.py", "cli_cache.py", "cli_measure.py", "cli_train.py", "console.py"},
}
# what `needs` may import lazily elsewhere: to ask for an extra by name before its home is imported
ASKED = {
    "torch": {"cli.py", "cli_measure.py", "cli_train.py", "inspecting.py", "contenders.py", "worker.py", "linking.py"},
    "onnx": {"cli.py", "contenders.py", "linking.py"},
    "onnxscript": {"cli.py"},
    "PIL": {"output.py", "pipeline.py"},
    "diffusers": {"vae.py", "linking.py"},
    "huggingface_hub": {"hub.py"},
}  # fmt: skip
# what an artefact's user has, and nothing of the compiler
RUNTIME = {"artefact.py", "errors.py", "linking.py", "manifest.py", "output.py", "pipeline.py", "program.py", "runtime.py",
           "weights.py", "checkpoints.py", "containers.py", "pickled.py", "file_kind.py", "cache.py", "files.py",
           "staging.py", "consistency.py", "binding.py", "hoisted.py",
           "decoder.py", "diffusers_folder.py", "diffusers_names.py", "diffusers_live.py", "diffusers_pipeline.py",
           "notes.py", "autoencoder.py", "hub.py", "model_index.py", "weight_files.py", "scheduler_config.py",
           "schedulers.py", "samplers.py", "schedule.py", "extras.py", "turn.py", "asked.py",
           "backends/__init__.py", "backends/onnxruntime_backend.py", "backends/onnxruntime_cuda.py",
           "backends/openvino_backend.py", "backends/cuda.py", "backends/dlpack.py"}  # fmt: skip
COMPILER = {
    "compile",
    "emit",
    "fuse",
    "models",
    "options",
    "passes",
    "plan",
    "routers",
    "segments",
    "stepgraph",
    "vae",
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names as they are, relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((base + alias.name if base.endswith(".") else base) for alias in node.names)


def asked(tree: ast.AST) -> Iterator[str]:
    """Packages in needs("..") and import_module("..")."""
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if getattr(called, "id", getattr(called, "attr", "")) in ("needs", "import_module"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def at_home(module: str, homes: set[str]) -> bool:
    return any(module == home or (home.endswith("/") and module.startswith(home)) for home in homes)


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_has_one_home(library):
    for module, tree in MODULES.items():
        for name in imports(tree):
            assert name.split(".")[0] != library or at_home(module, HOMES[library]), f"{module} imports {name}"
        for name in asked(tree):
            allowed = HOMES[library] | ASKED.get(library, set())
            assert name.split(".")[0] != library or at_home(module, allowed), f"{module} asks for {name}"


def test_the_runtime_does_not_import_the_compiler():
    for module in RUNTIME:
        top = [n for n in MODULES[module].body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {name.strip(".").split(".")[0] for node in top for name in imports(node) if name.startswith(".")}
        assert not names & COMPILER, f"{module} imports {names & COMPILER}"


def test_no_module_imports_a_library_that_the_metadata_does_not_name():
    text = (ROOT / "pyproject.toml").read_text().lower()
    known = {name.split(".")[0] for name in sys.stdlib_module_names} | {"l2c_export"}
    names = {"PIL": "pillow", "cuda": "cuda-bindings", "huggingface_hub": "huggingface-hub"}
    for module, tree in MODULES.items():
        for name in {*imports(tree), *asked(tree)}:
            first = name.split(".")[0]
            if first and first not in known and first not in ("openvino", "tensorrt", "tensorrt_rtx"):
                assert f'"{names.get(first, first)}>=' in text, f"{module} imports {name}, which pyproject.toml does not name"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_read_in_one_sitting(module):
    assert len((PACKAGE / module).read_text().splitlines()) <= 300


def python(code: str, *args: object) -> str:
    """Run code in a fresh interpreter; its last line of output."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "onnxscript", "matplotlib", "PIL", "diffusers", "transformers"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


def test_the_runtime_runs_where_the_compiler_cannot_be_imported(tiny):
    folder, _ = tiny
    code = BLOCK + (
        "import l2c_export\n"
        "x = l2c_export.load(sys.argv[1])([1, 2], seed=5).latents\n"
        "loaded = {m.split('.')[0] for m in sys.modules}\n"
        "assert not loaded & {'torch', 'onnx', 'onnxscript', 'rich', 'click', 'matplotlib'}, loaded\n"
        "print(float(abs(x).sum()))"
    )
    import l2c_export

    here = l2c_export.load(folder)([1, 2], seed=5).latents
    assert float(python(code, folder)) == pytest.approx(float(abs(here).sum()), rel=1e-5)


def test_the_commands_of_the_runtime_run_there_too(tiny, tmp_path):
    folder, chosen = tiny
    torch.save({"ema": load_file(chosen.path / "model.safetensors")}, tmp_path / "w.pt")
    code = BLOCK + (
        "import shutil; shutil.copytree(sys.argv[1], 'e')\n"
        "from l2c_export.cli import l2c\n"
        "for words in (['inspect', 'e'], ['link', 'e', '--weights', sys.argv[3]],\n"
        "              ['link', 'e', '--weights', sys.argv[2]], ['doctor'],\n"
        "              ['run', 'e', '--class-label', '3', '--out', 'x.npy'], ['run', 'e', '--class-label', '3', '--json']):\n"
        "    l2c(words, standalone_mode=False)\n"
    )
    line = python(
        f"import os; os.chdir({str(tmp_path)!r})\n{code}", folder, chosen.path / "model.safetensors", tmp_path / "w.pt"
    )
    assert json.loads(line)["images"] == 1


def test_importing_the_package_is_light():
    heavy = "{'numpy', 'msgspec', 'safetensors', 'torch', 'onnx', 'onnxruntime', 'rich', 'click', 'matplotlib'}"
    code = f"import sys, l2c_export; print({heavy} & {{m.split('.')[0] for m in sys.modules}} or 'nothing')"
    assert python(code) == "nothing"


def test_help_and_version_need_neither_torch_nor_a_backend():
    code = BLOCK + (
        "from l2c_export.cli import l2c\n"
        "for words in (['--help'], ['export', '--help'], ['--version']):\n"
        "    l2c(words, standalone_mode=False)\n"
        "print({'numpy', 'onnxruntime', 'rich'} & set(sys.modules) or 'nothing')"
    )
    assert python(code) == "nothing"


def test_public_names():
    import l2c_export

    assert l2c_export.__all__ == ["L2CError", "L2CPipeline", "Schedule", "__version__", "enable_l2c", "load"]
    assert all(getattr(l2c_export, name) is not None for name in l2c_export.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        l2c_export.lode  # noqa: B018
