"""Load a server of `l2c serve`, beside the bare loop: what it costs, how long clients wait, whom it turns away, what it keeps.

    python scripts/serve_load.py engines/demo [--rounds 5] [--seconds 20] [--requests 1000] [--only cpu|waits|memory]
                                              [--json FILE] [--plot FILE.png]

The server is a process of its own with one core, as is the bare loop: a pipeline that makes batches of 8.  CPU per image is the
median of so many interleaved rounds, of the processes' own CPU seconds, so that others on the machine matter little.  Clients
come at random (Poisson) at shares of the rate that the bare loop has just had; what they wait is given in batches of that loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import l2c_export  # noqa: E402
from l2c_export.support.figure import DARK, GREY, RIVAL, clean, new_figure, write  # noqa: E402

BATCH, CLIENTS, QUEUE = 8, 24, 32
SHARES = (0.3, 0.6, 0.9, 1.5)
IMAGES = "/v1/images/generations"


class Bare(NamedTuple):
    cpu: float  # seconds per image
    seconds: float  # per image, by the clock


def bare_loop(engines: str, batches: int) -> Bare:
    """In this process: a pipeline that makes batches of 8."""
    pipe = l2c_export.load(engines, threads=1)
    labels = [n % 3 for n in range(BATCH)]
    pipe(labels)
    cpu, clock = _cpu(), time.perf_counter()
    for n in range(batches):
        pipe(labels, seed=n * BATCH)
    return Bare((_cpu() - cpu) / batches / BATCH, (time.perf_counter() - clock) / batches / BATCH)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bare(engines: str, batches: int) -> Bare:
    """In a process of its own."""
    words = [sys.executable, __file__, engines, "--bare", str(batches)]
    return Bare(*json.loads(subprocess.run(words, check=True, capture_output=True, text=True, env=environment()).stdout))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Server:
    """`l2c serve` of these engines: its address, and what its metrics say."""

    def __init__(self, url: str) -> None:
        self.url = url

    def value(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    @property
    def images(self) -> float:
        return self.value('l2c_images_total{model="m",outcome="made"}')

    @property
    def cpu(self) -> float:
        return self.value("l2c_process_cpu_seconds_total")

    @property
    def resident(self) -> float:
        return self.value("l2c_process_resident_memory_bytes")


@contextlib.contextmanager
def serving(engines: str) -> Iterator[Server]:
    words = ["serve", f"m={engines}", "--port", "0", "--cores", "1", "--max-queue", str(QUEUE), "--max-batch", str(BATCH)]
    process = subprocess.Popen(
        [sys.executable, "-m", "l2c_export", *words], stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stderr
    try:
        lines = iter(process.stderr.readline, "")
        url = next(match[1] for line in lines if (match := re.search(r'"url":"([^"]*)"', line)))
        next(line for line in lines if '"ready"' in line)
        with open(os.devnull, "w") as nowhere:
            reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=nowhere)
        yield Server(url)
        process.terminate()
        assert process.wait(60) == 0
        reader.wait()
    finally:
        process.kill()


Ask = Callable[[int], Awaitable[int]]


@contextlib.asynccontextmanager
async def asking(url: str) -> Any:
    """A function that asks for an image and returns the status."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def ask(n: int) -> int:
            answer = await client.post(IMAGES, json={"prompt": str(n % 3), "seed": n})
            return answer.status_code

        yield ask


async def steady(server: Server, images: int, clients: int = CLIENTS) -> float:
    """CPU seconds of the server per image, while it always has enough to do."""
    ends = False
    async with asking(server.url) as ask:

        async def client(first: int) -> None:
            n = first
            while not ends:
                await ask(n)
                n += clients

        tasks = [asyncio.create_task(client(n)) for n in range(clients)]
        begin = await _after(server, (await asyncio.to_thread(lambda: server.images)) + 2 * BATCH)
        end = await _after(server, begin[0] + images)
        ends = True
        await asyncio.gather(*tasks)
    return (end[1] - begin[1]) / (end[0] - begin[0])


async def _after(server: Server, images: float) -> tuple[float, float]:
    """So many images, and the CPU seconds of them, once that many have been made."""
    while True:
        reading = await asyncio.to_thread(lambda: (server.images, server.cpu))
        if reading[0] >= images:
            return reading
        await asyncio.sleep(0.25)


