"""The commands: data on stdout, everything else on stderr, one line per error, and nothing left behind."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file, save_file

import l2c_export
from l2c_export.artefact import store
from l2c_export.cli import compile, main
from l2c_export.schedules.schedule import Schedule
from l2c_export.support import machine

ROOT = Path(__file__).parents[2]
# what a good export is given; what a test says comes last and wins
GOOD = "--schedule router.pt --model config.json --weights model.safetensors --out new"


class Payload:
    """A pickle that runs a program when it is read carelessly."""

    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def spoilt(tensors, name, change):
    values = {k: v.copy() for k, v in tensors.items()}
    change(values)
    save_file(values, name)


def fill_desk(tiny):
    """Everything that the commands below are given, good and bad, in the current folder."""
    folder, chosen = tiny
    for name in ("router.pt", "config.json", "model.safetensors", "golden.npz"):
        shutil.copy(chosen.path / name, name)
    Path("case").symlink_to(chosen.path)
    Path("text.pt").write_text("a letter to my mother")
    Path("text.json").write_text('{"format": "letter"}')
    Path("text.safetensors").write_text("a letter to my mother")
    Path("empty.pt").write_bytes(b"")
    Path("truncated.pt").write_bytes(Path("router.pt").read_bytes()[:3000])
    Path("folder.pt").mkdir()
    torch.save({"routers": {"0.prob": torch.zeros(2)}, "args": Payload()}, "hostile.pt")
    Path("hostile-4.pt").write_bytes(pickle.dumps(Payload(), protocol=4))
    torch.save({"routers": {f"{i}.prob": torch.zeros(56) for i in range(20)}}, "wide.pt")
    torch.save({f"{i}.prob": torch.full((2,), torch.nan) for i in range(4)}, "nan-router.pt")
    Path("schedule.json").write_bytes((folder / "schedule.json").read_bytes())
    Path("odd.json").write_text('{"family": "dit", "arch": {"hidden_size": 30, "num_heads": 4}}')
    Path("unheard.json").write_text('{"family": "mlp-mixer", "arch": {}}')
    tensors = load_file("model.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, "weights.pt")
    spoilt(tensors, "missing.safetensors", lambda t: [t.pop(n) for n in list(t) if n.startswith("blocks.2.attn")])
    spoilt(tensors, "extra.safetensors", lambda t: t.update({"lora.up": np.zeros(3, np.float32)}))
    spoilt(tensors, "shaped.safetensors", lambda t: t.update({"blocks.0.mlp.fc1.bias": np.zeros(7, np.float32)}))
    spoilt(tensors, "nan.safetensors", lambda t: t["pos_embed"].__setitem__((0, 0, 0), np.nan))
    spoilt(tensors, "huge.safetensors", lambda t: t["final_layer.linear.bias"].fill(3e38))
    arch = {**json.loads(Path("config.json").read_text())["arch"], "class_dropout_prob": 0}
    Path("no-null.json").write_text(json.dumps({"family": "dit", "arch": arch}))
    for name in ("engines", "incomplete", "newer", "damaged", "foreign"):
        shutil.copytree(folder, name)
    Path("incomplete/manifest.json").unlink()
    newer = json.loads(Path("newer/manifest.json").read_text())
    Path("newer/manifest.json").write_text(json.dumps({**newer, "version": 2}))
    graph = bytearray(Path("damaged/step-000.onnx").read_bytes())
    graph[100] ^= 1
    Path("damaged/step-000.onnx").write_bytes(graph)
    Path("foreign/thesis.tex").write_text("my only copy")
    assert invoke(f"export {GOOD} --out unlinked").exit_code == 0  # replaced below, after the bodies are exported
    unlinked = f"export {GOOD.replace('--weights model.safetensors', '')} --out unlinked"
    assert invoke(unlinked).exit_code == 0


@pytest.fixture(scope="module")
def desk(tiny, tmp_path_factory):
    """The folder in which the commands run."""
    here, before = tmp_path_factory.mktemp("desk"), Path.cwd()
    os.chdir(here)
    fill_desk(tiny)
    yield here
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


def invoke(line: str, **given):
    """A command in this process."""
    return CliRunner().invoke(main.l2c, shlex.split(line), **given)


def started(line: str, cache: str = "", **given) -> subprocess.Popen:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "l2c_export", *shlex.split(line)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "L2C_CACHE": cache or os.environ["L2C_CACHE"]}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given)


def ran(line: str, **given) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in a process of its own."""
    process = started(line, **given)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def tree() -> dict[str, tuple[int, int]]:
    """Everything in the current folder: size and time of change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(Path.cwd().rglob("*")) if p.is_file()}


# data on stdout, all else on stderr

LOG = r"dit, 6 sublayers, ddim with 7 steps: 32 of 42 sublayers computed at threshold 0\.1, model\.safetensors\n"
LOG += r"dit, 3 x 32, 2 heads, 10 classes \+ null, pictures of 64 x 64, latents 4 x 8 x 8\n"
WHERE = r"(?:other programs .*\n)?backend: \w+ \(.*\n"


@pytest.mark.parametrize(("line", "keys", "log"), [
    (f"export {GOOD} --json", {"out", "bytes", "seconds", "calls", "graphs", "segments", "random_weights"},
     LOG + r"7 calls: .*\nweights from model\.safetensors\nnew: 0\.\d MB in \d+\.\d s\n"),
    ("run engines --class-label 3 --class-label 4 --out new.npy --json", {"out", "images", "load_seconds", "run_seconds"},
     WHERE + r"new\.npy: 2 images in \d+\.\d\d s\n"),
    ("inspect engines --json", {"title", "sublayers", "calls", "artefact", "timing"}, ""),
], ids=["export", "run", "inspect"])  # fmt: skip
def test_json_is_all_that_is_on_stdout(new, line, keys, log):
    code, out, err = ran(line)
    assert code == 0, err
    assert json.loads(out).keys() == keys
    assert re.fullmatch(log, err), err
    Path("new.npy").unlink(missing_ok=True)


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2>&1 | true"])
def test_words_that_nobody_can_read_stop_nothing(new, stderr):
    line = shlex.join([sys.executable, "-m", "l2c_export", "run", "engines", "--class-label", "3", "--out", "new.npy"])
    subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} {stderr}"], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert np.load("new.npy").shape[0] == 1
    Path("new.npy").unlink()


def test_the_graphs_of_a_summary_are_those_of_the_calls(new):
    made = json.loads(invoke(f"export {GOOD} --json").stdout)
    assert made["graphs"] == len({call.graph for call in store.read(Path("new")).calls}) < made["calls"] + 1


def test_verify_passes_what_equals_its_recording(desk):
    done = invoke("verify engines --golden case --backend onnxruntime --json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["passed"] is True
    assert re.fullmatch(r"right: worst relative error of a call \S+, within .*\n", done.stderr)


def test_verify_fails_what_does_not(copy):
    invoke("link copy --weights random:1")
    done = invoke("verify copy --golden case --backend onnxruntime --json --weights model.safetensors")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["passed"] is False
    assert "is the first that leaves" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_caches_nothing_needs_no_schedule(desk):
    done = invoke("export --model config.json --weights random --no-cache --steps 3 --out new")
    assert done.exit_code == 0, done.stderr
    assert all(len(call.computed) == 6 for call in store.read(Path("new")).calls)


def test_inspect_sums_up_and_names_the_engines(desk):
    pytest.importorskip("tensorrt_rtx")
    assert invoke("build engines --backend tensorrt-rtx --target sm86,sm120 --batch 1:1:2").exit_code == 0
    *_, sums, engines = invoke("inspect engines --device h100").stdout.splitlines()
    assert re.fullmatch(r"32 of 42 sublayers computed, [\d.]+ ms in all", sums)
    assert re.fullmatch(r"tensorrt-rtx-.*-sm86-sm120: 13 engines, [\d.]+ MB, for 1 to 2 images, fastest at 1", engines)
    (build,) = json.loads(invoke("inspect engines --json").stdout)["artefact"]["builds"].values()
    assert build["targets"] == ["sm86", "sm120"]


def test_a_result_is_refused_before_the_work_where_it_cannot_be_written(desk, monkeypatch):
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    for line in ("bench engines --json closed/x", "bench engines --plot closed/x.png", "profile engines --trace closed/x"):
        done = invoke(line)
        assert (done.exit_code, done.stdout) == (2, "")
        assert re.fullmatch(r"error: --\w+ closed/x\S*: cannot be written: choose another file\n", done.stderr)
    done = invoke(f"export {GOOD.replace('--out new', '--out closed/new')}")
    assert re.fullmatch(r"error: --out closed/new: /.*/closed cannot be written to: choose another folder\n", done.stderr)


def test_doctor_has_a_line_for_every_backend(desk):
    code, out, err = ran("doctor --json")
    assert (code, err) == (0, "")
    assert {finding["name"]: finding["works"] for finding in json.loads(out)}["onnxruntime"] is True
    for finding in json.loads(out):
        installed = {machine.version(finding["name"].partition(" ")[0] + which) for which in ("", "-gpu")} - {None}
        assert finding["version"] in (installed or {None})
    table = invoke("doctor")
    assert table.exit_code == 0
    assert all(re.search(rf"^ *{finding['name']} ", table.stdout, re.MULTILINE) for finding in json.loads(out))


@pytest.mark.parametrize("line", [f"export {GOOD}", "link copy --weights model.safetensors",
                                  "run engines --class-label 3 --out copy/x.npy"])  # fmt: skip
def test_what_makes_no_data_says_nothing_on_stdout(copy, new, line):
    done = invoke(line)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "new" in done.stderr or "copy" in done.stderr


@pytest.mark.parametrize("line", ["inspect engines", "inspect router.pt", "inspect schedule.json", f"export {GOOD} --dry-run",
                                  "verify engines --golden case --backend onnxruntime"])  # fmt: skip
def test_a_table_is_data(desk, line):
    done = invoke(line)
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) > 8
    assert not re.search(r"^call ", done.stderr, re.MULTILINE)
    assert "\x1b" not in done.stdout + done.stderr, "no colours where nobody looks"


@pytest.mark.parametrize("line", ["--help", "--version", "export --help", "link --help", "run --help", "inspect --help",
                                  "verify --help", "doctor --help"])  # fmt: skip
def test_help_is_data(line):
    done = invoke(line)
    assert (done.exit_code, done.stderr) == (0, "")
    assert l2c_export.__version__ in done.stdout if line == "--version" else done.stdout.startswith("Usage: ")


def test_the_installed_scripts_are_these_commands(desk):
    scripts = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    found = dict(re.findall(r'(\S+) = "l2c_export\.cli:(\w+)"', scripts.group(1)))
    assert found.keys() == {"l2c", "l2c-export"}
    for name, function in found.items():
        code = f"from l2c_export.cli.main import {function}; {function}()"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code, "--help"], env=env, capture_output=True, text=True)
        assert done.stdout.startswith(f"Usage: {name} "), done.stderr
        assert ("--max-graphs" in done.stdout) == (name == "l2c-export")


# what the options do


@pytest.mark.parametrize(("options", "says"), [
    ("--no-hoist", lambda m: m.passes == ("fold",) and m.prologue is None),
    ("--no-fold", lambda m: m.passes == ("hoist",)),
    ("--no-cache", lambda m: not any(call.reused for call in m.calls)),
    ("--threshold 0", lambda m: not any(call.reused for call in m.calls)),
    ("--threshold 1", lambda m: [len(call.computed) for call in m.calls] == [6, 6, 0, 6, 0, 6, 0]),
    ("--link static", lambda m: m.link == "static"),
    ("--batch 5", lambda m: m.batch == 5),
    ("--guidance all", lambda m: m.guidance.channels(4) == [1, 1, 1, 1]),
    ("--guidance first3", lambda m: m.guidance.channels(4) == [1, 1, 1, 0] and m.guidance.scale == 4),
    ("--guidance none", lambda m: m.guidance.channels(4) == [0, 0, 0, 0] and m.guidance.scale == 1),
    ("--backend onnxruntime", lambda m: m.backend == "onnxruntime"),
    ("--max-graphs 2", lambda m: len({call.graph for call in m.calls}) <= 2),
    ("--schedule mask:1,0,1", lambda m: [len(c.computed) for c in m.calls] == [6, 0, 6]),
    ("--schedule every:3 --steps 5", lambda m: [len(c.computed) for c in m.calls] == [6, 0, 0, 6, 0]),
    ("--schedule full:0,2 --steps 4 --sampler dpm-solver++", lambda m: m.sampler == "dpm-solver++" and len(m.calls) == 4),
    ("--schedule schedule.json", lambda m: m.steps == 7),
    ("--steps 7 --sampler ddim", lambda m: m.steps == 7 and m.sampler == "ddim"),
    ("--weights weights.pt", lambda m: m.weights.source == "weights.pt" and m.weights.random is None),
    ("--weights random", lambda m: m.weights.random == 0),
    ("--weights random:9", lambda m: m.weights.random == 9),
])  # fmt: skip
def test_an_option_reaches_the_artefact(new, options, says):
    done = invoke(f"export {GOOD} {options}")
    assert done.exit_code == 0, done.stderr
    assert says(store.read(new))


def test_the_price_of_fewer_graphs_is_said(new):
    done = invoke(f"export {GOOD} --max-graphs 2")
    assert re.search(r"^--max-graphs 2: \d+\.\d\d% more computation", done.stderr, re.MULTILINE)


def test_the_options_of_run_are_those_of_the_pipeline(desk, tmp_path):
    out = tmp_path / "x.npy"
    line = f"run engines --class-label 3 --class-label 5 --seed 8 --guidance-scale 2 --backend onnxruntime --out {out}"
    assert invoke(f"{line} --check-finite").exit_code == 0
    pipe = l2c_export.load("engines", backend="onnxruntime")
    assert np.allclose(np.load(out), pipe([3, 5], guidance_scale=2, seed=8).latents, atol=1e-4)
    assert not np.allclose(np.load(out), pipe([3, 5], seed=8).latents, atol=1e-4)


def test_check_finite_stops_at_the_call(copy):
    assert invoke("link copy --weights huge.safetensors").exit_code == 0
    assert invoke("run copy --class-label 1 --out copy/x.npy").exit_code == 0
    Path("copy/x.npy").unlink()
    done = invoke("run copy --class-label 1 --out copy/x.npy --check-finite")
    assert done.exit_code == 1
    assert re.match(r"error: call \d \(timestep \d+\) made NaN or infinite latents", done.stderr.splitlines()[-1])
    assert not Path("copy/x.npy").exists()


def test_a_model_without_a_null_class_is_not_guided(new):
    line = "export --schedule every:2 --steps 2 --model no-null.json --out new"
    assert invoke(line).exit_code == 0
    assert store.read(new).guidance.mode == "none"
    assert store.read(new).model.null_label is None


def test_a_model_of_pixels_draws_a_picture(pixels, tmp_path):
    done = invoke(f"run {pixels} --class-label 0 --class-label 1 --out {tmp_path / 'x.png'}")
    assert done.exit_code == 0, done.stderr
    picture = np.array(Image.open(tmp_path / "x.png")) / 255
    assert picture.shape == (4, 8, 3), "the images side by side"
    images = l2c_export.load(pixels)([0, 1], output_type="np").images
    assert np.abs(picture[:, 4:] - images[1]).max() <= 0.5 / 255 + 1e-6


def test_a_dry_run_writes_nothing(desk):
    before = tree()
    done = invoke(f"export {GOOD} --dry-run --device h100 --json")
    found = json.loads(done.stdout)
    assert (done.exit_code, tree()) == (0, before)
    assert not Path("new").exists()
    assert found["schedule"]["device"] == "h100"
    assert found["schedule"]["total"]["flops"] < found["uncached"]["total"]["flops"]


def test_dump_writes_every_stage(new, tmp_path):
    assert invoke(f"export {GOOD} --dump {tmp_path / 'stages'}").exit_code == 0
    written = {p.name for p in (tmp_path / "stages").iterdir()}
    assert written >= {"schedule.json", "1-recorded.txt", "2-constants.txt", "2-prologue.txt", "2-call.txt",
                       "3-step-000.txt", "4-step-000.txt", "4-prologue.txt"}  # fmt: skip
    segments = {f"5-segment-{name}.txt" for name in store.read(new).segments}
    assert segments <= written
    assert "blocks.0.attn" in (tmp_path / "stages/1-recorded.txt").read_text()
    assert len((tmp_path / "stages/2-call.txt").read_text()) < len((tmp_path / "stages/1-recorded.txt").read_text())


def test_an_artefact_without_weights_says_so_until_it_has_some(desk, new):
    without = GOOD.replace("--weights model.safetensors", "")
    assert "no weights yet: bind them with l2c link ENGINES --weights PATH" in invoke(f"export {without}").stderr
    assert store.read(new).weights is None
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
    assert store.read(new).weights.random == 5
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


# inspect


@pytest.mark.parametrize("what", ["router.pt", "schedule.json", "engines"])
def test_inspect_shows_the_same_calls_of_router_schedule_and_artefact(desk, what):
    calls = Schedule.from_json(Path("schedule.json").read_bytes()).calls
    found = json.loads(invoke(f"inspect {what} --json").stdout)
    assert [(c["timestep"], c["computed"], c["reused"]) for c in found["calls"]] == [
        (c.timestep, list(c.computed), list(c.reused)) for c in calls
    ]
    rows = [line.split()[:4] for line in invoke(f"inspect {what}").stdout.splitlines() if re.match(r" *\d+ +\d", line)]
    assert rows == [[str(n), str(c.timestep), str(len(c.computed)), str(len(c.reused))] for n, c in enumerate(calls)]


def test_a_router_is_shown_at_any_threshold(desk):
    def computed(words):
        return sum(len(c["computed"]) for c in json.loads(invoke(f"inspect router.pt {words} --json").stdout)["calls"])

    assert computed("--threshold 0") == 42 > computed("--threshold 0.1") > computed("--threshold 1") == 24
    first = invoke("inspect router.pt").stdout.splitlines()[0]
    assert first == "router.pt: dit router, threshold 0.1 (if its model makes 512 px: --threshold 0.9)"
    assert invoke("inspect router.pt --threshold 0.1").stdout.splitlines()[0] == "router.pt: dit router, threshold 0.1"
    assert computed("") == computed("--threshold 0.1"), "the released one"


def test_inspect_says_what_an_artefact_moves(desk):
    found = json.loads(invoke("inspect engines --json").stdout)
    manifest = store.read(Path("engines"))
    assert found["artefact"]["batch"] == 2
    assert found["artefact"]["weights"] == "model.safetensors"
    assert found["artefact"]["bytes"] == sum(f.bytes for f in manifest.files.values())
    for shown, call in zip(found["calls"], manifest.calls, strict=True):
        assert shown["graph"] == call.graph
        assert (shown["cache_bytes_read"] > 0) == bool(call.reused)
        assert shown["milliseconds"] is None


@pytest.mark.parametrize(("words", "title"), [("--measure", "ms, measured"), ("--device h100", "ms, predicted for h100")])
def test_inspect_times_the_calls_and_draws_them(desk, tmp_path, words, title):
    done = invoke(f"inspect engines {words} --plot {tmp_path / 'x.png'}")
    assert done.exit_code == 0, done.stderr
    assert title.split()[1] in done.stdout
    assert Image.open(tmp_path / "x.png").size[0] > 100
    times = [c["milliseconds"] for c in json.loads(invoke(f"inspect engines {words} --json").stdout)["calls"]]
    assert len(times) == 7
    assert all(t > 0 for t in times)


# wrong input: (command, exit code, how the line names the wrong value, what it advises)
# None is any advice.

E, R = f"export {GOOD}", "run engines --class-label 1"
MISFIT, OF_THIS = r"does not fit the model: ", "give the weights of this model"
AGAIN = "run l2c-export"
BAD = [
    # the schedule
    (f"{E} --schedule nowhere.pt", 1, "--schedule nowhere.pt: no such file", "rules are every:K"),
    ("export --schedule '' --model config.json --out new", 2, "--schedule '' is empty", "give a router"),
    ("export --model config.json --steps 4 --out new", 2, "--schedule is missing", "give a router"),
    ("export --model config.json --no-cache --out new", 2, "--no-cache needs --steps", "needs --steps"),
    (f"{E} --dry-run --calibrate --device h100", 2, "--device h100: --calibrate is for this machine", "use one of the two"),
    ("train --steps 4 --data self", 2, "--weights is missing", "only --model demo brings its own"),
    (f"{E} --schedule folder.pt", 1, "--schedule folder.pt: no such file", "rules are every:K"),
    (f"{E} --schedule text.pt", 1, "text.pt is not a router", None),
    (f"{E} --schedule text.json", 1, "text.json is not a schedule", None),
    (f"{E} --schedule empty.pt", 1, "empty.pt is not a router", None),
    (f"{E} --schedule truncated.pt", 1, "truncated.pt is not a router, or is truncated", None),
    (f"{E} --schedule weights.pt", 1, "weights.pt is not a router: it holds 'blocks.0", None),
    (f"{E} --schedule model.safetensors", 1, "model.safetensors is not a router", None),
    (f"{E} --schedule hostile.pt", 1, "hostile.pt is not a router: it wants to import posix.system", None),
    (f"{E} --schedule hostile-4.pt", 1, "hostile-4.pt is not a router", None),
    (f"{E} --schedule nan-router.pt", 1, "nan-router.pt: the router holds NaN", None),
    (f"{E} --schedule wide.pt", 1, "wide.pt: the router is 56 wide, but the model has 6 sublayers", "with --model"),
    (f"{E} --weights random --model DiT-S/2", 1, "router.pt: the router is 6 wide, but the model has 24", "with --model"),
    (f"{E} --weights random --model U-ViT-S/2", 1, "router.pt is for a dit model, but the model is a uvit", "check --model"),
    (f"{E} --schedule schedule.json --model DiT-S/2 --weights random", 1, "schedule.json: 6 columns", "check --model"),
    (f"{E} --steps 8", 1, "the router has 7 rows, but --steps is 8", "must be equal"),
    (f"{E} --schedule schedule.json --steps 8", 1, "schedule.json: made for 7 steps, but --steps is 8", None),
    (f"{E} --schedule every:2", 2, "--schedule every:2", "needs --steps"),
    (f"{E} --schedule every:0 --steps 4", 2, "--schedule every:0", "use every:K with K >= 1"),
    (f"{E} --schedule full:1,2 --steps 4", 2, "--schedule full:1,2", "calls from 0 to 3, 0 first"),
    (f"{E} --schedule every:2 --steps 1", 2, "--steps 1", "2 to 1000 steps"),
    (f"{E} --threshold -0.1", 2, "--threshold -0.1", "must be between 0 and 1"),
    (f"{E} --threshold 1.5", 2, "--threshold 1.5", "must be between 0 and 1"),
    (f"{E} --threshold nan", 2, "--threshold nan", "must be between 0 and 1"),
    (f"{E} --schedule every:2 --steps 4 --threshold 0", 2, "--threshold 0", "only a router has scores"),
    # the model
    (f"{E} --model DiT-Q/2", 1, "unknown model 'DiT-Q/2'", "for example DiT-XL/2"),
    (f"{E} --model nowhere.json", 1, "--model nowhere.json: No such file", None),
    (f"{E} --model text.json", 1, "text.json: the key 'family' is missing", "needs family and arch"),
    (f"{E} --model unheard.json", 1, "unheard.json: unknown family 'mlp-mixer'", "known are dit, uvit"),
    (f"{E} --model odd.json --schedule every:2 --steps 2", 1, "hidden_size 30", "must be a multiple of num_heads 4"),
    # other options
    (f"{E} --sampler euler", 2, "--sampler euler", "use one of ddim, dpm-solver"),
    (f"{E} --sampler odd.json", 1, "odd.json: it is a description of a model", "give it with --model"),
    (f"{E} --schedule mask:1,0 --steps 3", 2, "--schedule mask:1,0", "a 0 or 1 for each of the 3 calls"),
    (f"{E} --with-vae", 2, "--with-vae: only a pipeline folder", "use --vae FOLDER"),
    (f"{E} --vae nowhere", 1, "nowhere/config.json: No such file", ""),
    (f"{E} --model /proc", 1, "/proc: no pipeline folder of diffusers", ""),
    (f"{E} --sampler dpm-solver++", 2, "--sampler dpm-solver++", "router.pt was made for ddim"),
    (f"{E} --backend tensorflow", 2, "--backend tensorflow", "use one of auto, "),
    (f"{E} --precision int8", 2, "--precision int8", "use one of fp32, bf16, fp16"),
    (f"{E} --precision bf16 --backend onnxruntime", 2, "--precision bf16", "use --backend "),
    (f"{E} --guidance both", 2, "--guidance both", "use one of first3, all, none"),
    ("export --schedule every:2 --steps 2 --model no-null.json --out new --guidance all", 2, "--guidance all: the model was "
     "trained without a null class", "use --guidance none"),
    (f"{E} --link dynamic", 2, "--link dynamic", "use one of shared, static"),
    (f"{E} --batch 0", 2, "--batch 0", "must be at least 1"),
    (f"{E} --batch -3", 2, "--batch -3", "must be at least 1"),
    (f"{E} --max-graphs 0", 2, "--max-graphs 0", "must be at least 1"),
    (f"{E} --dry-run --device gtx", 2, "--device gtx", "known are cpu, h100, rtx4090, orin"),
    # weights
    (f"{E} --weights nowhere.pt", 1, "--weights nowhere.pt: no such file", None),
    (f"{E} --weights folder.pt", 1, "folder.pt holds no weights", "must be there"),
    (f"{E} --weights text.pt", 1, "text.pt is not a checkpoint", None),
    (f"{E} --weights text.safetensors", 1, "text.safetensors is not a checkpoint: it is a text", None),
    (f"{E} --weights router.pt", 1, "router.pt is not a checkpoint", "expected named tensors"),
    (f"{E} --weights hostile.pt", 1, "hostile.pt is not a checkpoint: it wants to import posix.system", None),
    (f"{E} --weights random:x", 2, "--weights random:x", "use random or random:SEED"),
    (f"{E} --weights missing.safetensors", 1,
     f"missing.safetensors {MISFIT}blocks.2.attn.proj.bias is missing; blocks.2.attn.proj.weight is missing; "
     "blocks.2.attn.qkv.bias is missing and 1 more", OF_THIS),
    (f"{E} --weights extra.safetensors", 1, f"extra.safetensors {MISFIT}lora.up is not part of the model", OF_THIS),
    (f"{E} --weights shaped.safetensors", 1,
     f"shaped.safetensors {MISFIT}blocks.0.mlp.fc1.bias has shape [7], the model needs [128]", OF_THIS),
    (f"{E} --weights nan.safetensors", 1, "1 value of pos_embed is NaN or infinite", "export the checkpoint again"),
    ("link unlinked --weights missing.safetensors", 1, "blocks.2.attn.qkv.bias is missing and 1 more", OF_THIS),
    ("link unlinked --weights nan.safetensors", 1, "1 value of pos_embed is NaN", "export the checkpoint again"),
    ("link unlinked --weights random:-1", 2, "--weights random:-1", "use random or random:SEED"),
    ("link unlinked --weights hostile.pt", 1, "hostile.pt is not a checkpoint", None),
    # the output
    (f"{E} --out foreign", 1, "--out foreign: holds thesis.tex, which is not ours", "choose an empty folder"),
    (f"{E} --out incomplete", 1, "--out incomplete: holds constants.onnx, which is not ours", "choose an empty folder"),
    (f"{E} --out text.pt/new", 1, "--out text.pt/new: cannot be written: Not a directory", None),
    (f"{E} --out /proc/new", 1, "--out /proc/new: cannot be written", None),
    ("run incomplete --class-label 1 --out no/x.npy", 2, "--out no/x.npy: there is no folder no", "make it first"),
    ("run incomplete --class-label 1 --out x.jpg", 2, "--out x.jpg: use a .npy or a .png", None),
    (f"{R} --out x.png", 2, "this model makes latents, not pixels", "compile it with --with-vae"),
    # artefacts
    ("run unlinked --class-label 1", 1, "unlinked has no weights yet", "l2c link unlinked --weights PATH"),
    ("run nowhere --class-label 1", 1, "nowhere holds no complete artefact", AGAIN),
    ("run incomplete --class-label 1", 1, "incomplete holds no complete artefact", f"{AGAIN} --out incomplete"),
    ("run newer --class-label 1", 1, "manifest.json has format version 2, this release reads 1", AGAIN),
    ("run damaged --class-label 1", 1, "damaged/step-000.onnx does not match its hash", AGAIN),
    ("link incomplete --weights model.safetensors", 1, "incomplete holds no complete artefact", AGAIN),
    ("link newer --weights model.safetensors", 1, "format version 2", AGAIN),
    ("inspect incomplete", 1, "incomplete holds no complete artefact", AGAIN),
    ("inspect newer", 1, "format version 2", AGAIN),
    ("verify damaged", 1, "damaged/step-000.onnx does not match its hash", AGAIN),
    ("verify unlinked", 1, "unlinked has no weights yet", "l2c link unlinked"),
    # a request
    ("run engines --class-label 10", 2, "class label 10", "from 0 to 9"),
    ("run engines --class-label cat", 2, "class label 'cat'", "from 0 to 9"),
    ("run engines --class-label -1", 2, "class label -1", "from 0 to 9"),
    (f"{R} --class-label 1 --class-label 1", 2, "3 class labels", "1 to 2 images"),
    (f"{R} --seed -1", 2, "seed -1", "give one whole number >= 0"),
    (f"{R} --guidance-scale nan", 2, "guidance_scale nan", "must be a finite number"),
    (f"{R} --backend tensorflow", 1, "unknown backend 'tensorflow'", "known are auto, "),
    (f"{R} --backend onnxruntime --device tpu", 1, "device 'tpu'", "use cpu"),
    (f"{R} --threads 0", 2, "--threads 0", "must be at least 1"),
    (f"{R} --threads 100000", 2, "--threads 100000", "the processors of this machine"),
    # inspect and verify
    ("inspect nowhere", 2, "nowhere: no such file or folder", None),
    ("inspect text.pt", 1, "text.pt is not a router", None),
    ("inspect hostile.pt", 1, "hostile.pt is not a router", None),
    ("inspect engines --device gtx", 2, "--device gtx", "known are cpu, h100"),
    ("inspect router.pt --measure", 2, "router.pt: only an artefact has times", "give the folder"),
    ("inspect engines/schedule.json --threshold 0.3", 2, "--threshold 0.3", "only a router has scores"),
    ("verify engines --atol nan", 2, "--atol nan", "must be a number of at least 0"),
    ("inspect router.pt --threshold 2", 2, "--threshold 2", "must be between 0 and 1"),
    ("inspect unlinked --measure", 1, "unlinked has no weights yet", "l2c link unlinked"),
    ("verify engines --golden nowhere", 2, "--golden nowhere: not a recorded case", "config.json and golden.npz"),
    ("verify engines --weights extra.safetensors", 1, "lora.up is not part of the model", OF_THIS),
    ("verify engines --weights nan.safetensors", 1, "1 value of pos_embed is NaN", "export the checkpoint again"),
    ("verify engines --class-label 10", 2, "class label 10", "from 0 to 9"),
    ("inspect engines --threshold 0.5", 2, "--threshold 0.5", "only a router has scores"),
    ("inspect engines --plot nowhere/x.png", 2, "--plot nowhere/x.png: there is no folder nowhere", "make it first"),
    ("inspect engines --plot x.xyz", 2, "--plot x.xyz: ", "use one of .png, .svg, .pdf"),
    ("inspect engines --measure --device cpu", 2, "--device cpu: is for predicted times", "use one of the two"),
    (f"{E} --device gtx", 2, "--device gtx", "only for --dry-run"),
    (f"{E} --dump /proc/new", 1, "--dump /proc/new: cannot be written", "choose another folder"),
]  # fmt: skip
ADVICE = re.compile(r"\b(use|give|get|check|choose|run|make|must be|needs|known are|bind them|download|copy|free)\b")
SAID = re.compile(
    r"other programs|backend: |dit, |\d+ calls: |weights from |no weights|RANDOM|the weights are RANDOM"
)  # lines of the log


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


@pytest.mark.parametrize(("line", "code", "names"), [bad[:3] for bad in BAD], ids=[bad[0].replace(GOOD, "") for bad in BAD])
def test_wrong_input_is_one_line_that_names_it_and_changes_nothing(refusal, line, code, names):
    got, lines = refusal(line)
    assert got == code
    *log, error = lines
    assert all(SAID.match(entry) for entry in log), log
    assert error.startswith("error: ")
    assert names in error


@pytest.mark.parametrize(("line", "advice"), [
    pytest.param(line, advice, id=line.replace(GOOD, ""))
    for line, _, _, advice in BAD
])  # fmt: skip
def test_the_line_says_what_to_do(refusal, line, advice):
    error = refusal(line)[1][-1]
    assert advice in error if advice else ADVICE.search(error)


@pytest.mark.parametrize("line", [f"{E} --threshold high", f"{E} --batch many", f"{E} --out text.pt", "run engines",
                                  "verify engines --atol -1", "inspect engines --plot engines",
                                  "run text.pt --class-label 1", "link unlinked",
                                  "frobnicate", "doctor --why"])  # fmt: skip
def test_wrong_usage_is_one_line_and_shows_the_way_to_the_help(refusal, line):
    code, lines = refusal(line)
    assert code == 2
    assert len(lines) == 1
    assert re.fullmatch(r"error: .+ \((export|l2c.*) --help\)", lines[0])


def test_a_pickle_of_another_protocol_is_one_line_too(desk):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = invoke(f"{E} --schedule hostile-4.pt")
    assert isinstance(done.exception, SystemExit)
    assert len(done.stderr.splitlines()) == 1


def test_nothing_hostile_was_executed(desk):
    for what in ("--schedule hostile.pt", "--weights hostile.pt", "--schedule hostile-4.pt", "--weights hostile-4.pt"):
        assert invoke(f"{E} {what}").exit_code == 1
    assert not list(Path.cwd().rglob("EXECUTED"))
    pickle.loads(Path("hostile-4.pt").read_bytes())  # which is hostile indeed
    Path("EXECUTED").unlink()


def test_verbose_adds_the_traceback_and_keeps_the_exit_code(desk):
    code, out, err = ran("run nowhere --class-label 1")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    code, out, err = ran("run nowhere --class-label 1 -v")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert "ArtefactError: nowhere holds no complete artefact" in err


def test_verbose_keeps_the_exit_code_of_wrong_usage(desk):
    assert ran("run engines --class-label 99 -v")[0] == 2


# an output folder that cannot be used


def test_an_output_folder_that_vanishes_is_an_error(new, monkeypatch):
    say = compile.say

    def vanish(line):
        say(line)
        if str(line).startswith("weights from"):
            shutil.rmtree("new")

    monkeypatch.setattr(compile, "say", vanish)
    done = invoke(E)
    assert done.exit_code == 1
    assert (
        done.stderr.splitlines()[-1] == "error: --out new: cannot be written: No such file or directory: choose another folder"
    )
    assert not new.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder_is_an_error(new):
    new.mkdir(0o500)
    done = invoke(E)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "error: --out new: cannot be written: Permission denied: choose another folder"
    assert not list(new.iterdir())


def default_interrupt():
    """A process that was started in the background ignores Control-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def small_files():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_keeps_the_old_artefact(copy):
    """A process that may write no large file stands for a disk without room for the weights."""
    before = tree()
    code, out, err = ran(f"{E} --out copy", preexec_fn=small_files)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: --out copy: cannot be written: File too large: choose another folder"
    assert tree() == before


