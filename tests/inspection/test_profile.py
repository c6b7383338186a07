"""Where the time goes: engine runs by kind and by call, and the trace."""

from __future__ import annotations

import itertools
import json

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import l2c_export
from l2c_export.cli.main import l2c
from l2c_export.errors import UsageError
from l2c_export.inspection import profile
from l2c_export.inspection.profile import Profile


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("profile")
    words = ["profile", str(tiny[0]), "--rounds", "3", "--threads", "1", "--images", "2",
             "--save", str(out / "p.json"), "--trace", str(out / "t.json")]  # fmt: skip
    done = CliRunner().invoke(l2c, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out, done.stdout


@pytest.fixture(scope="module")
def measurement(written) -> Profile:
    return msgspec.json.decode((written[0] / "p.json").read_bytes(), type=Profile)


def test_every_engine_run_is_there(measurement, tiny):
    manifest = l2c_export.load(tiny[0], threads=1).manifest
    nodes = [node for call in manifest.program().calls for node in manifest.program().graphs[call.graph].nodes]
    prologue = manifest.program().graphs[manifest.program().prologue].nodes
    assert sorted((e.name, e.engine) for e in measurement.events) == sorted((n.name, n.op) for n in (*nodes, *prologue))
    assert (
        sum(kind.runs for kind in measurement.kinds) == sum(call.runs for call in measurement.calls) == len(measurement.events)
    )
    for call, of in zip(measurement.calls, manifest.program().calls, strict=True):
        assert (call.timestep, call.computed) == (of.timestep, len(of.computed))
    attention = next(kind for kind in measurement.kinds if kind.kind == "attn")
    names = manifest.denoiser.sublayers
    assert attention.runs == sum(names[j].endswith("attn") for call in manifest.program().calls for j in call.computed)


def test_the_times_add_up(measurement):
    assert sum(call.seconds for call in measurement.calls) == pytest.approx(measurement.seconds)
    assert sum(kind.seconds for kind in measurement.kinds) + measurement.outside == pytest.approx(measurement.seconds)
    assert sum(kind.share for kind in measurement.kinds) < 1
    assert measurement.outside > 0
    assert measurement.images == 2


def test_a_profile_changes_nothing(tiny):
    pipe = l2c_export.load(tiny[0], threads=1)
    before = pipe([1, 2], seed=3).latents
    recorded = profile.record(pipe, pipe.inputs([1, 2]), None, pipe.noise(2, 3))
    assert recorded.overhead > 0
    assert np.array_equal(pipe([1, 2], seed=3).latents, before)


def test_the_trace_is_valid(written, measurement):
    trace = json.loads((written[0] / "t.json").read_text())
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    for event in spans:
        assert event.keys() >= {"name", "cat", "ts", "dur", "pid", "tid", "args"}
        assert event["dur"] > 0
    calls, runs = ([event for event in spans if event["tid"] == row] for row in (1, 2))
    assert (len(calls), len(runs)) == (len(measurement.calls), len(measurement.events))
    for row in (calls, runs):
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in itertools.pairwise(row))
    for run in runs:
        call = calls[run["args"]["call"]]
        assert call["ts"] <= run["ts"]
        assert run["ts"] + run["dur"] <= call["ts"] + call["dur"] + 1e-3
        assert run["args"].keys() == {"call", "sublayer", "engine"}


def test_what_is_printed(written):
    words = written[1].split()
    assert {"segment", "attn", "mlp", "update", "share", "timestep"} <= set(words)
    assert "the loop itself" in written[1]


def test_a_static_engine_shows_whole_calls(tiny):
    done = CliRunner().invoke(l2c, ["profile", str(tiny[0]), "--rounds", "1", "--threads", "1", "--link", "static", "--json"])
    measurement = msgspec.json.decode(done.stdout, type=Profile)
    assert {kind.kind for kind in measurement.kinds} == {"whole call", "prologue"}
    assert "--link shared shows what is inside" in done.stderr


def test_kinds_of_engines(tiny):
    compiled = l2c_export.load(tiny[0], threads=1).manifest.program()
    assert {profile.kind_of(name, compiled) for name in compiled.segments} >= {"attn", "mlp", "update", "sum"}
    assert all(profile.kind_of(name, compiled) == record.kind for name, record in compiled.segments.items())
    assert profile.kind_of(compiled.prologue, compiled) == compiled.prologue
    assert {profile.kind_of(name, compiled) for name in compiled.step_graphs} == {"whole call"}


def test_wrong_requests_are_refused(tiny):
    with pytest.raises(UsageError, match="link='maybe'"):
        l2c_export.load(tiny[0], link="maybe")
    for words in (
        ["--rounds", "0"],
        ["--trace", "nowhere/t.json"],
        ["--save", "nowhere/p.json"],
        ["--images", "0"],
        ["--images", "99"],
    ):
        assert CliRunner().invoke(l2c, ["profile", str(tiny[0]), "--threads", "1", *words]).exit_code == 2
