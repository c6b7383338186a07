"""What a user may do wrong is one line and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file
from small_trainings import desk, invoke

from l2c_export.training.state import restore

pytestmark = pytest.mark.usefixtures("one_thread")


GOOD = "--weights model.safetensors --model config.json --steps 4 --data self --batch 2 --iterations 1"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("desk"), Path.cwd()
    desk(folder, "dit")
    os.chdir(folder)
    Path("text.npz").write_text("a letter to my mother")
    Path("foreign").mkdir()
    Path("foreign/thesis.tex").write_text("my only copy")
    Path("torn").mkdir()
    Path("torn/checkpoint.pt").write_bytes(b"PK")
    arch = {**json.loads(Path("config.json").read_text())["arch"], "class_dropout_prob": 0}
    Path("no-null.json").write_text(json.dumps({"family": "dit", "arch": arch}))
    yield folder
    os.chdir(before)


def test_what_the_weights_do_not_say_of_their_model_is_asked_for_or_said_by_their_training(here):
    line = "--steps 4 --data self --batch 2 --iterations 1 --out unnamed"
    done = invoke(f"train {line} --weights model.safetensors")
    assert done.exit_code == 1
    assert "model.safetensors does not show how many heads it has" in done.stderr
    state = {name: torch.from_numpy(value) for name, value in load_file("model.safetensors").items()}
    torch.save({"ema": state, "args": {"num_heads": 2, "num_classes": 10}}, "noted.pt")
    done = invoke(f"train {line} --weights noted.pt")
    shutil.rmtree("unnamed", ignore_errors=True)
    assert done.exit_code == 0, done.stderr
    assert "dit, 3 x 32, 2 heads, 10 classes + null" in done.stderr
    assert "assumed: that it predicts noise" in done.stderr


@pytest.mark.parametrize(("options", "code", "problem"), [
    ("--iterations 0", 2, "--iterations 0: must be at least 1"),
    ("--batch 0", 2, "--batch 0: must be at least 1"),
    ("--checkpoint-every 0", 2, "--checkpoint-every 0: must be at least 1"),
    ("--seed -1", 2, "--seed -1: must be at least 0"),
    ("--lr 0", 2, "--lr 0.0: must be more than 0"),
    ("--lr nan", 2, "--lr nan: must be more than 0"),
    ("--lambda -1", 2, "--lambda -1.0: must be at least 0"),
    ("--threshold 1.5", 2, "--threshold 1.5: must be between 0 and 1"),
    ("--guidance-scale nan", 2, "--guidance-scale nan: must be a finite number"),
    ("--guidance-scale 1e40", 2, "--guidance-scale 1e+40: must be a finite number"),
    ("--model foreign", 2, "--model foreign: routers are trained for names like DiT-XL/2"),
    ("--target-reduction 40", 2, "--target-reduction 40.0: must be between 0 and 1, like 0.4"),
    ("--target-reduction 0.4 --threshold 0.4", 2, "--threshold 0.4: --target-reduction chooses it"),
    ("--precision int8", 2, "--precision int8: use one of fp32, bf16, fp16"),
    ("--guidance some", 2, "--guidance some: use one of first3, all, none"),
    ("--guidance all --weights random --model no-null.json", 2, "--guidance all: no input has an unconditional value"),
    ("--error image", 2, "--error image: use one of latents, output"),
    ("--data missing.npz", 2, "--data missing.npz: no such file"),
    ("--data text.npz", 2, "--data text.npz: cannot be read"),
    ("--device tpu", 2, "--device tpu: use one of cpu, cuda"),
    ("--steps 1", 2, "--steps 1: DDIM takes 2 to 1000 steps"),
    ("--steps 1000000000", 2, "--steps 1000000000: DDIM takes 2 to 1000 steps"),
    ("--weights missing.pt", 1, "--weights missing.pt: no such file"),
    ("--weights random --model uvit.txt", 1, "unknown model 'uvit.txt'"),
    ("--out foreign", 1, "--out foreign: holds thesis.tex, which is not ours"),
    ("--out config.json", 2, "Invalid value for '--out'"),
    ("--out torn", 1, "torn/checkpoint.pt is not a training's checkpoint"),
    ("--out foreign/thesis.tex/x", 1, "--out foreign/thesis.tex/x: cannot be written: Not a directory"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_and_leaves_nothing(here, options, code, problem):
    before = sorted(here.rglob("*"))
    done = invoke(f"train {GOOD} --out new {options}")
    assert done.exit_code == code, done.stderr
    assert problem in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) <= 1
    assert sorted(here.rglob("*")) == before


def test_a_missing_extra_is_named(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    done = invoke(f"train {GOOD} --out new")
    assert (done.exit_code, done.stderr) == (1, "error: accelerate is not installed: pip install 'l2c-export[train]'\n")


def test_a_uvit_with_one_solver_step_has_nothing_to_train(tmp_path):
    done = invoke(desk(tmp_path, "uvit") + f" --steps 2 --data self --out {tmp_path}/out")
    assert done.exit_code == 2
    assert "--steps 2: no call of uvit would run from the cache" in done.stderr


def test_weights_that_make_nan_are_named_before_anything_is_spoilt(here):
    tensors = load_file("model.safetensors")
    tensors["blocks.0.mlp.fc2.bias"].fill(3e38)
    save_file(tensors, "huge.safetensors")
    done = invoke(f"train {GOOD} --weights huge.safetensors --out nan")
    assert done.exit_code == 1
    assert "error: iteration 0: the loss is NaN or infinite" in done.stderr
    assert restore(Path("nan"), {}) is None
