"""Ray Data, started once: the same files as without it, a sampler that is killed, and an error in one line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from recorded import ROOT
from safetensors.numpy import load_file, save_file

from l2c_export.compiler.link import bind
from l2c_export.sampling.sample import sample

PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path

from l2c_export.errors import RunError
from l2c_export.sampling import fleet
from l2c_export.sampling.sample import sample

folder, infinite, out = map(Path, sys.argv[1:4])


def samplers():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::MapWorker" in path.read_bytes():
                yield int(path.parent.name)
        except OSError:
            pass


def kill_one():
    while sum(1 for _ in out.glob("0*")) < 4:
        time.sleep(0.002)
    os.kill(next(samplers()), signal.SIGKILL)
    print("killed one", flush=True, file=sys.__stdout__)


ray_module = fleet._imported()
print("calls need a", os.environ["RAY_AUTH_MODE"])
with fleet._running(ray_module):
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    result = sample(folder, out, 400, seed=5, shard_size=4, backend="onnxruntime", ray=True)
    print("made", result.new, "beside", len(list(samplers())) > 0)
    killer.join(1)
    try:
        sample(infinite, out.parent / "none", 4, seed=7, backend="onnxruntime", ray=True)
    except RunError as error:
        print(error)
    try:
        sample(folder, out.parent / "none2", 4, backend="onnxruntime", ray=True, workers=99)
    except ValueError as error:
        print(error)
"""


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_with_ray_data_the_files_are_the_same_and_a_killed_sampler_loses_nothing(pixels, tmp_path):
    if not all(map(importlib.util.find_spec, ("ray", "pandas", "pyarrow"))):
        pytest.skip("no Ray Data here: pip install 'l2c-export[ray]'")
    infinite = shutil.copytree(pixels, tmp_path / "infinite")
    tensors = load_file(infinite / "weights.safetensors")
    save_file({name: np.full_like(values, 3e38) for name, values in tensors.items()}, tmp_path / "huge.safetensors")
    bind(infinite, str(tmp_path / "huge.safetensors"))
    sample(pixels, tmp_path / "whole", 400, seed=5, shard_size=4, backend="onnxruntime")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), *map(str, (pixels, infinite, tmp_path / "s"))]
    if os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip"):  # Ray listens on all interfaces: on none here
        command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[:3] == ["calls need a token", "killed one", "made 400 beside True"]
    assert lines[3].startswith("image 0 (seed 7) is NaN or infinite: check the weights")
    assert lines[4].startswith("workers=99: Ray has room for ")
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")
