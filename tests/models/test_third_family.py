"""A family in one file: RMSNorm, SwiGLU and rope, its own names and router, and one entry in the list of descriptors."""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from safetensors.numpy import save_file

import l2c_export
from l2c_export.ir.inputs import CLASS_LABELS, class_labels
from l2c_export.models import families, layers
from l2c_export.models.descriptor import FamilyDescriptor, RouterLayout
from l2c_export.models.family import Operation
from l2c_export.models.primitives import add, gather, linear, mul, rms_norm, rope, sdpa, silu, sinusoid, unpatchify, unsqueeze

SWIFT = FamilyDescriptor(
    name="swift", title="Swift", home=__name__, model="Swift", mark="tokens.w", sampler="ddim", guidance=("all", 2.0),
    width="dim", blocks=lambda count: [f"layers.{n}" for n in range(count)], parts=("attention", "swiglu"),
    router=RouterLayout(row="call {}", container="gates", signed=False, threshold=lambda side: 0.4),
)  # fmt: skip
CHANNELS, SIDE, HEAD, EPS = 4, 8, 8, 1e-6


class SwiftArch(msgspec.Struct, frozen=True):
    dim: int = 16
    depth: int = 2
    hidden: int = 24
    classes: int = 3


class Swift:
    """Blocks of attention and SwiGLU over tokens to which timestep and label are added."""

    name, arch_type, shown = "swift", SwiftArch, ("dim", "depth", "hidden", "classes")

    def __init__(self, arch):
        self.arch, self.latent = arch, (CHANNELS, SIDE, SIDE)
        self.inputs = (class_labels(arch.classes, arch.classes),)
        self.sublayers = SWIFT.sublayers(2 * arch.depth)
        self.segments = {
            "time": Operation(time, ("w",)),
            "condition": Operation(conditioning, ("table",)),
            "embed": Operation(embed, ("w",)),
            "attention": Operation(attention, ("norm_a", "q", "k", "v", "o")),
            "swiglu": Operation(swiglu, ("norm_m", "gate", "up", "down")),
            "last": Operation(last, ("norm", "w")),
        }

    @staticmethod
    def named(name):
        return None

    @staticmethod
    def from_tensors(shapes, arch):
        hidden, dim = shapes["layers.0.up"]
        return SwiftArch(dim, sum(name.endswith(".q") for name in shapes), hidden, shapes["condition.table"][0] - 1)

    def tensors(self):
        d, hidden = self.arch.dim, self.arch.hidden
        block = {"norm_a": (d,), "norm_m": (d,), "gate": (hidden, d), "up": (hidden, d), "down": (d, hidden)}
        block |= dict.fromkeys("qkvo", (d, d))
        ends = {"tokens.w": (d, CHANNELS, 2, 2), "time.w": (d, d), "condition.table": (self.arch.classes + 1, d)}
        ends |= {"last.norm": (d,), "last.w": (4 * CHANNELS, d)}
        return ends | {f"layers.{n}.{name}": shape for n in range(self.arch.depth) for name, shape in block.items()}

    def call(self, run, x, rows, t, request):
        h = run(
            "embed", x, rows, run("condition", run("time", t, at="time"), request[CLASS_LABELS], at="condition"), at="tokens"
        )
        for name in self.sublayers:
            at, _, op = name.rpartition(".")
            h = run.residual(h, run.sublayer(op, h, at=at), name)
        return run("last", h, at="last")


def time(t, w):
    return silu(linear(sinusoid(t, half=w.shape[0] // 2), w))


def conditioning(time, y, table):
    return unsqueeze(add(time, gather(table, y)), axis=1)


def embed(x, rows, c, w):
    return add(gather(layers.patches(x, 2, w, None), rows), c)


def attention(h, norm, *weights):
    q, k, v = (linear(rms_norm(h, norm, eps=EPS), w) for w in weights[:3])
    heads = weights[0].shape[0] // HEAD
    return linear(sdpa(rope(q, heads=heads, theta=1e4), rope(k, heads=heads, theta=1e4), v, heads=heads), weights[3])


def swiglu(h, norm, gate, up, down):
    h = rms_norm(h, norm, eps=EPS)
    return linear(mul(silu(linear(h, gate)), linear(h, up)), down)


def last(h, norm, w):
    return unpatchify(linear(rms_norm(h, norm, eps=EPS), w), patch=2, channels=CHANNELS, height=SIDE, width=SIDE)


def test_a_family_in_one_file_is_recognised_trained_compiled_run_and_verified(tmp_path, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "swift", SWIFT)
    file, rng, arch = tmp_path / "w.safetensors", np.random.default_rng(0), SwiftArch(depth=3, hidden=40, classes=5)
    save_file({n: rng.normal(0, 0.3, shape).astype("f4") for n, shape in Swift(arch).tensors().items()}, file)
    assert l2c_export.train(steps=6, data="self", out=tmp_path / "r", weights=file, iterations=3, batch=2).threshold == 0.4
    saved = torch.load(tmp_path / "r/router.pt", weights_only=False)
    assert list(saved["gates"]) == [f"call {n}" for n in range(6)]
    artefacts = [l2c_export.compile(weights=file, schedule=tmp_path / "r" / learned, batch=2, out=tmp_path / learned)
                 for learned in ("schedule.json", "router.pt")]  # fmt: skip
    reused = [[call.reused for call in artefact.manifest.program().calls] for artefact in artefacts]
    assert reused[0] == reused[1]
    assert {column for call in reused[0] for column in call} > {0}
    assert artefacts[1].manifest.denoiser.arch == msgspec.structs.asdict(arch)
    for backend in ("onnxruntime", "openvino"):
        pipe = l2c_export.load(artefacts[1], backend)
        assert l2c_export.verify(pipe).passed
