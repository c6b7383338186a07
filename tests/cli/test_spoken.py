"""Errors of Python in the words of the command line."""

from __future__ import annotations

import pytest

from l2c_export.cli import main
from l2c_export.cli.compile import export
from l2c_export.cli.spoken import options_of, spoken


@pytest.fixture
def options():
    group = main.l2c.make_context("l2c", ["run"])
    return options_of(main.l2c.commands["run"].make_context("run", [], parent=group, resilient_parsing=True))


@pytest.mark.parametrize(("message", "said"), [
    ("threads=0: must be at least 1", "--threads 0: must be at least 1"),
    ("out='x.jpg': use a .npy", "--out x.jpg: use a .npy"),
    ("--plot='a b.png': cannot be written", "--plot a b.png: cannot be written"),
    (r"out='it\'s.png': cannot be written", "--out it's.png: cannot be written"),
    ("schedule='' is empty", "--schedule '' is empty"),
    ("compile it with with_vae=True", "compile it with --with-vae"),
    ("cache=False needs steps", "--no-cache needs steps"),
    ("guidance_scale=nan: must be finite", "--guidance-scale nan: must be finite"),
    ('output_type="latent": no option has that name', 'output_type="latent": no option has that name'),
    ("beta_end = 3 and a.threads=4", "beta_end = 3 and a.threads=4"),
])  # fmt: skip
def test_parameters_become_options(options, message, said):
    assert spoken(message, options) == said


def test_a_command_alone_knows_its_own():
    options = options_of(export.make_context("l2c-export", [], resilient_parsing=True))
    assert spoken("batch=0: must be at least 1", options) == "--batch 0: must be at least 1"
