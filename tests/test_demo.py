"""The demo model: installed with the package, it draws digits that a classifier reads, with and without caching."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import classifier
from sampling import noise_of, sample

from l2c_export import demo
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.pytorch.eager import Denoiser
from l2c_export.schedules import routers

ROOT = Path(__file__).parents[1]
LABELS = [n % 10 for n in range(20)]


def cli(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "l2c_export", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> np.ndarray:
    """Two digits of every class, (20, 1, 28, 28), by the commands of the README in an empty folder."""
    folder = tmp_path_factory.mktemp("empty")
    done = cli(folder, "export", "--model", "demo", "--batch", len(LABELS), "--backend", "onnxruntime", "--out", "engines")
    assert done.returncode == 0, done.stderr
    asked = [word for label in LABELS for word in ("--class-label", label)]
    done = cli(folder, "run", "engines", *asked, "--seed", 0, "--out", "digits.npy")
    assert done.returncode == 0, done.stderr
    done = cli(folder, "run", "engines", "--class-label", 3, "--out", "three.png")
    assert (folder / "three.png").read_bytes().startswith(b"\x89PNG"), done.stderr
    return np.load(folder / "digits.npy")


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return new_denoiser()


def new_denoiser() -> Denoiser:
    return Denoiser(resolve(Options(model="demo")).family, {n: w.float() for n, w in load_file(demo.WEIGHTS).items()})


def by_pytorch(denoiser: Denoiser, options: Options, count: int = len(LABELS)) -> torch.Tensor:
    noise = noise_of(denoiser.family.latent, range(count), torch.device("cpu"))
    return sample(denoiser, resolve(options).schedule, noise, torch.tensor(LABELS[:count]), demo.GUIDANCE_SCALE)


def test_a_classifier_reads_the_digits(drawn):
    judge = classifier.load(ROOT / "scripts/results/classifier.safetensors", torch.device("cpu"))
    _, seen = classifier.examine(judge, torch.from_numpy(drawn))
    assert sum(seen.numpy() == LABELS) >= 19  # 97.1 % of 25,000


def test_the_digits_vary(drawn):
    """Two of a class are not one picture."""
    assert (np.abs(drawn[:10] - drawn[10:]).mean((1, 2, 3)) > 0.05).all()


def test_the_engines_draw_what_pytorch_draws_with_the_same_schedule(drawn, denoiser):
    assert np.abs(drawn - by_pytorch(denoiser, Options(model="demo")).numpy()).max() < 2e-3


def test_caching_changes_little(drawn, denoiser):
    """Against the uncached model: far less than the next digit of the class would differ."""
    apart = np.abs(drawn - by_pytorch(denoiser, Options(model="demo", cache=False)).numpy()).mean()
    assert 1e-4 < apart < 0.1 * np.abs(drawn[:10] - drawn[10:]).mean()


def test_one_denoiser_serves_an_uncached_and_then_a_cached_schedule():
    both = new_denoiser()
    by_pytorch(both, Options(model="demo", cache=False), 1)
    after = by_pytorch(both, Options(model="demo"), 1)
    assert torch.equal(after, by_pytorch(new_denoiser(), Options(model="demo"), 1))


@pytest.mark.parametrize(("name", "share"), [(None, 0.4), ("demo", 0.4), ("demo:aggressive", 0.7)])
def test_the_schedules_remove_what_they_promise(name, share):
    schedule = resolve(Options(model="demo", schedule=name)).schedule
    assert sum(len(call.reused) for call in schedule.calls) == pytest.approx(share * 10 * schedule.columns)
    assert not any(call.reused for call in schedule.calls[::2])


@pytest.mark.parametrize(("router", "name"), [("router.pt", "demo"), ("aggressive.pt", "demo:aggressive")])
def test_the_schedules_are_those_of_the_learned_routers(router, name):
    schedule = resolve(Options(model="demo", schedule=name)).schedule
    from_router = routers.read(demo.CONFIG.with_name(router)).schedule(schedule.threshold, schedule.steps, schedule.columns)
    assert (from_router.calls, from_router.source) == (schedule.calls, schedule.source)


def test_guidance_is_the_demos_own():
    assert resolve(Options(model="demo")).scale == demo.GUIDANCE_SCALE
    assert resolve(Options(model="demo", guidance="none")).scale == 1.0


def test_an_unknown_schedule_of_the_demo_is_one_line(tmp_path):
    done = cli(tmp_path, "export", "--model", "demo", "--schedule", "demo:xyz", "--out", "engines")
    assert done.returncode != 0
    assert "demo:xyz" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "demo:aggressive" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_wheel_takes_every_file_of_the_demo():
    match = re.search(r'^"l2c_export.demo" = (\[.*\])$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    patterns = ast.literal_eval(match[1])
    files = [path for path in demo.CONFIG.parent.iterdir() if path.is_file() and path.suffix != ".py"]
    assert len(files) == 6
    assert all(any(fnmatch(path.name, pattern) for pattern in patterns) for path in files)
    assert {demo.CONFIG, demo.WEIGHTS, *demo.SCHEDULES.values()} <= set(files)
