"""Kill, mutate, poison, crowd and wear out the product, and count what happens.

    python scripts/torture.py [--quick] [--seed 0] [--only kills --only mutations] [--json scripts/results/torture.json]

Every section has a number of trials and a bound in time; what is printed is what was done.  Everything runs in forked
processes, so that a crash or a hang is a count as well.  The exit code is 1 if anything happened that must not.
"""

from __future__ import annotations

import argparse
import contextlib
import copyreg
import functools
import hashlib
import io
import json
import os
import pickle
import random
import resource
import select
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # no threads before a fork

import altered  # noqa: E402
import hostile  # noqa: E402
from altered import json_changed  # noqa: E402

import l2c_export  # noqa: E402
from l2c_export import L2CError, Schedule, load  # noqa: E402
from l2c_export.artefact import integrity, store, user_weights  # noqa: E402
from l2c_export.artefact.records import FILE  # noqa: E402
from l2c_export.backends.descriptors import built  # noqa: E402
from l2c_export.compiler.compile import lower  # noqa: E402
from l2c_export.compiler.request import Options  # noqa: E402
from l2c_export.compiler.source import resolve  # noqa: E402
from l2c_export.models import lookup  # noqa: E402
from l2c_export.schedules import routers  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "v2"
LIMIT = 60.0  # seconds; what takes longer hangs, on a busy machine too
BAD = ("error", "crash", "hang", "half", "lost", "executed", "outside", "corrupt", "different", "grown")


class Verdict(NamedTuple):
    """done, refused (an L2CError of one line), error, crash or hang; and what was returned or said."""

    kind: str
    detail: Any


def verdict(act: Callable[[], Any]) -> Verdict:
    try:
        return Verdict("done", act())
    except L2CError as error:
        return Verdict("error" if "\n" in str(error) else "refused", str(error))
    except BaseException:
        return Verdict("error", traceback.format_exc())


