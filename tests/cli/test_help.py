"""The help, and what is installed."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys

import pytest
from desk import ROOT, invoke

import l2c_export
from l2c_export.artefact import manifest
from l2c_export.cli import choices as known
from l2c_export.cli import main
from l2c_export.cli.compile import export
from l2c_export.compiler import request
from l2c_export.inspection import predict
from l2c_export.ir import precisions
from l2c_export.schedules import rules
from l2c_export.training import options as training

COMMANDS = list(main.l2c.commands)


@pytest.mark.parametrize("line", ["--version", *(f"{name} {word}" for name in ("", *COMMANDS) for word in ("-h", "--help"))])
def test_help_is_data(line):
    done = invoke(line)
    assert (done.exit_code, done.stderr) == (0, "")
    assert l2c_export.__version__ in done.stdout if line == "--version" else done.stdout.startswith("Usage: ")


def test_the_installed_scripts_are_these_commands(desk):
    scripts = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    functions = dict(re.findall(r'(\S+) = "l2c_export\.cli\.main:(\w+)"', scripts.group(1)))
    assert functions.keys() == {"l2c", "l2c-export"}
    for name, function in functions.items():
        code = f"from l2c_export.cli.main import {function}; {function}()"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code, "--help"], env=env, capture_output=True, text=True)
        assert done.stdout.startswith(f"Usage: {name} "), done.stderr
        assert ("--max-graphs" in done.stdout) == (name == "l2c-export")


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_help_fits_the_screen_and_breaks_no_name(name, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    command = main.l2c.commands[name] if name else main.l2c
    with command.make_context(name, [], resilient_parsing=True) as context:
        text = command.get_help(context)
    help_, _, example = text.partition("\nExample:\n")
    assert max(map(len, help_.splitlines())) <= width
    assert example.strip()
    assert not re.search(r"\w-$", help_, re.MULTILINE), "a name that is broken at its hyphen"
    assert not re.search(r"\.\.(\s*\[|$)", help_.replace("[ARGS]...", "").replace("BUILD...", ""), re.MULTILINE)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_an_example_is_a_command_that_is_understood(name):
    command = main.l2c.commands[name] if name else main.l2c
    for line in command.example.splitlines():
        tool, *words = shlex.split(line)
        if tool == "l2c":
            assert words[0] == name or not name
            main.l2c.commands[words[0]].make_context(words[0], words[1:])
        else:
            assert tool == "l2c-export"
            export.make_context(tool, words)


@pytest.mark.parametrize("name", ["export", "run", "verify", "check", "bench", "profile", "build", "train"])
def test_many_options_stand_under_headings(name):
    headings = re.findall(r"^(\S.*):$", invoke(f"{name} -h").stdout, re.MULTILINE)
    assert headings[-2:] == ["In every command", "Example"]
    assert len(headings) >= 4
    assert "Options" not in headings


def test_the_overview_has_whole_sentences_in_the_order_of_use():
    text = invoke("-h").stdout
    assert "..." not in text.partition("Commands:")[2]
    assert re.findall(r"^  (\w+)  ", text.partition("Commands:")[2], re.MULTILINE) == COMMANDS
    assert COMMANDS[:2] == ["export", "run"]


def choices(name, option):
    (parameter,) = (param for param in main.l2c.commands[name].params if param.name == option)
    return parameter


def test_the_choices_are_those_of_the_modules():
    assert set(known.PRECISIONS) == set(precisions.DTYPES)
    assert known.LINKS == manifest.LINKS
    assert known.GUIDANCE == request.GUIDANCE
    assert known.TEXT_PRECISIONS == request.TEXT_PRECISIONS
    assert tuple(predict.DEVICES) == known.DEVICES
    assert known.ERRORS == training.ERRORS
    assert known.LEVELS == rules.LEVELS


def test_choices_are_completed():
    context = export.make_context("l2c-export", [], resilient_parsing=True)
    backend, sampler = choices("export", "backend"), choices("export", "sampler")
    assert [item.value for item in backend.shell_complete(context, "ten")] == ["tensorrt", "tensorrt-rtx"]
    assert [item.value for item in sampler.shell_complete(context, "dpm")] == ["dpm-solver++"]


def test_export_takes_the_parameters_of_python():
    """What an option is called in Python is how its errors find it."""
    from l2c_export.compiler.artefact import compile

    taken = set(inspect.signature(compile).parameters) - {"report", "progress", "watch"}
    own = {"as_json", "verbose", "dry_run", "device", "calibrate"}
    assert taken == {param.name for param in export.params} - own
