"""A training that was interrupted or has ended goes on as if nothing had happened."""

from __future__ import annotations

import csv
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_trainings import ENVIRONMENT, desk, invoke, logits_of, trained

from l2c_export.training.state import Log, LogEntry

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path):
    line = desk(tmp_path, "dit") + " --steps 6 --batch 2 --data self --lr 0.1 --lambda 1e-6 --seed 4 --checkpoint-every 3"
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "l2c_export", *shlex.split(f"{line} --iterations 100000 --out {out}")]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    (out / ".1-1.partial").write_bytes(b"killed while it wrote")
    reached = torch.load(out / "checkpoint.pt")["iteration"]
    assert reached >= 3
    logged = len((out / "log.csv").read_text().splitlines()) - 1
    assert logged >= reached
    goal = logged + 2
    resumed = invoke(f"{line} --iterations {goal} --out {out}")
    assert f"goes on after iteration {reached}\n" in resumed.stderr
    trained(f"{line} --iterations {goal} --out {tmp_path}/whole --json")
    assert torch.equal(logits_of(out / "router.pt"), logits_of(tmp_path / "whole/router.pt"))
    both = [list(csv.DictReader((folder / "log.csv").open())) for folder in (out, tmp_path / "whole")]
    assert [row["iteration"] for row in both[0]] == [str(n + 1) for n in range(goal)]
    for name in ("loss", "mse", "computed"):
        assert [row[name] for row in both[0]] == [row[name] for row in both[1]]
    assert not list(out.glob("*.partial"))


def test_what_a_killed_training_had_logged_beyond_its_checkpoint_is_dropped(tmp_path):
    entries = [LogEntry(n, 1.0, 1.0, 0.5, 0.1) for n in range(1, 6)]
    log = Log(tmp_path, 0)
    for entry in entries:
        log.add(entry)
    Log(tmp_path, 3).add(entries[3])
    assert [row["iteration"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["1", "2", "3", "4"]


def test_a_finished_training_can_be_given_another_threshold(tmp_path):
    line = desk(tmp_path, "dit") + f" --steps 4 --batch 2 --data self --iterations 2 --out {tmp_path}/out --json"
    first, second = trained(f"{line} --target-reduction 0.4"), trained(f"{line} --threshold 1")
    assert first["lambda"] == second["lambda"] != 5e-6
    assert first["iterations_per_second"] > 0
    assert (second["iterations"], second["iterations_per_second"]) == (2, None)
    assert (second["threshold"], second["removed"], second["removed_of_all"]) == (1, 1, 0.5)


@pytest.mark.parametrize(("change", "name"), [
    ("--lambda 1e-3", "lambda"), ("--batch 1", "batch"), ("--steps 6", "steps"), ("--precision bf16", "precision"),
    ("--weights random:1", "weights"),
])  # fmt: skip
def test_a_training_does_not_go_on_with_other_options(tmp_path, change, name):
    line = desk(tmp_path, "dit") + f" --steps 4 --batch 2 --data self --iterations 1 --out {tmp_path}/out"
    trained(f"{line} --json")
    done = invoke(f"{line} {change}")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"error: .*/out holds a training with --{name} \S+( out)?, not \S+: .*", last), last
