"""Polygraphy takes the graphs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("words", [
    "inspect model GRAPH --show layers",
    "run GRAPH --onnxrt --val-range rows:[0,0] conditional:[0,0] unconditional:[0,0]",  # rows of a batch of one
    "run GRAPH --onnxrt --input-shapes x:[2,4,8,8] base:[2,4,8,8] rows:[4] conditional:[2] unconditional:[2]",
])  # fmt: skip
def test_polygraphy_takes_our_graphs(world, words):
    graph = world.compiled("every:2") / "step-000.onnx"
    tool = shutil.which("polygraphy", path=str(Path(sys.executable).parent))
    done = subprocess.run([tool, *words.replace("GRAPH", str(graph)).split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "blocks.0.attn/" in done.stdout if "inspect" in words else "x.next" in done.stdout
