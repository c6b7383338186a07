"""`l2c serve` as a process: how it begins, is reloaded and ends."""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from folders import replace
from held import SOON
from served import IMAGES, Process

import l2c_export
from l2c_export.cli.main import l2c
from l2c_export.compiler.link import bind

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("fastapi")
KEY = "k" * 32
TESTS = Path(__file__).parents[1]
OPEN = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def engines(rgb, tmp_path):
    """An artefact of one's own, which may be exchanged."""
    return shutil.copytree(rgb, tmp_path / "engines")


@pytest.fixture
def other(engines, tmp_path):
    """The same with other weights."""
    folder = shutil.copytree(engines, tmp_path / "made")
    bind(folder, "random:9")
    return folder


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "keys").write_text(KEY + "\n")
    return tmp_path / "keys"


def ask(server, seed=0, **more):
    answer = httpx.post(f"{server.url}{IMAGES}", json={"prompt": "1", "seed": seed, **more}, headers=OPEN, timeout=SOON)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))))


def drawn(folder, seed=0):
    with l2c_export.load(folder, threads=1) as pipe:
        return np.asarray(pipe([1], seed=[seed], output_type="pil").images[0])


# exchange


def test_a_reload_brings_what_lies_there_now_and_one_that_fails_leaves_what_runs(engines, other, keys, tmp_path):
    before, after = drawn(engines), drawn(other)
    assert not np.array_equal(before, after)
    with Process(engines, "--api-key-file", keys) as server:
        assert np.array_equal(ask(server), before)
        assert httpx.post(f"{server.url}/admin/reload").status_code == 401

        damaged = shutil.copytree(other, tmp_path / "damaged")
        whole = (damaged / "weights.safetensors").read_bytes()
        (damaged / "weights.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        replace(engines, damaged)
        answer = httpx.post(f"{server.url}/admin/reload", headers=OPEN)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "reload_failed")
        assert str(engines) not in answer.text
        assert "weights.safetensors" in server.line("reloading failed, what runs stays")
        assert np.array_equal(ask(server), before)
        server.process.send_signal(signal.SIGHUP)
        server.line("reloading failed, what runs stays", 2)
        assert np.array_equal(ask(server), before)

        replace(engines, other)
        assert np.array_equal(ask(server), before), "it asks for nothing on its own"
        assert httpx.post(f"{server.url}/admin/reload", headers=OPEN).json() == {"reloaded": ["engines"]}
        assert np.array_equal(ask(server), after)
        text = httpx.get(f"{server.url}/metrics", headers=OPEN).text
        assert 'l2c_reloads_total{outcome="failed"} 2.0' in text
        assert 'l2c_reloads_total{outcome="done"} 1.0' in text
        assert "Traceback" not in "".join(server.lines)
        assert server.stop(signal.SIGINT) == 0


def test_a_hangup_exchanges_under_load_and_loses_nothing(engines, other):
    with l2c_export.load(engines, threads=1) as old, l2c_export.load(other, threads=1) as new:
        wanted = [{drawn_by(pipe, seed) for pipe in (old, new)} for seed in range(5)]
    with Process(engines) as server, ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url, timeout=SOON) as client:

        def one(n):
            answer = client.post(IMAGES, json={"prompt": "1", "seed": n % 5})
            return answer.status_code, answer.json()["data"][0]["b64_json"] if answer.is_success else answer.text

        asked = [pool.submit(one, n) for n in range(300)]
        replace(engines, other)
        server.process.send_signal(signal.SIGHUP)
        answers = [future.result(SOON) for future in asked]
        server.line("was reloaded")
        assert np.array_equal(ask(server), drawn(other))
        assert server.stop() == 0
    assert {status for status, _ in answers} == {200}
    assert all(bytes_of(body) in wanted[n % 5] for n, (_, body) in enumerate(answers))


def bytes_of(body):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))).tobytes()


def drawn_by(pipe, seed):
    return np.asarray(pipe([1], seed=[seed], output_type="pil").images[0]).tobytes()


