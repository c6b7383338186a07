#!/usr/bin/env python3
"""T5 XXL, with random weights, as a text encoder of an artefact: seconds of a prompt and memory, on a GPU or a CPU.

    python scripts/gpu_text.py FOLDER --device cuda               4.7 billion parameters in the types that bf16 stores
    python scripts/gpu_text.py FOLDER --device cpu --layers 2

It is PixArt's, behind a transformer of one layer.  FOLDER is made where there is none; tokens are 120.  One line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
from pathlib import Path

import torch

TOKENS = 120
T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "vocab_size": 32128, "feed_forward_proj": "gated-gelu"}
PARTS = {"transformer": ("diffusers", "PixArtTransformer2DModel"), "scheduler": ("diffusers", "DPMSolverMultistepScheduler"),
         "text_encoder": ("transformers", "T5EncoderModel"), "tokenizer": ("transformers", "T5Tokenizer")}  # fmt: skip


def write_folder(folder: Path, layers: int, device: str) -> None:
    """The pipeline's folder: an encoder of random weights in bfloat16, and a tokenizer of bytes."""
    import diffusers
    import transformers

    folder.mkdir(parents=True)
    index = {"_class_name": "PixArtSigmaPipeline", **PARTS}
    (folder / "model_index.json").write_text(json.dumps(index))
    diffusers.PixArtTransformer2DModel(num_layers=1, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
                                       sample_size=8, caption_channels=T5["d_model"], use_additional_conditions=False,
                                       ).save_pretrained(folder / "transformer")  # fmt: skip
    diffusers.DPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(n), -3.0) for n in range(97, 123))]
    transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512).save_pretrained(folder / "tokenizer")
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.T5EncoderModel(transformers.T5Config(**T5, num_layers=layers))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "text_encoder")


def used() -> int:
    """MiB of the first GPU."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--layers", type=int, default=24)
    args = parser.parse_args()
    if not args.folder.exists():
        if os.fork() == 0:  # what exporting takes of memory goes with its process
            import l2c_export

            write_folder(args.folder / "model", args.layers, args.device)
            l2c_export.compile("every:1", model=args.folder / "model", steps=2, size=(64, 64), tokens=TOKENS, with_text=True,
                               text_precision="bf16", out=args.folder / "out")  # fmt: skip
            os._exit(0)
        os.wait()
    import l2c_export

    before = used() if args.device == "cuda" else 0
    pipe = l2c_export.load(args.folder / "out", backend="onnxruntime", device=args.device, verify=False)
    seconds = []
    for prompt in ("a cat", "a cat on a table", "two dogs", "a city in the rain"):
        started = time.perf_counter()
        pipe.inputs(prompt=prompt, negative_prompt=prompt)
        seconds.append(round(time.perf_counter() - started, 3))
    print(json.dumps({
        "layers": args.layers, "device": args.device, "first_s": seconds[0], "prompts_s": seconds[1:],
        "stored_mib": sum(file.stat().st_size for file in (args.folder / "out").rglob("text*.safetensors")) >> 20,
        "device_mib": used() - before if args.device == "cuda" else 0,
        "host_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
