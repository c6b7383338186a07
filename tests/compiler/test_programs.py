"""Several numbers of steps in one artefact: programs over the same graphs, segments and weights."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import case

import l2c_export
from l2c_export.artefact import store
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import options_of
from l2c_export.errors import ScheduleError, UsageError
from l2c_export.schedules.schedule import Schedule

STEPS = (4, 8)


@pytest.fixture(scope="module")
def options():
    """The model of a golden case, with a rule instead of its router."""
    chosen = case("dit_tiny_lowvar").options("unused")
    return {"model": chosen.model, "weights": chosen.weights, "batch": 2, "backend": "onnxruntime"}


@pytest.fixture(scope="module")
def both(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    compile_artefact(options_of("every:2", STEPS, **options, out=folder / "both"))
    for steps in STEPS:
        compile_artefact(options_of("every:2", steps, **options, out=folder / str(steps)))
    return folder


@pytest.mark.parametrize("link", ["shared", "static"])
def test_each_program_makes_the_bits_of_an_artefact_of_its_own(both, link):
    with l2c_export.load(both / "both", link=link) as pipe:
        for steps in (*STEPS, STEPS[0]):
            with l2c_export.load(both / str(steps), link=link) as own:
                assert np.array_equal(pipe([1, 2], 3.0, seed=5, steps=steps).latents, own([1, 2], 3.0, seed=5).latents)
        assert np.array_equal(pipe([1], seed=5).latents, pipe([1], seed=5, steps=STEPS[0]).latents), "the first by default"
        assert "4 steps" in repr(pipe)
        assert "8 steps" in repr(pipe)


def test_programs_share_graphs_segments_and_weights(both):
    manifest = store.read(both / "both")
    few, many = (manifest.program(steps) for steps in STEPS)
    assert list(manifest.programs) == ["4", "8"]
    assert set(few.step_graphs) & set(many.step_graphs), "full calls are the same, whatever the spacing"
    alone = [store.read(both / str(steps)) for steps in STEPS]
    assert set(manifest.denoiser.segments) == {name for one in alone for name in one.denoiser.segments}
    of_weights = manifest.files["weights.safetensors"].bytes
    assert manifest.bytes < of_weights + sum(one.bytes - of_weights for one in alone)
    assert [Schedule.read(both / "both" / manifest.programs[name].schedule).steps for name in ("4", "8")] == [4, 8]


def test_every_program_is_verified_and_inspected_by_its_steps(both):
    for steps in STEPS:
        verdict = l2c_export.verify(both / "both", steps=steps)
        assert verdict.passed
        assert len(verdict.calls) == len(l2c_export.inspect(both / "both", steps=steps).calls) == steps


def test_steps_that_were_not_compiled_are_refused(both):
    with l2c_export.load(both / "both") as pipe, pytest.raises(UsageError, match=r"steps=5: .* compiled for 4 or 8 steps"):
        pipe([1], steps=5)


def test_schedules_of_several_steps_become_programs(options, both, tmp_path):
    schedules = [Schedule.read(both / str(steps) / "schedule.json") for steps in STEPS]
    artefact = l2c_export.compile(schedules, **options, out=tmp_path / "e")
    assert [len(program.calls) for program in artefact.manifest.all_programs()] == [4, 8]


@pytest.mark.parametrize(
    ("schedules", "steps", "error", "words"),
    [
        (["every:2", "every:4"], [4, 8], UsageError, "several schedules and several numbers of steps"),
        ("every:2", [4, 4], UsageError, "steps=4,4: give each number once"),
        ("every:2", [], UsageError, "at least one"),
        (["mask:1,0", "mask:1,1"], None, ScheduleError, "two schedules of 2 steps"),
    ],
)
def test_programs_that_cannot_be_told_apart_are_refused(options, tmp_path, schedules, steps, error, words):
    with pytest.raises(error, match=words):
        l2c_export.compile(schedules, steps=steps, **options, out=tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_programs_of_two_samplers_are_refused(options, tmp_path):
    of = {"family": "dit", "columns": 6, "steps": 4}
    schedules = [Schedule.every(2, **of), Schedule.every(2, **{**of, "steps": 5}, sampler="dpm-solver++")]
    with pytest.raises(ScheduleError, match=r"for ddim and dpm-solver\+\+: an artefact has one sampler"):
        l2c_export.compile(schedules, **options, out=tmp_path / "e")
