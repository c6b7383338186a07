"""How fast, and why: real processes, real rounds, on a tiny model."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import case
from manifests import changed

import l2c_export
from l2c_export.artefact import store
from l2c_export.benchmarks import bench, measured, plot, report
from l2c_export.benchmarks.contenders import BenchRequest, Contender, chosen
from l2c_export.benchmarks.measured import Measured, Ratio, Result, Spread, attribute, disturbances, ratio, summed_up, times
from l2c_export.benchmarks.process import Process, Task, Timed
from l2c_export.benchmarks.twins import compile_twin
from l2c_export.benchmarks.worker import load
from l2c_export.cli.main import l2c
from l2c_export.compiler import link
from l2c_export.compiler.compile import compile_artefact
from l2c_export.errors import ArtefactError, BackendError, UsageError
from l2c_export.inspection import view
from l2c_export.support import figure, machine

OTHERS = ("pytorch", "pytorch-cached", "onnxruntime", "uncached")


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """One run of the command with all that it can write; by two workers at once everything is slow, so it is one run.

    It gives ratios, whatever else this machine does.
    """
    out = tmp_path_factory.mktemp("bench")
    words = ["bench", str(tiny[0]), "--against", ",".join(OTHERS), "--passes", "--rounds", "3", "--threads", "1",
             "--save", str(out / "r.json"), "--plot", str(out / "r.png"), "--html", str(out / "r.html")]  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        for module, name, value in ((bench, "VISIT", 0.02), (bench, "PAUSE", 0.0), (measured, "UNSTEADY", np.inf)):
            patched.setattr(module, name, value)
        done = CliRunner().invoke(l2c, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out, done.output


@pytest.fixture(scope="module")
def result(written) -> Result:
    return msgspec.json.decode((written[0] / "r.json").read_bytes(), type=Result)


def test_every_contender_is_measured_in_every_round(result, tiny):
    assert [contender.name for contender in result.contenders] == ["ours", *OTHERS, "uncached-no-hoist", "no-fold"]
    assert result.left_out == ()
    assert [sorted(order) for order in result.orders] == [sorted(contender.name for contender in result.contenders)] * 3
    for contender in result.contenders:
        assert len(contender.loops) == 3
        assert np.shape(contender.seconds) == (sum(map(len, contender.loops)), contender.settings.calls)
        assert 0 < contender.load_seconds < contender.first_image_seconds
        assert contender.artefact_bytes >= (tiny[0] / "weights.safetensors").stat().st_size
        assert contender.gpu_bytes is None or contender.gpu_bytes >= 0
        assert not contender.settings.random_weights
    assert {contender.settings.threads for contender in result.contenders} == {1}


def test_the_demo_and_its_twin_are_asked_for_the_same_guidance(tmp_path, monkeypatch):
    """The demo's scale is not its family's, which a twin that is compiled again would have."""
    done = subprocess.run([sys.executable, "-m", "l2c_export", "export", "--model", "demo", "--out", str(tmp_path / "e")])
    assert done.returncode == 0
    monkeypatch.setattr(bench, "VISIT", 0.0)
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    monkeypatch.setattr(measured, "UNSTEADY", np.inf)
    outcome = bench.contest(tmp_path / "e", ["uncached"], BenchRequest(threads=1), 1)
    assert {contender.settings.guidance_scale for contender in outcome.contenders} == {1.5}
    assert [(ratio.slow, ratio.refused) for ratio in outcome.ratios] == [("uncached", None)]


def test_the_processes_do_what_they_are_named_for(result):
    computed = {contender.name: contender.settings.computed for contender in result.contenders}
    assert computed["pytorch"] == computed["uncached"] == 1 > computed["pytorch-cached"] == computed["ours"]
    assert result.of("onnxruntime").settings.runtime.startswith("onnxruntime")
    assert result.of("uncached-no-hoist").settings.passes == ("fold",)
    assert result.of("no-fold").settings.passes == ("hoist",)
    assert result.of("uncached").compile_seconds > 0
    assert (result.of("ours").loop_overhead is None, result.of("pytorch").loop_overhead is None) == (False, True)


def test_the_statistics_are_those_of_numpy(result):
    for contender in result.contenders:
        seconds = np.array(contender.seconds)
        images = seconds.sum(axis=1)
        assert contender.per_image.median == pytest.approx(np.median(images))
        assert contender.per_image.p90 == pytest.approx(np.percentile(images, 90))
        assert contender.per_image.fastest == pytest.approx(images.min())
        assert contender.per_call.p99 == pytest.approx(np.percentile(seconds, 99))
        assert contender.timeline == pytest.approx(np.median(seconds, axis=0))
        assert contender.images_per_second == pytest.approx(1 / contender.quiet)


def test_ratios_are_those_of_quiet_rounds(result):
    ours = result.contenders[0]
    for quotient, other in zip(result.ratios, result.contenders[1:], strict=True):
        within = [min(a) / min(b) for a, b in zip(other.loops, ours.loops, strict=True)]
        assert (quotient.slow, quotient.fast, quotient.refused) == (other.name, "ours", None)
        quiet = [np.percentile([min(visit) for visit in contender.loops], 100 / 7) for contender in (other, ours)]
        assert (other.quiet, ours.quiet) == pytest.approx(quiet)
        assert quotient.value == pytest.approx(quiet[0] / quiet[1])
        assert (quotient.lowest, quotient.highest) == pytest.approx((min(within), max(within)))


def test_the_factors_multiply_to_the_whole(result):
    attribution = result.attribution
    value = {factor.name: factor.ratio.value for factor in attribution.factors}
    assert value["runtime"] * value["schedule"] == pytest.approx(attribution.total.value)
    chain = [
        (f.ratio.slow, f.ratio.fast) for f in attribution.factors if f.name in ("engines", "hoisting", "skipping", "folding")
    ]
    assert chain[0][0] == "pytorch"
    assert chain[-1][1] == "ours"
    assert all(a[1] == b[0] for a, b in itertools.pairwise(chain))


def made_up(name: str, seconds: list[list[float]], of: Measured, **settings) -> Measured:
    changed = msgspec.structs.replace(of.settings, **settings)
    loops = tuple((sum(calls),) for calls in seconds)
    return msgspec.structs.replace(of, name=name, quiet=Measured.quietest(loops), per_image=Spread.of(map(sum, seconds)),
                                   loops=loops, seconds=tuple(map(tuple, seconds)), settings=changed)  # fmt: skip


def test_attribution_in_numbers(result):
    ours = result.contenders[0]
    seconds = {"pytorch": 6.0, "uncached": 3.0, "ours": 2.0}
    attribution = attribute({name: made_up(name, [[s], [2 * s], [3 * s]], ours) for name, s in seconds.items()})
    assert [round(f.ratio.value, 6) for f in attribution.factors] == [2.0, 1.5]
    assert attribution.total.value == pytest.approx(3.0)


def test_the_schedule_gets_no_credit_for_another_runtime(result):
    """As where the twin could not have the artefact's engines."""
    ours = result.contenders[0]
    times = {"pytorch": 6.0, "uncached": 3.0, "ours": 2.0}
    contenders = {name: made_up(name, [[s]] * 3, ours) for name, s in times.items()}
    assert attribute(contenders) is not None
    contenders["uncached"] = made_up("uncached", [[3.0]] * 3, ours, runtime="something else 1.0")
    assert attribute(contenders) is None


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"seed": 7}, {"steps": 99}, {"threads": 64}, {"weights": "others"},
                                    {"images": 4}])  # fmt: skip
