"""Numerics: the compiled loop against recordings of the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import all_cases, case
from recorded import asked, close

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.pytorch.reference import Reference
from l2c_export.verification.compare import compare, summary


def trajectory(folder, chosen):
    golden, n, seen = chosen.golden, chosen.config["batch"], []
    pipe = l2c_export.load(folder)
    out = pipe(
        class_labels=golden["y"].tolist()[:n],
        latents=golden["x_T"][:n],
        guidance_scale=chosen.scale,
        callback_on_step_end=lambda p, s, t, v: seen.append(v["latents"]),
        check_finite=True,
    )
    assert np.array_equal(out.latents, seen[-1])
    return np.stack(seen)


@pytest.mark.parametrize("chosen", all_cases(), ids=lambda c: c.path.name)
@pytest.mark.parametrize("link", ["shared", "static"])
def test_every_step_equals_the_cached_reference(chosen, link, tmp_path):
    compile_artefact(chosen.options(tmp_path / "e", link=link))
    assert close(trajectory(tmp_path / "e", chosen), chosen.golden["cached_x"][:, : chosen.config["batch"]])


@pytest.mark.parametrize("name", ["dit_tiny_random2", "uvit_tiny_variant"])
def test_the_uncached_twin_equals_the_uncached_reference(name, tmp_path):
    chosen = case(name)
    compile_artefact(chosen.options(tmp_path / "e", cache=False))
    assert close(trajectory(tmp_path / "e", chosen), chosen.golden["full_x"][:, : chosen.config["batch"]])


@pytest.mark.parametrize("name", ["dit_tiny_lowvar", "dit_batch3_no_cfg", "dit_cfg_allchannels",
                                  "uvit_tiny_variant", "uvit_tiny_oddnfe", "uvit_tiny_random0"])  # fmt: skip
@pytest.mark.parametrize("without", [{"hoist": False}, {"fold": False}, {"hoist": False, "fold": False}], ids=str)
def test_each_pass_can_be_left_out(name, without, tmp_path):
    chosen = case(name)
    compile_artefact(chosen.options(tmp_path / "e", **without))
    assert close(trajectory(tmp_path / "e", chosen), chosen.golden["cached_x"][:, : chosen.config["batch"]])


@pytest.mark.parametrize("name", ["dit_tiny_lowvar", "uvit_tiny_oddnfe"])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_merged_calls_compute_what_pytorch_computes(name, most, tmp_path):
    """Fewer graphs compute more than the schedule asks for, so PyTorch runs the schedule that the artefact has."""
    chosen, folder = case(name), tmp_path / "e"
    manifest = compile_artefact(chosen.options(folder, max_graphs=most))
    assert len({call.graph for call in manifest.program().calls}) <= most
    pipe = l2c_export.load(folder, backend="onnxruntime")
    verdict = compare(pipe, Reference(folder, manifest, pipe.noise(2, 0), asked([1, 2]), chosen.scale))
    assert verdict.passed, summary(verdict)


def test_what_ran_is_what_the_reference_ran():
    from l2c_export.compiler.source import resolve

    for chosen in all_cases():
        schedule = resolve(chosen.options(chosen.path / "nowhere")).schedule
        ran = chosen.golden["cached_executed"][:: 2 if chosen.uvit else 1]
        assert [list(c.computed) for c in schedule.calls] == [np.flatnonzero(r).tolist() for r in ran], chosen.path.name
