"""Several processes train as one."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from small_trainings import ENVIRONMENT, desk, logits_of, trained

from l2c_export.errors import UsageError
from l2c_export.training.workers import Workers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_images_do_not_depend_on_who_makes_them(tmp_path):
    line = desk(tmp_path, "uvit") + " --steps 8 --batch 4 --data self --iterations 3 --lr 0.1 --lambda 1e-6 --device cpu"
    trained(f"{line} --out {tmp_path}/one --json")
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2 -m l2c_export"
    command = [sys.executable, *shlex.split(f"{launch} {line} --out {tmp_path}/two --json")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "2 x cpu"
    one, two = (logits_of(tmp_path / name / "router.pt") for name in ("one", "two"))
    assert torch.allclose(one, two, atol=1e-3)


def test_processes_share_a_batch_evenly_or_refuse_it():
    workers = Workers("cpu")
    workers._state = Namespace(num_processes=2, process_index=1)
    assert workers.images(4) == range(2, 4)
    with pytest.raises(UsageError, match="batch=5: cannot be split over 2 processes: use a multiple of 2"):
        workers.images(5)