def test_no_ratio_between_different_settings(result, change):
    ours = result.contenders[0]
    other = made_up("other", [[1.0]] * 3, ours, **change)
    quotient = ratio(other, ours)
    ((name, value),) = change.items()
    assert quotient.value is None
    assert quotient.refused == f"{name}: {value} and {getattr(ours.settings, name)}"
    assert attribute({"pytorch": other, "uncached": ours, "ours": ours}) is None
    shown = msgspec.structs.replace(result, contenders=(ours, other), ratios=(quotient,), attribution=None)
    assert report.speed_table(shown)[2][1] == "not comparable"
    assert any(quotient.refused in line for line in report.sentences(shown))


def test_the_images_of_a_batch_are_of_different_things(tiny):
    """Images of one class alone might be less work."""
    task = Task(Contender(name="ours", folder=str(tiny[0]), backend="openvino"), BenchRequest(images=2, threads=1))
    wanted = hashlib.sha256(b"class_labels" + np.array([207 % 10, 208 % 10], np.int32).tobytes()).hexdigest()
    assert load(task).settings.request == wanted


def test_what_torch_compile_took_is_what_the_first_batch_took_longer(monkeypatch):
    """... and all other seconds are those of one image."""
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    contender = Contender(name="torch-compile", folder="", runtime="torch-compile")
    ready = SimpleNamespace(settings=SimpleNamespace(images=4), load_seconds=1.0, artefact_bytes=0)
    process = SimpleNamespace(ask=lambda *_: None)
    started = bench.Started(contender, process, ready, None, 10.0, 2.0, None)
    measurement = bench.finish(started, [[Timed(2.0, (1.0, 1.0))]] * 3)
    assert (measurement.quiet, measurement.per_image.median, measurement.images_per_second) == (0.5, 0.5, 2.0)
    assert measurement.compile_seconds == 10.0 - 1.0 - 2.0


