"""What may import what: the runtime lives without the compiler's libraries, and every heavy library has one home."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from recorded import ROOT
from safetensors.torch import load_file

PACKAGE = ROOT / "l2c_export"
MODULES = {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}

# from the ground up: a folder imports from those before it (l2c_export/ARCHITECTURE.md)
ORDER = ("errors", "version", "ir", "support", "demo", "emoji", "samplers", "weights", "models", "schedules", "artefact",
         "backends", "pytorch", "runtime", "integrations", "verification", "compiler", "inspection", "training", "benchmarks",
         "serving", "sampling", "distribution", "cli", "__init__", "__main__")  # fmt: skip
LOOSE, LONGEST = 6, 15  # modules in no folder; modules of a chain of imports
EMPTY = {"found", "made", "given", "each"}  # names that say nothing of what they hold
PROSE = re.compile(r'''""".*?"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|#[^\n]*''', re.DOTALL)  # of code: strings, comments
# where names stand in a tree
NAMING = {ast.Name: ("id",), ast.Attribute: ("attr",), ast.arg: ("arg",), ast.keyword: ("arg",), ast.FunctionDef: ("name",),
          ast.AsyncFunctionDef: ("name",), ast.ClassDef: ("name",), ast.alias: ("name", "asname"), ast.ImportFrom: ("module",),
          ast.ExceptHandler: ("name",), ast.MatchAs: ("name",), ast.MatchStar: ("name",), ast.MatchMapping: ("rest",),
          ast.Global: ("names",), ast.Nonlocal: ("names",)}  # fmt: skip

# library -> the modules that may import it
HOMES = {
    "torch": {"models/", "pytorch/", "training/", "compiler/record.py", "compiler/onnx/decoder.py", "schedules/routers.py"},
    "diffusers": set(),
    "transformers": set(),
    "huggingface_hub": set(),
    "onnx": {"compiler/onnx/"},
    "tokenizers": {"runtime/tokens.py"},
    "accelerate": {"training/workers.py"},
    "platformdirs": {"support/cache.py"},
    "yaml": {"schedules/importers/text.py"},
    "ml_dtypes": {"ir/dtypes.py"},
    "onnxruntime": {"backends/onnxruntime/"},
    "openvino": {"backends/openvino/"},
    "tensorrt": {"backends/tensorrt/backend.py"},
    "tensorrt_rtx": {"backends/tensorrt/backend.py"},
    "nvmath": {"backends/nvidia/products.py"},
    "cudnn": {"backends/nvidia/attention.py"},
    "matplotlib": {"support/figure.py", "schedules/picture.py", "benchmarks/plot.py"},
    "PIL": set(),
    "skimage": set(),
    "httpx": set(),
    "boto3": set(),
    "rich": {"cli/progress.py"},
    "click": {"cli/"},
    "fastapi": {"serving/http/"},
    "starlette": {"serving/http/"},
    "pydantic": {"serving/http/"},
    "uvicorn": {"serving/http/"},
    "ray": {"serving/fleet/"},
    "h11": {"serving/http/connection.py"},
    "prometheus_client": {"serving/http/metrics.py"},
}
# what `needs` may import lazily elsewhere: to ask for an extra by name before its home is imported
ASKED = {
    "ray": {"cli/fleet.py", "sampling/fleet.py"},
    "yaml": {"serving/fleet/config.py"},
    "torch": {
        "cli/",
        "inspection/view.py",
        "inspection/dry_run.py",
        "benchmarks/",
        "compiler/link.py",
        "compiler/artefact.py",
        "compiler/foreign.py",
        "training/train.py",
        "verification/compare.py",
        "verification/products.py",
    },
    "onnx": {
        "cli/",
        "inspection/dry_run.py",
        "benchmarks/twins.py",
        "compiler/link.py",
        "compiler/artefact.py",
        "training/train.py",
    },
    "PIL": {"runtime/images.py", "runtime/pipeline.py", "integrations/", "sampling/", "cli/serve.py"},
    "skimage": {"sampling/compare.py"},
    "httpx": {"distribution/http.py"},
    "boto3": {"distribution/bucket.py"},
    "accelerate": {"training/train.py"},
    "matplotlib": {"training/train.py"},
    "fastapi": {"cli/serve.py"},
    "uvicorn": {"cli/serve.py"},
    "prometheus_client": {"cli/serve.py"},
    "diffusers": {"compiler/", "models/captured/"},
    "transformers": {"compiler/tokenizer.py"},
    "huggingface_hub": {"models/diffusers/hub.py", "distribution/hub.py"},
}
# what runs where there is neither torch nor onnx: nothing of theirs is imported with it
WITHOUT_TORCH = {"runtime/", "serving/", "integrations/", "backends/", "artefact/", "support/", "ir/", "samplers/", "weights/",
                 "models/diffusers/", "sampling/", "distribution/", "compiler/link.py", "verification/check.py",
                 "inspection/view.py", "inspection/predict.py", "cli/"}  # fmt: skip


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names as they are, relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((base + alias.name if base.endswith(".") else base) for alias in node.names)


