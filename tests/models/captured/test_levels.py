"""Levels of captured models: the picture's stream behind the blocks minus before them, against diffusers' own modules."""

from __future__ import annotations

import re

import prompted
import pytest
import torch
from desk import invoke
from prompted import PIPELINES, STEPS, TOKENS

import l2c_export
from l2c_export.artefact import store
from l2c_export.compiler.compile import compile_artefact, lower
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import ScheduleError
from l2c_export.schedules.schedule import Schedule
from l2c_export.schedules.values import values_of

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES, CLOSE = 2, 1e-5
RUNS = [("onnxruntime", "shared"), ("onnxruntime", "static"), ("openvino", "shared"), ("openvino", "static")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of random pipelines, each written when it is asked for."""
    root = tmp_path_factory.mktemp("pipelines")
    return lambda family: root / family if (root / family).exists() else PIPELINES[family].folder(root / family)


def options(family, folder, schedule="every:1", **others):
    steps = None if isinstance(schedule, Schedule) else STEPS
    return Options(schedule=schedule, steps=steps, model=str(folder), batch=IMAGES, tokens=TOKENS, size=PIPELINES[family].size,
                   **others)  # fmt: skip


def light(family, folder, full, rules):
    """Full calls at the start; in the others the values of the rules follow from them, what else there is is computed."""
    schedule = resolve(options(family, folder)).schedule
    values = values_of((*schedule.sublayers, *(name for name in rules if name.startswith("stack"))))
    jumped = {j for level in values.levels for j in values.spanned(level)}
    others = () if "*" in rules else tuple(j for j in range(schedule.columns) if j not in jumped)
    computed = [range(schedule.columns)] * full + [others] * (STEPS - full)
    return schedule.computing(computed).following(dict.fromkeys(range(full, STEPS), rules))


def compared(family, folder, out, runs=RUNS):
    """Raise AssertionError where a run makes other latents than diffusers' module with hooks; returns what it makes."""
    noise, request = prompted.numbers(3, IMAGES, 4, prompted.HEIGHT, prompted.WIDTH), PIPELINES[family].request(IMAGES)
    with torch.no_grad():
        wanted = PIPELINES[family].latents(folder, noise, request, Schedule.read(out / "schedule.json")).numpy()
    arrays = {name: values.numpy() for name, values in request.items()}
    for backend, link in runs:
        with l2c_export.load(out, backend=backend, link=link) as pipe:
            latents = pipe(latents=noise.numpy(), guidance_scale=PIPELINES[family].scale, **arrays).latents
        assert prompted.error(latents, wanted) < CLOSE, (backend, link)


@pytest.mark.parametrize(("family", "full", "rules", "others"), [
    ("flux", 3, {"stack": "taylor:2"}, {}),
    ("flux", 1, {"stack[1:5]": "reuse", "*": "reuse"}, {}),  # from blocks of two streams into those of one
    ("flux", 2, {"stack[3:4]": "taylor:1"}, {"fold": False}),  # inside of those of one
    ("sd35", 2, {"stack": "taylor:1"}, {}),
    ("sd3", 2, {"stack[1:3]": "taylor:1", "*": "reuse"}, {"fold": False}),
    ("auraflow", 1, {"stack": "reuse"}, {}),
])  # fmt: skip
def test_latents_are_those_of_diffusers(folders, tmp_path, family, full, rules, others):
    folder = folders(family)
    schedule = light(family, folder, full, rules)
    manifest = compile_artefact(options(family, folder, schedule, out=tmp_path, **others))
    light_calls = manifest.program().calls[full:]
    assert all(len(call.computed) < len(manifest.denoiser.sublayers) for call in light_calls)
    compared(family, folder, tmp_path, RUNS if family == "flux" else RUNS[1:3])


@pytest.mark.parametrize(("family", "level", "other"), [
    ("flux", "stack[0:1]", "transformer_blocks.0.ff_context"),
    ("flux", "stack[1:3]", "transformer_blocks.1.ff_context"),  # the prompt's rows of what is joined behind it
    ("sd3", "stack[0:2]", "transformer_blocks.1.ff_context"),
])  # fmt: skip
def test_the_prompts_stream_must_not_be_read_behind_a_range(folders, family, level, other):
    folder = folders(family)
    asked = options(family, folder, light(family, folder, 1, {level: "reuse"}))
    with pytest.raises(ScheduleError, match=rf"{re.escape(level)}: behind it the stream of '{other}' is also read: use"):
        lower(asked, resolve(asked))


OF_OTHERS = {
    "c.yaml": ("cache_config: {steps_computation_mask: [1, 0, 1, 0]}", "the options of cache-dit", "0101"),
    "l.json": ("[0, 1, 3]", "a list of computed steps (LeMiCa)", "0010"),
    "m.json": ('{"mag_ratios": [1, 1.0, 1, 1.3], "thresh": 0.2, "K": 1, "retention": 0.3}', "MagCache's ratios", "0100"),
}


def test_lists_of_computed_steps_compile_for_flux(folders, tmp_path):
    """What cache-dit, LeMiCa and MagCache leave behind, through the command; the calls that jump over all blocks."""
    folder, size = folders("flux"), "x".join(map(str, PIPELINES["flux"].size))
    options = f"--model {folder} --size {size} --tokens {TOKENS} --batch {IMAGES} --out {tmp_path}"
    for name, (text, said, jumps) in OF_OTHERS.items():
        (tmp_path / name).write_text(text)
        done = invoke(f"export --schedule {tmp_path / name} --steps {STEPS} {options}/{name}.out")
        assert done.exit_code == 0, done.stderr
        assert done.stderr.startswith(f"{tmp_path / name}: {said}, level stack, {STEPS} steps")
        calls = store.read(tmp_path / f"{name}.out").program().calls
        assert "".join(str(int(not call.computed)) for call in calls) == jumps
    assert l2c_export.verify(tmp_path / "c.yaml.out").passed
    compared("flux", folder, tmp_path / "l.json.out", RUNS[:1])
