"""At home in the diffusers world: folders in, images out, against diffusers itself."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from recorded import asked
from small_pipelines import LABELS, SCALE, SCHEDULERS, STEPS, close, noise, their_latents

import l2c_export
from l2c_export.cli.main import l2c
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.errors import UsageError
from l2c_export.models.diffusers import pipeline_folder
from l2c_export.pytorch.reference import Reference
from l2c_export.samplers.scheduler_config import DDIM
from l2c_export.schedules.schedule import Schedule
from l2c_export.verification import compare

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def euler_latents(pipe: diffusers.DiTPipeline, scale: float, x: np.ndarray) -> np.ndarray:
    """The loop that diffusers' other pipelines have.  DiTPipeline goes on from the scaled model input instead of the latents,
    so that it makes no images with this scheduler."""
    pipe.scheduler.set_timesteps(STEPS)
    x, y = torch.from_numpy(x) * pipe.scheduler.init_noise_sigma, torch.tensor([*LABELS, 1000, 1000])
    for t in pipe.scheduler.timesteps:
        seen = pipe.scheduler.scale_model_input(x, t)
        out = pipe.transformer(torch.cat([seen, seen]), timestep=t.expand(4), class_labels=y).sample[:, :4]
        c, u = out.chunk(2)
        x = pipe.scheduler.step(u + scale * (c - u), t, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_uncached_loop_is_that_of_diffusers(worlds, name):
    world = worlds[name]
    ours = l2c_export.load(world.compiled())(LABELS, SCALE, latents=noise()).latents
    want = euler_latents(world.pipe, SCALE, noise()) if name == "euler" else their_latents(world.pipe, SCALE)
    assert close(ours, want, 1e-5)


@pytest.mark.parametrize("options", [{"backend": "openvino"}, {"link": "static"}], ids=str)
def test_a_history_works_on_every_backend_and_link(worlds, options):
    world = worlds["dpm3"]
    pipe = l2c_export.load(world.compiled("every:2"), **options)
    want = l2c_export.load(world.compiled("every:2"))(LABELS, SCALE, latents=noise()).latents
    for _ in range(2):  # a second generation starts without a history again
        assert close(pipe(LABELS, SCALE, latents=noise()).latents, want)
        assert close(pipe(LABELS[:1], SCALE, latents=noise()[:1]).latents, want[:1])


def test_a_failed_generation_leaves_no_history(worlds):
    pipe = l2c_export.load(worlds["dpm3"].compiled("every:2"))
    want = pipe(LABELS, SCALE, latents=noise()).latents
    with np.errstate(invalid="ignore"):
        assert np.isnan(pipe(LABELS, SCALE, latents=np.full_like(noise(), np.inf)).latents).all()
    assert np.array_equal(pipe(LABELS, SCALE, latents=noise()).latents, want)


class Driven:
    """diffusers' own model, whose attention and feed-forward modules follow a schedule through hooks."""

    def __init__(self, pipe: diffusers.DiTPipeline, calls) -> None:
        self.calls, self.cache, self.count = calls, {}, -1
        blocks = pipe.transformer.transformer_blocks
        modules = [module for block in blocks for module in (block.attn1, block.ff)]
        self.hooks = [pipe.transformer.register_forward_pre_hook(self._next)]
        self.hooks += [m.register_forward_hook(self._reuse(column)) for column, m in enumerate(modules)]

    def _next(self, *_):
        self.count += 1

    def _reuse(self, column):
        def hook(module, inputs, output):
            if column not in self.calls[self.count].reused:
                self.cache[column] = output
            return self.cache[column]

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("name", ["ddim", "dpm2", "dpm3"])
def test_the_cached_loop_is_that_of_diffusers_with_its_layers_driven_by_hooks(worlds, name):
    world, rng = worlds[name], np.random.default_rng(1)
    scheduler = pipeline_folder.read(world.folder).sampler()
    computed = [range(6) if n in (0, 4) else np.flatnonzero(rng.random(6) < 0.4).tolist() for n in range(STEPS)]
    chosen = Schedule.make("dit", scheduler.kind, STEPS, 6, computed, scheduler=scheduler)
    path = world.root / f"{name}.json"
    path.write_bytes(chosen.to_json())
    ours = l2c_export.load(world.compiled(str(path), steps=None))(LABELS, SCALE, latents=noise()).latents
    with Driven(world.pipe, chosen.calls):
        want = their_latents(world.pipe, SCALE)
    assert not close(want, their_latents(world.pipe, SCALE), 1e-2), "the schedule must make a difference"
    assert close(ours, want, 1e-5)


