"""One document on stdout with --json, and words on stderr."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click
import pytest
import torch
from desk import GOOD, invoke, ran, tree

from l2c_export.artefact import store
from l2c_export.backends.descriptors import sites
from l2c_export.cli import compile, main
from l2c_export.support import machine

LOG = r"dit, 6 sublayers, ddim with 7 steps: 32 of 42 sublayers computed at threshold 0\.1, model\.safetensors\n"
LOG += r"dit, 3 x 32, 2 heads, 10 classes \+ null, pictures of 64 x 64, latents 4 x 8 x 8\n"


WHERE = r"(?:other programs .*\n)?backend: \w+ \(.*\n"


@pytest.mark.parametrize(("line", "keys", "log"), [
    (f"export {GOOD} --json", {"out", "bytes", "seconds", "calls", "graphs", "segments", "random_weights"},
     LOG + r"7 calls: .*\nweights from model\.safetensors\nnew: 0\.\d MB in \d+\.\d s\n"),
    ("run engines --class-label 3 --class-label 4 --out new.npy --json", {"out", "images", "load_seconds", "run_seconds"},
     WHERE + r"new\.npy: 2 images in \d+\.\d\d s\n"),
    ("inspect engines --json", {"title", "sublayers", "calls", "artefact", "timing", "levels"}, ""),
], ids=["export", "run", "inspect"])  # fmt: skip
def test_json_is_all_that_is_on_stdout(new, line, keys, log):
    code, out, err = ran(line)
    assert code == 0, err
    assert json.loads(out).keys() == keys
    assert re.fullmatch(log, err), err
    Path("new.npy").unlink(missing_ok=True)


def test_the_graphs_of_a_summary_are_those_of_the_calls(new):
    document = json.loads(invoke(f"export {GOOD} --json").stdout)
    assert document["graphs"] == len({call.graph for call in store.read(Path("new")).program().calls}) < document["calls"] + 1


def test_doctor_has_a_line_for_every_backend(desk):
    code, out, err = ran("doctor --json")
    assert (code, err) == (0, "")
    assert {finding["name"]: finding["works"] for finding in json.loads(out)}["onnxruntime"] is True
    places = sites()
    for finding, (backend, _) in zip(json.loads(out), places, strict=False):
        assert finding["name"].partition(" ")[0] == backend.name
        installed = {machine.version(site.package) for site in backend.sites} - {None}
        assert finding["version"] in (installed or {None})
    around = {finding["name"]: finding for finding in json.loads(out)[len(places) :]}
    assert list(around) == ["Python", "torch", "onnx", "Pillow", "cache"]
    assert all(finding["works"] for finding in around.values())
    assert around["torch"]["version"] == torch.__version__
    assert re.fullmatch(r".*: [\d.,]+ MB of at most 10,240 MB, [\d.,]+ GB free on the disk", around["cache"]["note"])
    assert os.environ["L2C_CACHE"] in around["cache"]["note"]
    table = invoke("doctor")
    assert table.exit_code == 0
    assert all(re.search(rf"^ *{finding['name']} ", table.stdout, re.MULTILINE) for finding in json.loads(out))


def test_a_dry_run_writes_nothing(desk):
    before = tree()
    done = invoke(f"export {GOOD} --dry-run --device h100 --json")
    document = json.loads(done.stdout)
    assert (done.exit_code, tree()) == (0, before)
    assert not Path("new").exists()
    assert document["schedule"]["device"] == "h100"
    assert document["schedule"]["total"]["flops"] < document["uncached"]["total"]["flops"]


@pytest.mark.parametrize(("line", "code", "kind", "message"), [
    ("run nowhere --class-label 1", 1, "ArtefactError", "nowhere holds no complete artefact"),
    ("run engines --class-label 99", 2, "UsageError", "class label"),
    ("run engines", 2, "UsageError", "Missing option"),
    ("run engines --class-label 1 --link dynamic", 2, "UsageError", "--link dynamic: use one of shared, static"),
    ("bench engines --save nowhere/x.json", 2, "UsageError", "--save nowhere/x.json: there is no folder"),
    ("cache --nonsense", 2, "UsageError", "No such option"),
    ("frobnicate", 2, "UsageError", "No such command"),
])  # fmt: skip
def test_an_error_is_one_document_too(desk, line, code, kind, message):
    done = invoke(f"{line} --json")
    error = json.loads(done.stdout)["error"]
    assert (done.exit_code, error["type"]) == (code, kind)
    assert message in error["message"]
    assert done.stderr.splitlines()[-1] == f"error: {error['message']}"


def test_an_interrupt_is_one_document_too(new, monkeypatch):
    def interrupt(line):
        raise KeyboardInterrupt

    monkeypatch.setattr(compile, "say", interrupt)
    done = invoke(f"export {GOOD} --json")
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")
    assert json.loads(done.stdout) == {"error": {"type": "Interrupted", "message": "interrupted"}}


def test_link_and_remove_sum_up(copy):
    document = json.loads(invoke("link copy --weights random:3 --json").stdout)
    assert document == {"out": "copy", "weights": "random:3", "lora": [], "bytes": document["bytes"], "random_weights": True}
    assert document["bytes"] == sum(f.bytes for f in store.read(Path("copy")).files.values())
    pytest.importorskip("tensorrt_rtx")
    built = json.loads(invoke("build copy --backend tensorrt-rtx --target sm86 --json").stdout)
    (name,) = built["builds"]
    assert built["builds"][name]["engines"] == 13
    assert json.loads(invoke(f"remove copy {name} --json").stdout) == {"out": "copy", "removed": [name], "builds": {}}


def test_json_is_a_flag_of_every_command():
    groups = [command for command in main.l2c.commands.values() if isinstance(command, click.Group)]
    inside = [command for group in groups for command in group.commands.values()]
    for command in {*main.l2c.commands.values(), *inside} - {*groups}:
        (option,) = (param for param in command.params if param.name == "as_json")
        assert option.is_flag
        assert option.opts == ["--json"]
