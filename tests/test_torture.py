"""A small, seeded portion of scripts/torture.py, so that what the README says of it cannot rot."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """The counts of a run, by section; it ends with 0."""
    kept = tmp_path_factory.mktemp("torture") / "counts.json"
    command = [
        sys.executable,
        "scripts/torture.py",
        "--only",
        "mutations",
        "--trials",
        "100",
        "--seed",
        "5",
        "--json",
        str(kept),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return json.loads(kept.read_text())["mutations"]["counts"]


def test_every_mutation_is_refused_or_harmless_or_read_as_what_it_says(counts):
    assert counts["mutations"] > 50  # as many as a busy machine has time for
    assert counts["refused"] + counts.get("harmless", 0) + counts.get("other", 0) == counts["mutations"]


def test_every_kind_of_file_was_tried(counts):
    """By the names that the script gives them: a reader that takes nothing would be noticed as one that refuses all."""
    tree = ast.parse((ROOT / "scripts" / "torture.py").read_text())
    kinds = {
        key.value for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "kinds"
        for key in node.value.keys
    }  # fmt: skip
    assert {name.partition(":")[0] for name in counts if ": " in name} == kinds


@pytest.mark.parametrize(("section", "begins"), [
    ("mutations", "| changes to manifests"), ("manifests", "| whole manifests"), ("texts", "| files of text encoders"),
])  # fmt: skip
def test_the_page_of_artefacts_has_the_counts_of_the_recorded_run(section, begins):
    recorded = json.loads((ROOT / "scripts" / "results" / "torture.json").read_text())[section]["counts"]
    lines = (ROOT / "engines" / "README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(begins)).replace("format 2", "")
    numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", row)][:4]
    assert numbers == [recorded[name] for name in (section, "refused", "harmless", "other")]