def test_linking_on_a_full_disk_keeps_the_old_weights(copy):
    before = tree()
    code, _, err = ran("link copy --weights random:3", preexec_fn=small_files)
    assert code == 1
    assert re.fullmatch(r"error: copy: cannot be written: File too large: check the disk\n", err)
    assert tree() == before


# interrupts


@pytest.mark.parametrize("moment", ["dit, 6 sublayers", "7 calls:", "weights from"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_an_interrupted_export_leaves_everything_as_it_was(copy, new, moment, old, monkeypatch):
    before = tree()

    def interrupt(line):
        if str(line).startswith(moment):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compile, "say", interrupt)
        done = invoke(f"{E} --out {'copy' if old else 'new'}")
    assert done.exit_code == 130
    assert tree() == before
    assert not new.exists()


def test_control_c_leaves_nothing(new, tmp_path):
    """While PyTorch exports the operations, which is most of the time."""
    before = tree()
    process = started(E, cache=str(tmp_path), preexec_fn=default_interrupt)
    for _ in range(2):
        assert process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (out, err) == ("", "interrupted\n")
    assert process.returncode in (130, -signal.SIGINT), "a shell shows both as 130"
    assert tree() == before
    assert not new.exists()


def test_a_reader_that_has_seen_enough_is_no_error(desk):
    for line in ("inspect engines --json", "inspect engines"):
        process = started(line)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1
        process.stderr.close()


def test_a_file_may_have_as_long_a_name_as_there_is(desk, tmp_path):
    out = tmp_path / ("x" * 251 + ".npy")
    assert invoke(f"run engines --class-label 3 --out {out}").exit_code == 0
    assert out.stat().st_size > 0


@pytest.mark.parametrize("label", ["--5", "5" * 5000, "½", "-"])
def test_a_label_that_is_no_number_is_a_name_that_does_not_exist(desk, label):
    done = invoke(f"run engines --class-label={label} --out x.npy")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: class label ")
    assert "Traceback" not in done.stderr
