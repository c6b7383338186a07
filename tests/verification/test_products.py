"""Which sublayers' products lose most in e4m3: shares against whole loops, and what the command says."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from prompted import PIPELINES, TOKENS
from recorded import case

from l2c_export.artefact import store
from l2c_export.artefact.guidance import guided_request
from l2c_export.artefact.products import input_scales
from l2c_export.cli import main
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.errors import UsageError
from l2c_export.ir.inputs import usual
from l2c_export.pytorch import effects
from l2c_export.pytorch.calibrate import InE4m3
from l2c_export.pytorch.eager import Converted, Denoiser
from l2c_export.pytorch.family import family_of
from l2c_export.pytorch.stored import stored
from l2c_export.samplers.noise import standard_normal
from l2c_export.verification.products import PART, lossy

CASE = "dit_tiny_odd_resetN"


def compiled(out, **changes):
    return compile_artefact(case(CASE).options(out, precision="fp8", backend="cuda", **changes))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, own_cache):
    folder = tmp_path_factory.mktemp("fp8") / "engines"
    compiled(folder)
    return folder


class InOneCall(Denoiser):
    """A loop whose call `n` has the products of `other`."""

    def _evaluate(self, n, reused, *inputs):
        return (self.other if n == self.n else super())._evaluate(n, reused, *inputs)


def latents(folder, sublayer=None, call=-1):
    """Those of four images behind every call, when the products of one sublayer are in e4m3 in one call."""
    manifest, tensors = store.read(folder), stored(folder, store.read(folder))
    program, images, family = manifest.program(), effects.IMAGES, family_of(manifest)
    module = str(sublayer).removesuffix(".proj_out")  # of FLUX's single blocks this is all of the block
    narrow = {n: s for n, s in input_scales(manifest).items() if n.startswith(f"{module}.")}
    model = InOneCall(family, Converted(tensors, torch.float32))
    model.n, model.other = call, Denoiser(family, InE4m3(tensors, torch.float32, narrow))
    return [x.clone() for x in model.steps(program.calls, *request_of(program, images))]


def request_of(program, images):
    guided = guided_request(program, usual(program.inputs, images), np.full(images, program.guidance.scale))
    request = {name: torch.from_numpy(values) for name, values in guided.inputs.items()}
    noise = torch.from_numpy(standard_normal(program.latent, range(images)) * np.float32(program.noise_scale))
    return noise, request, torch.from_numpy(guided.strength)


def captured(out, family):
    """A model that is asked for its weights before its sublayers are called."""
    folder, size = str(PIPELINES[family].folder(out.parent / "model")), PIPELINES[family].size
    options = {"schedule": "every:2", "steps": 3, "tokens": TOKENS, "size": size, "precision": "fp8", "backend": "cuda"}
    compile_artefact(Options(model=folder, out=out, **options))


MULTISTEP = {"schedule": "every:2", "steps": 4, "threshold": None, "sampler": "DPMSolverMultistepScheduler"}


@pytest.mark.parametrize("compiling", [
    compiled, partial(compiled, **MULTISTEP), partial(captured, family="flux"), partial(captured, family="pixart"),
], ids=["its router, DDIM", "multistep", "flux", "pixart"])  # fmt: skip
def test_shares_are_of_what_latents_change_by_behind_every_call(compiling, tmp_path):
    compiling(tmp_path / "e")
    exact, names = latents(tmp_path / "e"), store.read(tmp_path / "e").denoiser.sublayers
    changes = {
        name: sum(float((latents(tmp_path / "e", name, n)[n] - x).square().sum()) for n, x in enumerate(exact))
        for name in names
    }
    losses = lossy(tmp_path / "e")
    assert list(losses.shares) == sorted(changes, key=lambda name: -changes[name])
    for name, share in losses.shares.items():
        assert share == pytest.approx(changes[name] / sum(changes.values()), rel=1e-2), name
    assert losses.bf16 == tuple(losses.shares)[: -(-len(changes) // PART)]


def test_a_loop_with_a_cache_tries_what_its_calls_compute(narrow, monkeypatch):
    losses, tried = lossy(narrow), []
    assert sum(losses.shares.values()) == pytest.approx(1)
    assert set(losses.shares) == set(store.read(narrow).denoiser.sublayers)
    predict = effects.InPart.predict

    def predicting(run, x, row, t, request):
        tried.append((float(t[0]), run.tried))
        return predict(run, x, row, t, request)

    monkeypatch.setattr(effects.InPart, "predict", predicting)
    effects.effects(narrow, store.read(narrow))
    calls, sublayers = store.read(narrow).program().calls, store.read(narrow).denoiser.sublayers
    computed = [[(c.timestep, name) for n, name in enumerate(sublayers) if n not in c.reused] for c in calls]
    assert tried == [tried for call in computed for tried in call]
    tried.clear()
    monkeypatch.setattr(effects, "MOST", 1)
    effects.effects(narrow, store.read(narrow))
    assert tried == computed[len(calls) // 2], "of one call"


def test_what_is_kept_in_bf16_changes_nothing(narrow, tmp_path):
    worst = lossy(narrow).bf16
    compiled(tmp_path / "e", bf16=worst)
    losses = lossy(tmp_path / "e")
    assert set(losses.shares) == set(lossy(narrow).shares) - set(worst)
    compiled(tmp_path / "all", bf16=(*worst, *losses.shares))
    assert lossy(tmp_path / "all").summary.startswith("no sublayer has a product in e4m3")


def test_what_is_tried_leaves_no_trace_in_the_loop(narrow):
    manifest, tensors = store.read(narrow), stored(narrow, store.read(narrow))
    program = manifest.program()
    noise, request, strength = request_of(program, effects.IMAGES)
    loop = effects.Trying(family_of(manifest), Converted(tensors, torch.float32))
    narrowed = effects.Switched(tensors, torch.float32, input_scales(manifest), effects.Switch())
    loop.begin(range(len(program.calls)), program, strength, narrowed)
    assert torch.equal(loop(program.calls, noise, request, strength), latents(narrow)[-1])


def test_the_command_says_what_to_compile_with(narrow):
    losses = lossy(narrow)
    said = CliRunner().invoke(main.l2c, ["verify", str(narrow), "--find-bf16"], catch_exceptions=False)
    assert said.exit_code == 0
    for name in losses.shares:
        assert name in said.output
    assert " ".join(f"--bf16 {name}" for name in losses.bf16) in said.output
    read = CliRunner().invoke(main.l2c, ["verify", str(narrow), "--find-bf16", "--json"], catch_exceptions=False)
    assert json.loads(read.stdout) == {"shares": losses.shares, "bf16": list(losses.bf16)}


@pytest.mark.parametrize(("changes", "says"), [
    ({"precision": "bf16", "backend": "auto"}, r"is bf16, none of it is e4m3: only sublayers of fp8"),
    ({"weights": "none"}, r"has no weights yet, which decide what products lose: run l2c link first"),
])  # fmt: skip
def test_what_cannot_be_tried_is_refused(changes, says, tmp_path):
    compile_artefact(case(CASE).options(tmp_path / "e", **{"precision": "fp8", "backend": "cuda", **changes}))
    with pytest.raises(UsageError, match=says):
        lossy(tmp_path / "e")


def test_options_of_a_comparison_are_refused_beside_it(narrow):
    asked = ["verify", str(narrow), "--find-bf16", "--golden", str(case(CASE).path)]
    done = CliRunner().invoke(main.l2c, asked)
    assert done.exit_code == 2
    assert "--find-bf16: follows a usual request in PyTorch: leave out --golden" in done.output
