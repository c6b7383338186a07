"""The promise of the package: no framework at run time, and a quick start."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from blocked import without
from recorded import ROOT, close

BLOCKED = ("torch", "onnx", "onnxscript", "diffusers", "transformers", "click", "rich", "matplotlib", "platformdirs")


WITHOUT = f"""{without(BLOCKED)}import numpy as np
import l2c_export

pipe = l2c_export.load(sys.argv[1], backend="onnxruntime")
steps = []
x = pipe([1, 2], seed=5, callback_on_step_end=lambda p, s, t, v: steps.append(s), check_finite=True).latents
np.save(sys.argv[2], np.stack([x, pipe([1, 2], guidance_scale=1, seed=5).latents]))
print(steps, sorted(set({BLOCKED}) & set(sys.modules)))
"""


def test_the_whole_loop_runs_without_any_framework(pipe, tiny, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT, str(tiny[0]), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4, 5, 6] []", done.stderr
    guided, plain = np.load(tmp_path / "x.npy")
    assert close(guided, pipe([1, 2], seed=5).latents)
    assert close(plain, pipe([1, 2], guidance_scale=1, seed=5).latents)


def python(code: str, *args: object) -> str:
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_pictures_need_neither_torch_nor_diffusers(world):
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'diffusers', 'transformers', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "import l2c_export\n"
        "pipe = l2c_export.L2CPipeline.from_pretrained(sys.argv[1])\n"
        "print(pipe(['otter'], generator=1).images[0].size)"
    )
    assert python(code, world.pictures()) == "(16, 16)"


def test_loading_takes_less_than_a_second(world):
    code = (
        "import time, sys; started = time.process_time()\n"  # of the processor: other processes do not change it
        "import l2c_export; l2c_export.load(sys.argv[1], backend='onnxruntime'); seconds = time.process_time() - started\n"
        "heavy = {'torch', 'onnx', 'diffusers', 'transformers', 'huggingface_hub', 'matplotlib', 'PIL', 'rich', 'click'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "print(seconds)"
    )
    assert any(float(python(code, world.pictures())) < 1.0 for _ in range(10))  # half of one, where nobody else uses the caches
