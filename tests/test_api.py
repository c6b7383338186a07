"""The whole way through the public functions on a tiny model, each once; and what they promise."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from recorded import ROOT

import l2c_export
from l2c_export import Artefact, Schedule

ARCH = {"img_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}
SUBLAYERS = 6  # attention and MLP of an in block, the middle and an out block


@pytest.fixture(scope="module")
def model(tmp_path_factory, own_cache):
    """A description of a tiny U-ViT that works on RGB pixels."""
    path = tmp_path_factory.mktemp("model") / "model.json"
    path.write_text(json.dumps({"family": "uvit", "arch": ARCH}))
    return path


@pytest.fixture(scope="module")
def schedule():
    return Schedule.every(2, family="uvit", steps=4, columns=SUBLAYERS)


@pytest.fixture(scope="module")
def artefact(model, schedule, tmp_path_factory):
    out = tmp_path_factory.mktemp("api") / "engines"
    return l2c_export.compile(schedule, model=model, weights="random:1", out=out, batch=2, backend="onnxruntime")


@pytest.fixture(scope="module")
def pipe(artefact):
    return artefact.load()


# the functions


def test_a_compilation_returns_the_artefact(artefact, schedule):
    assert isinstance(artefact, Artefact)
    assert (artefact.manifest.batch, artefact.random_weights) == (2, True)
    assert artefact.bytes == sum(file.stat().st_size for name in artefact.manifest.files for file in [artefact.path / name])
    assert Schedule.read(artefact.path / "schedule.json") == schedule
    assert Artefact.read(artefact.path) == artefact
    assert repr(artefact).startswith(f"<Artefact {artefact.path}: uvit, 4 calls, 2 graphs, fp32, batch 2, random weights, ")
    with pytest.raises(FrozenInstanceError):
        artefact.path = None


def test_a_compilation_tells_how_far_it_is(model, tmp_path):
    said, stages = [], {}

    def progress(stage, parts):
        stages[stage] = [parts, 0]
        return lambda done=1: stages[stage].__setitem__(1, stages[stage][1] + done)

    l2c_export.compile("every:2", model=model, steps=4, weights="random:1", out=tmp_path / "e", report=said.append,
                       progress=progress)  # fmt: skip
    assert said[-1].startswith(f"{tmp_path / 'e'}: 0.")
    assert list(stages) == ["writing weights"]
    assert all(done == parts > 0 for parts, done in stages.values())


def test_an_artefact_stands_for_its_path(artefact):
    assert l2c_export.load(artefact).path == artefact.path
    assert l2c_export.inspect(artefact) == l2c_export.inspect(artefact.path)
    assert os.fspath(artefact) == str(artefact.path)


def test_pixels_are_images_unless_told_otherwise(pipe):
    output = pipe([1, 2], seed=3)
    assert [image.size for image in output.images] == [(4, 4), (4, 4)]
    assert output.seconds > 0
    assert output.latents.shape == (2, 3, 4, 4)
    latents = pipe([1, 2], seed=3, output_type="latent")
    assert latents.images is None
    assert np.array_equal(latents.latents, output.latents)
    pixels = pipe([1, 2], seed=3, output_type="np").images
    assert np.array_equal(np.stack([np.asarray(image) for image in output.images]), (pixels * 255).round().astype(np.uint8))


def test_latents_stay_latents_where_there_is_no_decoder(tiny):
    assert l2c_export.load(tiny[0], "onnxruntime")([1]).images is None


def test_what_was_made_is_saved(pipe, tmp_path):
    from PIL import Image

    output = pipe([1, 2])
    output.save(tmp_path / "strip.png")
    output.save(tmp_path / "latents.npy")
    output.save(tmp_path / "each")
    assert Image.open(tmp_path / "strip.png").size == (8, 4)
    assert np.array_equal(np.load(tmp_path / "latents.npy"), output.latents)
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == ["000.png", "001.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "each/001.png")), np.asarray(output.images[1]))


def test_latents_are_saved_one_by_one(pipe, tmp_path):
    output = pipe([1, 2], output_type="latent")
    output.save(tmp_path / "each")
    assert np.array_equal(np.load(tmp_path / "each/001.npy"), output.latents[1])
    with pytest.raises(l2c_export.UsageError, match=r"x\.png: these are latents, not images: .*output_type=\"pil\""):
        output.save(tmp_path / "x.png")


@pytest.mark.parametrize(("name", "says"), [("x.jpg", r"use a \.npy, a \.png or a folder"), ("no/x.png", "there is no folder")])
def test_what_cannot_be_saved_there(pipe, tmp_path, name, says):
    with pytest.raises(l2c_export.UsageError, match=says):
        pipe([1]).save(tmp_path / name)


def test_one_line_says_what_a_pipeline_is(artefact):
    with artefact.load() as pipe:
        assert repr(pipe) == (
            "<Pipeline uvit: 50% of the sublayers in 4 calls, dpm-solver++ with 2 steps, fp32, onnxruntime on cpu, batch 2, "
            "guidance all 1.4>"
        )
    assert repr(pipe).endswith(", closed>")


def test_a_verdict(artefact, pipe):
    for subject in (artefact, pipe):
        verdict = l2c_export.verify(subject, class_labels=[1], seed=2)
        assert verdict.passed
        assert verdict.place is None
        assert [check.passed for check in verdict.calls] == [True] * 4
    assert not l2c_export.verify(pipe, atol=0, rtol=0).passed
    with pytest.raises(l2c_export.UsageError, match="rtol=nan: must be a number of at least 0"):
        l2c_export.verify(pipe, rtol=float("nan"))


def test_a_profile(artefact):
    profile = l2c_export.profile(artefact, rounds=1)
    assert profile.seconds == pytest.approx(sum(call.seconds for call in profile.calls))
    assert profile.artefact == str(artefact.path)


def test_a_benchmark(artefact):
    result = l2c_export.bench(artefact, against=["pytorch"], rounds=1)
    assert [contender.name for contender in result.contenders] == ["ours", "pytorch"]


def test_views(artefact, schedule):
    seen = [l2c_export.inspect(source) for source in (artefact, artefact.path / "schedule.json", schedule)]
    assert all([call.computed for call in view.calls] == [list(c.computed) for c in schedule.calls] for view in seen)


def test_a_prediction(model):
    cached, uncached = l2c_export.dry_run("every:2", model=model, steps=4, weights="random:1", device="h100")
    assert 0 < cached.total.flops < uncached.total.flops
    with pytest.raises(TypeError, match="weihgts"):
        l2c_export.dry_run("every:2", model=model, weihgts="random:1")


def test_a_training_ends_in_a_schedule(model, tmp_path):
    summary = l2c_export.train(steps=8, data="self", model=model, weights="random:1", batch=1, iterations=1, device="cpu",
                               out=tmp_path / "routers")  # fmt: skip
    assert summary.iterations == 1
    assert Schedule.read(summary.schedule).threshold == pytest.approx(summary.threshold)
    assert summary.router.is_file()


def test_weights_are_linked(artefact, tmp_path):
    import shutil

    copy = shutil.copytree(artefact.path, tmp_path / "e")
    linked = l2c_export.link(copy, "random:9")
    assert linked.manifest.denoiser.weights.random == 9
    assert not np.array_equal(linked.load()([1]).latents, artefact.load()([1]).latents)


def test_nothing_is_built_for_a_backend_that_loads_onnx(artefact):
    with pytest.raises(l2c_export.UsageError, match="backend='onnxruntime': nothing to build"):
        l2c_export.build(artefact, "onnxruntime")


def test_findings():
    findings = l2c_export.doctor()
    assert next(finding for finding in findings if finding.name == "onnxruntime").works


# schedules


def test_a_schedule_is_changed_in_a_copy(schedule):
    changed = schedule.with_computed(1, [3, 0])
    assert changed.calls[1].computed == (0, 3)
    assert changed.calls[1].reused == (1, 2, 4, 5)
    assert schedule.calls[1].computed == ()
    assert changed.source == Schedule.from_json(changed.to_json()).source != schedule.source
    assert changed.computed_share == pytest.approx(14 / 24)


@pytest.mark.parametrize(("call", "columns", "says"), [
    (4, [0], "call=4: the schedule has calls 0 to 3"), (-1, [0], "call=-1"), (1, [6], "the schedule has columns 0 to 5"),
    (0, [0], "call 0 must compute every sublayer"),
])  # fmt: skip
def test_a_change_that_no_schedule_has(schedule, call, columns, says):
    with pytest.raises((l2c_export.UsageError, l2c_export.ScheduleError), match=says):
        schedule.with_computed(call, columns)


def test_a_call_gets_rules_in_a_copy(schedule):
    changed = schedule.with_rules(3, {"*.attn": "taylor:1", "mid_block.attn": [[1, 0.5]]})
    assert changed.derived(3) == {name: "taylor:1" if "attn" in name else "reuse" for name in schedule.sublayers} | {
        "mid_block.attn": ((1, 0.5),)
    }
    assert changed.calls[3].reused == (1, 3, 5)
    assert changed.source == Schedule.from_json(changed.to_json()).source != schedule.source
    assert schedule.calls[3].rules == {"*": "reuse"}


def test_a_level_that_gets_a_rule_is_cacheable_while_it_has_one(schedule):
    ranged = schedule.with_rules(3, {"stack[0:2]": "taylor:1"})
    assert ranged.cacheable == (*schedule.sublayers, "stack[0:2]")
    assert ranged.with_rules(3, {"output": "reuse"}).cacheable == (*schedule.sublayers, "output")
    assert ranged.with_computed(3, ["mid_block.attn", 5]).calls[3].computed == (2, 5)
    assert ranged.uncached().cacheable == schedule.sublayers


@pytest.mark.parametrize(("call", "rules", "says"), [
    (4, {}, "call=4: the schedule has calls 0 to 3"),
    (1, {"*": 3}, r"rules=.*: use reuse, taylor:M, or \[\[age, coefficient\], ..\]"),
    (1, {"mid.*": "reuse"}, "has a rule for 'mid\\.\\*'"), (0, {"output": "reuse"}, "'output', so it cannot compute"),
    (1, {"*": [[2, 1.0]]}, "call 1 derives 'in_blocks.0.attn' from call -1"),
])  # fmt: skip
def test_rules_that_no_call_can_have(schedule, call, rules, says):
    with pytest.raises((l2c_export.UsageError, l2c_export.ScheduleError), match=says):
        schedule.with_rules(call, rules)


def test_other_columns_take_their_rules_along(schedule):
    ruled = schedule.with_rules(1, {"*": "taylor:1", "mid_block.attn": "taylor:2"}).with_rules(3, {"output": "reuse"})
    more = ruled.computing([range(6), [2], range(6), [0]])
    assert [call.rules for call in more.calls] == [{}, {"*": "taylor:1"}, {}, {"*": "reuse"}]
    assert more.cacheable == ruled.cacheable == (*schedule.sublayers, "output")


def test_a_schedule_is_one_line(schedule):
    assert repr(schedule) == "<Schedule uvit, dpm-solver++, 4 steps, 4 calls of 6 sublayers, 50.0% computed>"


def test_a_schedule_is_drawn(schedule, tmp_path):
    schedule.plot(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 1000
    with pytest.raises(l2c_export.UsageError, match="use one of"):
        schedule.plot(tmp_path / "x.txt")


def test_a_family_without_a_schedule():
    with pytest.raises(l2c_export.UsageError, match="family='unet': use one of dit, uvit"):
        Schedule.every(2, family="unet", steps=4, columns=6)


# the log


def test_the_log_names_what_was_done_and_how_long_it_took(artefact, caplog):
    with caplog.at_level(logging.DEBUG, "l2c_export"):
        artefact.load(threads=1)([1, 2], output_type="latent")
    records = [record for record in caplog.records if record.name == "l2c_export"]
    assert [record.levelname for record in records] == ["INFO", "INFO", "DEBUG"]
    loaded, run, times = (record.getMessage() for record in records)
    assert loaded.startswith(f"{artefact.path}: loaded in ")
    assert run.startswith("2 images in ")
    assert re.fullmatch(r"\d\.\d{3} s until the latents, \d\.\d{3} s after", times)


def test_nothing_is_printed_by_itself(artefact):
    code = f"import l2c_export; l2c_export.load({str(artefact.path)!r}, threads=1)([1])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# types


def test_a_checker_sees_the_types(tmp_path):
    """mypy infers every name that is imported lazily."""
    code = (
        "import l2c_export\n"
        "artefact = l2c_export.compile('every:2', model='demo')\n"
        "pipe = l2c_export.load(artefact)\n"
        "reveal_type(artefact)\nreveal_type(pipe([3]))\nreveal_type(l2c_export.verify(pipe).passed)\n"
        "reveal_type(l2c_export.bench(artefact))\nreveal_type(l2c_export.Schedule.read('x').calls)\n"
        "l2c_export.compile(weihgts='x')\n"
    )
    (tmp_path / "user.py").write_text(code)
    words = [sys.executable, "-m", "mypy", "--config-file", "", "--follow-imports=silent", "--ignore-missing-imports"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    shown = subprocess.run([*words, "user.py"], cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    types = [line.rpartition('is "')[2].rstrip('"') for line in shown.splitlines() if "Revealed type" in line]
    assert [name.replace("builtins.", "").rpartition("l2c_export.")[2] for name in types] == [
        "compiler.artefact.Artefact", "runtime.images.Output", "bool", "benchmarks.measured.Result",
        "schedules.calls.Call, ...]",
    ]  # fmt: skip
    assert 'Unexpected keyword argument "weihgts"' in shown


def test_results_travel_between_processes(artefact, schedule):
    for value in (artefact, schedule, l2c_export.inspect(artefact)):
        assert pickle.loads(pickle.dumps(value)) == value


def test_every_public_name_says_what_it_is():
    for name in set(l2c_export.__all__) - {"__version__"}:
        assert len(getattr(l2c_export, name).__doc__ or "") > 30, name


def test_every_option_of_a_function_is_described():
    import inspect

    for name in ("compile", "train", "build", "bench", "verify", "check", "load", "link", "profile", "sample", "compare",
                 "push", "pull"):  # fmt: skip
        function = getattr(l2c_export, name)
        described = set(re.findall(r"\w+", function.__doc__ or ""))
        assert set(inspect.signature(function).parameters) - {"path", "report", "progress"} <= described, name


def test_the_example_of_the_package_runs(tmp_path, own_cache):
    """In a process of its own, as a user would begin."""
    lines = [line.strip() for line in l2c_export.__doc__.splitlines() if line.startswith("    ")]
    code = "\n".join(["import l2c_export", *lines])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "digits.png").is_file()
