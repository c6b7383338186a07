"""Processor time of an image, server and all, against the bare loop at the same batch: uvicorn, Triton and Ray Serve.

    python scripts/serving_cpu.py --save scripts/results/serving_cpu.json

Every server draws with one thread, in batches of up to 8, for 16 clients who ask for an image each, one after another; the
processes of a server and all its children are counted, clients are not.  Rounds are interleaved; what a machine's other users
do to caches and clocks is in the figures, so it should have none.  Triton is that of nvidia-pytriton, without a GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from l2c_export.support.machine import examine

ROOT = Path(__file__).parents[1]
CLIENTS, BATCH = 16, 8
BARE = """
import sys, time, l2c_export
pipe = l2c_export.load(sys.argv[1], backend="onnxruntime", threads=1)
labels, batches = [n % 10 for n in range(8)], int(sys.argv[2]) // 8
pipe(labels)
began = time.process_time()
for n in range(batches):
    pipe(labels, seed=n, output_type="np")
print((time.process_time() - began) / batches / 8)
"""
Ask = Callable[[int], None]


def bare(folder: Path, images: int) -> float:
    """Seconds of an image in a process of its own."""
    return float(subprocess.check_output([sys.executable, "-c", BARE, str(folder), str(images)], text=True))


def asked(process: psutil.Process, ask: Ask, images: int) -> float:
    """Seconds of an image of all processes of a server, while clients ask."""
    before = used(process)
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(images)))
    return (used(process) - before) / images


def used(process: psutil.Process) -> float:
    """Processor seconds of a process and its children, the ended ones among them as far as they were waited for."""
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def over_openai(port: int) -> Ask:
    def ask(number: int) -> None:
        status = posted(port, "/v1/images/generations", {"prompt": str(number % 10), "seed": number})
        assert status == 200, status

    return ask


def over_oip(port: int) -> Ask:
    def ask(number: int) -> None:
        tensors = [("class_labels", "INT32", number % 10), ("seed", "INT64", number)]
        inputs = [{"name": n, "datatype": t, "shape": [1, 1], "data": [value]} for n, t, value in tensors]
        outputs = [{"name": "images", "parameters": {"binary_data": True}}]
        status = posted(port, "/v2/models/digits/infer", {"inputs": inputs, "outputs": outputs})
        assert status == 200, status

    return ask


def posted(port: int, path: str, body: dict[str, Any]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@contextlib.contextmanager
def l2c_serve(folder: Path, place: Path, port: int, *more: str) -> Iterator[tuple[psutil.Process, Ask]]:
    words = [sys.executable, "-m", "l2c_export", "serve", f"digits={folder}", "--backend", "onnxruntime", "--cores", "1"]
    with open(place / f"{port}.log", "w") as log:
        process = subprocess.Popen([*words, "--port", str(port), *more], stderr=log, stdout=log)
    try:
        while '"ready"' not in (place / f"{port}.log").read_text():
            assert process.poll() is None, (place / f"{port}.log").read_text()
            time.sleep(0.2)
        yield psutil.Process(process.pid), over_openai(port)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def triton(folder: Path, place: Path) -> Iterator[tuple[psutil.Process, Ask]]:
    from l2c_export.serving.triton import TritonOptions, write_repository

    sys.path.insert(0, str(ROOT / "tests"))
    from triton_server import serving

    write_repository([folder], place / "models", TritonOptions(backend="onnxruntime", threads=1, previews=False))
    with serving(place / "models", place) as server:
        port = int(server.http.rpartition(":")[2])
        (process,) = (child for child in psutil.Process().children() if child.name() == "tritonserver")
        yield process, over_oip(port)


def measured(folder: Path, place: Path, rounds: int, images: int) -> dict[str, list[float]]:
    """Processor seconds of an image, by contender and round."""
    with contextlib.ExitStack() as stack:
        servers = {
            "uvicorn": stack.enter_context(l2c_serve(folder, place, 18741)),
            "triton": stack.enter_context(triton(folder, place)),
            "ray": stack.enter_context(l2c_serve(folder, place, 18743, "--replicas", "1")),
        }
        for process, ask in servers.values():
            asked(process, ask, 2 * CLIENTS)  # not counted
        seconds: dict[str, list[float]] = {name: [] for name in ("bare", *servers)}
        for _ in range(rounds):
            seconds["bare"].append(bare(folder, images))
            for name, (process, ask) in servers.items():
                seconds[name].append(asked(process, ask, images))
            print({name: round(values[-1] / seconds["bare"][-1], 3) for name, values in seconds.items()}, flush=True)
        return seconds


def may_unshare() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-n", "true"]).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    if (
        not os.environ.get("L2C_OWN_NETWORK")
        and shutil.which("unshare")
        and not subprocess.run(["unshare", "-n", "true"]).returncode
    ):
        command = " ".join(f"'{word}'" for word in [sys.executable, *sys.argv])
        words = ["unshare", "-n", "sh", "-c", f"ip link set lo up && exec {command}"]  # Ray's ports are nobody else's
        sys.exit(subprocess.run(words, env={**os.environ, "L2C_OWN_NETWORK": "1"}).returncode)
    import l2c_export

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "digits"
        l2c_export.compile(model="demo", batch=BATCH, out=folder, backend="onnxruntime")
        load = os.getloadavg()[0]
        seconds = measured(folder, Path(place), args.rounds, args.images)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: round(value / medians["bare"], 3) for name, value in medians.items()}
    print({"against the bare loop": ratios, "load before": round(load, 2)})
    result = {"command": f"python scripts/serving_cpu.py --save {args.save}", "cpu_seconds_per_image": seconds,
              "against_bare": ratios, "machine": msgspec.to_builtins(examine(["ray", "onnxruntime"]))}  # fmt: skip
    if args.save:
        args.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
