"""A fleet from its start to its end, in a network of its own: what became of all that was asked is printed as JSON.

`python fleet_inside.py FOLDER DAMAGED OTHER`: folders of artefacts that make pixels of classes.  The first is served and, after
one that cannot be loaded, exchanged for the last by a request, and by a hangup for what it was.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil

PORT = 18733
KEY = "a-key-of-the-fleet-in-the-tests"
CLIENTS, FEWEST, KILLS = 8, 120, 5


def ask(body, path="/v1/images/generations", key=KEY):
    """Status and content."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def picture(n):
    status, content = ask({"prompt": str(n % 3), "seed": n, "guidance_scale": 1 + n % 2})
    return json.loads(content)["data"][0]["b64_json"] if status == 200 else f"status {status}"


def replicas(server):
    """The processes that draw."""
    children = psutil.Process(server.pid).children(recursive=True)
    return [child for child in children if "ray::ServeReplica:small:sampler" in " ".join(child.cmdline())]


def events(content):
    parts = [part.split("\n") for part in content.split("\n\n") if part]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))["b64_json"]) for name, data in parts]


def put(other, folder):
    """What lies in a folder is another artefact."""
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def exchanged(folder, other):
    put(other, folder)
    return ask({}, "/admin/reload")


def hung_up(server, folder, other):
    """How many exchanges had failed by the end of this one."""
    put(other, folder)
    server.send_signal(signal.SIGHUP)
    wait_for(server, "was reloaded by its replicas", 2)
    return log_says("reloading failed")


def log_says(words):
    """How often."""
    with open("fleet.log") as log:
        return log.read().count(words)


def wait_for(server, words, times=1):
    late = time.monotonic() + 120
    while log_says(words) < times:
        assert server.poll() is None, words
        assert time.monotonic() < late, words
        time.sleep(0.05)


def under_load(server):
    """What clients who ask all the time get while all replicas are killed, again until one of them had something to do then."""
    numbers, images = itertools.count(), {}
    done = False

    def client():
        while not done or len(images) < FEWEST:
            n = next(numbers)
            images[n] = picture(n)

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client) for _ in range(CLIENTS)]
        try:
            for _ in range(KILLS):
                before, running = len(images), replicas(server)
                while len(images) < before + CLIENTS or not running:  # they are there, and are asked
                    time.sleep(0.02)
                    running = running or replicas(server)
                for replica in running:  # what they are asked from here on, they cannot have answered before they end
                    replica.send_signal(signal.SIGSTOP)
                time.sleep(0.3)
                for replica in running:
                    replica.send_signal(signal.SIGKILL)
                late = time.monotonic() + 10
                while not log_says("another one is asked") and time.monotonic() < late:
                    time.sleep(0.1)
                if log_says("another one is asked"):
                    break
        finally:
            done = True
        for future in clients:
            future.result()
    return [images[n] for n in range(len(images))]


def main(folder, damaged, other):
    with open("keys", "w") as file:
        file.write(KEY)
    words = [sys.executable, "-m", "l2c_export", "serve", f"small={folder}", "--replicas", "2", "--cores", "1",
             "--backend", "onnxruntime", "--port", str(PORT), "--json",
             "--api-key-file", "keys"]  # fmt: skip
    before = shutil.copytree(folder, "before")
    with open("fleet.log", "w") as log:
        server = subprocess.Popen(words, stderr=log, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(server, '"listening"')
        report = {"loading": [ask(None, "/health/ready")[0], *ask({"prompt": "1"})]}
        wait_for(server, '"ready"')
        report |= {"ready": ask(None, "/health/ready")[0], "models": ask(None, "/v1/models")[1]}
        report["alone"] = picture(4)
        report["several"] = ask({"prompt": "1", "seed": 7, "n": 3})[1]
        report["wrong"] = ask({"prompt": "99"})
        report["reload"] = ask({}, "/admin/reload", key=None)[0]
        report["events"] = events(ask({"prompt": "2", "seed": 5, "stream": True, "partial_images": 1})[1])
        report["damaged"] = [exchanged(folder, damaged), picture(4)]
        report["exchanged"] = [exchanged(folder, other), *map(picture, [4] * 8)]
        report["hung up"] = [hung_up(server, folder, before), *map(picture, [4] * 8)]
        report["mixed"] = under_load(server)
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            ending = [pool.submit(picture, n) for n in range(8)]
            time.sleep(0.1)
            processes = psutil.Process(server.pid).children(recursive=True)
            server.send_signal(signal.SIGTERM)
            report["ending"] = [future.result() for future in ending]
        report["said"] = json.loads(server.communicate(timeout=60)[0])
        report["code"] = server.returncode
        with open("fleet.log") as log:
            report["lines"] = log.read().splitlines()
        report["left"] = [process.pid for process in processes if process.is_running()]
        print(json.dumps(report))
    finally:
        if server.poll() is None:
            server.kill()


if __name__ == "__main__":
    os.environ.pop("RAY_AUTH_MODE", None)
    main(*sys.argv[1:])
