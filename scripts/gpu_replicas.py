#!/usr/bin/env python3
"""Images a second of `l2c serve` with one replica and with one on every GPU: DiT-XL/2, batches of 8, over HTTP.

    python scripts/gpu_replicas.py OUT --router DDIM20_router.pt --gpus 2 --json replicas.json

Random weights, and a decoder of 8 channels (diffusers' AutoencoderTiny), which the processor runs.  With `--scale 1`, the
default, pictures are as small as the latents, so that next to nothing but the denoiser takes time; with `--scale 8` they are
of 256 x 256 pixels, and decoder and PNG take some 30 ms of a core for each: replicas then need `--cores`.  The CPU time of
an image is that of the server with all its processes.

Four batches of clients for each replica ask for an image each, one after another.  The rounds of one and of several replicas
alternate, each with a server of its own.  An artefact that is in OUT/engines is taken as it is; with `--gpus-each 0`, replicas
without a GPU, that tries the way on a machine that has none.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

BATCH, CLIENTS, PORT = 8, 32, 18750
START = 240  # seconds in which a fleet is ready, or is not going to be
CLASSES = 1000


def compiled(folder: Path, router: str, backend: str, scale: int) -> Path:
    """An artefact that makes pictures, `scale` times as high and wide as the latents."""
    import diffusers
    import torch

    import l2c_export

    if not (folder / "engines").exists():
        blocks = {1: 1, 8: 4}[scale]  # each but the first doubles
        narrow = {"latent_channels": 4, "decoder_block_out_channels": (8,) * blocks, "num_decoder_blocks": (1,) * blocks}
        torch.manual_seed(0)
        diffusers.AutoencoderTiny(**narrow).save_pretrained(folder / "vae")
        l2c_export.compile(router, model="DiT-XL/2", weights="random:0", vae=folder / "vae", precision="fp16", batch=BATCH,
                           backend=backend, out=folder / "engines")  # fmt: skip
    return folder / "engines"


@contextlib.contextmanager
def served(engines: Path, replicas: int, gpus: int, cores: int, backend: str, log: Path) -> Iterator[psutil.Process]:
    """A fleet that is ready, with so many GPUs and cores for each replica."""
    words = [sys.executable, "-m", "l2c_export", "serve", f"xl={engines}", "--backend", backend, "--port", str(PORT)]
    words += ["--replicas", str(replicas), "--gpus", str(gpus), "--cores", str(cores), "--max-queue", "4096"]
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    late = time.monotonic() + START
    try:
        while '"ready"' not in log.read_text():
            if process.poll() is not None or time.monotonic() > late:
                raise SystemExit(log.read_text()[-3000:])
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def ask(number: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    body = json.dumps({"prompt": str(number % CLASSES), "seed": number})
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    assert answer.status == 200, said[:300]


def cpu_seconds(server: psutil.Process) -> float:
    """Of all its processes that live."""
    total = 0.0
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def images_a_second(server: psutil.Process, replicas: int, seconds: float) -> tuple[float, float]:
    """Of clients who ask all the time; and CPU seconds of an image."""
    count = max(200, int(70 * seconds * replicas))
    with concurrent.futures.ThreadPoolExecutor(CLIENTS * replicas) as pool:
        list(pool.map(ask, range(CLIENTS * replicas)))  # engines are bound, kernels loaded
        cpu, began = cpu_seconds(server), time.perf_counter()
        list(pool.map(ask, range(count)))
        return count / (time.perf_counter() - began), (cpu_seconds(server) - cpu) / count


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--router", required=True)
    ap.add_argument("--gpus", type=int, default=2, help="replicas that are compared with one")
    ap.add_argument("--gpus-each", type=int, choices=(0, 1), default=1, help="GPUs of a replica")
    ap.add_argument("--cores", type=int, default=min(4, os.cpu_count() or 1), help="of a replica")
    ap.add_argument("--scale", type=int, choices=(1, 8), default=1, help="of a side of the pictures to one of the latents")
    ap.add_argument("--backend", default="cuda")
    ap.add_argument("--seconds", type=float, default=12, help="of a round, about")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    engines = compiled(args.folder, args.router, args.backend, args.scale)
    rates: dict[int, list[float]] = {1: [], args.gpus: []}
    cpu: dict[int, list[float]] = {1: [], args.gpus: []}
    for _ in range(args.rounds):
        for replicas, values in rates.items():
            with served(engines, replicas, args.gpus_each, args.cores, args.backend, args.folder / "server.log") as server:
                rate, spent = images_a_second(server, replicas, args.seconds)
            values.append(rate)
            cpu[replicas].append(spent)
            print(replicas, rate, spent, flush=True)
        one, several = (statistics.median(rates[replicas]) for replicas in (1, args.gpus))
        results = {"images_per_second": rates, "ratio": several / one, "cpu_seconds_per_image": cpu,
                   "scale": args.scale, "cores_each": args.cores, "processors": os.cpu_count()}  # fmt: skip
        print(json.dumps(results), flush=True)
        if args.json:
            args.json.write_text(json.dumps({"command": " ".join(["python", *sys.argv]), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
