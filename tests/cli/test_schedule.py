"""l2c schedule, and schedules of other tools in l2c-export."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
from desk import GOOD, invoke
from PIL import Image

from l2c_export.artefact import store
from l2c_export.schedules.schedule import Schedule

MODEL = "--model config.json"  # a DiT of 3 blocks
SMOOTH = {"attn": [1, 0, 1, 0], "mlp": [1, 1, 0, 0], "mlp-2": [1, 0, 0, 1]}
RUNS = ["012345", "13", "024", "5"]  # the sublayers of every call, read by hand


@pytest.fixture
def file(tmp_path, desk):
    """Writes a file, and gives its path."""

    def write(name, content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_schedule_of_another_tool_is_compiled(new, file):
    path = file("smooth.json", SMOOTH)
    done = invoke(f"export {GOOD} --schedule {path} --sampler ddim")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith(f"{path}: a schedule of SmoothCache, level sublayer, 4 steps\n")
    assert ["".join(map(str, call.computed)) for call in store.read(new).program().calls] == RUNS
    source = Schedule.read(new / "schedule.json").source
    assert (source.file, len(source.sha256)) == ("smooth.json", 64)


def test_a_router_of_harmonica_is_compiled(new, desk, tmp_path):
    pick = random.Random(0)
    rows = [[pick.uniform(-5, 5) for _ in range(6)] for _ in range(4)]
    torch.save({"routers": {f"{n}.prob": torch.tensor(row) for n, row in enumerate(rows)}, "args": None}, tmp_path / "h.pt")
    done = invoke(f"export {GOOD} --schedule {tmp_path}/h.pt --router-kind harmonica --threshold 0.5")
    assert done.exit_code == 0, done.stderr
    assert f"{tmp_path}/h.pt: a router of HarmoniCa, level sublayer, 4 steps; assumed: the sampler is ddim" in done.stderr
    want = [list(range(6)), *([j for j in range(6) if rows[3 - n][j] > 0] for n in (1, 2, 3))]
    assert [list(call.computed) for call in store.read(new).program().calls] == want


def test_two_schedules_of_other_tools_are_two_programs(new, file):
    a, b = file("a.json", SMOOTH), file("b.json", {"attn": [1, 0, 1]})
    done = invoke(f"export {GOOD} --schedule {a} --schedule {b} --sampler ddim")
    assert done.exit_code == 0, done.stderr
    assert list(store.read(new).programs) == ["4", "3"]


def test_the_level_of_a_mask_is_said(new, file):
    path = file("mask.json", [1, 0, 1])
    done = invoke(f"export {GOOD} --schedule {path}")
    assert done.stderr.startswith(f"{path}: a steps mask, level sublayer\n")
    assert [len(call.computed) for call in store.read(new).program().calls] == [6, 0, 6]


@pytest.mark.parametrize(("name", "content", "options", "says", "level"), [
    ("s.json", SMOOTH, "--sampler ddim", "a schedule of SmoothCache, level sublayer, 4 steps", None),
    ("l.txt", "[0, 1, 3,]", "--steps 5", r"a list of computed steps \(LeMiCa\), level stack, 5 steps", "stack"),
    ("b.json", {"2": [0, 3], "1": [0]}, "--steps 5 --budget 2", "a list .*, level stack, 5 steps", "stack"),
    ("m.json", {"mag_ratios": [1, 1.1, 1], "thresh": 0.2, "K": 2, "retention": 0.3}, "--steps 6",
     "MagCache's ratios, level stack, 6 steps; assumed: step 11 of 28 .* FLUX, .*; the sampler is ddim", "stack"),
    ("c.yaml", "cache_config: {steps_computation_mask: [1, 0, 1], Fn_compute_blocks: 1}", "",
     r"the options of cache-dit, level stack\[1:3\], 3 steps; assumed: steps_computation_policy is static", "stack[1:3]"),
    ("p.json", [[1.0], [-1.0, 2.0], [0.0, 0.0, 1.0]], "--steps 4 --full-calls full:0,1", "L2P, level output, 4", "output"),
    ("o.json", {"cache_interval": 2}, "--steps 12", "TaylorSeer Lite, level output, 12 steps; assumed: ", "output"),
    ("k.json", [1, 0, 1], "--level stack", "a steps mask, level stack, 3 steps", "stack"),
])  # fmt: skip
def test_every_form_is_converted(file, tmp_path, name, content, options, says, level):
    path, out = file(name, content), tmp_path / "out.json"
    done = invoke(f"schedule convert {path} --out {out} {MODEL} {options}")
    assert done.exit_code == 0, done.stderr
    assert re.search(f"^{re.escape(path)}: .*{says}", done.stderr)
    assert done.stderr.endswith(f"{out}: written\n")
    schedule = Schedule.read(out)
    assert schedule.values.levels == ((level,) if level else ())
    assert schedule.source.file == name
    again = invoke(f"schedule convert {out} --out {tmp_path}/again.json")
    assert again.exit_code == 0
    assert Schedule.read(tmp_path / "again.json") == schedule


def test_a_router_and_a_rule_are_converted_too(desk, tmp_path):
    for what, computed in (("router.pt", 32), ("every:3 --steps 7", 18)):
        assert invoke(f"schedule convert {what} {MODEL} --out {tmp_path}/s.json").exit_code == 0
        assert sum(len(call.computed) for call in Schedule.read(tmp_path / "s.json").calls) == computed


def test_a_family_stands_for_its_published_model(file, tmp_path):
    path = file("smooth.json", SMOOTH)
    done = invoke(f"schedule convert {path} --family dit --sampler ddim --out {tmp_path}/s.json --json")
    assert done.stderr.startswith("assumed: the model is DiT-XL/2\n")
    assert Schedule.read(tmp_path / "s.json").columns == 56
    assert json.loads(done.stdout)["schedule"]["steps"] == 4


def test_show_draws_and_prints_the_calls(file, tmp_path):
    path = file("smooth.json", SMOOTH)
    done = invoke(f"schedule show {path} {MODEL} --sampler ddim --plot {tmp_path}/s.png")
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r" *\d+ +\d", line)]
    assert [int(row[2]) for row in rows] == [len(run) for run in RUNS]
    assert done.stdout.endswith("12 of 24 sublayers computed\n")
    assert Image.open(tmp_path / "s.png").size > (100, 100)
    document = json.loads(invoke(f"schedule show {path} {MODEL} --sampler ddim --json").stdout)
    assert ["".join(map(str, call["computed"])) for call in document["calls"]] == RUNS


def test_diff_names_what_differs(file, tmp_path):
    a, b = file("smooth.json", SMOOTH), file("other.json", {**SMOOTH, "attn-1": [1, 1, 1, 0]})
    done = invoke(f"schedule diff {a} {b} {MODEL} --sampler ddim")
    assert " 1 666.0 2 3 1 blocks.1.attn: reuse / computed" in " ".join(done.stdout.split()), "however wide the terminal is"
    assert "2 of 24 values differ, in 2 calls" not in done.stdout
    document = json.loads(invoke(f"schedule diff {a} {b} {MODEL} --sampler ddim --json").stdout)
    assert document["calls"][0]["values"] == {"blocks.1.attn": ["reuse", "computed"]}
    same = invoke(f"schedule diff {a} {a} {MODEL} --sampler ddim")
    assert same.stdout.splitlines()[-1] == "0 of 24 values differ, in 0 calls"
    both = tmp_path / "both.svg"
    done = invoke(f"schedule diff {a} {b} {MODEL} --sampler ddim --out {both}")
    assert both.read_text().count("in sampling order") == 2


def test_a_level_is_told_from_its_sublayers(file):
    path, other = file("mask.json", [1, 0, 1]), file("full.json", [1, 1, 1])
    document = json.loads(invoke(f"schedule diff {path} {other} {MODEL} --level stack --json").stdout)
    (call,) = document["calls"]
    assert call["values"]["stack"] == ["reuse", "computed"]
    assert call["values"]["blocks.0.attn"] == ["jumped over", "computed"]


@pytest.mark.parametrize(("line", "code", "says"), [
    ("schedule show nowhere.json", 2, "nowhere.json: no such file: give a schedule or a router"),
    ("schedule show schedule.json --budget 3", 2, "--budget 3: schedule.json is no schedule of another tool: leave it out"),
    ("schedule show {smooth} --family dit --model config.json", 2, "--family dit: --model config.json says it: use one"),
    ("schedule show {smooth} --sampler ddim", 1, "does not say which model it is for: give --model"),
    ("schedule show {smooth} --model config.json", 2, "does not say its sampler: give --sampler"),
    ("schedule convert {smooth} --model config.json --sampler ddim --out no/s.json", 2, "no/s.json: there is no folder"),
    ("schedule diff schedule.json {smooth} --model config.json --sampler ddim", 1, "the schedules have 7 and 4 calls"),
    ("schedule diff schedule.json schedule.json --out x.bmp", 2, "--out x.bmp: use one of .png, .svg, .pdf"),
    ("export {good} --budget 3", 2, "--budget 3: router.pt is no schedule of another tool: leave it out"),
    ("export {good} --schedule {smooth} --sampler DDIMScheduler --steps 5", 1, "of 4 steps, but --steps 5: use no --steps"),
    ("export {good} --schedule {smooth} --threshold 0.5", 2, "--threshold 0.5: a schedule of SmoothCache does not ask for it"),
    ("export {good} --schedule {both}", 1, "both.json: it may be a list of computed steps (LeMiCa) and a steps mask"),
    ("export {good} --schedule {mean}", 1, "mean.json: MeanCache corrects what it reuses (edge_source)"),
    ("export {good} --router-kind magic", 2, "--router-kind magic: use one of l2c, harmonica"),
    ("export {good} --schedule {smooth} --router-kind harmonica", 2, "--router-kind harmonica: "),
])  # fmt: skip
def test_wrong_input_is_one_line(file, line, code, says):
    paths = {"smooth": file("smooth.json", SMOOTH), "both": file("both.json", [0, 1]), "good": GOOD,
             "mean": file("mean.json", {"edge_source": ["chain"]})}  # fmt: skip
    done = invoke(line.format(**paths))
    assert done.exit_code == code
    assert says in done.stderr
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: ")
    assert all("a schedule of SmoothCache, level sublayer" in text for text in before), "what was read before it"
    assert done.stdout == ""
