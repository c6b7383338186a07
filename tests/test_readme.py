"""The README's commands do what it says, and its JSON is a schedule."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from l2c_export.cli.compile import export
from l2c_export.cli.train import train
from l2c_export.schedules.schedule import Schedule

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_commands_to_try_work(tmp_path):
    for line in blocks("bash")[0].strip().splitlines():
        tool, *words = shlex.split(line)
        command = [sys.executable, "-m", "l2c_export", *(["export"] if tool == "l2c-export" else []), *words]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "schedule.png").stat().st_size > 1000


def test_the_schedule_in_the_readme_is_one():
    assert Schedule.from_json(blocks("json")[0].encode()).steps == 2


@pytest.mark.parametrize(
    ("command", "begins", "ends"),
    [
        (export, "## What you can give it", "## What the compiler does"),
        (train, "The model is frozen.", "## With diffusers"),
    ],
)
def test_every_option_of_the_readme_exists(command, begins, ends):
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    text = README[README.index(begins) : README.index(ends)].replace("`torchrun --standalone --nproc-per-node", "")
    mentioned = set(re.findall(r"`(--[a-z0-9-]+)", text)) | set(re.findall(r" (--[a-z0-9-]+) ", text))
    assert mentioned
    assert mentioned <= known
