"""What a fleet loses when parts of it go: images are asked for all the time, and every answer is compared with the pipeline's.

    python scripts/fleet_faults.py --save scripts/results/fleet_faults.json

It needs the extras ray, serve and onnxruntime, and runs in a network of its own where that is allowed (`unshare -n`), as
Ray's ports are open on every interface.  The processes that are killed are those that it has started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from l2c_export.serving.fleet.options import FleetOptions
from l2c_export.serving.http.settings import ServerSettings
from l2c_export.support.machine import examine
from l2c_export.support.own_ray import prepare

CLIENTS, KNOWN = 8, 40  # who ask at the same time; different images that they ask for
PORT = 18711
INSIDE = "L2C_OWN_NETWORK"


class Load:
    """Clients that ask one after another until they are stopped, and what became of every request."""

    def __init__(self, expected: list[bytes]) -> None:
        self.expected, self.counts, self.longest = expected, Counter[str](), 0.0
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        number = client
        while not self._stopped.is_set():
            began = time.perf_counter()
            outcome = asked(number % KNOWN, self.expected)
            with self._lock:
                self.counts[outcome] += 1
                self.longest = max(self.longest, time.perf_counter() - began)
            number += CLIENTS


def asked(number: int, expected: list[bytes]) -> str:
    """One request over a connection of its own: "right", or what was wrong."""
    body = json.dumps({"prompt": str(number % 10), "seed": number})
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    try:
        connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except OSError as error:
        return f"lost: {type(error).__name__}"
    finally:
        connection.close()
    if answer.status != 200:
        return f"lost: status {answer.status}"
    return "right" if json.loads(content)["data"][0]["b64_json"].encode() == expected[number] else "lost: other bits"


def expected_images(folder: Path) -> list[bytes]:
    """What the pipeline makes of the same requests."""
    import l2c_export
    from l2c_export.serving.http.answers import encoded

    pipe = l2c_export.load(folder, backend="onnxruntime", threads=1)
    return [encoded(pipe([n % 10], seed=n, output_type="np").images[0]).encode() for n in range(KNOWN)]


def replicas() -> list[int]:
    """The processes that draw: their numbers."""
    import psutil

    pids = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        words = " ".join(process.info["cmdline"] or [])
        own = (process.info["environ"] or {}).get("RAY_AUTH_TOKEN") == os.environ["RAY_AUTH_TOKEN"]
        if own and re.match(r"ray::ServeReplica:\w+:sampler-", words):
            pids.append(process.info["pid"])
    return pids


def retried_images() -> int:
    """How often another replica was asked since the front began."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics").read().decode()
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("l2c_retried_images_total{")))


def told(name: str, expected: list[bytes], what: Callable[[], Any], settle: float) -> dict[str, Any]:
    """Ask all the time, do it in the middle, and go on until things have settled: by name what was found."""
    before = retried_images()
    with Load(expected) as load:
        time.sleep(settle / 2)
        what()
        time.sleep(settle)
    retried = retried_images() - before
    counts = dict(load.counts)
    right = counts.pop("right", 0)
    lost = sum(counts.values())
    print(
        f"{name}: {lost} of {right + lost} lost {counts or ''}, {retried} retried, the longest took {load.longest:.1f} s",
        flush=True,
    )
    outcome = {"asked": right + lost, "right": right, "lost": lost, "how": counts, "longest_seconds": round(load.longest, 2),
               "retried": retried}  # fmt: skip
    return {name: outcome}


def kill_three() -> None:
    """One replica after another, each with what it computes."""
    for _ in range(3):
        os.kill(replicas()[0], signal.SIGKILL)
        time.sleep(4)


@contextlib.contextmanager
def served(options: FleetOptions) -> Iterator[None]:
    """The server of `l2c serve --replicas` in a thread, so that its samplers can be deployed again from here."""
    from l2c_export.serving.fleet import local
    from l2c_export.serving.http.server import listening, server_of

    settings = ServerSettings(port=PORT, max_queue=options.max_queue)
    with local.fleet(options, settings) as shelf, listening(settings) as listener:
        server = server_of(shelf, settings)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        while not shelf.ready and thread.is_alive():
            time.sleep(0.1)
        try:
            if server.failed:
                raise server.failed
            yield
        finally:
            server.should_exit = True
            thread.join()


def on_this_machine(options: FleetOptions, expected: list[bytes]) -> dict[str, Any]:
    """Replicas that are killed, deployed again, and fewer or more of them."""
    from l2c_export.serving.fleet import local

    fewer = msgspec.structs.replace(options, replicas=1)
    with served(options):
        return {
            **told("replicas killed", expected, kill_three, 4),
            **told("deployed again", expected, lambda: local.deploy(options, threading.Event()), 4),
            **told("scaled in, from 2 to 1", expected, lambda: local.deploy(fewer, threading.Event()), 4),
            **told("scaled out, from 1 to 2", expected, lambda: local.deploy(options, threading.Event()), 4),
        }


def on_two_nodes(options: FleetOptions, expected: list[bytes]) -> dict[str, Any]:
    """A head with the front and two workers, of which one goes with all that it has: raylets of this machine, as a cluster."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from l2c_export.serving.fleet.app import build

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(build(msgspec.to_builtins(options)), name="l2c")
        return told("a worker node gone", expected, lambda: cluster.remove_node(nodes[0], allow_graceful=False), 12)
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def measured(folder: Path) -> dict[str, Any]:
    prepare()
    options = FleetOptions(models={"digits": str(folder)}, replicas=2, cores=1, backend="onnxruntime", max_queue=200)
    expected = expected_images(folder)
    return {**on_two_nodes(options, expected), **on_this_machine(options, expected)}


def own_network() -> bool:
    """Go on in a network that nobody else reaches; False where that is not allowed."""
    if os.environ.get(INSIDE) or not shutil.which("unshare") or subprocess.run(["unshare", "-n", "true"]).returncode:
        return False
    words = " ".join(f"'{word}'" for word in [sys.executable, *sys.argv])
    command = ["unshare", "-n", "sh", "-c", f"ip link set lo up && exec {words}"]
    sys.exit(subprocess.run(command, env={**os.environ, INSIDE: "1"}).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    own_network()
    import l2c_export

    with tempfile.TemporaryDirectory() as place:
        artefact = l2c_export.compile(model="demo", batch=8, out=Path(place) / "digits", backend="onnxruntime")
        faults = measured(artefact.path)
    command = f"python scripts/fleet_faults.py --save {args.save}"
    result = {"command": command, "clients": CLIENTS, "faults": faults, "machine": msgspec.to_builtins(examine(["ray"]))}
    if args.save:
        args.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
