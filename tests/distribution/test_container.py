"""The image of the runtime: what its Dockerfile installs and copies is there, and it gives no rights away.

Building it takes a daemon, and a base image from a registry.
"""

from __future__ import annotations

import fnmatch
import re

import pytest
from recorded import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
STEPS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
PROJECT = (ROOT / "pyproject.toml").read_text()


def of(kind):
    return [words for step, words in STEPS if step == kind]


def extras():
    (default,) = (words.partition("=")[2] for words in of("ARG") if words.startswith("EXTRAS="))
    return default.split(",")


@pytest.mark.parametrize("extra", extras())
def test_what_it_installs_is_no_compiler(extra):
    match = re.search(rf"^{extra} = \[(.*)\]$", PROJECT, re.MULTILINE)
    assert match or extra == "serve", extra
    assert not match or not re.search(r"torch|onnx>|accelerate", match[1])


def test_what_it_copies_is_there_and_reaches_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    names = [name for words in of("COPY") if not words.startswith("--from") for name in words.split()[:-1]]
    assert {"pyproject.toml", "README.md", "LICENSE", "l2c_export"} == set(names)
    for name in names:
        assert (ROOT / name).exists()
        assert any(fnmatch.fnmatch(name, line[1:]) for line in ignored if line.startswith("!"))


def test_it_runs_without_rights_and_writes_to_tmp_alone():
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert "RUN" not in last, "nothing is made as root in what is shipped"
    assert re.search(r"PYTHONDONTWRITEBYTECODE=1 .*L2C_CACHE=/tmp/", last)
    assert 'ENTRYPOINT ["l2c"]' in last
