"""Several processes that draw: the same bits, nothing lost, and what is written for clusters."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from desk import ROOT, invoke
from folders import GOLDEN
from held import SOON

import l2c_export
from l2c_export.artefact import store
from l2c_export.serving.fleet.options import FleetOptions, told
from l2c_export.support import machine

pytest.importorskip("fastapi")
INSIDE = ROOT / "tests" / "fleet_inside.py"


@pytest.fixture(scope="module")
def own_network():
    """Ray, and a network that nobody else is in."""
    pytest.importorskip("ray.serve")
    if not shutil.which("unshare") or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("no network of its own can be had here, and Ray's ports are open to others")


@pytest.fixture(scope="module")
def other_pixels(pixels, tmp_path_factory):
    """The same model with other weights: its folder."""
    from l2c_export.compiler.link import bind

    folder = shutil.copytree(pixels, tmp_path_factory.mktemp("other") / "engines")
    bind(folder, "random:9")
    return folder


@pytest.fixture(scope="module")
def fleet(pixels, other_pixels, tmp_path_factory, own_network):
    """What was found of a fleet that has come and gone."""
    folder = tmp_path_factory.mktemp("fleet")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp"}  # sockets have short names
    served, damaged = (shutil.copytree(source, folder / source.parent.name) for source in (pixels, other_pixels))
    weights = damaged / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    command = f"ip link set lo up && exec {sys.executable} {INSIDE} {served} {damaged} {other_pixels}"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr + (folder / "fleet.log").read_text()[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def pictures(folder):
    from l2c_export.serving.http.answers import encoded

    pipe = l2c_export.load(folder, backend="onnxruntime", threads=1)

    def png(label, seed, scale=None):
        return encoded(pipe([label], scale, seed=seed, output_type="np").images[0])

    return png


@pytest.fixture(scope="module")
def picture(pixels):
    return pictures(pixels)


@pytest.fixture(scope="module")
def other_picture(other_pixels):
    return pictures(other_pixels)


def test_it_listens_while_its_replicas_load(fleet):
    ready, status, content = fleet["loading"]
    assert (ready, status, json.loads(content)["error"]["code"]) == (503, 503, "loading")


def test_ended_while_its_replicas_load_it_leaves_no_process(pixels, tmp_path, own_network):
    psutil = pytest.importorskip("psutil")
    words = f"-m l2c_export serve small={pixels} --replicas 2 --cores 1 --port 18734"
    env, log = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp"}, tmp_path / "log"
    inside = ["unshare", "-n", "sh", "-c", f"ip link set lo up && exec {sys.executable} {words}"]
    with log.open("w") as file, subprocess.Popen(inside, cwd=tmp_path, env=env, stdout=file, stderr=file) as server:
        begun: list[psutil.Process] = []
        until = time.monotonic() + SOON
        while not any("raylet" in process.name() for process in begun) and time.monotonic() < until:
            time.sleep(0.1)
            begun = psutil.Process(server.pid).children(recursive=True)
        assert '"ready"' not in log.read_text()
        server.terminate()
        assert server.wait(SOON) == 0, log.read_text()[-3000:]
    assert begun, log.read_text()
    _, alive = psutil.wait_procs(begun, SOON)
    assert not alive
    assert '"drained"' in log.read_text()
    assert "Traceback" not in log.read_text()


def test_it_answers_as_one_process_does(fleet, picture):
    assert fleet["ready"] == 200
    assert [model["id"] for model in json.loads(fleet["models"])["data"]] == ["small"]
    assert fleet["alone"] == picture(1, 4, 1)
    assert [image["b64_json"] for image in json.loads(fleet["several"])["data"]] == [picture(1, seed) for seed in (7, 8, 9)]
    status, content = fleet["wrong"]
    assert (status, json.loads(content)["error"]["message"]) == (400, "class label 99: must be a whole number from 0 to 2")
    assert fleet["reload"] == 401


def test_previews_are_streamed(fleet, picture):
    names = [name for name, _ in fleet["events"]]
    assert names == ["image_generation.partial_image", "image_generation.completed"]
    assert fleet["events"][-1][1] == picture(2, 5)
    assert fleet["events"][0][1] != picture(2, 5)


def test_a_reload_exchanges_all_replicas_or_none(fleet, picture, other_picture):
    (status, content), drawn = fleet["damaged"]
    assert (status, json.loads(content)["error"]["code"]) == (409, "reload_failed")
    assert drawn == picture(1, 4, 1)
    (status, content), *drawn = fleet["exchanged"]
    assert (status, json.loads(content)) == (200, {"reloaded": ["small"]})
    assert drawn == [other_picture(1, 4, 1)] * 8
    assert drawn[0] != picture(1, 4, 1)
    failed, *drawn = fleet["hung up"]
    assert failed == 1, "of the damaged one alone"
    assert drawn == [picture(1, 4, 1)] * 8


def test_replicas_that_are_killed_lose_nothing(fleet, picture):
    """Both of them under load, and what was asked is drawn to the same bits by those that come instead."""
    assert len(fleet["mixed"]) >= 120
    wrong = [n for n, image in enumerate(fleet["mixed"]) if image != picture(n % 3, n, 1 + n % 2)]
    assert not wrong, [fleet["mixed"][n][:40] for n in wrong]


def test_what_was_accepted_is_finished_at_the_end(fleet, picture):
    assert fleet["code"] == 0
    for n, image in enumerate(fleet["ending"]):
        assert image in (picture(n % 3, n, 1 + n % 2), "status 503")
    assert fleet["left"] == []
    counts = fleet["said"]["images"]["small"]
    assert counts["made"] == counts["accepted"] >= 125
    assert counts["retried"] > 0
    messages = [json.loads(line)["message"] for line in fleet["lines"] if line.startswith("{")]
    assert messages[-1] == "drained"
    assert not [line for line in fleet["lines"] if "SIGTERM" in line], "the server's signals are its own, not Ray's"
    of_ray = re.compile(r"\t(WARNING|ERROR)[ \t].* -- ")
    assert not [line for line in fleet["lines"] if of_ray.search(line)], "what Ray logs in this process is JSON, too"


# what clusters are told


@pytest.fixture
def place(tmp_path, monkeypatch, pixels):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(pixels, tmp_path / "small")


def yaml_of(text):
    return pytest.importorskip("yaml").safe_load(text)


def test_a_configuration_is_what_ray_serve_takes(place):
    schema = pytest.importorskip("ray.serve.schema")
    done = invoke("serve small --replicas 3 --cores 2 --max-queue 9 --host 0.0.0.0 --port 80 --print-config")
    assert (done.exit_code, done.stderr) == (0, "")
    config = schema.ServeDeploySchema(**yaml_of(done.stdout))
    (application,) = config.applications
    options = told(application.args)
    assert options == FleetOptions(models={"small": str(place)}, replicas=3, cores=2, max_queue=9)
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 80)


def test_the_application_is_made_of_it(place):
    pytest.importorskip("ray.serve")
    from l2c_export.serving.fleet.app import build

    config = yaml_of(invoke("serve small --replicas 3 --cores 2 --gpus 1 --print-config").stdout)
    front = build(config["applications"][0]["args"])._bound_deployment
    (samplers,) = (application._bound_deployment for application in front.init_args[1].values())
    assert (front.name, samplers.name, samplers.num_replicas) == ("front", "sampler-small", 3)
    assert (samplers.ray_actor_options["num_cpus"], samplers.ray_actor_options["num_gpus"]) == (2, 1)
    assert samplers.init_args[1]["device"] == "cuda:0"
    batch = store.read(place).batch
    assert samplers.max_ongoing_requests == 64 + 3 * batch, "whatever the front accepts may wait in a replica"
    assert samplers.init_args[4] >= samplers.max_ongoing_requests


def test_a_ray_service_holds_it(place):
    done = invoke("serve small --replicas 3 --gpus 1 --print-config kuberay")
    service = yaml_of(done.stdout)
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    inside = yaml_of(service["spec"]["serveConfigV2"])
    assert inside["applications"][0]["args"]["replicas"] == 3
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["replicas"] == 3
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(("line", "code", "says"), [
    ("serve small --replicas 0", 2, "--replicas"),
    ("serve small --gpus 2", 2, "--gpus"),
    ("serve small --replicas 2 --print-config helm", 2, "--print-config helm: use one of serve, kuberay"),
    ("serve small --replicas 2 --trust-engines --print-config", 2, "--trust-engines: a fleet of many machines is"),
])  # fmt: skip
def test_what_a_fleet_cannot_be_told(place, line, code, says):
    done = invoke(line)
    assert done.exit_code == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_args_of_somebody_else_are_refused():
    with pytest.raises(l2c_export.UsageError, match=r"args: .*unknown field `replica`.*: see l2c serve --print-config"):
        told({"models": {"a": "b"}, "replica": 2})


def test_golden_is_no_picture(tmp_path):
    """What has no pixels is refused before Ray is started."""
    done = invoke(f"serve {GOLDEN} --replicas 2")
    assert done.exit_code == 2
    assert "makes latents, no pictures" in done.stderr


def test_cores_are_shared_out():
    assert FleetOptions(models={"a": "a", "b": "b"}, replicas=1000).cores_each == 1
    here = machine.cores()
    assert FleetOptions(models={"a": "a"}).cores_each == here
    assert FleetOptions(models={"a": "a"}, gpus=1).cores_each == max(1, here // 2), "a GPU's decoder computes, too"
    assert FleetOptions(models={"a": "a"}, gpus=1, cores=3).cores_each == 3
    assert np.isclose(FleetOptions(models={"a": "a"}, max_wait_ms=5).settings.max_wait, 0.005)
