"""The whole way, in seconds: schedule and model -> artefact -> images' latents, against a loop of numpy alone; and `verify`.

It runs before all other tests (conftest.py): where it fails, little else is worth waiting for.
"""

from __future__ import annotations

import json

import numpy as np
from numpy_dit import LABELS, MODEL, NAMES, NULL, SCALE, guided, predicted, random_weights, step
from recorded import asked, close
from safetensors.numpy import save_file

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.pytorch.reference import Reference
from l2c_export.verification.compare import compare

COMPUTED = [(0, 1, 2, 3), (0, 3), (0, 1, 2, 3), (2,)]  # of blocks.0.attn, blocks.0.mlp, blocks.1.attn, blocks.1.mlp
TIMESTEPS = (999.0, 666.0, 333.0, 0.0)


def test_from_a_schedule_to_latents(tmp_path):
    calls = [{"timestep": t, "computed": on, "reused": sorted({0, 1, 2, 3} - {*on})}
             for t, on in zip(TIMESTEPS, COMPUTED, strict=True)]  # fmt: skip
    written = {"format": "l2c-schedule", "version": 1, "family": "dit", "sampler": "ddim", "steps": 4, "columns": 4}
    (tmp_path / "schedule.json").write_text(json.dumps({**written, "calls": calls}))
    weights = random_weights()
    save_file(weights, tmp_path / "weights.safetensors")
    folder = tmp_path / "engines"
    options = Options(str(tmp_path / "schedule.json"), folder, str(MODEL), str(tmp_path / "weights.safetensors"), batch=2)
    manifest = compile_artefact(options)

    pipe = l2c_export.load(folder)
    noise = pipe.noise(2, 7)
    latents = pipe(LABELS, SCALE, latents=noise).latents
    assert close(latents, denoised(weights, noise, COMPUTED))
    assert not close(latents, denoised(weights, noise, [(0, 1, 2, 3)] * 4)), "what is reused makes a difference"
    assert compare(pipe, Reference(folder, manifest, noise, asked(LABELS), SCALE)).passed


def denoised(w: dict[str, np.ndarray], x: np.ndarray, computed: list[tuple[int, ...]]) -> np.ndarray:
    """From call to call; a sublayer that is not computed adds what it added last, by the gate of this call."""
    cache: dict[str, np.ndarray] = {}
    for t, after, on in zip(TIMESTEPS, (*TIMESTEPS[1:], None), computed, strict=True):

        def value(name, compute, on=on):
            if name == "output":
                return compute()
            if NAMES.index(name) in on:
                cache[name] = compute()
            return cache[name]

        x = step(x, guided(predicted(w, np.concatenate([x, x]), t, np.array([*LABELS, NULL, NULL]), value)), t, after)
    return x
