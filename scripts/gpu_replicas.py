#!/usr/bin/env python3
"""Images a second of `l2c serve` with one replica and with one on every GPU: DiT-XL/2, batches of 8, over HTTP.

    python scripts/gpu_replicas.py OUT --router DDIM20_router.pt --gpus 2 --json replicas.json

Random weights, and a decoder of 8 channels (diffusers' AutoencoderTiny), so that answers are pictures and next to nothing but
the denoiser takes time.  Four batches of clients for each replica ask for an image each, one after another.  The rounds of
one and of several replicas alternate, each with a server of its own.  An artefact that is in OUT/engines is taken as it is;
with `--each 0`, replicas without a GPU, that tries the way on a machine that has none.
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

BATCH, CLIENTS, PORT = 8, 32, 18750
START = 240  # seconds in which a fleet is ready, or is not going to be
CLASSES = 1000


def compiled(folder: Path, router: str, backend: str) -> Path:
    """An artefact that makes pictures."""
    import diffusers

    import l2c_export

    if not (folder / "engines").exists():
        narrow = {"latent_channels": 4, "decoder_block_out_channels": (8,) * 4, "num_decoder_blocks": (1,) * 4}
        diffusers.AutoencoderTiny(**narrow).save_pretrained(folder / "vae")
        l2c_export.compile(router, model="DiT-XL/2", weights="random:0", vae=folder / "vae", precision="fp16", batch=BATCH,
                           backend=backend, out=folder / "engines")  # fmt: skip
    return folder / "engines"


@contextlib.contextmanager
def served(engines: Path, replicas: int, each: int, backend: str, log: Path) -> Iterator[None]:
    """A fleet that is ready, with so many GPUs for each replica."""
    words = [sys.executable, "-m", "l2c_export", "serve", f"xl={engines}", "--backend", backend, "--port", str(PORT)]
    cores = min(4, os.cpu_count() or 1)
    words += ["--replicas", str(replicas), "--gpus", str(each), "--cores", str(cores), "--max-queue", "4096"]
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    late = time.monotonic() + START
    try:
        while '"ready"' not in log.read_text():
            if process.poll() is not None or time.monotonic() > late:
                raise SystemExit(log.read_text()[-3000:])
            time.sleep(0.2)
        yield
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


def images_a_second(replicas: int, seconds: float) -> float:
    """Of clients who ask all the time."""
    count = max(200, int(70 * seconds * replicas))
    with concurrent.futures.ThreadPoolExecutor(CLIENTS * replicas) as pool:
        list(pool.map(ask, range(CLIENTS * replicas)))  # engines are bound, kernels loaded
        began = time.perf_counter()
        list(pool.map(ask, range(count)))
        return count / (time.perf_counter() - began)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--router", required=True)
    ap.add_argument("--gpus", type=int, default=2, help="replicas that are compared with one")
    ap.add_argument("--each", type=int, choices=(0, 1), default=1, help="GPUs of a replica")
    ap.add_argument("--backend", default="cuda")
    ap.add_argument("--seconds", type=float, default=12, help="of a round, about")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    engines = compiled(args.folder, args.router, args.backend)
    rates: dict[int, list[float]] = {1: [], args.gpus: []}
    for _ in range(args.rounds):
        for replicas, values in rates.items():
            with served(engines, replicas, args.each, args.backend, args.folder / "server.log"):
                values.append(images_a_second(replicas, args.seconds))
            print(replicas, values[-1], flush=True)
        one, several = (statistics.median(values) for values in rates.values())
        results = {"images_per_second": rates, "ratio": several / one, "processors": os.cpu_count()}
        print(json.dumps(results), flush=True)
        if args.json:
            args.json.write_text(json.dumps({"command": " ".join(["python", *sys.argv]), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
