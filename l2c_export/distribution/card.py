"""The page of an artefact on the Hugging Face hub: what it is, and how it is run."""

from __future__ import annotations

from ..artefact.manifest import Manifest
from ..runtime import request
from ..runtime.opening import described
from ..support.words import counted

CARD = "README.md"


def card(manifest: Manifest, repository: str) -> str:
    """A model card in Markdown, with what the hub reads on top.  The licence is left to whoever has the weights."""
    tags = ["l2c-export", "onnx", "diffusion", "learning-to-cache", manifest.denoiser.family]
    kind = "text-to-image" if manifest.text else "unconditional-image-generation" if not manifest.inputs else None
    head = ["library_name: l2c-export", *([f"pipeline_tag: {kind}"] if kind else []), "tags:", *(f"- {tag}" for tag in tags)]
    model = manifest.denoiser.name or manifest.denoiser.family
    return "\n".join([
        "---", *head, "---", "",
        f"# {model}, compiled by l2c-export", "",
        f"{described(manifest, f'{manifest.bytes / 2**20:,.1f} MB')}.", "",
        f"The schedule says which layers are computed in every denoising step: {_shares(manifest)}. It runs with numpy and one "
        "engine library, without PyTorch.", "",
        "```sh",
        "pip install 'l2c-export[onnxruntime,images,registry]'",
        f"l2c pull engines hf://{repository}",
        f"l2c run engines {_asked(manifest)} --seed 0 --out {_out(manifest)}",
        "```", "",
        "| component | files | MB |", "|---|---|---|", *_files(manifest), "",
        f"Made by {manifest.tool}. `manifest.json` has the size and the sha256 of every file; they are checked when it is "
        "pulled, and when it is loaded.",
        *(["", "**It holds engines for GPUs, which are programs**: pull it with `--trust-engines` if you know who made it."]
          if manifest.builds else []), "",
    ])  # fmt: skip


def _shares(manifest: Manifest) -> str:
    shares = []
    for compiled in manifest.all_programs():
        calls, all_ = compiled.calls, len(manifest.denoiser.sublayers)
        graphs = len(set(compiled.step_graphs))
        shares.append(f"{counted(len(calls), 'call')} of {counted(all_, 'sublayer')} in {counted(graphs, 'graph')}")
    return "; ".join(shares)


def _asked(manifest: Manifest) -> str:
    if manifest.text:
        return '--prompt "a cat"'
    return "--class-label 0" if any(field.choices for field in manifest.inputs) else "--prompt-embeds FILE.npz"


def _out(manifest: Manifest) -> str:
    return "picture.png" if request.makes_pixels(manifest) else "latents.npy"


def _files(manifest: Manifest) -> list[str]:
    """Rows of a table: the parts of the artefact by their first folder."""
    parts: dict[str, list[int]] = {}
    for name, info in sorted(manifest.files.items()):
        folder, _, rest = name.partition("/")
        parts.setdefault(f"`{folder}/`" if rest else f"`*.{name.rpartition('.')[2]}`", []).append(info.bytes)
    return [f"| {part} | {len(sizes)} | {sum(sizes) / 2**20:,.1f} |" for part, sizes in parts.items()]