def stream(trials: Sequence[Callable[[], Any]], deadline: float, limit: float = LIMIT) -> Iterator[Verdict]:
    """Run trials in a forked process, one after the other; a new one goes on after a crash or a hang."""
    at = 0
    while at < len(trials) and time.monotonic() < deadline:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            with contextlib.suppress(BaseException):
                for trial in trials[at:]:
                    data = pickle.dumps(verdict(trial))
                    os.write(writing, len(data).to_bytes(4, "little") + data)
            os._exit(0)
        os.close(writing)
        for result in _answers(reading, limit):
            yield result
            at += 1
            if result.kind in ("hang", "crash") or at == len(trials) or time.monotonic() > deadline:
                break
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _answers(reading: int, limit: float) -> Iterator[Verdict]:
    def take(count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            ready, _, _ = select.select([reading], [], [], limit)
            if not ready:
                return None
            more = os.read(reading, count - len(data))
            if not more:
                return b""
            data += more
        return data

    while True:
        head = take(4)
        data = take(int.from_bytes(head, "little")) if head else head
        if not data:
            yield Verdict("hang" if data is None else "crash", "")
            return
        yield pickle.loads(data)  # written by ourselves


def once(act: Callable[[], Any]) -> Verdict:
    """One trial, which may take its time: it is a whole compilation, or many images."""
    return next(stream([act], time.monotonic() + 600, 600.0))


def on_two_cores(trials: Sequence[Callable[[], Any]], seconds: float) -> list[Verdict]:
    """Two streams; the verdicts in the order of the trials that were done."""
    deadline, verdicts = time.monotonic() + seconds, [list[Verdict]() for _ in range(2)]
    threads = [
        threading.Thread(target=lambda n=n: verdicts[n].extend(stream(trials[n::2], deadline)), daemon=True) for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [verdict for pair in zip(*verdicts, strict=False) for verdict in pair]


def digest(folder: Path, backend: str = "onnxruntime") -> str:
    """What an artefact makes of one request."""
    with load(folder, backend, threads=1) as pipe:
        return hashlib.sha256(pipe([0, 2], 2.0, seed=7).latents.tobytes()).hexdigest()[:12]


OPTIONS = {"schedule": "every:2", "model": str(GOLDEN / "model.json"), "steps": 4, "batch": 2, "backend": "onnxruntime"}


def compiled(out: Path, weights: str) -> l2c_export.Artefact:
    return l2c_export.compile(**OPTIONS, out=out, weights=weights)


# kills


def kills(count: int, seconds: float, chance: random.Random, work: Path) -> Counter[str]:
    """SIGKILL at random times; afterwards there is the old artefact or the new one, and the same command succeeds."""
    makes = {w: once(lambda w=w: (compiled(work / w[-1], w), digest(work / w[-1]))[1]).detail
             for w in ("random:1", "random:2")}  # fmt: skip
    folder, counts = work / "engines", Counter[str]()

    def export(weights: str) -> None:
        compiled(folder, weights)

    def cold_export(weights: str) -> None:
        os.environ["L2C_CACHE"] = str(work / "cold")
        export(weights)

    def build(weights: str) -> None:
        l2c_export.build(folder, "tensorrt-rtx", targets="sm86")

    acts: dict[str, Callable[[str], object]] = {
        "export": export,
        "first export": export,
        "cold export": cold_export,
        "link": lambda weights: l2c_export.link(folder, weights),
        "build": build,
    }
    lasts = dict.fromkeys(acts, 0.0)
    for name, act in acts.items():  # how long each takes, killed by nobody
        started = time.monotonic()
        assert once(lambda act=act: act("random:1")).kind == "done", name
        lasts[name] = time.monotonic() - started
    deadline = time.monotonic() + seconds
    while counts["kills"] < count and time.monotonic() < deadline:
        name = chance.choices(list(acts), (6, 4, 0.5, 5, 4))[0]
        weights = chance.choice(list(makes))
        if name == "first export":
            shutil.rmtree(folder)
        old = once(lambda: (digest(folder), _builds(folder))).detail if folder.exists() else None
        if chance.random() < 0.7:  # else it has the cache of the last one
            shutil.rmtree(work / "cold", ignore_errors=True)
            shutil.rmtree(Path(os.environ["L2C_CACHE"]) / "plans", ignore_errors=True)
        delay = lasts[name] * chance.uniform(*chance.choice(((0, 1), (0.7, 1.1))))  # half of them near the end
        ended = killed(lambda: acts[name](weights), delay)  # noqa: B023
        if ended:
            lasts[name] = max(min(lasts[name], delay), 0.02)
        now = once(lambda: (digest(folder), _builds(folder)))
        counts["kills"] += not ended
        counts[f"killed: {name}"] += not ended
        expected = makes[weights] if name != "build" else old[0]
        if now.kind == "done":
            same = old is not None and now.detail[0] == old[0]
            counts["the old one was there" if same else "the new one was there"] += not ended
            counts["half"] += now.detail[0] not in (expected, old and old[0])
        else:
            counts["nothing was there"] += 1
            counts["lost"] += old is not None or now.kind != "refused"
        again = once(lambda: (acts[name](weights), digest(folder))[1])  # noqa: B023
        counts["rebuilt"] += again.kind == "done" and again.detail == expected
        counts["error"] += not (again.kind == "done" and again.detail == expected)
        counts["leftovers"] += bool(list(folder.glob(".l2c*")))
        if again.kind != "done" or counts["half"] or counts["lost"]:
            print(f"kill {counts['kills']}: {name}: {old} -> {now} -> {again}", file=sys.stderr)
    return counts


def _builds(folder: Path) -> int:
    return sum(len(build.engines) for build in store.read(folder).builds.values())


def killed(act: Callable[[], object], after: float) -> bool:
    """Run in a process that is killed after so many seconds; whether it had ended by then."""
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        with contextlib.suppress(BaseException):
            act()
        os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


# mutations


def bytes_changed(data: bytes, chance: random.Random) -> bytes:
    """One to three bits flipped, bytes set, ranges cut, doubled, swapped or filled."""
    buffer = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at, length = chance.randrange(len(buffer)), chance.choice((1, 1, 2, 4, 8, 64, 1000))
        how = chance.randrange(6)
        if how == 0:
            buffer[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            buffer[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif how == 2:
            del buffer[at : at + length]
        elif how == 3:
            buffer[at:at] = buffer[at : at + length]
        elif how == 4:
            buffer[at : at + length] = chance.randbytes(length)
        else:
            del buffer[at:]
        buffer = buffer or bytearray(b"\0")
    return bytes(buffer)


def head_changed(data: bytes, chance: random.Random) -> bytes:
    """The beginning, where the names and sizes are."""
    return bytes_changed(data[:4096], chance) + data[4096:]


@functools.cache
def own_copy(process: int) -> Path:
    """An artefact of this process's own, to damage."""
    return shutil.copytree(
        GOLDEN / "engines", Path(tempfile.mkdtemp(prefix=f"torture-{process}-", dir=os.environ["TORTURE"])) / "e"
    )


@functools.cache
def original(process: int) -> str:
    return digest(GOLDEN / "engines")


Change = Callable[[bytes, random.Random], bytes]


def in_artefact(name: str, change: Change, signed: bool, seed: int) -> str:
    """Change a file of an artefact, and perhaps the manifest's hashes as well, and generate with it."""
    folder, chance = own_copy(os.getpid()), random.Random(seed)
    files = sorted(p for p in folder.glob(name))
    path = chance.choice(files)
    before, manifest = path.read_bytes(), (folder / FILE).read_bytes()
    try:
        path.write_bytes(change(before, chance))
        if signed:
            _sign(folder, path)
        return "harmless" if digest(folder) == original(os.getpid()) else "other"
    finally:
        path.write_bytes(before)
        (folder / FILE).write_bytes(manifest)


def _sign(folder: Path, path: Path) -> None:
    raw = json.loads((folder / FILE).read_bytes())
    if not isinstance(raw, dict):
        return
    if path.name != FILE:
        raw["files"][path.relative_to(folder).as_posix()] = msgspec.to_builtins(integrity.info(path))
    raw["checksum"] = store.checksum(raw)
    (folder / FILE).write_bytes(json.dumps(raw).encode())


def as_input(
    suffix: str, data: bytes, change: Callable[[bytes, random.Random], bytes], read: Callable[[Path], Any], seed: int
) -> str:
    """Change a file that a user gives, and read it."""
    path = own_copy(os.getpid()).parent / f"input{suffix}"
    path.write_bytes(data)
    wanted = read(path)
    path.write_bytes(change(data, random.Random(seed)))
    return "harmless" if read(path) == wanted else "other"


def _router(path: Path) -> Any:
    router = routers.read(path)
    return router.schedule(0.5, None).calls


def _tensors(path: Path) -> Any:
    manifest = store.read(GOLDEN / "engines", verify=False)
    return {name: value.tobytes() for name, value in user_weights.tensors(path, manifest)}


def pickled(weights: bytes, archive: bool) -> bytes:
    """The same tensors as torch.save writes them."""
    buffer = io.BytesIO()
    torch.save({"ema": safetensors.torch.load(weights)}, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def _model(path: Path) -> Any:
    family = lookup.resolve(str(path), None, None, None).family
    return family.tensors()


def tally(section: str, kind: str, seeds: Sequence[int], verdicts: Sequence[Verdict]) -> Counter[str]:
    """The outcomes of a section's trials, and again by kind where there are several; what is bad is shown with its seed."""
    counts: Counter[str] = Counter()
    for seed, verdict in zip(seeds, verdicts, strict=False):
        outcome = verdict.detail if verdict.kind == "done" else verdict.kind
        counts.update([section, outcome, *([f"{kind}: {outcome}"] if kind else [])])
        if verdict.kind in BAD:
            print(f"{section}{kind and f', {kind}'}, seed {seed}: {verdict.kind}\n{verdict.detail[-1500:]}", file=sys.stderr)
    return counts


def mutations(count: int, seconds: float, chance: random.Random, work: Path) -> Counter[str]:
    """Each is refused in one line, or harmless (the same result), or read as what it now says."""
    os.environ["TORTURE"] = str(work)
    router = (ROOT / "tests/cases/dit_batch3_no_cfg/router.pt").read_bytes()
    plan, weights = (
        (GOLDEN / "engines" / "schedule.json").read_bytes(),
        (GOLDEN / "engines" / "weights.safetensors").read_bytes(),
    )
    model, part = (GOLDEN / "model.json").read_bytes(), functools.partial
    kinds: dict[str, tuple[int, Callable[[int], str]]] = {
        "manifest": (15, part(in_artefact, FILE, bytes_changed, False)),
        "manifest, signed": (15, part(in_artefact, FILE, json_changed, True)),
        "schedule": (8, part(as_input, ".json", plan, bytes_changed, Schedule.read)),
        "schedule, edited": (7, part(as_input, ".json", plan, json_changed, Schedule.read)),
        "router": (10, part(as_input, ".pt", router, bytes_changed, _router)),
        "checkpoint, zip": (3, part(as_input, ".pt", pickled(weights, True), bytes_changed, _tensors)),
        "checkpoint, old format": (2, part(as_input, ".pt", pickled(weights, False), head_changed, _tensors)),
        "ONNX": (10, part(in_artefact, "**/*.onnx", bytes_changed, False)),
        "ONNX, signed": (10, part(in_artefact, "segments/*.onnx", bytes_changed, True)),
        "weights": (5, part(in_artefact, "weights.safetensors", bytes_changed, False)),
        "weights, signed": (5, part(in_artefact, "weights.safetensors", bytes_changed, True)),
        "checkpoint": (
            5,
            part(as_input, ".safetensors", weights, lambda d, c: bytes_changed(d[:4096], c) + d[4096:], _tensors),
        ),
        "model": (5, part(as_input, ".json", model, json_changed, _model)),
    }
    counts: Counter[str] = Counter()
    for name, (share, act) in kinds.items():
        seeds = [chance.randrange(2**32) for _ in range(count * share // 100)]
        done = on_two_cores([part(act, seed) for seed in seeds], seconds * share / 100 * (3 if "signed" in name else 1))
        counts += tally("mutations", name, seeds, done)
    return counts


def manifests(count: int, seconds: float, chance: random.Random, work: Path) -> Counter[str]:
    """The manifests of artefacts that have all that there is, changed by somebody who knows the checksum: the same."""
    counts: Counter[str] = Counter()
    for name, make in altered.ARTEFACTS.items():
        place = work / name
        place.mkdir()
        engines = make(place)
        wanted = {link: once(functools.partial(altered.used, engines, link)).detail for link in ("shared", "static")}
        seeds = [chance.randrange(2**32) for _ in range(count // len(altered.ARTEFACTS))]
        trials = [functools.partial(altered_once, engines, place, wanted, seed) for seed in seeds]
        counts += tally("manifests", name, seeds, on_two_cores(trials, seconds / len(altered.ARTEFACTS)))
    return counts


def altered_once(engines: Path, place: Path, wanted: Mapping[str, str], seed: int) -> str:
    """In a folder of the process."""
    return altered.altered(engines, place / str(os.getpid()) / "engines", wanted, seed)


# texts


def texts(count: int, seconds: float, chance: random.Random, work: Path) -> Counter[str]:
    """The files of a text encoder and its tokenizer, changed, and signed again or not; then a prompt becomes an image."""
    import texts as of_texts

    engines = of_texts.exported(of_texts.MINILM, work / "pipeline", work / "engines", batch=2, with_vae=True).out
    wanted = once(functools.partial(altered.used, engines, "shared")).detail
    files = sorted(path.relative_to(engines).as_posix() for path in (engines / "text").iterdir())
    seeds = [chance.randrange(2**32) for _ in range(count)]

    def trial(seed: int) -> str:
        own = random.Random(seed)
        folder = work / str(os.getpid())
        if not folder.exists():
            shutil.copytree(engines, folder)
        path, manifest = folder / own.choice(files), (folder / FILE).read_bytes()
        before = path.read_bytes()
        try:
            path.write_bytes(own.choice((bytes_changed, head_changed))(before, own))
            if own.random() < 0.7:
                _sign(folder, path)
            return "harmless" if altered.used(folder, "shared") == wanted else "other"
        finally:
            path.write_bytes(before)
            (folder / FILE).write_bytes(manifest)

    return tally("texts", "", seeds, on_two_cores([functools.partial(trial, seed) for seed in seeds], seconds))


# hostile files


def poison(count: int, seconds: float, chance: random.Random, work: Path) -> Counter[str]:
    """Hostile files of every kind: refused, with nothing executed, nothing written elsewhere, and no memory taken."""
    copyreg.add_extension("posix", "system", 240)
    engines = shutil.copytree(GOLDEN / "engines", work / "engines")
    (work / "files").mkdir()
    os.chdir(work)
    cases = list(hostile.cases(work / "files", engines))
    before = set(work.rglob("*"))

    def read(case: hostile.Hostile) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            case.read()
        finally:
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
            if grown > 500:
                raise MemoryError(f"{case.name} took {grown} MB")
        return 0

    counts: Counter[str] = Counter()
    for case, verdict in zip(
        cases, stream([functools.partial(read, c) for c in cases], time.monotonic() + seconds), strict=False
    ):
        counts["files"] += 1
        counts["accepted" if verdict.kind == "done" else verdict.kind] += 1
        counts["executed"] += (work / "EXECUTED").exists()
        (work / "EXECUTED").unlink(missing_ok=True)
        if verdict.kind != "refused":
            print(f"{case.name}: {verdict}", file=sys.stderr)
    counts["error"] += counts["accepted"]
    counts["outside"] = len({p for p in work.rglob("*") if ".l2c-ready" not in p.parts} - before)
    os.chdir(ROOT)
    return counts


# concurrency


def crowd(count: int, seconds: float, chance: random.Random, work: Path) -> Counter[str]:
    """Two compilers on one folder at once, and somebody who loads it all the time."""
    folder, counts = work / "engines", Counter[str]()
    wanted = {once(lambda w=w: (compiled(work / w[-1], w), digest(work / w[-1]))[1]).detail
              for w in ("random:1", "random:2")}  # fmt: skip

    deadline = time.monotonic() + seconds

    def reader() -> list[Verdict]:
        seen = []
        while not (work / "stop").exists():
            seen.append(verdict(lambda: digest(folder)))
            time.sleep(0.01)
        return seen

    for turn in range(count):
        if time.monotonic() > deadline:
            break
        if turn % 5 == 0:
            shutil.rmtree(folder, ignore_errors=True)
        results: dict[str, Verdict] = {}
        acts = {"random:1": lambda: compiled(folder, "random:1").manifest.tool,
                "random:2": lambda: compiled(folder, "random:2").manifest.tool, "reader": reader}  # fmt: skip
        threads = {n: threading.Thread(target=lambda n=n: results.update({n: once(acts[n])})) for n in acts}  # noqa: B023
        for thread in threads.values():
            thread.start()
        threads["random:1"].join()
        threads["random:2"].join()
        (work / "stop").touch()
        threads["reader"].join()
        (work / "stop").unlink()
        counts["compilations"] += 2
        counts["error"] += sum(results[n].kind != "done" for n in acts)
        for seen in results["reader"].detail if results["reader"].kind == "done" else ():
            counts["loads meanwhile"] += 1
            early = seen.kind == "refused" and "no complete artefact" in seen.detail
            counts["loads: nothing yet" if early else f"loads: {seen.kind}"] += 1
            counts["corrupt"] += seen.kind == "error" or (seen.kind == "done" and seen.detail not in wanted)
            if seen.kind == "error":
                print(seen.detail, file=sys.stderr)
        last = once(lambda: digest(folder))
        counts["corrupt"] += last.detail not in wanted or bool(list(folder.glob(".l2c*")))
        if any(r.kind != "done" for r in results.values()):
            print({n: r for n, r in results.items() if r.kind != "done"}, file=sys.stderr)
    return counts


# long runs


def wear(count: int, seconds: float, chance: random.Random, work: Path) -> Counter[str]:
    """Many images on one pipeline: memory stays flat, and eight threads get what one gets."""
    counts: Counter[str] = Counter()
    for backend in BACKENDS:
        engines = shutil.copytree(GOLDEN / "engines", work / backend)
        result = once(lambda: _wear(engines, backend, count, time.monotonic() + seconds / 2))  # noqa: B023
        if result.kind != "done":
            print(result, file=sys.stderr)
            counts["error"] += 1
            continue
        for name, value in result.detail.items():
            counts[name if name in BAD else f"{backend}: {name}"] += value
    return counts


def _wear(engines: Path, backend: str, count: int, deadline: float) -> dict[str, int]:
    if backend in built():
        l2c_export.build(engines, backend)
    with load(engines, backend, threads=None if backend in built() else 1) as pipe:
        memory = pipe._loaded.backend.memory  # type: ignore[union-attr]

        def resident() -> int:
            """Of the host, and all that is taken of a GPU."""
            free, total = (0, 0) if memory.on_host else memory._call("cudaMemGetInfo")
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") + total - free

        def generate(images: int) -> int:
            """Of both batch sizes, with guidance and without."""
            number = 0
            while number < images and time.monotonic() < deadline:
                number += len(pipe([0, 2][: 1 + number % 2], 2.0 if number % 3 else 1.0, seed=number).latents)
            return number

        generate(200)
        before, images = resident(), generate(count)
        grown = (resident() - before) / before
        serial = [pipe([seed % 3], 2.0, seed=seed).latents for seed in range(64)]
        by_seed: dict[int, np.ndarray] = {}

        def work(first: int) -> None:
            for seed in range(first, 64, 8):
                by_seed[seed] = pipe([seed % 3], 2.0, seed=seed).latents

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    differing = sum(not np.array_equal(by_seed.get(seed), serial[seed]) for seed in range(64))
    return {"images": images, "MB": before >> 20, "growth in 0.01 %": round(1e4 * grown), "grown": int(grown > 0.01),
            "images of 8 threads": len(by_seed), "different": differing}  # fmt: skip


def warm_up(work: Path) -> None:
    """Import, and record one model, so that a forked process begins where the work begins; no threads are started."""
    import onnxruntime  # noqa: F401

    chosen = Options(**OPTIONS, out=work / "none", weights="random:1")
    lower(chosen, resolve(chosen))


BACKENDS = ["onnxruntime", "openvino"]  # of the long run
SECTIONS: dict[str, tuple[Callable[..., Counter[str]], int, int, float, float]] = {
    # section: trials and seconds, in full and --quick
    "kills": (kills, 200, 15, 600, 40),
    "mutations": (mutations, 10_000, 600, 400, 40),
    "manifests": (manifests, 10_000, 300, 7200, 40),
    "texts": (texts, 1000, 60, 120, 20),
    "hostile": (poison, 100, 100, 60, 25),
    "concurrency": (crowd, 20, 3, 120, 15),
    "long run": (wear, 1000, 200, 120, 15),
}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    asked.add_argument("--quick", action="store_true", help="a minute instead of about eight")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", action="append", choices=list(SECTIONS))
    asked.add_argument("--backend", action="append", help="of the long run, where there is a GPU: tensorrt ..")
    asked.add_argument("--trials", type=int, help="so many instead")
    asked.add_argument("--json", type=Path, help="add the counts to those that are there, which are of other sections or seeds")
    args = asked.parse_args()
    BACKENDS[:] = args.backend or BACKENDS
    result: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    failed = False
    for name in args.only or SECTIONS:
        act, full, quick, long, short = SECTIONS[name]
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="l2c-torture-") as folder:
            os.environ["L2C_CACHE"] = str(Path(folder) / "cache")
            work = Path(folder) / "work"
            work.mkdir()
            warm_up(work)
            trials, bound = (quick, short) if args.quick else (full, long)
            counts = act(args.trials or trials, bound, random.Random(f"{args.seed} {name}"), work)
        bad = {kind: counts[kind] for kind in BAD if counts[kind]}
        failed |= bool(bad)
        spent = round(time.monotonic() - started)
        print(f"{name}: {spent} s: {json.dumps(dict(sorted(counts.items())))}" + (f"  BAD: {bad}" if bad else ""), flush=True)
        command = " ".join(["python scripts/torture.py", *map(shlex.quote, sys.argv[1:])])
        before = result.get(name, {"commands": [], "seconds": 0, "counts": {}})
        result[name] = {
            "commands": [*before["commands"], command],
            "seconds": before["seconds"] + spent,
            "counts": dict(Counter(before["counts"]) + counts),
        }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