def test_the_record_survives_json(result):
    text = msgspec.json.encode(result)
    assert msgspec.json.decode(text, type=Result) == result
    assert msgspec.json.decode(text)["format"] == "l2c-bench"


def test_what_is_printed(written, result):
    text = written[1]
    for contender in result.contenders:
        assert re.search(rf"^{contender.name} ", text, re.MULTILINE)
    assert f"ours is {result.attribution.total.value:.2f}x as fast as pytorch = runtime" in text
    assert result.machine.cpu in text
    assert f"torch {result.machine.versions['torch']}" in text
    assert "fp32, weights" in text


# By its clock a call takes 40 ms; in a slow worker the fourth takes a tenth of the image longer.  It prints, as libraries do.
PADDED = """
import os, sys, types
from l2c_export.benchmarks import worker
from l2c_export.runtime import pipeline
from l2c_export.support import clock

steps, seconds = pipeline.Pipeline.steps, [0.0]

def padded(self, *positional, **named):
    os.write(1, b"a library prints\\n")
    for done in steps(self, *positional, **named):
        seconds[0] += 0.04 + (float(sys.argv[1]) if done.index == 3 else 0)
        yield done

pipeline.Pipeline.steps = padded
clock.time = types.SimpleNamespace(perf_counter=lambda: seconds[0])
worker.main()
"""


def test_a_slow_call_is_seen_and_placed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    monkeypatch.setattr(bench, "VISIT", 0.0)
    (tmp_path / "padded.py").write_text(PADDED)
    calls = 7
    late = 0.1 * 0.04 * calls
    request = BenchRequest(threads=1)
    with contextlib.ExitStack() as running:
        started = {}
        for name, extra in (("plain", 0.0), ("slow", late)):
            contender = Contender(name=name, folder=str(tiny[0]))
            process = Process(contender, request, (sys.executable, str(tmp_path / "padded.py"), str(extra)))
            running.callback(process.stop)
            started[name] = bench.Started(contender, process, *process.wait()[:1], None, 1.0, 0.3, None)
        processes = [runner.process for runner in started.values()]
        rounds = bench.interleave(processes, 9, random.Random(0))
        plain, slow = (bench.finish(runner, rounds.visits[name]) for name, runner in started.items())
    assert len(set(rounds.orders)) == 2  # not always the same one first
    quotient = ratio(slow, plain)
    difference = np.array(slow.timeline) - np.array(plain.timeline)
    assert quotient.value == pytest.approx(1.1)
    assert quotient.differ == ()
    assert difference.argmax() == 3
    assert difference[3] == pytest.approx(late)
    assert np.delete(difference, 3) == pytest.approx(np.zeros(calls - 1))


@pytest.mark.parametrize(("seconds", "images"), [(0.3, 4), (0.5, 2), (1.0, 1), (7.0, 1)])
def test_a_visit_lasts_a_second_and_an_image_at_least(seconds, images, monkeypatch):
    clock = itertools.count(0, seconds)  # it is read before the first image, and after every one
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    times = bench.visit(SimpleNamespace(image=lambda: Timed(seconds, (seconds,))))
    assert [timed.seconds for timed in times] == [seconds] * images


