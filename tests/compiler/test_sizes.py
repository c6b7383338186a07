"""Several sizes of pictures in one artefact: a request names one, by height and width or by its latents."""

from __future__ import annotations

import numpy as np
import prompted
import pytest
import torch
from click.testing import CliRunner
from prompted import PIPELINES, SCALE, STEPS, TOKENS

import l2c_export
from l2c_export.artefact import store
from l2c_export.cli import main
from l2c_export.errors import UsageError
from l2c_export.ir.inputs import usual
from l2c_export.schedules.schedule import Schedule
from l2c_export.verification.compare import summary

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = [(64, 64), prompted.PIXELS]  # the second is what the loops of `prompted` make
IMAGES = 2


@pytest.fixture(scope="module", params=["pixart", "sd35"])  # positions that follow from the size, levels that do
def compiled(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    folder = PIPELINES[request.param].folder(root / "model")
    l2c_export.compile("every:2", model=folder, steps=[STEPS, 2], size=SIZES, tokens=TOKENS, batch=IMAGES, out=root / "out")
    return request.param, folder, root / "out"


def requested(family):
    return {name: values.numpy() for name, values in PIPELINES[family].request(IMAGES).items()}


@pytest.mark.parametrize("link", ["shared", "static"])
def test_every_size_is_that_of_diffusers(compiled, link):
    family, folder, out = compiled
    noise = prompted.numbers(3, IMAGES, 4, prompted.HEIGHT, prompted.WIDTH)
    with torch.no_grad():
        schedule = Schedule.read(out / f"8x12-schedule-{STEPS}.json")
        wanted = PIPELINES[family].latents(folder, noise, PIPELINES[family].request(IMAGES), schedule).numpy()
    with l2c_export.load(out, backend="onnxruntime", link=link) as pipe:
        small = pipe(**requested(family), guidance_scale=SCALE, latents=np.ones((IMAGES, 4, 8, 8), np.float32)).latents
        latents = pipe(**requested(family), guidance_scale=SCALE, latents=noise.numpy()).latents
        again = pipe(**requested(family), guidance_scale=SCALE, latents=noise.numpy(), height=64, width=96).latents
    assert small.shape == (IMAGES, 4, 8, 8)
    assert prompted.error(latents, wanted) < 1e-5
    assert np.array_equal(latents, again)


def test_the_first_size_is_what_it_is_alone(compiled, tmp_path):
    family, folder, out = compiled
    l2c_export.compile("every:2", model=folder, steps=STEPS, size=SIZES[0], tokens=TOKENS, batch=IMAGES, out=tmp_path / "one")
    alone, both = (l2c_export.load(place, backend="onnxruntime") for place in (tmp_path / "one", out))
    assert np.array_equal(alone(**requested(family), seed=5).latents, both(**requested(family), seed=5).latents)


def loop_of(pipe, name):
    program = pipe.manifest.programs[name]
    axes = pipe.manifest.denoiser.sizes[program.size].latent[1:]
    return pipe.generation(usual(pipe.manifest.inputs, IMAGES), None, IMAGES, program.steps, axes).loop


def test_all_programs_of_all_sizes_are_verified(compiled):
    _, _, out = compiled
    names = [str(STEPS), "2", f"{STEPS}@8x12", "2@8x12"]
    with l2c_export.load(out, backend="onnxruntime") as pipe:
        right = l2c_export.verify(pipe)
        assert right.passed
        assert [entry.program for entry in (right, *right.others)] == names
        assert [len(entry.calls) for entry in (right, *right.others)] == [STEPS, 2, STEPS, 2]
        assert [entry.program for entry in l2c_export.verify(pipe, steps=2).others] == ["2@8x12"]
        loop = loop_of(pipe, "2@8x12")
        run = loop.bound(1)[-1].run

        def wrong():
            run()
            loop.array(1, "x.next")[...] *= np.float32(1.001)

        loop.bound(1)[-1] = loop.bound(1)[-1]._replace(run=wrong)
        verdict = l2c_export.verify(pipe)
        assert not verdict.passed
        assert verdict.program == "2@8x12"
        assert [entry.program for entry in verdict.others] == names[:3]
        assert all(entry.passed for entry in verdict.others)
        assert summary(verdict).startswith("program 2@8x12 is wrong, 1 of 4: call 1 ")
    shown = CliRunner().invoke(main.l2c, ["verify", str(out), "--backend", "onnxruntime"])
    assert shown.exit_code == 0
    assert "all 4 programs are right" in shown.stderr
    assert all(f"program {name}" in shown.stdout for name in names)


def test_segments_of_another_size_are_checked_without_pytorch(compiled):
    """As pieces: a call of another size is not recorded."""
    _, _, out = compiled
    manifest = store.read(out)
    first, second = manifest.denoiser.sizes.values()
    used = [{node.op for graph in size.graphs.values() for node in graph.nodes} for size in (first, second)]
    own = used[1] - used[0]
    assert own
    assert own <= manifest.fingerprint.pieces.keys()
    assert manifest.fingerprint.pieces.keys() | used[0] == used[0] | used[1]
    with l2c_export.load(out, backend="onnxruntime") as pipe:
        result = l2c_export.check(pipe)
        assert result.passed
        assert all(any(segment in value.what for value in result.values) for segment in own)


def test_weights_are_stored_once(compiled):
    _, _, out = compiled
    manifest = l2c_export.load(out).manifest
    assert list(manifest.programs) == [str(STEPS), "2", f"{STEPS}@8x12", "2@8x12"]
    own = {name for name in manifest.denoiser.tensors if not name.startswith("derived.")}
    assert all(own == own & {o.of for o in size.origins.values()} for size in manifest.denoiser.sizes.values())


def test_other_weights_are_bound_for_all_sizes(compiled):
    family, folder, out = compiled
    with l2c_export.load(out, backend="onnxruntime") as pipe:
        before = [pipe(**requested(family), height=h, width=w).latents for h, w in SIZES]
    l2c_export.link(out, weights=str(folder / "transformer"))
    with l2c_export.load(out, backend="onnxruntime") as pipe:
        assert all(
            np.array_equal(pipe(**requested(family), height=h, width=w).latents, latents)
            for (h, w), latents in zip(SIZES, before, strict=True)
        )


@pytest.mark.parametrize(("asked", "problem"), [
    ({"height": 128, "width": 64}, "height=128, width=64: this artefact was compiled for pictures of 64 x 64 or 64 x 96: use"),
    ({"height": 60}, "height=60, width=64: this artefact was compiled for pictures of 64 x 64 or 64 x 96"),
    ({"latents": np.zeros((2, 4, 8, 9), np.float32)}, "this model and 2 images need (2, 4, 8, 8) "
     "(or (2, 4, 8, 12))"),
    ({"latents": np.zeros((2, 4, 8, 8), np.float32), "width": 96}, "this model and 2 images need "
     "(2, 4, 8, 12)"),
    ({"steps": 3, "width": 96}, f"steps=3: this artefact was compiled for {STEPS} or 2 steps"),
])  # fmt: skip
def test_another_size_is_refused_with_those_there_are(compiled, asked, problem):
    family, _, out = compiled
    with l2c_export.load(out, backend="onnxruntime") as pipe, pytest.raises(UsageError) as refused:
        pipe(**requested(family), **asked)
    assert problem in str(refused.value)


def test_the_command_line_names_a_size(compiled, tmp_path):
    family, _, out = compiled
    np.savez(tmp_path / "p.npz", **requested(family))
    line = ["run", str(out), "--prompt-embeds", str(tmp_path / "p.npz"), "--backend", "onnxruntime"]
    done = CliRunner().invoke(main.l2c, [*line, "--size", "64x96", "--out", str(tmp_path / "x.npy")])
    assert done.exit_code == 0, done.stderr
    assert np.load(tmp_path / "x.npy").shape == (IMAGES, 4, 8, 12)
    done = CliRunner().invoke(main.l2c, [*line, "--size", "96x96", "--out", str(tmp_path / "x.npy")])
    assert done.exit_code != 0
    assert "64 x 64 or 64 x 96" in done.stderr


def test_a_size_twice_is_refused(compiled):
    with pytest.raises(UsageError, match=r"size=\(64, 64\): give each size once"):
        l2c_export.compile("every:2", model=compiled[1], steps=2, size=[(64, 64), (64, 64)])
