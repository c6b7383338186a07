"""What l2c inspect and l2c verify say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from desk import invoke
from PIL import Image

from l2c_export.artefact import store
from l2c_export.schedules.schedule import Schedule


def test_inspect_sums_up_and_names_the_engines(copy):
    pytest.importorskip("tensorrt_rtx")
    assert invoke("build copy --backend tensorrt-rtx --target sm86,sm120 --batch 1:1:2").exit_code == 0
    *_, sums, engines = invoke("inspect copy --device h100").stdout.splitlines()
    assert re.fullmatch(r"32 of 42 sublayers computed, [\d.]+ ms in all", sums)
    assert re.fullmatch(r"tensorrt-rtx-.*-sm86-sm120: 13 engines, [\d.]+ MB, for 1 to 2 images, fastest at 1", engines)
    (build,) = json.loads(invoke("inspect copy --json").stdout)["artefact"]["builds"].values()
    assert build["targets"] == ["sm86", "sm120"]


@pytest.mark.parametrize("what", ["router.pt", "schedule.json", "engines"])
def test_inspect_shows_the_same_calls_of_router_schedule_and_artefact(desk, what):
    calls = Schedule.from_json(Path("schedule.json").read_bytes()).calls
    document = json.loads(invoke(f"inspect {what} --json").stdout)
    assert [(c["timestep"], c["computed"], c["reused"]) for c in document["calls"]] == [
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
    document = json.loads(invoke("inspect engines --json").stdout)
    manifest = store.read(Path("engines"))
    assert document["artefact"]["batch"] == 2
    assert document["artefact"]["weights"] == "model.safetensors"
    assert document["artefact"]["bytes"] == sum(f.bytes for f in manifest.files.values())
    for shown, call in zip(document["calls"], manifest.program().calls, strict=True):
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


def test_verify_passes_what_equals_its_recording(desk):
    done = invoke("verify engines --golden case --backend onnxruntime --threads 1 --json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["passed"] is True
    assert re.fullmatch(r"right: worst relative error of a call \S+, within .*\n", done.stderr)


def test_verify_fails_what_does_not(copy):
    invoke("link copy --weights random:1")
    done = invoke("verify copy --golden case --backend onnxruntime --threads 1 --json --weights model.safetensors")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["passed"] is False
    assert "is the first that leaves" in done.stderr
    assert len(done.stderr.splitlines()) == 1
