"""A captured transformer learns from its folder and from what `l2c encode` writes: its loop is diffusers' own."""

from __future__ import annotations

import numpy as np
import prompted
import pytest
import torch
from small_trainings import invoke, trained

from l2c_export.errors import UsageError
from l2c_export.schedules.schedule import Schedule
from l2c_export.training import data
from l2c_export.training.lessons import EVALUATE
from l2c_export.training.ruled_options import RuledOptions
from l2c_export.training.subject import subject_of

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS, WIDTH = 300, 24
EMBEDS, MASK = "prompt_embeds", "prompt_attention_mask"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of a tiny PixArt, and prompts.npz with the arrays of three prompts."""
    folder = tmp_path_factory.mktemp("captured")
    prompted.pixart(folder / "model")
    chance, lengths = np.random.default_rng(0), np.array([[4], [9], [20]])
    arrays = {
        EMBEDS: chance.standard_normal((3, TOKENS, WIDTH), np.float32), MASK: (np.arange(TOKENS) < lengths).astype(np.int32),
        f"negative_{EMBEDS}": np.zeros((3, TOKENS, WIDTH), np.float32), f"negative_{MASK}": np.eye(3, TOKENS, dtype=np.int32),
    }  # fmt: skip
    np.savez(folder / "prompts.npz", **arrays)
    np.savez(folder / "asked.npz", **{name: arrays[name] for name in (EMBEDS, MASK)})
    return folder


def line(here, file="prompts.npz"):
    return f"train --model {here}/model --data {here}/{file} --steps 6 --rule taylor:1 --every 3 --batch 2"


def test_its_loop_is_that_of_diffusers(here, tmp_path):
    scale = f"--guidance-scale {prompted.SCALE}"
    summary = trained(f"{line(here)} --learn-coefficients --iterations 2 {scale} --json --out {tmp_path}/o")
    options = RuledOptions(steps=6, data=str(here / "prompts.npz"), out=tmp_path, model=str(here / "model"), batch=2,
                           rule="taylor:1", every=3, guidance_scale=prompted.SCALE)  # fmt: skip
    subject = subject_of(options, None)
    ours = subject.request(EVALUATE, 0)
    request = {name: values.chunk(2)[0] for name, values in ours.inputs.items()}
    request |= {f"negative_{name}": values.chunk(2)[1] for name, values in ours.inputs.items()}
    uncached = subject.source.schedule
    with torch.no_grad():
        wanted = prompted.pixart_latents(here / "model", ours.noise, request, uncached)
        latents = subject.latents(uncached, ours)
        again = prompted.pixart_latents(here / "model", ours.noise, request, Schedule.read(tmp_path / "o/schedule.json"))
    assert prompted.error(latents.numpy(), wanted.numpy()) < 1e-5
    assert summary["error"] == pytest.approx(
        float(((again - wanted).square().mean() / wanted.square().mean()) ** 0.5), rel=1e-3
    )
    assert summary["full"] == [0, 1, 3]


def test_prompts_without_what_stands_for_nothing_cannot_be_guided(here, tmp_path):
    done = invoke(f"{line(here, 'asked.npz')} --iterations 1 --out {tmp_path}/o")
    assert done.exit_code != 0
    assert f"holds no `negative_{EMBEDS}`" in done.stderr
    assert "l2c encode" in done.stderr
    assert not (tmp_path / "o").exists()


def test_without_guidance_they_are_enough(here):
    family = subject_of(RuledOptions(steps=6, data=str(here / "asked.npz"), out=here / "o", model=str(here / "model"),
                                     rule="taylor:1", every=3, guidance_scale=1.0), None).family  # fmt: skip
    requests = data.requests(here / "asked.npz", family, guided=False)
    assert {name: values.shape for name, values in requests.items()} == {EMBEDS: (3, TOKENS, WIDTH), MASK: (3, TOKENS)}
    with pytest.raises(UsageError, match=f"holds no `negative_{EMBEDS}`"):
        data.requests(here / "asked.npz", family, guided=True)


def test_a_router_is_not_trained_for_a_folder(here, tmp_path):
    done = invoke(f"train --model {here}/model --data {here}/prompts.npz --steps 6 --out {tmp_path}/o")
    assert done.exit_code == 2
    assert "learn under a rule" in done.stderr