def test_engines_that_did_not_run_before_are_not_taken(engines, tmp_path):
    """An engine is a program."""
    import msgspec

    from l2c_export.artefact import integrity, store
    from l2c_export.artefact.records import FILE, Build
    from l2c_export.serving.http.settings import ServerSettings
    from l2c_export.serving.http.shelf import ServedPlace, Shelf, new_engines

    shelf = Shelf([ServedPlace("a", engines, {"backend": "onnxruntime", "threads": 1})], ServerSettings())
    shelf.load()
    (engines / "plans").mkdir()
    manifest = store.read(engines)
    plans = {segment: f"plans/{n}.plan" for n, segment in enumerate(manifest.denoiser.segments)}
    for file in plans.values():
        (engines / file).write_bytes(b"a program")
    build = Build(backend="tensorrt", version="10", targets=("sm90",), images=(1, 1, 4), level=3, version_compatible=False,
                  hardware_compatible=False, engines=plans)  # fmt: skip
    files = manifest.files | {file: integrity.info(engines / file) for file in plans.values()}
    changed = msgspec.structs.replace(manifest, builds={"sm90": build}, files=files)
    assert new_engines(manifest, changed) == "plans/0.plan"
    assert new_engines(changed, changed) is None
    store.write_json(engines / FILE, changed)
    try:
        with pytest.raises(
            l2c_export.UsageError, match=r"plans/0.plan is an engine that did not run before.*trust_engines=True"
        ):
            shelf.reload()
        assert not shelf.models["a"].pipe.manifest.builds
        trusting = Shelf([ServedPlace("a", engines, {})], ServerSettings(trust_engines=True))
        trusting._models = shelf._models
        assert trusting.reload() == ["a"]
        assert shelf.models["a"].pipe.manifest.builds
    finally:
        shelf.close(SOON)


def test_one_reload_at_a_time(rgb):
    from l2c_export.serving.http.settings import ServerSettings
    from l2c_export.serving.http.shelf import ServedPlace, Shelf

    shelf = Shelf([ServedPlace("a", rgb, {"threads": 1})], ServerSettings())
    shelf._reloading.acquire()
    with pytest.raises(l2c_export.UsageError, match="another reload is running"):
        shelf.reload()


def test_reloading_is_off_without_keys(rgb, monkeypatch):
    from served import in_thread

    with in_thread(rgb, monkeypatch) as server:
        answer = server.client.post("/admin/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "off")


# the end


def test_the_end_finishes_what_was_accepted(demo):
    with Process(f"demo={demo}", "--json") as server, ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, server, n) for n in range(12)]
        until = time.monotonic() + SOON
        while waiting(server) < 10 and time.monotonic() < until:
            time.sleep(0.005)
        began = time.monotonic()
        assert server.stop() == 0
        late = [future.exception(SOON) for future in asked if future.exception(SOON)]  # who asked when it had begun to end
        assert all("draining" in str(error) for error in late)
        drawn = [future.result() for future in asked if not future.exception()]
        assert all(picture.shape == (28, 28) for picture in drawn)
        assert len(drawn) >= 10
        assert time.monotonic() - began < SOON
        (drained,) = server.logged("drained")
        counts = drained["images"]["demo"]
        assert (counts["accepted"], counts["made"]) == (len(drawn), len(drawn))
        assert json.loads(server.process.stdout.read())["images"]["demo"]["made"] == len(drawn)
        assert all(line.startswith("{") for line in server.lines), "nothing but JSON"


def waiting(server):
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(("l2c_queue_im", "l2c_running_im")))


def test_signals_are_heeded_whatever_a_library_does_while_it_loads(rgb):
    """Ray's C++ puts a handler of its own in the place of Python's."""
    words = [sys.executable, "-X", "faulthandler", TESTS / "signalled.py", str(rgb), str(SOON)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=4 * SOON, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# the beginning


def refused(*words):
    done = CliRunner().invoke(l2c, ["serve", *map(str, words)])
    assert done.exit_code
    assert "Traceback" not in done.output
    (line,) = done.stderr.splitlines()
    return line


def test_what_cannot_be_served_is_refused_before_it_listens(rgb, tiny, tmp_path):
    assert "Missing argument '[NAME=]ENGINES', or '--model demo'" in refused()
    assert "absent" in refused(tmp_path / "absent")
    assert "makes latents, no pictures, and has no decoder: compile it again with --with-vae" in refused(tiny[0])
    assert "--model emu: only demo and emoji can be served by name" in refused("--model", "emu")
    assert f"cannot be served as 'engines': give it another name, NAME={rgb}" in refused(rgb, rgb)
    assert "--api-key-file" in refused(rgb, "--api-key-file", tmp_path / "absent")
    assert "Invalid value for '--port'" in refused(rgb, "--port", "70000")
    assert "Invalid value for '--max-batch'" in refused(rgb, "--max-batch", "0", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--host 127.0.0.1, --port {port}: cannot listen there (Address already in use)" in refused(rgb, "--port", port)
    assert "cannot listen there" in refused(rgb, "--host", "nowhere.invalid", "--port", "0")


def test_a_model_that_does_not_load_ends_it_with_one_line(engines):
    weights = engines / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x99")
    server = Process(engines)
    try:
        assert server.process.wait(SOON) == 1
        server._reader.join(SOON)
        assert next(line for line in server.lines if not line.startswith("{")).startswith("error: ")
        assert "Traceback" not in "".join(server.lines)
    finally:
        server.__exit__()
