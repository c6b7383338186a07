#!/usr/bin/env python3
"""Everybody who can run a model on this GPU, in one run: PyTorch, torch.compile, cache-dit, ONNX Runtime, TensorRT, `cuda`.

    python scripts/gpu_peers.py dit XL --router DDIM20_router.pt --json peers.json
    python scripts/gpu_peers.py uvit H --router dpm50_router.pt --seconds 300 --json peers.json
    python scripts/gpu_peers.py pixart PX --json peers.json
    python scripts/gpu_peers.py flux FLUX --json peers.json

Every contender has processes of its own, one after the other on a GPU that nobody else uses, the same latents, calls and
weights.  Those behind `--seconds` are named as not reached.  `--python310` names an interpreter that has TensorRT 8.6.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SCRIPTS = Path(__file__).parent


class Contender(NamedTuple):
    """A command of a script beside this one, which writes JSON; `old` is the interpreter of TensorRT 8.6."""

    name: str
    words: str
    old: bool = False


CLASSES = (
    Contender("roofline", "gpu_roofline.py"),
    Contender("cuda, whole calls", "gpu_check.py engines {out} --backend cuda --link static {images}"),
    Contender("cuda, fp8, whole calls", "gpu_check.py engines {out}/fp8 --backend cuda --link static {images}"),
    Contender("PyTorch eager", "gpu_check.py pytorch {out} --how eager {images} --rounds 5"),
    Contender("torch.compile, uncached", "gpu_check.py pytorch {out} --how default --twins uncached {images}"),
    Contender("torch.compile reduce-overhead, uncached",
              "gpu_check.py pytorch {out} --how reduce-overhead --twins uncached {images}"),
    Contender("TensorRT 8.6", "gpu_check.py engines {out} --backend tensorrt --batch 1:1:8 {images}", old=True),
    Contender("TensorRT 8.6 for 8", "gpu_check.py engines {out} --backend tensorrt --batch 1:8:8 --images 8", old=True),
    Contender("torch.compile, cached", "gpu_check.py pytorch {out} --how default --twins cached {images}"),
    Contender("our calls under torch.compile", "gpu_check.py engines {out} --backend torch {images}"),
    Contender("cuda", "gpu_check.py engines {out} --backend cuda {images}"),
    Contender("ONNX Runtime CUDA", "gpu_check.py engines {out} --backend onnxruntime {images}"),
    Contender("torch.compile max-autotune, uncached",
              "gpu_check.py pytorch {out} --how max-autotune --twins uncached {images}"),
    Contender("torch.compile reduce-overhead, cached",
              "gpu_check.py pytorch {out} --how reduce-overhead --twins cached {images}"),
)  # fmt: skip
DIFFUSERS = (
    Contender("diffusers", "gpu_cachedit.py {images} --how eager reduce-overhead"),
    Contender("cache-dit", "gpu_cachedit.py {images} --mask 10 --how eager default"),
)
PROMPTED = (
    Contender("roofline", "gpu_roofline.py"),
    Contender("cuda", "gpu_prompted.py ours {out}/every1 --backend cuda"),
    Contender("cuda, every:2", "gpu_prompted.py ours {out}/every2 --backend cuda"),
    Contender("diffusers", "gpu_prompted.py diffusers {out}/model"),
    Contender("diffusers, every:2", "gpu_prompted.py diffusers {out}/model --schedule {out}/every2/schedule.json"),
    Contender("torch.compile", "gpu_prompted.py diffusers {out}/model --compile"),
    Contender("ONNX Runtime CUDA", "gpu_prompted.py ours {out}/every1 --backend onnxruntime"),
    Contender("ONNX Runtime CUDA, every:2", "gpu_prompted.py ours {out}/every2 --backend onnxruntime"),
    Contender("TensorRT 8.6", "gpu_prompted.py ours {out}/every1 --backend tensorrt", old=True),
    Contender("TensorRT 8.6, every:2", "gpu_prompted.py ours {out}/every2 --backend tensorrt", old=True),
    Contender("torch.compile reduce-overhead", "gpu_prompted.py diffusers {out}/model --compile reduce-overhead"),
)
LARGE = (
    *(contender for contender in PROMPTED if contender.name.startswith(("cuda", "diffusers", "ONNX"))),
    Contender("torch.compile, by blocks", "gpu_prompted.py diffusers {out}/model --compile blocks"),
)
EXPORTS = {
    "dit": ("gpu_check.py export {out} --model DiT-XL/2 --router {router} {images}",
            "gpu_check.py export {out}/fp8 --model DiT-XL/2 --router {router} --precision fp8 {images}"),
    "uvit": ("gpu_check.py export {out} --model U-ViT-H/2 --router {router} {images}",
             "gpu_check.py export {out}/fp8 --model U-ViT-H/2 --router {router} --precision fp8 {images}"),
    "pixart": ("gpu_prompted.py compile {out} --model pixart-sigma", "gpu_prompted.py fill {out}"),
    "flux": ("gpu_prompted.py compile {out} --model flux", "gpu_prompted.py fill {out}"),
}  # fmt: skip
PEERS = {"dit": (*CLASSES, *DIFFUSERS), "uvit": CLASSES, "pixart": PROMPTED, "flux": LARGE}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", choices=PEERS)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--router")
    ap.add_argument("--images", type=int, nargs="+", default=[1, 8])
    ap.add_argument("--python310")
    ap.add_argument("--only", nargs="+", help="contenders by name")
    ap.add_argument("--seconds", type=float, default=1e9, help="start no contender after these")
    ap.add_argument("--limit", type=float, default=240, help="seconds of a contender")
    ap.add_argument("--json", type=Path, required=True)
    args = ap.parse_args()
    started = time.perf_counter()
    results: dict[str, object] = {}
    fill = {"out": args.folder, "router": args.router, "images": "--images " + " ".join(map(str, args.images))}
    if not args.folder.exists():
        for words in EXPORTS[args.model]:
            contend(words.format(**fill), sys.executable, args.limit)
    for contender in PEERS[args.model]:
        if args.only and contender.name not in args.only:
            continue
        python = args.python310 if contender.old else sys.executable
        if python is None:
            results[contender.name] = "left out: no --python310"
        elif time.perf_counter() - started > args.seconds:
            results[contender.name] = f"not reached in {args.seconds:.0f} s"
        else:
            results[contender.name] = contend(contender.words.format(**fill), python, args.limit)
        said = {"command": " ".join(["python scripts/gpu_peers.py", *sys.argv[1:]]), "device": device(), "results": results}
        args.json.write_text(json.dumps(said, indent=1) + "\n")
        print(f"{time.perf_counter() - started:.0f} s: {contender.name}", flush=True)


def contend(words: str, python: str, limit: float) -> object:
    """What a command says of itself as JSON, in a file or in its last line; or why it says nothing."""
    script, *rest = words.split()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "said.json")
        command = [*python.split(), str(SCRIPTS / script), *rest, *([] if "prompted" in script else ["--json", str(written)])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        if written.exists():
            return json.loads(written.read_text())
        try:
            return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] or done.stderr[-500:]
        except ValueError:
            return (done.stdout + done.stderr)[-500:]


def device() -> str:
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
