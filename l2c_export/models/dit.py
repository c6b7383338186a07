"""DiT, Scalable Diffusion Models with Transformers (arXiv 2212.09748), with the original parameter names.

The last fields of `Arch` are where diffusers' DiTTransformer2DModel differs from the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from torch import Tensor

from ..errors import ModelError
from ..ir.inputs import CLASS_LABELS, class_labels
from . import layers
from .family import Operation, Runner, check_sizes
from .primitives import add, gather, gelu_tanh, layer_norm, linear, modulate, silu, sinusoid, unpatchify, unsqueeze
from .unshown import IMAGENET, Unshown, last_row, side

# size -> depth, width, heads (table 1 of the paper)
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
WAVES = 128  # frequencies of a timestep's embedding
EPS = 1e-6  # of a LayerNorm


class DiTArch(msgspec.Struct, frozen=True):
    """Architecture of a DiT; `input_size` is the latent's height and width."""

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True
    mlp_eps: float = 1e-6  # of the LayerNorm before an MLP
    frequency_shift: int = 0  # the lowest frequency of the timestep is reached so many entries earlier
    block_embeddings: bool = False  # every block embeds timestep and label by itself; the last layer uses the first block's


class DiT:
    """Blocks of attention and MLP, each modulated and gated by adaLN-Zero conditioning."""

    name: ClassVar[str] = "dit"
    arch_type: ClassVar[type] = DiTArch
    shown: ClassVar[tuple[str, ...]] = (
        "input_size", "patch_size", "in_channels", "hidden_size", "depth", "mlp_ratio", "learn_sigma", "block_embeddings",
    )  # fmt: skip

    def __init__(self, arch: DiTArch) -> None:
        check_sizes(arch, may_be_zero=["class_dropout_prob", "frequency_shift", "mlp_eps"])
        if arch.hidden_size % arch.num_heads or arch.input_size % arch.patch_size:
            raise ModelError(
                f"DiT: hidden_size {arch.hidden_size} must be a multiple of num_heads {arch.num_heads}, "
                f"and input_size {arch.input_size} of patch_size {arch.patch_size}"
            )
        self.arch = arch
        self.latent = (arch.in_channels, arch.input_size, arch.input_size)
        self.out_channels = arch.in_channels * (2 if arch.learn_sigma else 1)
        self.inputs = (class_labels(arch.num_classes, arch.num_classes if arch.class_dropout_prob > 0 else None),)
        self.sublayers = tuple(f"blocks.{i}.{kind}" for i in range(arch.depth) for kind in ("attn", "mlp"))
        self.embedders = [f"blocks.{i}." for i in range(arch.depth)] if arch.block_embeddings else [""]
        attention = ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias")
        mlp = ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
        self.segments = {
            "time": Operation(self.time, ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")),
            "condition": Operation(condition, ("embedding_table.weight",)),
            "modulation": Operation(modulation, ("weight", "bias")),
            "embed": Operation(self.embed, ("x_embedder.proj.weight", "x_embedder.proj.bias", "pos_embed")),
            "attn": Operation(self.attn, attention),
            "mlp": Operation(self.mlp, mlp),
            "final": Operation(self.final, ("linear.weight", "linear.bias")),
        }

    @staticmethod
    def named(name: str) -> DiTArch | None:
        """Arch of "DiT-XL/2" (256 px) or "DiT-XL/2@512"; None if the name is not a DiT's."""
        size, _, rest = name.removeprefix("DiT-").partition("/")
        patch, _, pixels = rest.partition("@")
        if not name.startswith("DiT-") or size not in SIZES or patch not in ("2", "4", "8") or pixels not in ("", "256", "512"):
            return None
        depth, width, heads = SIZES[size]
        return DiTArch(int(pixels or 256) // 8, int(patch), 4, width, depth, heads)

    @staticmethod
    def from_tensors(shapes: Mapping[str, tuple[int, ...]], arch: DiTArch) -> DiTArch:
        """The architecture that a checkpoint's shapes show; what they cannot show comes from `arch`."""
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        block_embeddings = "blocks.0.t_embedder.mlp.0.weight" in shapes
        rows, _ = shapes[f"{'blocks.0.' if block_embeddings else ''}y_embedder.embedding_table.weight"]
        return msgspec.structs.replace(
            arch,
            input_size=side(shapes["pos_embed"][1]) * patch,
            patch_size=patch,
            in_channels=channels,
            hidden_size=width,
            depth=1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("blocks.")),
            mlp_ratio=layers.mlp_ratio(width, shapes["blocks.0.mlp.fc1.weight"][0]),
            num_classes=rows - (arch.class_dropout_prob > 0),
            learn_sigma=shapes["final_layer.linear.weight"][0] == 2 * channels * patch**2,
            block_embeddings=block_embeddings,
        )

    @staticmethod
    def unshown(arch: DiTArch, fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Unshown:
        """The number of heads, and whether the last row of the class table is a class."""
        gaps = Unshown().with_heads(SIZES, arch.depth, arch.hidden_size, fields)
        rows = shapes[f"{'blocks.0.' if arch.block_embeddings else ''}y_embedder.embedding_table.weight"][0]
        null = rows > fields["num_classes"] if "num_classes" in fields else rows == IMAGENET + 1 or None
        null = fields["class_dropout_prob"] > 0 if "class_dropout_prob" in fields else null
        if fields.get("num_classes", rows - bool(null)) != rows - bool(null):
            classes = f"num_classes {fields['num_classes']}{' and a null class' if null else ''}"
            raise ModelError(f"{classes} contradict the weights, whose class table has {rows} rows: check model=..")
        if null is not None:
            return gaps.and_known(num_classes=rows - null, class_dropout_prob=0.1 if null else 0.0)
        usual = {"num_classes": rows - 1, "class_dropout_prob": 0.1}
        return gaps.and_missing("num_classes", last_row(rows, f"num_classes {rows - 1}", f"num_classes {rows}"), usual)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        a = self.arch
        d, p, hidden = a.hidden_size, a.patch_size, layers.mlp_width(a.hidden_size, a.mlp_ratio)
        shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, (a.input_size // p) ** 2, d)}

        def linear(name: str, out: int, inner: int) -> None:
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inner), (out,)

        shapes["x_embedder.proj.weight"], shapes["x_embedder.proj.bias"] = (d, a.in_channels, p, p), (d,)
        for at in self.embedders:
            linear(f"{at}t_embedder.mlp.0", d, 2 * WAVES)
            linear(f"{at}t_embedder.mlp.2", d, d)
            shapes[f"{at}y_embedder.embedding_table.weight"] = (a.num_classes + (a.class_dropout_prob > 0), d)
        for i in range(a.depth):
            linear(f"blocks.{i}.attn.qkv", 3 * d, d)
            linear(f"blocks.{i}.attn.proj", d, d)
            linear(f"blocks.{i}.mlp.fc1", hidden, d)
            linear(f"blocks.{i}.mlp.fc2", d, hidden)
            linear(f"blocks.{i}.adaLN_modulation.1", 6 * d, d)
        linear("final_layer.linear", p * p * self.out_channels, d)
        linear("final_layer.adaLN_modulation.1", 2 * d, d)
        return shapes

    def call(self, run: Runner, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
        y = request[CLASS_LABELS]
        c = [run("condition", run("time", t, at=f"{at}t_embedder"), y, at=f"{at}y_embedder") for at in self.embedders]
        h = run("embed", x, rows)
        for i in range(self.arch.depth):
            block = f"blocks.{i}"
            names = [f"{block}.{kind}.{part}" for kind in ("attn", "mlp") for part in ("shift", "scale", "gate")]
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = run.chunks(
                "modulation", c[i % len(c)], f"{block}.adaLN_modulation.1", names
            )
            a = run.sublayer("attn", h, shift_a, scale_a, at=block)
            h = run.residual(h, a, f"{block}.attn", gate_a)
            m = run.sublayer("mlp", h, shift_m, scale_m, at=block)
            h = run.residual(h, m, f"{block}.mlp", gate_m)
        shift, scale = run.chunks("modulation", c[0], "final_layer.adaLN_modulation.1", ("final.shift", "final.scale"))
        return run("final", h, shift, scale, at="final_layer")

    # the segment kinds: activations, then weights

    def time(self, t: Tensor, w0: Tensor, b0: Tensor, w2: Tensor, b2: Tensor) -> Any:
        """t (R,) float32 -> (R, D)."""
        wave = sinusoid(t, half=WAVES, shift=self.arch.frequency_shift)
        return linear(silu(linear(wave, w0, b0)), w2, b2)

    def embed(self, x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Any:
        """x (B, C, H, W), rows (R,) -> tokens (R, T, D)."""
        return layers.stream(add(gather(layers.patches(x, self.arch.patch_size, weight, bias), rows), position))

    def attn(self, h: Tensor, shift: Tensor, scale: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D); shift, scale (R, 1, D) -> (R, T, D), before the gate."""
        h = modulate(layer_norm(h, eps=EPS), shift, scale)
        return layers.stream(layers.attention(h, self.arch.num_heads, weights[:2], weights[2:]))

    def mlp(self, h: Tensor, shift: Tensor, scale: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Any:
        """h (R, T, D); shift, scale (R, 1, D) -> (R, T, D), before the gate."""
        h = modulate(layer_norm(h, eps=self.arch.mlp_eps), shift, scale)
        return layers.stream(linear(gelu_tanh(linear(h, w1, b1)), w2, b2))

    def final(self, h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Any:
        """h (R, T, D) -> (R, C or 2C, H, W) float32: the sampler amplifies the rounding of this one small product."""
        h, shift, scale, weight, bias = (layers.wide(v) for v in (h, shift, scale, weight, bias))
        tokens = linear(modulate(layer_norm(h, eps=EPS), shift, scale), weight, bias)
        _, height, width = self.latent
        return unpatchify(tokens, patch=self.arch.patch_size, channels=self.out_channels, height=height, width=width)


def condition(time: Tensor, y: Tensor, table: Tensor) -> Any:
    """time (R, D), y (R,) -> (R, D): SiLU of the sum, which is all that the blocks read of it."""
    return silu(add(time, gather(table, y)))


def modulation(c: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """c (R, D) -> (R, 1, D): one of a block's shifts, scales and gates."""
    return layers.stream(unsqueeze(linear(c, weight, bias), axis=1))
