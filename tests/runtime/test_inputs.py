"""Requests are declared: what a model is told may be a vector, and nothing but its family knows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from recorded import close, same
from safetensors.numpy import save_file
from vector import VECTOR, Vector, VectorArch, described

import l2c_export
from l2c_export.artefact import store
from l2c_export.benchmarks.contenders import BenchRequest, Contender
from l2c_export.benchmarks.process import Task
from l2c_export.benchmarks.worker import load as contender
from l2c_export.cli.main import l2c
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.errors import UsageError
from l2c_export.inspection.calibrate import segment_times
from l2c_export.models.evidence import architecture
from l2c_export.models.families import FAMILIES

TOLD = np.random.default_rng(5).standard_normal((3, 5)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def known():
    """The family is listed while these tests run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(FAMILIES, VECTOR.name, VECTOR)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Large enough that the vector counts."""
    chance, folder = np.random.default_rng(0), tmp_path_factory.mktemp("vector")
    shapes = Vector(VectorArch()).tensors()
    save_file({n: chance.standard_normal(s).astype(np.float32) / 2 for n, s in shapes.items()}, folder / "w.safetensors")
    return folder


def compiled(weights, out, **options):
    usual = {
        "schedule": "every:2",
        "steps": 4,
        "model": described(weights),
        "weights": str(weights / "w.safetensors"),
        "batch": 3,
    }
    compile_artefact(Options(**{**usual, "backend": "onnxruntime", **options}, out=out))
    return out


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    return compiled(weights, tmp_path_factory.mktemp("vectors") / "e")


@pytest.fixture(scope="module")
def curves(folder):
    return l2c_export.load(folder)


def test_it_is_declared_in_the_artefact(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"] == [{"name": "condition", "shape": [5], "dtype": "float32", "known": "request",
                                   "unconditional": [0.0, 0.25, 0.5, 0.75, 1.0]}]  # fmt: skip
    assert architecture(Vector(VectorArch()), ()) == ["vector, 2 sublayers, condition 5 + null, latents 3 x 6"]


@pytest.mark.parametrize("options", [{}, {"hoist": False}, {"fold": False}, {"link": "static"}, {"guidance": "none"}], ids=str)
def test_every_call_is_what_pytorch_computes(weights, tmp_path, options):
    verdict = l2c_export.verify(compiled(weights, tmp_path / "e", **options), inputs={"condition": TOLD}, seed=3)
    assert verdict.passed
    assert max(call.free.relative for call in verdict.calls) < 1e-5
    assert verdict.setting["condition"] == TOLD.tolist()


@pytest.mark.parametrize("hoist", [True, False])
def test_an_operation_may_read_the_timestep_beside_what_is_asked_for(weights, tmp_path, monkeypatch, curves, hoist):
    """It stays in the call: before the loop there is no timestep of a request's."""
    monkeypatch.setitem(FAMILIES, VECTOR.name, dataclasses.replace(VECTOR, model="AtOnce"))
    together = compiled(weights, tmp_path / "e", hoist=hoist)
    assert l2c_export.verify(together, inputs={"condition": TOLD}, seed=3).passed
    noise = curves.noise(3, 0)
    assert close(
        l2c_export.load(together)(condition=TOLD, latents=noise).latents, curves(condition=TOLD, latents=noise).latents
    )


def test_what_it_is_told_counts(curves):
    noise = curves.noise(3, 0)
    first = curves(condition=TOLD, latents=noise).latents
    assert first.shape == (3, 3, 6)
    assert same(curves(condition=TOLD.astype(np.float64), latents=noise).latents, first)
    assert same(curves(condition=torch.from_numpy(TOLD), latents=noise).latents, first)
    other = TOLD.copy()
    other[1] += 0.5
    changed = curves(condition=other, latents=noise).latents
    assert [same(a, b) for a, b in zip(changed, first, strict=True)] == [True, False, True]
    *_, last = curves.steps(condition=TOLD, noise=noise)
    assert same(last.x, first)


