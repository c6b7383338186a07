"""Files of other tools for whole models: the names of what diffusers' modules are cut into, and what is then computed."""

from __future__ import annotations

import json

import pytest
from prompted import PIXELS, TOKENS, flux, pixart

from l2c_export.compiler.compile import lower
from l2c_export.compiler.request import options_of
from l2c_export.compiler.source import resolve
from l2c_export.errors import ScheduleError
from l2c_export.inspection.convert import convert

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4


def runs(part, block, step):
    """Any pattern that reuses something of every module, and something in every step but the first."""
    return step == 0 or (3 * block + len(part) + step) % 3 == 0


def ecad(components, steps=STEPS):
    """A file for blocks with these components."""
    plan = {f"{s:03}": {name: {part: runs(part, n, s) for part in parts} for n, (name, parts) in enumerate(components.items())}
            for s in range(steps)}  # fmt: skip
    single = sum(name.startswith("single") for name in components)
    box = {"num_blocks": len(components) - single, "num_inference_steps": steps, "schedule": plan}
    return {"cache_schedule": box | ({"num_single_blocks": single} if single else {})}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"pixart": pixart(root / "pixart"), "flux": flux(root / "flux")}


def compiled(path, file, folder):
    """The sublayers that the calls of a manifest compute."""
    path.write_text(json.dumps(file))
    said = []
    model = {"model": str(folder), "size": PIXELS, "tokens": TOKENS}
    schedule = convert(path, report=said.append, **model)
    options = options_of(schedule, **model)
    manifest = lower(options, resolve(options)).manifest
    names = list(manifest.denoiser.sublayers)
    return said, [{names[j] for j in call.computed} for call in manifest.program().calls]


def test_ecad_for_pixart(folders, tmp_path):
    parts = ("attn1", "attn2", "ff")
    said, sublayers = compiled(tmp_path / "e.json", ecad({str(b): parts for b in range(3)}), folders["pixart"])
    assert sublayers == [{f"transformer_blocks.{b}.{part}" for b in range(3) for part in parts if runs(part, b, step)}
                         for step in range(STEPS)]  # fmt: skip
    assert said == [f"{tmp_path}/e.json: a schedule of ECAD for pixart, level sublayer, 4 steps"]


def test_ecad_for_flux(folders, tmp_path):
    """Its components are given as one where the single blocks are."""
    double = ("full_attn", "full_ff", "full_ff_context")
    single = ("single_attn", "single_proj_mlp", "single_proj_out")
    file = ecad({**{str(b): double for b in range(2)}, **{f"single_{b}": single for b in range(3)}})
    for step, blocks in enumerate(file["cache_schedule"]["schedule"].values()):
        for b in range(3):
            blocks[f"single_{b}"] = dict.fromkeys(single, runs("single", b, step))
    said, sublayers = compiled(tmp_path / "e.json", file, folders["flux"])
    want = [{f"transformer_blocks.{b}.{part.removeprefix('full_')}" for b in range(2) for part in double if runs(part, b, step)}
            | {f"single_transformer_blocks.{b}.proj_out" for b in range(3) if runs("single", b, step)}
            for step in range(STEPS)]  # fmt: skip
    assert sublayers == want
    assert said[0].endswith("a schedule of ECAD for flux, level sublayer, 4 steps")


def test_flux_with_single_blocks_in_parts_says_what_it_needs(folders, tmp_path):
    double = ("full_attn", "full_ff", "full_ff_context")
    file = ecad({**{str(b): double for b in range(2)}, **{f"single_{b}": ("single_attn", "single_proj_mlp", "single_proj_out")
                                                          for b in range(3)}})  # fmt: skip
    file["cache_schedule"]["schedule"]["001"]["single_0"] |= {"single_proj_out": True, "single_attn": False}
    with pytest.raises(ScheduleError, match=r"e\.json: call 1 computes .*proj_out from a reused .*cut=\.\.$"):
        compiled(tmp_path / "e.json", file, folders["flux"])


def test_the_folder_says_the_sampler(folders, tmp_path):
    """A pipeline's scheduler is no assumption."""
    (tmp_path / "l.json").write_text("[0, 1, 3, 5]")
    said = []
    result = convert(tmp_path / "l.json", report=said.append, steps=6, model=str(folders["pixart"]), size=PIXELS, tokens=TOKENS)
    assert said == [f"{tmp_path}/l.json: a list of computed steps (LeMiCa), level stack, 6 steps"]
    assert result.scheduler.kind == "DPMSolverMultistepScheduler"
    assert [len(call.computed) for call in result.calls] == [9, 9, 0, 9, 0, 9]