def test_who_cannot_take_part_is_left_out_with_the_reason(tiny, monkeypatch):
    def broken(name, folder, manifest, root, report):
        return Contender(name=name, folder=str(folder), backend=None if name == "ours" else name), None

    monkeypatch.setattr(bench, "contender", broken)
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    outcome = bench.contest(tiny[0], ["abacus"], BenchRequest(threads=1), 1)
    assert [contender.name for contender in outcome.contenders] == ["ours"]
    assert [(entry.contender, entry.reason.partition(":")[0]) for entry in outcome.left_out] == [
        ("abacus", "unknown backend 'abacus'")
    ]
    assert any(line.startswith("left out: abacus: ") for line in report.sentences(outcome))
    assert outcome.attribution is None
    assert "left out: abacus" in report.page(outcome, view.inspect(tiny[0]))


def test_a_contender_that_starts_quickly_does_so_again(tiny, monkeypatch):
    """Every process has its own luck; one that compiles for long keeps its own."""
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    monkeypatch.setattr(bench, "VISIT", 0.0)
    with contextlib.ExitStack() as running:
        started, seen = [], {"quick": [], "slow": []}
        for name, first in (("quick", 1.0), ("slow", 11.0)):
            contender = Contender(name=name, folder=str(tiny[0]))
            process = Process(contender, BenchRequest(threads=1))
            running.callback(process.stop)
            started.append(bench.Started(contender, process, *process.wait()[:1], None, first, 0.1, None))
            image, pids = process.image, seen[name]
            process.image = lambda p=process, image=image, pids=pids: pids.append(p._process.pid) or image()
        rounds = bench.measure(started, 5, random.Random(0), lambda: None)
    assert len(rounds.orders) == len(rounds.others) == 5
    assert [len(visits) for visits in rounds.visits.values()] == [5, 5]
    assert (len(set(seen["quick"])), len(set(seen["slow"]))) == (3, 1)


def test_a_process_that_dies_says_why(tiny):
    dying = (sys.executable, "-c", "raise SystemExit('the library has crashed')")
    process = Process(Contender(name="dying", folder=str(tiny[0])), BenchRequest(), dying)
    with pytest.raises(BackendError, match="dying: its process ended with code 1: the library has crashed"):
        process.wait()
    process.stop()