def test_the_unconditional_vector_stands_in_its_place(curves):
    """Asked for it, guidance makes no difference."""
    without = np.tile(Vector(VectorArch()).inputs[0].without(1), (2, 1))
    few, much = (curves(condition=without, guidance_scale=scale, seed=1).latents for scale in (1.0, 8.0))
    assert np.allclose(few, much, atol=1e-4)
    assert not np.allclose(*(curves(condition=TOLD[:2], guidance_scale=s, seed=1).latents for s in (1.0, 8.0)), atol=1e-2)


def test_every_image_has_its_own_scale(curves):
    scales = [2.5, 1.0, -3.0]
    alone = [curves(condition=TOLD[n : n + 1], guidance_scale=scales[n], seed=n).latents[0] for n in range(3)]
    assert same(curves(condition=TOLD, guidance_scale=scales).latents, np.stack(alone))


BAD = {
    "nothing": ({}, r"condition=..: is missing: give an array of shape \(B, 5\)"),
    "labels": ({"class_labels": [1]}, "class_labels=..: this artefact has no such input: it takes condition=.."),
    "misspelt": ({"condition": TOLD, "conditions": TOLD}, "conditions=..: this artefact has no such input: it takes condition"),
    "one vector": ({"condition": TOLD[0]}, r"condition of shape \(5,\): this model needs \(B, 5\)"),
    "short vectors": ({"condition": TOLD[:, :4]}, r"condition of shape \(3, 4\): this model needs \(B, 5\)"),
    "too many": ({"condition": np.zeros((4, 5), np.float32)}, "condition of 4 images: .*1 to 3 images at once: ask for fewer"),
    "none": ({"condition": np.zeros((0, 5), np.float32)}, "condition of 0 images: .*1 to 3 images at once: give at least one"),
    "whole": ({"condition": np.zeros((1, 5), int)}, "condition of dtype int64: use float32"),
    "NaN": ({"condition": np.full((1, 5), np.nan, np.float32)}, "condition: holds NaN or infinite values"),
    "infinite": ({"condition": np.full((1, 5), np.inf)}, "condition: holds NaN or infinite values"),
    "huge": ({"condition": np.full((1, 5), 1e300)}, "condition: they hold numbers that are too large for float32"),
    "text": ({"condition": "cat"}, r"condition of shape \(\): this model needs \(B, 5\)"),
    "ragged": ({"condition": [[1.0], [1.0, 2.0]]}, r"condition: not an array: this model needs numbers of shape \(B, 5\)"),
    "a scale too few": ({"condition": TOLD, "guidance_scale": [1, 2]}, r"guidance_scale=\[1, 2\]: give .*one per image \(3\)"),
    "latents": ({"condition": TOLD, "latents": np.zeros((3, 3, 6, 1), np.float32)}, r"3 images need \(3, 3, 6\)"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_request_is_refused_in_one_line(curves, bad):
    change, says = BAD[bad]
    with pytest.raises(UsageError, match=says) as error:
        curves(**change)
    assert "\n" not in str(error.value)


def test_who_measures_needs_not_know_what_it_is_told(folder):
    manifest = store.read(folder)
    task = {"contender": Contender(name="x", folder=str(folder)), "request": BenchRequest(images=2, threads=1)}
    settings = [contender(Task(**task)).settings]
    python = Contender(name="y", folder=str(folder), runtime="pytorch")
    loaded = contender(Task(**{**task, "contender": python}))
    assert len(loaded.image().calls) == len(manifest.program().calls)
    assert loaded.settings.request == settings[0].request
    assert len(l2c_export.profile(folder, rounds=1, images=2).calls) == len(manifest.program().calls)
    from l2c_export.backends.choose import open_backend
    from l2c_export.backends.contract import Request

    backend = open_backend("onnxruntime", Request(None, None, "fp32", folder, (), manifest.files)).backend
    assert segment_times(folder, manifest, backend, 2).keys() <= manifest.denoiser.segments.keys()


def test_the_command_line_says_what_is_missing(folder, tmp_path):
    done = CliRunner().invoke(l2c, ["run", str(folder), "--class-label", "1", "--out", str(tmp_path / "x.npy")])
    assert done.exit_code == 2
    assert "this artefact has no such input: it takes condition=.." in done.stderr
    assert CliRunner().invoke(l2c, ["inspect", str(folder), "--measure"]).exit_code == 0