async def offered(server: Server, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Clients who come at random at this rate, whoever waits already."""
    chance, at = random.Random(seed), [0.0]
    while at[-1] < seconds:
        at.append(at[-1] + chance.expovariate(rate))
    waited, statuses = list[float](), Counter[int]()
    longest = 0.0
    async with asking(server.url) as ask:
        began = time.perf_counter()

        async def one(n: int, when: float) -> None:
            await asyncio.sleep(max(0.0, began + when - time.perf_counter()))
            start = time.perf_counter()
            status = await ask(n)
            statuses[status] += 1
            if status == 200:
                waited.append(time.perf_counter() - start)

        async def watch() -> None:
            nonlocal longest
            while True:
                longest = max(longest, await asyncio.to_thread(server.value, "l2c_queue_images"))
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(n, when) for n, when in enumerate(at[1:])))
        watching.cancel()
    waited.sort()
    return {"asked": len(at) - 1, "answered": statuses[200], "rejected": statuses[429], "longest_queue": longest,
            "others": sum(statuses.values()) - statuses[200] - statuses[429],
            "p50": _share(waited, 0.5), "p90": _share(waited, 0.9), "p99": _share(waited, 0.99)}  # fmt: skip


def _share(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


async def many(server: Server, requests: int) -> list[float]:
    """Resident bytes after every tenth of so many requests, from when every batch size has been made once: it is bound then."""
    resident = []
    for size in range(BATCH, 0, -1):  # the largest first: the buffers grow with it, and what was bound before is bound again
        body = {"prompt": "1", "n": size, "seed": 0}
        assert httpx.post(f"{server.url}{IMAGES}", json=body, timeout=120).json()["data"][0]["l2c"]["batch"] == size
    async with asking(server.url) as ask:
        for part in range(10):
            gate = asyncio.Semaphore(CLIENTS)

            async def one(n: int, gate: asyncio.Semaphore = gate) -> None:
                async with gate:
                    assert await ask(n) == 200

            await asyncio.gather(*(one(part * requests + n) for n in range(requests // 10)))
            resident.append(await asyncio.to_thread(lambda: server.resident))
    return resident


def cpu(engines: str, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"bare": [], "served": []}
    with serving(engines) as server:
        for n in range(rounds):
            seconds["bare"].append(bare(engines, 8).cpu)
            seconds["served"].append(asyncio.run(steady(server, 8 * BATCH)))
            print(
                f"round {n}: CPU of an image {seconds['bare'][-1]:.4f} s bare, {seconds['served'][-1]:.4f} s served",
                file=sys.stderr,
            )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"cpu_seconds_per_image": {**seconds, "medians": medians, "ratio": medians["served"] / medians["bare"]}}


def waits(engines: str, seconds: float) -> dict[str, Any]:
    levels = []
    with serving(engines) as server:
        for n, share in enumerate(SHARES):
            loop = bare(engines, 4)
            figures = asyncio.run(offered(server, share / loop.seconds, seconds, n))
            batch = BATCH * loop.seconds
            in_batches = {f"{name}_batches": figures[name] / batch for name in ("p50", "p90", "p99")}
            levels.append({"share": share, "batch_seconds": batch, **figures, **in_batches})
            print(json.dumps(levels[-1]), file=sys.stderr)
    return {"offered": levels, "queue": QUEUE, "batch": BATCH}


def memory(engines: str, requests: int) -> dict[str, Any]:
    with serving(engines) as server:
        resident = asyncio.run(many(server, requests))
    return {"requests": requests, "resident_bytes": resident, "grown": resident[-1] / resident[0] - 1}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor()


def plot(results: dict[str, Any], path: Path) -> None:
    figure = new_figure(9, 3.2)
    wait, turned, memory = figure.subplots(1, 3)
    shares = [level["share"] for level in results["offered"]]
    for name, colour in (("p50", DARK), ("p99", RIVAL)):
        wait.plot(shares, [level[f"{name}_batches"] for level in results["offered"]], "o-", color=colour, label=name)
    wait.set_xlabel("offered, share of the loop's rate", fontsize=8)
    wait.set_title("wait, in batches of 8 of the bare loop", fontsize=9)
    wait.set_ylim(0)
    wait.legend(fontsize=8, frameon=False)
    turned.bar(
        [str(share) for share in shares], [100 * level["rejected"] / level["asked"] for level in results["offered"]], color=DARK
    )
    turned.set_xlabel("offered, share of the loop's rate", fontsize=8)
    turned.set_title("turned away (429), %", fontsize=9)
    resident = [value / 2**20 for value in results["resident_bytes"]]
    memory.plot([results["requests"] * n // 10 for n in range(1, 11)], resident, "o-", color=GREY)
    memory.set_ylim(0, 1.2 * max(resident))
    memory.set_xlabel("requests", fontsize=8)
    memory.set_title("memory of the server, MB", fontsize=9)
    for axes in (wait, turned, memory):
        clean(axes)
    write(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--only", choices=("cpu", "waits", "memory"), help="one part; --json keeps the others that it has")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        print(json.dumps(bare_loop(args.engines, args.bare)))
        return
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.only and args.json and args.json.exists() else {}
    results["machine"] = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()}
    parts = {"cpu": lambda: cpu(args.engines, args.rounds), "waits": lambda: waits(args.engines, args.seconds),
             "memory": lambda: memory(args.engines, args.requests)}  # fmt: skip
    for part in [args.only] if args.only else parts:
        results |= parts[part]()
    text = json.dumps(results, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
