"""A build tells how far it is, can be stopped at any time, and goes on where it was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from folders import GOLDEN

import l2c_export
from l2c_export.artefact import store
from l2c_export.backends import builds, units
from l2c_export.backends.building import BuildSettings
from l2c_export.backends.tensorrt.builder import Builder

trt = pytest.importorskip("tensorrt_rtx")


def test_after_an_error_the_artefact_is_as_it_was(half, monkeypatch, empty_cache):
    before = store.read(half)
    calls = []

    def full(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return b"plan"

    monkeypatch.setattr(Builder, "build", full)
    with pytest.raises(l2c_export.L2CError, match="No space left on device"):
        builds.build(half, "tensorrt-rtx", BuildSettings())
    assert store.read(half) == before
    assert not list(half.glob(".l2c-partial*"))


def test_the_command_needs_neither_torch_nor_onnx(half, tmp_path):
    """On the edge box itself there is only the runtime."""
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    block = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'onnx', 'onnxscript'}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from l2c_export.cli.main import main; main()\n"
    )
    words = ["build", folder, "--backend", "tensorrt-rtx", "--target", "sm120", "--json"]
    done = subprocess.run([sys.executable, "-c", block, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["builds"].values()
    assert record["engines"] == len(store.read(folder).denoiser.segments)


def test_a_build_tells_how_far_it_is(half, tmp_path, empty_cache):
    folder, seen, done = tmp_path / "e", [], []
    shutil.copytree(half, folder)
    builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)), progress=lambda: done.append(len(seen)),
                   watch=lambda phase, share: seen.append((phase, share)))  # fmt: skip
    assert len(done) == units.count(store.read(folder))
    for first, last in zip([0, *done], done, strict=False):
        shares = [share for _, share in seen[first:last]]
        assert shares[0] == 0
        assert shares == sorted(shares)
        assert shares[-1] > 0.5
    assert len({phase for phase, _ in seen}) > 3


BUILD = """
import signal, sys
from pathlib import Path
from l2c_export.backends import builds
from l2c_export.backends.building import BuildSettings

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent has set
builds.build(Path(sys.argv[1]), "tensorrt-rtx", BuildSettings(), watch=lambda *_: print(flush=True))
"""


@pytest.mark.parametrize("milliseconds", [0, 20, 70, 150])
def test_ctrl_c_at_any_time_ends_a_build_and_leaves_the_artefact_as_it_was(half, tmp_path, empty_cache, milliseconds):
    """It comes while the library runs, which swallows exceptions of the callbacks that Python would raise it in."""
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    before = store.read(folder)
    words = [sys.executable, "-c", BUILD, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.readline()  # the first engine has begun
        time.sleep(1e-3 * milliseconds)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=600)
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert store.read(folder) == before
    assert not list(folder.glob(".l2c-partial*"))


def test_the_progress_bar_shows_phases(monkeypatch):
    import io

    from l2c_export.cli.progress import bars

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with bars() as shown:
        step = shown.progress("building engines", 4)
        step()
        shown.watch("Timing tactics", 0.5)
        shown._display.refresh()
        assert "building engines: Timing tactics" in sys.stderr.getvalue()
        assert "38%" in sys.stderr.getvalue()  # one and a half of four


def test_an_interrupted_build_goes_on_where_it_was(copy, empty_cache, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    build, built = Builder.build, []

    def counted(self, *arguments):
        if len(built) == 4:
            built.append("interrupt")
            raise KeyboardInterrupt
        built.append(build(self, *arguments))
        return built[-1]

    monkeypatch.setattr(Builder, "build", counted)
    with pytest.raises(KeyboardInterrupt):
        builds.build(copy, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    assert store.read(copy) == store.read(GOLDEN)
    assert not list(copy.glob(".l2c*"))
    manifest = builds.build(copy, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    assert len(built) == units.count(manifest) + 1, "the first four were not built again"
    before = len(built)
    builds.build(copy, "tensorrt-rtx", BuildSettings(targets=("sm86",), level=1))
    assert len(built) == 2 * before - 1, "other settings are other engines"