def test_a_router_follows_the_folders_scheduler(world, tmp_path):
    rows = [torch.full((6,), 5.0), torch.zeros(6), torch.tensor([5.0, -5, -5, 5, -5, 5]), torch.zeros(6)]
    torch.save({"routers": {f"{i}.prob": row for i, row in enumerate(rows)}}, tmp_path / "router.pt")
    folder = compile_artefact(Options(schedule=str(tmp_path / "router.pt"), model=str(world.folder), out=tmp_path / "e"))
    assert folder.program().sampler == DDIM
    assert [call.timestep for call in folder.program().calls] == [750, 500, 250, 0]
    assert [call.computed for call in folder.program().calls] == [tuple(range(6)), (0, 3, 5), tuple(range(6)), tuple(range(6))]


@pytest.mark.parametrize("name", ["dpm3", "euler"])
def test_verify_knows_histories_and_scales(worlds, name):
    folder = worlds[name].compiled("every:2")
    pipe = l2c_export.load(folder)
    comparison = compare.compare(pipe, Reference(folder, pipe.manifest, noise(), asked(LABELS), SCALE))
    assert comparison.passed
    assert max(call.free.relative for call in comparison.calls) < 1e-5


def test_guidance_below_1_is_none_as_in_diffusers(world):
    ours = l2c_export.L2CPipeline.from_pretrained(world.compiled())
    latents = ours(LABELS, 0.5, torch.manual_seed(0), output_type="latent").images
    assert close(latents, their_latents(world.pipe, 0.5), 1e-5)
    assert not close(latents, their_latents(world.pipe, 4.0), 1e-2)


def test_images_are_those_of_diffusers(world):
    ours = l2c_export.L2CPipeline.from_pretrained(world.pictures())
    want = world.pipe(LABELS, SCALE, torch.manual_seed(3), STEPS, "np").images
    got = ours(LABELS, SCALE, torch.manual_seed(3), STEPS, "np").images
    assert got.shape == (2, 16, 16, 3)
    assert np.abs(got - want).max() < 1e-4
    pictures = ours(LABELS, SCALE, torch.manual_seed(3)).images
    theirs = world.pipe(LABELS, SCALE, torch.manual_seed(3), STEPS).images
    for mine, other in zip(pictures, theirs, strict=True):
        assert np.abs(np.asarray(mine, int) - np.asarray(other, int)).max() <= 1


def test_from_a_folder_to_a_picture_with_two_commands(worlds, tmp_path):
    engines = str(tmp_path / "engines")
    words = ["--steps", "6", "--model", str(worlds["dpm2"].folder), "--with-vae", "--batch", "2", "--out", engines]
    assert CliRunner().invoke(l2c, ["export", "--schedule", "every:2", *words]).exit_code == 0
    words = ["--class-label", "golden retriever", "--class-label", "360", "--seed", "1", "--tile", "8", "--out", "x.png"]
    subprocess.run([sys.executable, "-m", "l2c_export", "run", engines, *words], cwd=tmp_path, check=True)
    assert np.asarray(Image.open(tmp_path / "x.png")).std() > 1
    assert Image.open(tmp_path / "x.png").size == (32, 16)


def test_names_of_classes(world):
    pipe = l2c_export.load(world.compiled())
    assert pipe.inputs(["chicken", 207])["class_labels"].tolist() == [8, 207]
    assert pipe.inputs("otter")["class_labels"].tolist() == [360]
    with pytest.raises(UsageError, match="class label 'golden retriver': no such name: did you mean golden retriever"):
        pipe.inputs("golden retriver")
    with pytest.raises(UsageError, match="class label 'qqq': no such name: use a number"):
        pipe.inputs("qqq")


def test_calls_are_merged_under_any_scheduler(world, tmp_path):
    options = {"schedule": "every:3", "steps": 8, "model": str(world.folder), "sampler": "DPMSolverMultistepScheduler"}
    manifest = compile_artefact(Options(**options, out=tmp_path / "e", max_graphs=2))
    assert len({call.graph for call in manifest.program().calls}) <= 2
    assert manifest.program().sampler == "DPMSolverMultistepScheduler"
