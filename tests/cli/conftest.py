"""The desk: everything that the commands are given, good and bad."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import pytest
from desk import fill_desk, invoke, tree


@pytest.fixture(scope="session")
def filled(tiny, tmp_path_factory):
    """The folder in which the commands run."""
    here, before = tmp_path_factory.mktemp("desk"), Path.cwd()
    os.chdir(here)
    fill_desk(tiny)
    os.chdir(before)
    return here


@pytest.fixture(scope="module")
def desk(filled):
    """That folder as the current one."""
    before = Path.cwd()
    os.chdir(filled)
    yield filled
    os.chdir(before)


@pytest.fixture
def copy(desk):
    """An artefact of one's own, which is gone after the test."""
    yield shutil.copytree("engines", "copy")
    shutil.rmtree("copy")


@pytest.fixture
def new(desk):
    """Where an export writes by default; gone after the test."""
    yield Path("new")
    shutil.rmtree("new", ignore_errors=True)


@pytest.fixture(scope="module")
def refusal(desk):
    """Run a command once: its exit code and its stderr, after looking that it left everything as it was."""

    @functools.cache
    def run(line):
        before = tree()
        done = invoke(line)
        assert done.stdout == ""
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        assert tree() == before
        assert not Path("new").exists()
        return done.exit_code, done.stderr.splitlines()

    return run
