"""What the options of l2c-export do, and those of l2c link."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from desk import GOOD, invoke

from l2c_export.artefact import store
from l2c_export.ir.inputs import guided


@pytest.mark.parametrize(("options", "says"), [
    ("--no-hoist", lambda m: m.passes == ("fold",) and m.program().prologue is None),
    ("--no-fold", lambda m: m.passes == ("hoist",)),
    ("--no-cache", lambda m: not any(call.reused for call in m.program().calls)),
    ("--threshold 0", lambda m: not any(call.reused for call in m.program().calls)),
    ("--threshold 1", lambda m: [len(call.computed) for call in m.program().calls] == [6, 6, 0, 6, 0, 6, 0]),
    ("--link static", lambda m: m.link == "static"),
    ("--batch 5", lambda m: m.batch == 5),
    ("--guidance all", lambda m: m.guidance.channels(4) == [1, 1, 1, 1]),
    ("--guidance first3", lambda m: m.guidance.channels(4) == [1, 1, 1, 0] and m.guidance.scale == 4),
    ("--guidance none", lambda m: m.guidance.channels(4) == [0, 0, 0, 0] and m.guidance.scale == 1),
    ("--backend onnxruntime", lambda m: m.backend == "onnxruntime"),
    ("--max-graphs 2", lambda m: len({call.graph for call in m.program().calls}) <= 2),
    ("--schedule mask:1,0,1", lambda m: [len(c.computed) for c in m.program().calls] == [6, 0, 6]),
    ("--schedule every:3 --steps 5", lambda m: [len(c.computed) for c in m.program().calls] == [6, 0, 0, 6, 0]),
    ("--schedule full:0,2 --steps 4 --sampler DPMSolverMultistepScheduler",
     lambda m: m.program().sampler == "DPMSolverMultistepScheduler" and len(m.program().calls) == 4),
    ("--schedule schedule.json", lambda m: m.program().steps == 7),
    ("--steps 7 --sampler ddim", lambda m: m.program().steps == 7 and m.program().sampler == "ddim"),
    ("--weights weights.pt", lambda m: m.denoiser.weights.source == "weights.pt" and m.denoiser.weights.random is None),
    ("--weights random", lambda m: m.denoiser.weights.random == 0),
    ("--weights random:9", lambda m: m.denoiser.weights.random == 9),
])  # fmt: skip
def test_an_option_reaches_the_artefact(new, options, says):
    done = invoke(f"export {GOOD} {options}")
    assert done.exit_code == 0, done.stderr
    assert says(store.read(new))


def test_what_caches_nothing_needs_no_schedule(desk):
    done = invoke("export --model config.json --weights random --no-cache --steps 3 --out new")
    assert done.exit_code == 0, done.stderr
    assert all(len(call.computed) == 6 for call in store.read(Path("new")).program().calls)


def test_the_price_of_fewer_graphs_is_said(new):
    done = invoke(f"export {GOOD} --max-graphs 2")
    assert re.search(r"^--max-graphs 2: \d+\.\d\d% more computation", done.stderr, re.MULTILINE)


def test_a_model_without_a_null_class_is_not_guided(new):
    line = "export --schedule every:2 --steps 2 --model no-null.json --out new"
    assert invoke(line).exit_code == 0
    assert store.read(new).guidance.mode == "none"
    assert not guided(store.read(new).inputs)


def test_dump_writes_every_stage(new, tmp_path):
    assert invoke(f"export {GOOD} --dump {tmp_path / 'stages'}").exit_code == 0
    written = {p.name for p in (tmp_path / "stages").iterdir()}
    assert written >= {"schedule.json", "1-recorded.txt", "2-constants.txt", "2-prologue.txt", "2-call.txt",
                       "3-step-000.txt", "4-step-000.txt", "4-prologue.txt"}  # fmt: skip
    segments = {f"5-segment-{name}.txt" for name in store.read(new).denoiser.segments}
    assert segments <= written
    assert "blocks.0.attn" in (tmp_path / "stages/1-recorded.txt").read_text()
    assert len((tmp_path / "stages/2-call.txt").read_text()) < len((tmp_path / "stages/1-recorded.txt").read_text())


def test_an_artefact_without_weights_says_so_until_it_has_some(desk, new):
    without = GOOD.replace("--weights model.safetensors", "")
    assert "no weights yet: bind them with l2c link ENGINES --weights PATH" in invoke(f"export {without}").stderr
    assert store.read(new).denoiser.weights is None
    assert "unlinked" in invoke("inspect new").stdout
    refused = invoke("run new --class-label 3 --out new/x.npy")
    assert refused.exit_code == 1
    command = re.fullmatch(r"error: new has no weights yet: bind them with l2c (.*)\n", refused.stderr).group(1)
    linked = invoke(command.replace("PATH", "model.safetensors"))
    assert linked.stderr == "new: linked with model.safetensors\n"
    assert "weights model.safetensors" in invoke("inspect new").stdout
    assert invoke("run new --class-label 3 --out new/x.npy").exit_code == 0


def test_random_weights_are_said_everywhere(new):
    for source, seed in (("random", 0), ("random:5", 5)):
        exported = invoke(f"export {GOOD} --weights {source} --json")
        assert f"RANDOM weights, seed {seed}: good for latency, the images mean nothing" in exported.stderr
        assert json.loads(exported.stdout)["random_weights"] is True
    assert store.read(new).denoiser.weights.random == 5
    assert "RANDOM weights" in invoke("inspect new").stdout
    assert json.loads(invoke("inspect new --json").stdout)["artefact"]["random_weights"] is True
    assert "the weights are RANDOM" in invoke("run new --class-label 1 --out new/x.npy").stderr
    assert "RANDOM" not in invoke("link new --weights model.safetensors").stderr
    assert "RANDOM" not in invoke("run new --class-label 1 --out new/x.npy").stderr
    assert "RANDOM weights, seed 6" in invoke("link new --weights random:6").stderr


def test_readme_and_gitignore_may_lie_in_the_output_folder(new):
    new.mkdir()
    for name in ("README.md", ".gitignore"):
        (new / name).write_text("mine")
    assert invoke(f"export {GOOD}").exit_code == 0
    assert [(new / n).read_text() for n in ("README.md", ".gitignore")] == ["mine", "mine"]
    assert store.read(new)


@pytest.mark.parametrize(("threshold", "warns"), [("0", True), ("0.1", False), ("1", False)])
def test_a_threshold_that_removes_next_to_nothing_is_said(desk, threshold, warns):
    done = invoke(f"export {GOOD} --threshold {threshold} --dry-run")
    line = f"threshold {threshold} removes only 0.0% of the cached calls' sublayers: use a higher one"
    assert (line in done.stderr.splitlines()) == warns
