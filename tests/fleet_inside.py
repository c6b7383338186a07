"""A fleet from its start to its end, in a network of its own: what became of all that was asked is printed as JSON.

`python fleet_inside.py FOLDER`: the folder of an artefact that makes pixels of classes.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import signal
import subprocess
import sys
import time

import psutil

PORT = 18733


def ask(body, path="/v1/images/generations"):
    """Status and content."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
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
    return [child for child in children if "ray::ServeReplica:l2c:sampler" in " ".join(child.cmdline())]


def events(content):
    parts = [part.split("\n") for part in content.split("\n\n") if part]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))["b64_json"]) for name, data in parts]


def main(folder):
    words = [sys.executable, "-m", "l2c_export", "serve", f"small={folder}", "--replicas", "2", "--cores", "1",
             "--backend", "onnxruntime", "--port", str(PORT), "--json"]  # fmt: skip
    with open("fleet.log", "w") as log:
        server = subprocess.Popen(words, stderr=log, stdout=subprocess.PIPE, text=True)
    try:
        while '"ready"' not in open("fleet.log").read():  # noqa: SIM115
            assert server.poll() is None, open("fleet.log").read()  # noqa: SIM115
            time.sleep(0.1)
        report = {"ready": ask(None, "/health/ready")[0], "models": ask(None, "/v1/models")[1]}
        report["alone"] = picture(4)
        report["several"] = ask({"prompt": "1", "seed": 7, "n": 3})[1]
        report["wrong"] = ask({"prompt": "99"})
        report["reload"] = ask({}, "/admin/reload")[0]
        report["events"] = events(ask({"prompt": "2", "seed": 5, "stream": True, "partial_images": 1})[1])
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            running = [pool.submit(picture, n) for n in range(120)]
            time.sleep(0.3)
            for replica in replicas(server):  # all of them
                replica.send_signal(signal.SIGKILL)
            report["mixed"] = [future.result() for future in running]
            ending = [pool.submit(picture, n) for n in range(8)]
            time.sleep(0.1)
            processes = psutil.Process(server.pid).children(recursive=True)
            server.send_signal(signal.SIGTERM)
            report["ending"] = [future.result() for future in ending]
        report["said"] = json.loads(server.communicate(timeout=60)[0])
        report["code"] = server.returncode
        report["left"] = [process.pid for process in processes if process.is_running()]
        print(json.dumps(report))
    finally:
        if server.poll() is None:
            server.kill()


if __name__ == "__main__":
    os.environ.pop("RAY_AUTH_MODE", None)
    main(sys.argv[1])
