"""Captured transformers in half precision: every call beside diffusers' own module in that type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prompted
import pytest
import torch
from helpers import needs_precision
from prompted import PIPELINES, STEPS, TOKENS

import l2c_export
from l2c_export.artefact import store
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.schedules.schedule import Schedule
from l2c_export.verification.compare import trajectory

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = 2
MOST = 1.5  # times the error of PyTorch
BACKENDS = {"fp16": "onnxruntime", "bf16": "openvino"}
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize(("family", "precision"), [("pixart", "fp16"), ("sd35", "fp16"), ("flux", "bf16"), ("sana", "bf16")])
def test_calls_are_no_further_off_than_those_of_pytorch_in_the_same_type(family, precision, tmp_path, monkeypatch):
    pipeline, out = PIPELINES[family], tmp_path / "out"
    folder = pipeline.folder(tmp_path / "model")
    backend = BACKENDS[precision]
    needs_precision(backend, precision)
    compile_artefact(
        Options(schedule="every:2", steps=STEPS, model=str(folder), out=out, batch=IMAGES, tokens=TOKENS, size=pipeline.size,
                precision=precision, backend=backend)
    )  # fmt: skip
    noise, request = prompted.numbers(3, IMAGES, 4, prompted.HEIGHT, prompted.WIDTH), pipeline.request(IMAGES)

    def of_diffusers(dtype: torch.dtype, fed: list[np.ndarray] | None = None) -> list[np.ndarray]:
        schedule = Schedule.read(out / "schedule.json")
        return prompted.call_by_call(pipeline, folder, noise, request, schedule, dtype, monkeypatch, fed)

    exact = of_diffusers(torch.float64)
    in_half = of_diffusers(TYPES[precision], exact)
    with l2c_export.load(out, backend=backend) as pipe:
        asked = pipe.generation(
            pipe.inputs(**{name: values.numpy() for name, values in request.items()}), pipeline.scale, IMAGES
        )
        ours = trajectory(asked, noise.numpy(), [latents.astype(np.float32) for latents in exact])
    for n, (latents, other, wanted) in enumerate(zip(ours, in_half, exact, strict=True)):
        assert prompted.error(latents, wanted) < MOST * prompted.error(other, wanted), f"call {n}"


def test_tables_streams_and_the_last_piece_stay_wide(pixart, tmp_path):
    """What a bf16 artefact keeps in float32: told by its manifest."""
    options = Options(
        schedule="every:2", steps=STEPS, model=str(pixart.folder), out=tmp_path / "out", batch=IMAGES, tokens=TOKENS,
        size=prompted.PIXELS, precision="bf16", backend="openvino",
    )  # fmt: skip
    compile_artefact(options)
    denoiser = store.read(Path(options.out)).denoiser
    wide = {name for name, tensor in denoiser.tensors.items() if tensor.dtype == "float32"}
    assert wide == {name for name in denoiser.tensors if name.startswith("derived.")} != set()
    precisions = {segment.kind: segment.precision for segment in denoiser.segments.values()}
    assert (precisions["proj_out"], precisions["attn1"], precisions["ff"]) == ("float32", "bfloat16", "bfloat16")
    values = [size.values[name] for size in denoiser.sizes.values() for name in size.values if name.endswith(".residual")]
    assert {value.dtype for value in values} == {"float32"}
