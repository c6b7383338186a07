"""Sublayers by the names of modules: FLUX's single blocks in three, as ECAD caches them (arXiv 2506.15682)."""

from __future__ import annotations

import random

import diffusers
import msgspec
import prompted
import pytest
import torch
from prompted import PIPELINES, SCALE, STEPS, TOKENS

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import L2CError
from l2c_export.schedules.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = 2
ECAD = r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return PIPELINES["flux"].folder(tmp_path_factory.mktemp("flux") / "model")


def options(folder, schedule, out, **others):
    steps = None if isinstance(schedule, Schedule) else STEPS
    return Options(**{"schedule": schedule, "steps": steps, "model": str(folder), "out": out, "batch": IMAGES, "tokens": TOKENS,
                      "size": PIPELINES["flux"].size, "cut": ECAD, **others})  # fmt: skip


def irregular(full):
    """Half of the sublayers of every call but the first, at random."""
    chosen, calls = random.Random(5), []
    for n, call in enumerate(full.calls):
        computed = tuple(j for j in range(full.columns) if n == 0 or chosen.random() < 0.5)
        calls.append(
            msgspec.structs.replace(call, computed=computed, reused=tuple(sorted({*range(full.columns)} - {*computed})))
        )
    return msgspec.structs.replace(full, calls=tuple(calls))


def test_a_single_block_is_three_sublayers_of_the_modules_names(folder):
    names = resolve(options(folder, "every:2", folder)).family.sublayers
    module = diffusers.FluxTransformer2DModel.from_pretrained(folder / "transformer")
    assert set(names) <= dict(module.named_modules()).keys()
    single = {name.rpartition(".")[2] for name in names if name.startswith("single_transformer_blocks.1")}
    assert single == {"attn", "proj_mlp", "proj_out"}
    assert len(names) == 3 * 2 + 3 * 3


@pytest.mark.parametrize("rule", ["every:2", "irregular"])
def test_latents_are_those_of_diffusers(folder, tmp_path, rule):
    full = resolve(options(folder, "every:1", folder)).schedule
    compile_artefact(options(folder, irregular(full) if rule == "irregular" else rule, tmp_path / "out"))
    noise = prompted.numbers(3, IMAGES, 4, prompted.HEIGHT, prompted.WIDTH)
    request = PIPELINES["flux"].request(IMAGES)
    with torch.no_grad():
        schedule = Schedule.read(tmp_path / "out" / "schedule.json")
        wanted = PIPELINES["flux"].latents(folder, noise, request, schedule).numpy()
    for link in ("shared", "static"):
        with l2c_export.load(tmp_path / "out", backend="onnxruntime", link=link) as pipe:
            latents = pipe(latents=noise.numpy(), guidance_scale=SCALE, **{n: v.numpy() for n, v in request.items()}).latents
        assert prompted.error(latents, wanted) < 1e-5


def test_modules_inside_of_a_sublayer_can_be_sublayers(folder):
    names = resolve(options(folder, "every:2", folder, cut=r"transformer_blocks\.1\.attn\.to_[qk]")).family.sublayers
    assert {"transformer_blocks.1.attn.to_q", "transformer_blocks.1.attn.to_k"} < set(names)
    assert len(names) == 3 * 2 + 3 + 2


@pytest.mark.parametrize(("cut", "problem"), [
    ("nothing", "cut='nothing' names no further sublayer: it is a pattern of modules' names, as those in single_transformer_"),
    ("time_text_embed", "cut='time_text_embed' names no further sublayer"),  # which does not depend on the latents
    ("(", r"cut='\(': no regular expression"),
])  # fmt: skip
def test_a_pattern_of_nothing_is_refused(folder, cut, problem):
    with pytest.raises(L2CError, match=problem):
        resolve(options(folder, "every:2", folder, cut=cut))


def test_only_a_captured_model_has_a_choice(tmp_path):
    with pytest.raises(L2CError, match="cut='attn': only a captured transformer of diffusers has a choice"):
        resolve(Options(schedule="every:2", steps=4, model="DiT-S/2", cut="attn"))
