"""Trainings that take a second, on models small enough."""

from __future__ import annotations

import json
import os
import shlex

import numpy as np
import torch
from click.testing import CliRunner
from helpers import case
from recorded import ROOT
from safetensors.numpy import load_file, save_file

from l2c_export.cli import main
from l2c_export.models import lookup
from l2c_export.schedules import routers
from l2c_export.training.options import TrainingOptions
from l2c_export.training.training import Training

FAMILIES = {"dit": ("dit_tiny_lowvar", 6), "uvit": ("uvit_tiny_oddnfe", 8)}  # a case, and steps with two or three pairs


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def model_of(kind, dtype=torch.float32):
    chosen = case(FAMILIES[kind][0])
    family = lookup.resolve(str(chosen.path / "config.json"), None, None, None).family
    weights = load_file(chosen.path / "model.safetensors")
    return family, {name: torch.from_numpy(value).to(dtype) for name, value in weights.items()}


def desk(folder, kind, useless=()):
    """A model in `folder`; the sublayers in `useless` give nothing."""
    chosen = case(FAMILIES[kind][0])
    (folder / "config.json").write_bytes((chosen.path / "config.json").read_bytes())
    tensors = load_file(chosen.path / "model.safetensors")
    for name in useless:
        for part in ("weight", "bias"):
            tensors[f"{name}.{part}"] = np.zeros_like(tensors[f"{name}.{part}"])
    save_file(tensors, folder / "model.safetensors")
    return f"train --model {folder}/config.json --weights {folder}/model.safetensors"


def invoke(line):
    return CliRunner().invoke(main.l2c, shlex.split(line))


def trained(line):
    done = invoke(line)
    assert done.exit_code == 0, done.stderr + str(done.exception)
    return json.loads(done.stdout)


def logits_of(path):
    return routers.read(path).logits


def prepared(tmp_path, kind="dit", **chosen):
    """A training that has not begun."""
    desk(tmp_path, kind)
    usual = {"model": f"{tmp_path}/config.json", "weights": f"{tmp_path}/model.safetensors", "steps": 6, "data": "self"}
    return Training(TrainingOptions(**{**usual, "out": tmp_path / "out", "batch": 2, "device": "cpu", **chosen}), print)
