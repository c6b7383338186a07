"""Transformers of diffusers, captured and compiled, against diffusers' own modules and schedulers with caching by hooks."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import prompted
import pytest
import torch
from prompted import PIPELINES, STEPS, TOKENS

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.schedules.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES, CLOSE = 2, 1e-5
every_family = pytest.mark.parametrize("family", PIPELINES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of every family's random pipeline."""
    root = tmp_path_factory.mktemp("pipelines")
    return {name: pipeline.folder(root / name) for name, pipeline in PIPELINES.items()}


def options(family: str, folder: Path, schedule: str | Schedule, out: Path, **others: object) -> Options:
    return Options(
        schedule=schedule, steps=None if isinstance(schedule, Schedule) else STEPS, model=str(folder), out=out, batch=IMAGES,
        tokens=TOKENS, size=PIPELINES[family].size, **others,
    )  # fmt: skip


def irregular(family: str, folder: Path) -> Schedule:
    """Half of the sublayers of every call but the first, at random."""
    full = resolve(options(family, folder, "every:1", folder)).schedule
    chosen, calls = random.Random(3), []
    for n, call in enumerate(full.calls):
        computed = tuple(j for j in range(full.columns) if n == 0 or chosen.random() < 0.5)
        reused = tuple(j for j in range(full.columns) if j not in computed)
        calls.append(msgspec.structs.replace(call, computed=computed, reused=reused))
    return msgspec.structs.replace(full, calls=tuple(calls))


def made_by(out: Path, family: str, noise: np.ndarray, backend: str, link: str) -> np.ndarray:
    request = {name: values.numpy() for name, values in PIPELINES[family].request(IMAGES).items()}
    with l2c_export.load(out, backend=backend, link=link) as pipe:
        latents: np.ndarray = pipe(latents=noise, guidance_scale=PIPELINES[family].scale, **request).latents
    return latents


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        *((family, rule) for family in PIPELINES for rule in ("every:2", "irregular")),
        *((family, "every:1") for family in ("pixart", "sd3", "flux", "sana")),  # full calls are in all of them
        *((family, "forecast") for family in ("pixart", "sd35", "flux")),
    ],
)
def test_latents_are_those_of_diffusers(family, rule, folders, tmp_path):
    folder = folders[family]
    schedule = irregular(family, folder) if rule == "irregular" else "every:4" if rule == "forecast" else rule
    forecast = {"rule": "taylor:1"} if rule == "forecast" else {}
    compile_artefact(options(family, folder, schedule, tmp_path / "out", **forecast))
    noise = prompted.numbers(3, IMAGES, 4, prompted.HEIGHT, prompted.WIDTH)
    with torch.no_grad():
        wanted = PIPELINES[family].latents(
            folder, noise, PIPELINES[family].request(IMAGES), Schedule.read(tmp_path / "out" / "schedule.json")
        )
    for backend, link in [("onnxruntime", "shared"), ("onnxruntime", "static"), ("openvino", "shared")]:
        latents = made_by(tmp_path / "out", family, noise.numpy(), backend, link)
        assert prompted.error(latents, wanted.numpy()) < CLOSE, (backend, link)