def test_the_picture_is_one(written):
    data = (written[0] / "r.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000


def test_the_report_is_one_file(written, result):
    text = (written[0] / "r.html").read_text()
    assert "http" not in text
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!#)', text)
    assert text.count("<svg") == 2
    for contender in result.contenders:
        assert f"<td>{contender.name}</td>" in text


def test_the_report_opens_in_a_browser(written, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser is installed: {', '.join(names)}")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    page = (written[0] / "r.html").as_uri()
    done = subprocess.run([*words, page], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<tr") == (written[0] / "r.html").read_text().count("<tr")
    assert done.stdout.rstrip().endswith("</html>")


def test_wrong_requests_are_refused(tiny):
    for words, value in (
        (["--against", "pytorch,abacus"], "abacus"),
        (["--images", "99"], "99"),
        (["--threads", "0"], "0"),
        (["--rounds", "0"], "0"),
        (["--html", "nowhere/r.html"], "nowhere"),
        (["--save", "nowhere/r.json"], "nowhere"),
        (["--plot", "r.xyz"], "r.xyz"),
    ):
        done = CliRunner().invoke(l2c, ["bench", str(tiny[0]), *words])
        assert done.exit_code == 2, done.output
        assert value in done.stderr
        assert len(done.stderr.splitlines()) == 1
    with pytest.raises(UsageError, match="seed=-1"):
        BenchRequest(seed=-1)


def test_a_twin_is_the_same_model_with_the_same_weights(tiny, tmp_path):
    shutil.copytree(tiny[0], tmp_path / "random")
    manifest = link.bind(tmp_path / "random", "random:1")
    compile_twin(tmp_path / "random", manifest, tmp_path / "twin", cache=False)
    twin = store.read(tmp_path / "twin")
    for field in ("family", "name", "arch", "weights", "tensors"):
        assert getattr(twin.denoiser, field) == getattr(manifest.denoiser, field)
    assert twin.passes == manifest.passes
    assert twin.files["weights.safetensors"] == manifest.files["weights.safetensors"]
    assert not any(call.reused for call in twin.program().calls)


@pytest.mark.parametrize("linked", ["shared", "static"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_twin_has_no_weights_of_its_own(tiny, tmp_path, monkeypatch, linked, elsewhere):
    """The same file under a second name; on another file system a link to it."""

    def another_system(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    own = tiny[0] / "weights.safetensors"
    if elsewhere:
        monkeypatch.setattr(os, "link", another_system)
    before = own.read_bytes()
    compile_twin(tiny[0], changed(store.read(tiny[0]), link=linked), tmp_path / "twin", hoist=False)
    theirs = tmp_path / "twin" / "weights.safetensors"
    assert theirs.is_symlink() is elsewhere
    assert theirs.samefile(own)
    with l2c_export.load(tiny[0]) as ours, l2c_export.load(tmp_path / "twin") as other:
        want, got = (pipe([1], 2.0, seed=3).latents for pipe in (ours, other))
        assert np.abs(want - got).max() < 1e-5 * np.abs(want).max()
    shutil.rmtree(tmp_path / "twin")
    assert own.read_bytes() == before


def test_weights_that_another_release_laid_out_otherwise_are_not_shared(tiny, tmp_path):
    manifest = store.read(tiny[0])
    tensors = dict(manifest.denoiser.tensors)
    tensors["renamed"] = tensors.pop("pos_embed")
    other = changed(manifest, tensors=tensors)
    with pytest.raises(ArtefactError, match="laid out its weights in another way: run l2c-export again"):
        compile_twin(tiny[0], other, tmp_path / "twin", fold=False)
    assert not (tmp_path / "twin" / "weights.safetensors").exists()


@pytest.fixture(scope="module")
def merged(tmp_path_factory, own_cache):
    """An artefact whose calls were merged to fewer graphs than its schedule has, and the options that it was compiled with.

    Merged once more, its schedule would become another one.
    """
    folder = tmp_path_factory.mktemp("merged")
    chosen = case("dit_tiny_random2").options(folder / "e", max_graphs=4, backend="onnxruntime")
    return compile_artefact(chosen), chosen


@pytest.mark.parametrize("change", [{"fold": False}, {"hoist": False}], ids=str)
def test_a_twin_has_the_graphs_that_were_asked_for(merged, tmp_path, change):
    manifest, chosen = merged
    compile_twin(chosen.out, manifest, tmp_path / "twin", **change)
    twin, by_hand = (store.read(tmp_path / "twin"), compile_artefact(replace(chosen, out=tmp_path / "by hand", **change)))
    assert len(twin.program().step_graphs) == len(manifest.program().step_graphs) <= 4
    assert [(call.computed, call.graph) for call in twin.program().calls] == [
        (call.computed, call.graph) for call in manifest.program().calls
    ]
    assert (twin.program().calls, twin.program().graphs, twin.program().program.asked) == (
        by_hand.program().calls,
        by_hand.program().graphs,
        by_hand.program().program.asked,
    )


def test_an_uncached_twin_of_merged_calls_is_one_graph(merged, tmp_path):
    manifest, chosen = merged
    compile_twin(chosen.out, manifest, tmp_path / "twin", cache=False)
    assert len(store.read(tmp_path / "twin").program().step_graphs) == 1


def test_where_nobody_knows_how_calls_were_merged_there_is_no_twin(merged, tmp_path):
    """As an older release has left it."""
    manifest, chosen = merged
    unknown = changed(manifest, asked=msgspec.UNSET)
    with pytest.raises(ArtefactError, match="merged its calls in another way: run l2c-export again"):
        compile_twin(chosen.out, unknown, tmp_path / "twin", fold=False)


def test_the_names_of_contenders():
    assert chosen("uncached, pytorch,uncached") == ["uncached", "pytorch"]
    assert set(chosen(None)) == {"pytorch", "pytorch-cached", "torch-compile", "torch-compile-cached", "onnxruntime",
                                 "openvino", "cuda", "uncached"}  # fmt: skip


def test_neighbours_that_slow_some_rounds_change_no_ratio(result):
    """Seconds that somebody else takes hit any contender, in any round; nor does one lucky image change it."""
    ours, lucky = result.contenders[0], [1.6]
    quiet, noisy = [[2.0 + n / 1000] for n in range(15)], [[2.0 + n / 1000 if n < 5 else 3.5] for n in range(15)]
    for slow, fast in itertools.product((quiet, noisy, [lucky, *quiet[1:]]), repeat=2):
        random.Random(1).shuffle(slow)
        quotient = ratio(made_up("other", slow, ours), made_up("ours", [[s / 2] for (s,) in fast], ours))
        assert quotient.value == pytest.approx(2.0, rel=1e-3)


STEADY, LATE = [[2.0 + n / 1000] for n in range(15)], [[2.0]] + [[2.8]] * 14
SHARES = {
    "steady": [0.1] * 15,
    "busy for a while": [1.0] * 4 + [0.1] * 11,
    "busy": [0.9] * 12 + [0.1] * 3,
    "unknown": [None] * 15,
}


def summary(result: Result, others: list[list[float]], shares: list[float | None]) -> Result:
    """The record of a run in which ours took 1 s and the others took what is given."""
    ours = made_up("ours", [[1.0]] * 15, result.contenders[0])
    uncached, pytorch = (made_up(name, others, ours) for name in ("uncached", "pytorch"))
    orders = (("ours", "uncached", "pytorch"),) * 15
    return summed_up("engines", result.request, result.machine, orders, tuple(shares), [ours, uncached, pytorch], [])


@pytest.mark.parametrize("shares", ["steady", "busy for a while", "unknown"])
def test_a_machine_that_was_quiet_often_enough_gives_ratios(result, shares):
    outcome = summary(result, STEADY, SHARES[shares])
    assert outcome.disturbed == ()
    assert [quotient.value for quotient in outcome.ratios] == [pytest.approx(2.002, abs=1e-3)] * 2
    assert report.warnings(outcome) == []
    assert report.sentences(outcome)[-1].startswith("ours is 2.00x as fast as pytorch = runtime 1.00 x schedule 2.00")
    assert ("unknown" in "\n".join(report.sentences(outcome))) == (shares == "unknown")


@pytest.mark.parametrize(
    ("others", "shares", "says"),
    [(LATE, "steady", ["unsteady: even in its quiet rounds uncached took 40% longer than in its fastest"]),
     (LATE, "unknown", ["unsteady: even in its quiet rounds uncached took 40% longer than in its fastest"]),
     (STEADY, "busy", ["busy: other programs wanted 74% of the processors during the rounds"]),
     (LATE, "busy", ["busy: other programs wanted 74% of the processors during the rounds",
                     "unsteady: even in its quiet rounds uncached took 40% longer than in its fastest"])],
)  # fmt: skip
def test_a_machine_that_was_not_gives_none(result, tiny, tmp_path, monkeypatch, others, shares, says):
    """The warning first, in words and in red, another last line, and no number that could be taken for a ratio."""
    outcome = summary(result, others, SHARES[shares])
    assert outcome.disturbed == tuple(says)
    assert outcome.attribution is None
    assert [(quotient.value, quotient.refused) for quotient in outcome.ratios] == [(None, None)] * 2
    assert all(1 < quotient.lowest <= quotient.highest < 3 for quotient in outcome.ratios)

    monkeypatch.setattr(bench, "bench", lambda *_, **options: outcome)
    words = ["bench", str(tiny[0]), "--html", str(tmp_path / "r.html")]
    done = CliRunner().invoke(l2c, [*words, "--save", str(tmp_path / "r.json")], catch_exceptions=False)
    lines = done.stdout.strip().splitlines()
    assert done.exit_code == 0
    assert lines[: len(says)] == [f"WARNING: {line}" for line in says]
    assert lines[-1].startswith("no ratio: ")
    page = (tmp_path / "r.html").read_text()
    assert 0 < page.index('<div class="disturbed">') < page.index('<div class="cards">') < page.index("<table>")
    assert re.search(r"\.disturbed \{ background: #b3261e;", page)
    axes = figure.new_figure(9, 2).subplots()
    plot.bars(axes, outcome)
    shown = done.stdout + re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL) + "".join(t.get_text() for t in axes.texts)
    assert not re.search(r"\dx\b", shown)

    done = CliRunner().invoke(l2c, [*words, "--json"], catch_exceptions=False)
    told = msgspec.json.decode(done.stdout)
    assert (done.exit_code, told["disturbed"]) == (0, says)
    assert {quotient["value"] for quotient in told["ratios"]} == {None}
    assert says[0] in done.stderr


def test_a_neighbour_that_wants_every_processor(tiny, tmp_path, neighbour):
    """A whole run beside one, as its user sees it."""
    words = [str(tiny[0]), "--against", "onnxruntime", "--rounds", "1", "--threads", "1", "--save", str(tmp_path / "r.json")]
    done = subprocess.run([sys.executable, "-m", "l2c_export", "bench", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("WARNING: busy: other programs wanted ")
    assert done.stdout.splitlines()[-1].startswith("no ratio: ")
    outcome = msgspec.json.decode((tmp_path / "r.json").read_bytes(), type=Result)
    assert len(outcome.disturbed) >= 1
    assert re.search(r"measuring 1 round of 2 contenders: about \d+ s", done.stderr)


def test_only_what_exceeds_its_limit_disturbs(result):
    ours = made_up("ours", [[2.0]] * 4 + [[2.9]] * 11, result.contenders[0])
    assert disturbances([ours], [0.3] * 15) == ()
    assert disturbances([ours], [None, *[0.9] * 14]) == ()  # not known of all


def test_how_long_it_takes_is_said_before():
    """Two contenders of 0.2 and 3 s, one of which starts again twice; the other's first image took too long for that."""
    started = [SimpleNamespace(seconds=0.2, first_image_seconds=4.0), SimpleNamespace(seconds=3.0, first_image_seconds=11.0)]
    assert bench.expected(started, 10) == pytest.approx(10 * (0.2 + 1.1 + 0.2 + 3.0) + 2 * (4.0 + 0.2))
    assert bench.announced(started, 10) == "measuring 10 rounds of 2 contenders: about 53 s; rounds=N for more or fewer"
    assert "1 round of 2 contenders: about 4 s;" in bench.announced(started, 1)
    assert "40 rounds of 2 contenders: about 3 minutes;" in bench.announced(started, 40)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.01, 15), (1.9, 15), (3.5, 8), (70.0, 3)])
def test_slow_models_have_fewer_rounds(seconds, rounds):
    assert bench.enough(seconds) == rounds


def test_a_spread_of_few_values():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, pytest.approx(2.8), pytest.approx(2.98), 1.0)
    assert times(Ratio("a", "b", 2.0)) == "2.00x as fast"


def test_a_gpu_is_described(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    answers = {"name,": "NVIDIA H100, 570.1, 1980, [N/A]", "memory.used": "1024\n512"}
    cases = "\n".join(f'*"{asked}"*) printf "{answer}\\n";;' for asked, answer in answers.items())
    tool.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\nesac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.gpus() == (machine.Gpu("NVIDIA H100", "570.1", 1980, None),)
    assert machine.gpu_bytes_used() == 1536 * 2**20
    assert "NVIDIA H100" in machine.examine().describe()
    tool.unlink()
    monkeypatch.setenv("PATH", str(Path(tmp_path)))
    assert (machine.gpus(), machine.gpu_bytes_used()) == ((), None)


def test_what_pytorch_cannot_do_is_told(tiny):
    torch = pytest.importorskip("torch")
    from l2c_export.pytorch import baseline

    manifest = store.read(tiny[0], verify=False)
    islands = changed(manifest, fp32=("blocks.0.mlp",))
    with pytest.raises(BackendError, match=r"fp32='blocks\.0\.mlp'"):
        baseline.Baseline(tiny[0], islands, False, 1, None)
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="no CUDA device on this machine for device='gpu'"):
            baseline.torch_device("gpu")
    assert baseline.torch_device(None).type == "cpu"
