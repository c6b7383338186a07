"""`l2c check`: one line, and exit codes 0, 1 and 2; where there is no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from desk import ROOT, invoke, tree

from l2c_export.artefact import integrity, store
from l2c_export.artefact.records import FILE
from l2c_export.weights.layout import WEIGHTS

RIGHT = (
    r"right: worst relative error \d\.\de-\d\d \(.*\), within atol 3e-05 \+ rtol 3e-05; recorded by PyTorch 2\S* in float32\n"
)
RUN = "--backend onnxruntime"  # with the threads that this process has had from its first session on


def said(done) -> str:
    """What is on stderr, but for what depends on the neighbours."""
    return re.sub(r"other programs .*\n", "", done.stderr)


def damage(folder: Path) -> None:
    """Other weights, of which the manifest says that they are the right ones."""
    manifest, data = store.read(folder), bytearray((folder / WEIGHTS).read_bytes())
    half = len(data) // 2
    data[half : half + 400] = bytes(400)
    (folder / WEIGHTS).write_bytes(data)
    files = {**manifest.files, WEIGHTS: integrity.info(folder / WEIGHTS)}
    record = msgspec.structs.replace(manifest.fingerprint, weights=files[WEIGHTS].sha256)
    store.write_json(folder / FILE, msgspec.structs.replace(manifest, files=files, fingerprint=record))


def test_right_is_one_line_and_changes_nothing(desk):
    before = tree()
    done = invoke(f"check engines {RUN}")
    assert (done.exit_code, said(done), tree()) == (0, "", before)
    assert re.fullmatch(RIGHT, done.stdout), done.stdout


def test_wrong_is_one_line_and_exit_code_1(copy):
    damage(Path(copy))
    for words in (RUN, f"{RUN} --trust"):
        done = invoke(f"check copy {words}")
        assert (done.exit_code, said(done)) == (1, "")
        assert re.fullmatch(r"wrong: call 0 \(.*\) is off by \d.*, not within .*; recorded by PyTorch .*\n", done.stdout)


def test_the_tolerance_can_be_another(desk):
    done = invoke(f"check engines {RUN} --atol 0 --rtol 1e-9")
    assert done.exit_code == 1
    assert "not within atol 0 + rtol 1e-09" in done.stdout


def test_other_weights_need_a_new_one(copy):
    linked = invoke("link copy --weights random:3")
    assert "its fingerprint was that of the old weights: run l2c check copy --record for a new one" in linked.stderr
    refused = invoke(f"check copy {RUN}")
    assert (refused.exit_code, refused.stdout) == (2, "")
    says = r"error: \S*copy: it has no fingerprint: compile it again, or record what this machine computes with "
    assert re.fullmatch(rf"{says}l2c check \S*copy --record\n", said(refused))
    renewed = invoke(f"check copy --record {RUN}")
    assert renewed.exit_code == 0
    assert re.fullmatch(r"recorded by onnxruntime 1\S*: what changes from now on shows, not whether it is right now\n",
                        said(renewed))  # fmt: skip
    again = invoke(f"check copy {RUN}")
    assert again.exit_code == 0
    assert "recorded by onnxruntime 1." in again.stdout


def test_json_is_the_whole_result(copy):
    done = invoke(f"check copy {RUN} --json")
    verdict = json.loads(done.stdout)
    assert re.fullmatch(RIGHT, said(done))
    assert (done.exit_code, verdict["passed"]) == (0, True)
    assert verdict["recorded_by"].startswith("PyTorch 2")
    assert verdict["backend"].startswith("onnxruntime (CPU, ")
    assert len(verdict["values"]) > 2
    assert all(0 <= value["share"] <= 1 and value["what"] for value in verdict["values"])
    damage(Path(copy))
    done = invoke(f"check copy {RUN} --json")
    assert (done.exit_code, json.loads(done.stdout)["passed"]) == (1, False)


@pytest.mark.parametrize(("line", "code", "says"), [
    ("check nowhere", 1, "nowhere holds no complete artefact"),
    ("check unlinked", 1, "has no weights yet"),
    ("check engines --rtol -1", 2, "--rtol"),
    ("check engines --threads 0", 2, "--threads 0: must be at least 1"),
    ("check damaged", 1, "step-000.onnx does not match its hash"),
])  # fmt: skip
def test_what_cannot_be_checked_is_refused_in_one_line(refusal, line, code, says):
    exit_code, lines = refusal(line)
    assert (exit_code, len(lines)) == (code, 1)
    assert says in lines[0]


def test_it_needs_no_torch(copy):
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'diffusers', 'transformers', 'matplotlib', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from l2c_export.cli.main import l2c\n"
        "l2c(sys.argv[1:], standalone_mode=False)\n"
    )
    for words in (["check", "copy"], ["check", "copy", "--record"]):
        command = [sys.executable, "-c", code, *words, "--backend", "onnxruntime"]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("right: ")
