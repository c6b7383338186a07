"""The folder in which the commands run, and how they are run."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from l2c_export.artefact.manifest import VERSION
from l2c_export.cli import main

ROOT = Path(__file__).parents[1]


GOOD = "--schedule router.pt --model config.json --weights model.safetensors --out new"


E, R = f"export {GOOD}", "run engines --class-label 1"


class Payload:
    """A pickle that runs a program when it is read carelessly."""

    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def spoilt(tensors, name, change):
    values = {k: v.copy() for k, v in tensors.items()}
    change(values)
    save_file(values, name)


def fill_desk(tiny):
    """Everything that the commands below are given, good and bad, in the current folder."""
    folder, chosen = tiny
    for name in ("router.pt", "config.json", "model.safetensors", "golden.npz"):
        shutil.copy(chosen.path / name, name)
    Path("case").symlink_to(chosen.path)
    Path("text.pt").write_text("a letter to my mother")
    Path("text.json").write_text('{"format": "letter"}')
    Path("text.safetensors").write_text("a letter to my mother")
    Path("empty.pt").write_bytes(b"")
    Path("truncated.pt").write_bytes(Path("router.pt").read_bytes()[:3000])
    Path("folder.pt").mkdir()
    torch.save({"routers": {"0.prob": torch.zeros(2)}, "args": Payload()}, "hostile.pt")
    Path("hostile-4.pt").write_bytes(pickle.dumps(Payload(), protocol=4))
    torch.save({"routers": {f"{i}.prob": torch.zeros(56) for i in range(20)}}, "wide.pt")
    torch.save({f"{i}.prob": torch.full((2,), torch.nan) for i in range(4)}, "nan-router.pt")
    Path("schedule.json").write_bytes((folder / "schedule.json").read_bytes())
    Path("odd.json").write_text('{"family": "dit", "arch": {"hidden_size": 30, "num_heads": 4}}')
    Path("unheard.json").write_text('{"family": "mlp-mixer", "arch": {}}')
    tensors = load_file("model.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, "weights.pt")
    spoilt(tensors, "missing.safetensors", lambda t: [t.pop(n) for n in list(t) if n.startswith("blocks.2.attn")])
    spoilt(tensors, "extra.safetensors", lambda t: t.update({"lora.up": np.zeros(3, np.float32)}))
    spoilt(tensors, "shaped.safetensors", lambda t: t.update({"blocks.0.mlp.fc1.bias": np.zeros(7, np.float32)}))
    spoilt(tensors, "nan.safetensors", lambda t: t["pos_embed"].__setitem__((0, 0, 0), np.nan))
    spoilt(tensors, "huge.safetensors", lambda t: t["final_layer.linear.bias"].fill(3e38))
    arch = {**json.loads(Path("config.json").read_text())["arch"], "class_dropout_prob": 0}
    Path("no-null.json").write_text(json.dumps({"family": "dit", "arch": arch}))
    for name in ("engines", "incomplete", "newer", "damaged", "foreign"):
        shutil.copytree(folder, name)
    Path("incomplete/manifest.json").unlink()
    newer = json.loads(Path("newer/manifest.json").read_text())
    Path("newer/manifest.json").write_text(json.dumps({**newer, "version": VERSION + 1}))
    graph = bytearray(Path("damaged/step-000.onnx").read_bytes())
    graph[100] ^= 1
    Path("damaged/step-000.onnx").write_bytes(graph)
    Path("foreign/thesis.tex").write_text("my only copy")
    assert invoke(f"export {GOOD} --out unlinked").exit_code == 0  # replaced below, after the bodies are exported
    unlinked = f"export {GOOD.replace('--weights model.safetensors', '')} --out unlinked"
    assert invoke(unlinked).exit_code == 0


def invoke(line: str, **options):
    """A command in this process.  Another schedule takes the place of that of GOOD, instead of being one more program."""
    others = line.count("--schedule ") > 1
    return CliRunner().invoke(
        main.l2c, shlex.split(line.replace("--schedule router.pt ", "", 1) if others else line), **options
    )


def started(line: str, cache: str = "", **options) -> subprocess.Popen:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "l2c_export", *shlex.split(line)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "L2C_CACHE": cache or os.environ["L2C_CACHE"]}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ran(line: str, **options) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in a process of its own."""
    process = started(line, **options)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def tree() -> dict[str, tuple[int, int]]:
    """Everything in the current folder: size and time of change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(Path.cwd().rglob("*")) if p.is_file()}


def default_interrupt():
    """A process that was started in the background ignores Control-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def small_files():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
