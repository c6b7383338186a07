"""From a prompt to a picture where neither torch nor diffusers nor transformers can be imported."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from blocked import without
from PIL import Image
from recorded import ROOT

import l2c_export

BLOCKED = ("torch", "onnx", "onnxscript", "diffusers", "transformers", "sentencepiece", "huggingface_hub")
WITHOUT = f"""{without(BLOCKED)}from l2c_export.cli.main import l2c

l2c(sys.argv[1:], standalone_mode=False)
assert not set({BLOCKED}) & set(sys.modules)
"""


def l2c(*words: object, cwd: object) -> None:
    command = [sys.executable, "-c", WITHOUT, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=cwd)
    assert done.returncode == 0, done.stderr


def test_a_prompt_becomes_a_picture_without_any_framework(prompted_by, tmp_path):
    out = prompted_by("pixart").out
    said = ("--prompt", "a cat", "--negative-prompt", "blurry")
    l2c("run", out, *said, "--seed", 3, "--out", "a.png", cwd=tmp_path)
    l2c("encode", out, *said, "--out", "p.npz", cwd=tmp_path)
    l2c("run", out, "--prompt-embeds", "p.npz", "--seed", 3, "--out", "b.png", cwd=tmp_path)
    with l2c_export.load(out) as pipe:
        wanted = np.asarray(pipe(prompt="a cat", negative_prompt="blurry", seed=3, output_type="pil").images[0], int)
        other = np.asarray(pipe(prompt="a dog", seed=3, output_type="pil").images[0], int)
    for name in ("a.png", "b.png"):
        assert np.abs(np.asarray(Image.open(tmp_path / name), int) - wanted).max() <= 1
    assert np.abs(other - wanted).max() > 1
