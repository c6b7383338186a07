"""Files of other tools where `compile` takes a schedule: what becomes of them, and what is said."""

from __future__ import annotations

import json

import pytest

import l2c_export
from l2c_export.compiler.foreign import options_with
from l2c_export.errors import L2CError
from l2c_export.inspection.dry_run import dry_run
from l2c_export.schedules.schedule import Schedule

ARCH = {"input_size": 4, "patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
SMOOTH = {"attn": [1, 0, 1, 0], "mlp": [1, 1, 0, 0]}
RUNS = ["0123", "13", "02", ""]  # the sublayers of every call, read by hand


@pytest.fixture
def file(tmp_path):
    """Writes a file as JSON, and gives its path."""

    def write(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


@pytest.fixture
def model(file):
    return file("model.json", {"family": "dit", "arch": ARCH})


def runs(schedule):
    return ["".join(map(str, call.computed)) for call in schedule.calls]


def test_compile_reads_a_file_of_another_tool(file, model, tmp_path):
    path, said = file("smooth.json", SMOOTH), []
    options = {"model": model, "sampler": "ddim", "report": said.append}
    artefact = l2c_export.compile(path, **options, weights="random:1", out=tmp_path / "out", backend="onnxruntime")
    assert said[0] == f"{path}: a schedule of SmoothCache, level sublayer, 4 steps"
    assert runs(artefact.manifest.program()) == RUNS
    assert runs(Schedule.read(artefact.path / "schedule.json")) == RUNS
    predicted = dry_run(path, **options)
    assert predicted.schedule.total.flops < predicted.uncached.total.flops


def read(schedule, steps=None, **options):
    said = []
    result = options_with(schedule, steps, said.append, **options)
    return [(program.schedule, program.steps) for program in result.programs], said


def test_several_files_are_several_programs(file, model):
    lists = file("l.json", {"2": [0, 3], "1": [0]})
    ((schedule, steps),), said = read(lists, 5, model=model, budget=2)
    assert (runs(schedule), steps) == (["0123", "", "", "0123", ""], None)
    assert said[0].startswith(f"{lists}: a list of computed steps (LeMiCa), level stack, 5 steps")
    both, said = read([file("a.json", SMOOTH), file("b.json", {"attn": [1, 0, 1]})], model=model, sampler="ddim")
    assert [schedule.steps for schedule, _ in both] == [4, 3]
    assert len(said) == 2
    (first, second), _ = read([file("a.json", SMOOTH), "every:2"], 4, model=model, sampler="ddim")
    assert (runs(first[0]), first[1], second) == (RUNS, 4, ("every:2", 4))
    (short, long), _ = read(lists, [4, 5], model=model, budget=2)
    assert [len(schedule.calls) for schedule, _ in (short, long)] == [4, 5]


def test_a_mask_stays_what_it_is(file, model):
    path = file("mask.json", [1, 0, 1])
    assert read(path, model=model) == ([(str(path), None)], [f"{path}: a steps mask, level sublayer"])


@pytest.mark.parametrize(("schedule", "options", "problem"), [
    ("every:2", {"budget": 3}, "budget=3: every:2 is no schedule of another tool: leave it out"),
    (Schedule.every(2, family="dit", steps=4, columns=4), {"full_calls": "full:0"}, "full_calls='full:0': <Schedule dit"),
    (None, {"model": "demo", "router_kind": "harmonica"}, "router_kind='harmonica': None is no schedule of another tool"),
    ("smooth.json", {"budget": 3}, "smooth.json: budget=3: a schedule of SmoothCache does not ask for it: leave it out"),
    ("smooth.json", {"steps": 7}, "smooth.json: a schedule of SmoothCache of 4 steps, but steps=7: use no steps=.."),
])  # fmt: skip
def test_what_a_file_does_not_ask_for_is_refused(file, model, monkeypatch, tmp_path, schedule, options, problem):
    file("smooth.json", SMOOTH)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(L2CError) as refused:
        read(schedule, **{"model": model, "sampler": "ddim", **options})
    assert problem in str(refused.value)