def own_imports(module: str, top: bool = False) -> set[str]:
    """The modules of the package that a module imports, those inside functions too unless `top`; none for type checking."""
    tree, here = MODULES[module], module.split("/")[:-1]
    typing = {id(n) for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
              for n in ast.walk(node)}  # fmt: skip
    nodes = tree.body if top else ast.walk(tree)
    imports = set()
    for node in nodes:
        if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in typing:
            continue
        base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
        for alias in node.names:
            whole = [*base, alias.name]
            names = ("/".join(filter(None, parts)) for parts in
                     ([*whole[:-1], f"{alias.name}.py"], [*whole, "__init__.py"],
                      [*base[:-1], f"{base[-1]}.py"], [*base, "__init__.py"]))  # fmt: skip
            imports.add(next(name for name in names if name in MODULES))
    return imports - {module}


def asked(tree: ast.AST) -> Iterator[str]:
    """Packages in needs("..") and import_module("..")."""
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if getattr(called, "id", getattr(called, "attr", "")) in ("needs", "import_module"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def at_home(module: str, homes: set[str]) -> bool:
    return any(module == home or (home.endswith("/") and module.startswith(home)) for home in homes)


def floor(module: str) -> int:
    return ORDER.index(module.partition("/")[0].removesuffix(".py"))


def test_a_folder_imports_from_those_before_it():
    up = [(m, i) for m in MODULES for i in own_imports(m) if floor(i) > floor(m)]
    assert not up, up


def test_no_circle_and_no_long_chain_of_imports():
    graph = {module: own_imports(module) for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    chain: dict[str, list[str]] = {}
    for module in order:
        chain[module] = [module, *max((chain[i] for i in graph[module]), key=len, default=[])]
    longest = max(chain.values(), key=len)
    assert len(longest) <= LONGEST, " -> ".join(longest)


def test_few_modules_are_in_no_folder():
    assert len([module for module in MODULES if "/" not in module]) <= LOOSE


def test_a_class_has_a_name_of_its_own():
    names = Counter(n.name for tree in MODULES.values() for n in tree.body if isinstance(n, ast.ClassDef))
    assert not [name for name, count in names.items() if count > 1]


def test_no_module_is_private():
    assert not [m for m in MODULES if Path(m).name.startswith("_") and Path(m).name not in ("__init__.py", "__main__.py")]


def names_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What a module calls its modules, classes, functions, parameters, attributes and variables; not what Hypothesis does."""
    theirs = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "hypothesis"
              for alias in node.names}  # fmt: skip
    for node in ast.walk(tree):
        for field in NAMING.get(type(node), ()):
            value = getattr(node, field)
            for name in value if isinstance(value, list) else [value or ""]:
                if name not in theirs:
                    yield from ((part, getattr(node, "lineno", 0)) for part in name.split("."))


def test_a_name_says_what_it_holds():
    """`segment`, `match` or `graph`: the noun of what it is."""
    files = [path for folder in ("l2c_export", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 600
    texts = {path: path.read_text() for path in files}
    known = re.compile(rf"\b_*({'|'.join(EMPTY)})_*\b")
    trees = {path: ast.parse(text) for path, text in texts.items() if known.search(PROSE.sub("", text))}
    empty = [f"{path.relative_to(ROOT)}:{line}: {name}" for path, tree in trees.items() for name, line in names_in(tree)
             if name.strip("_") in EMPTY]  # fmt: skip
    assert not empty, empty
    assert not [path for path in files if EMPTY & set(path.stem.split("_"))]


@pytest.mark.parametrize("code", [
    "each = 1", "for made in (): pass", "x = [found for found in ()]", "def f(given): pass", "def made(): pass",
    "class found: pass", "x.made", "x._made", "f(given=1)", "import a as made", "from a.given import b",
    "def f():\n global each", "try: pass\nexcept E as found: pass", "match x:\n case [*each]: pass",
    "match x:\n case {**given}: pass", "lambda made: 0", "(found := 1)",
])  # fmt: skip
def test_an_empty_name_is_seen_wherever_it_stands(code):
    assert EMPTY & {name.strip("_") for name, _ in names_in(ast.parse(code))}


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_has_one_home(library):
    for module, tree in MODULES.items():
        for name in imports(tree):
            assert name.split(".")[0] != library or at_home(module, HOMES[library]), f"{module} imports {name}"
        for name in asked(tree):
            allowed = HOMES[library] | ASKED.get(library, set())
            assert name.split(".")[0] != library or at_home(module, allowed), f"{module} asks for {name}"


def test_the_runtime_does_not_import_the_compiler():
    seen = {module for module in MODULES if at_home(module, WITHOUT_TORCH)}
    ahead = list(seen)
    while ahead:
        new = own_imports(ahead.pop(), top=True) - seen
        seen |= new
        ahead += new
    for module in seen:
        names = {
            name.split(".")[0]
            for node in MODULES[module].body
            for name in imports(node)
            if isinstance(node, (ast.Import, ast.ImportFrom))
        }
        assert not names & {"torch", "onnx", "onnxscript", "matplotlib", "diffusers"}, f"{module} imports {names}"


def test_no_module_imports_a_library_that_the_metadata_does_not_name():
    text = (ROOT / "pyproject.toml").read_text().lower()
    known = {name.split(".")[0] for name in sys.stdlib_module_names} | {"l2c_export"}
    names = {"PIL": "pillow", "yaml": "pyyaml", "cuda": "cuda-bindings", "huggingface_hub": "huggingface-hub"}
    names |= {"cudnn": "nvidia-cudnn-frontend", "nvmath": "nvmath-python", "skimage": "scikit-image"}
    names |= {"ray": "ray[data,serve]", "prometheus_client": "prometheus-client"}
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
    layer = "x_embedder.proj.lora"
    torch.save(
        {f"{layer}.down.weight": torch.ones(1, 4, 2, 2), f"{layer}.up.weight": torch.ones(32, 1, 1, 1)}, tmp_path / "l.bin"
    )
    code = BLOCK + (
        "import shutil; shutil.copytree(sys.argv[1], 'e')\n"
        "from l2c_export.cli.main import l2c\n"
        "for words in (['inspect', 'e'], ['schedule', 'show', 'e/schedule.json'], ['link', 'e', '--weights', sys.argv[3]],\n"
        "              ['link', 'e', '--lora', 'l.bin:0.1'],\n"
        "              ['link', 'e', '--weights', sys.argv[2]], ['check', 'e', '--record'], ['doctor'],\n"
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
        "from l2c_export.cli.main import l2c\n"
        "for words in (['--help'], ['export', '--help'], ['--version']):\n"
        "    l2c(words, standalone_mode=False)\n"
        "print({'numpy', 'onnxruntime', 'rich'} & set(sys.modules) or 'nothing')"
    )
    assert python(code) == "nothing"


def test_public_names():
    import l2c_export

    errors = {name for name, value in vars(l2c_export.errors).items() if isinstance(value, type)}
    functions = {
        "bench",
        "build",
        "check",
        "compare",
        "compile",
        "doctor",
        "dry_run",
        "enable_l2c",
        "inspect",
        "link",
        "load",
        "profile",
        "pull",
        "push",
        "sample",
        "train",
        "verify",
    }
    values = {"Artefact", "CheckResult", "L2CPipeline", "Output", "Pipeline", "Schedule", "__version__"}
    assert set(l2c_export.__all__) == errors | functions | values
    assert l2c_export.__all__ == sorted(l2c_export.__all__)
    assert all(getattr(l2c_export, name) is not None for name in l2c_export.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        l2c_export.lode  # noqa: B018
