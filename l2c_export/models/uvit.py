"""U-ViT, All are Worth Words (arXiv 2209.12152), with the original parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from torch import Tensor

from ..errors import ModelError
from ..ir.inputs import CLASS_LABELS, class_labels
from . import layers
from .family import Operation, Runner, check_sizes
from .primitives import (
    add,
    concat,
    conv2d,
    gather,
    gelu,
    layer_norm,
    linear,
    silu,
    sinusoid,
    tail,
    unpatchify,
    unsqueeze,
)
from .unshown import IMAGENET, Unshown, last_row, side

# size -> depth, width, heads (table 1 of the paper; depth counts the in and out blocks, not the middle)
SIZES = {"S": (12, 512, 8), "M": (16, 768, 12), "L": (20, 1024, 16), "H": (28, 1152, 16)}
EPS = 1e-5  # of a LayerNorm
EXTRA = 2  # tokens before the patches: label and time
LATENTS = 4  # channels of Stable Diffusion's latents, of which the published models have its noise schedule
PIXELS = (
    "which noise schedule it was trained with (published U-ViTs of {} channels are for pixels, with a continuous VP schedule "
    "that is not supported: only stable-diffusion is)"
)


class UViTArch(msgspec.Struct, frozen=True):
    """Architecture of a U-ViT; `num_classes` counts the null class, which is the last if `null_class`."""

    img_size: int = 32
    patch_size: int = 2
    in_chans: int = 4
    embed_dim: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    mlp_time_embed: bool = False
    num_classes: int = 1001
    conv: bool = False
    skip: bool = True
    null_class: bool = True
    noise_schedule: Literal["stable-diffusion"] = "stable-diffusion"  # that it was trained with


class UViT:
    """A transformer over [label, time, patches] with long skips from the first blocks to the last."""

    name: ClassVar[str] = "uvit"
    arch_type: ClassVar[type] = UViTArch
    shown: ClassVar[tuple[str, ...]] = (
        "img_size", "patch_size", "in_chans", "embed_dim", "depth", "mlp_ratio", "qkv_bias", "mlp_time_embed", "num_classes",
        "conv", "skip",
    )  # fmt: skip

    def __init__(self, arch: UViTArch) -> None:
        check_sizes(arch, may_be_zero=["depth"])
        if arch.embed_dim % 2:
            raise ModelError(f"U-ViT: embed_dim {arch.embed_dim} must be even: half of it are sines of the timestep")
        if arch.embed_dim % arch.num_heads or arch.img_size % arch.patch_size:
            raise ModelError(
                f"U-ViT: embed_dim {arch.embed_dim} must be a multiple of num_heads {arch.num_heads}, "
                f"and img_size {arch.img_size} of patch_size {arch.patch_size}"
            )
        self.arch = arch
        self.latent = (arch.in_chans, arch.img_size, arch.img_size)
        classes = arch.num_classes - arch.null_class
        self.inputs = (class_labels(classes, classes if arch.null_class else None),)
        half = arch.depth // 2
        self.ins, self.outs = [f"in_blocks.{i}" for i in range(half)], [f"out_blocks.{i}" for i in range(half)]
        self.sublayers = tuple(f"{b}.{kind}" for b in (*self.ins, "mid_block", *self.outs) for kind in ("attn", "mlp"))
        qkv = ("attn.qkv.weight", "attn.qkv.bias") if arch.qkv_bias else ("attn.qkv.weight",)
        attention = ("norm1.weight", "norm1.bias", *qkv, "attn.proj.weight", "attn.proj.bias")
        mlp = ("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
        time = ("time_embed.0.weight", "time_embed.0.bias", "time_embed.2.weight", "time_embed.2.bias")
        final = ("norm.weight", "norm.bias", "decoder_pred.weight", "decoder_pred.bias")
        conv = ("final_layer.weight", "final_layer.bias") if arch.conv else ()
        self.segments = {
            "time": Operation(self.time, time if arch.mlp_time_embed else ()),
            "label": Operation(label, ("label_emb.weight",)),
            "embed": Operation(self.embed, ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed")),
            "skip": Operation(skip, ("skip_linear.weight", "skip_linear.bias")),
            "attn": Operation(self.attn, attention),
            "mlp": Operation(mlp_, mlp),
            "final": Operation(self.final, final + conv),
        }

    @staticmethod
    def named(name: str) -> UViTArch | None:
        """Arch of "U-ViT-H/2" (256 px) or "U-ViT-H/4@512"; None if the name is not a U-ViT's."""
        size, _, rest = name.removeprefix("U-ViT-").partition("/")
        patch, _, pixels = rest.partition("@")
        if not name.startswith("U-ViT-") or size not in SIZES or patch not in ("2", "4") or pixels not in ("", "256", "512"):
            return None
        depth, width, heads = SIZES[size]
        return UViTArch(int(pixels or 256) // 8, int(patch), 4, width, depth, heads)

    @staticmethod
    def from_tensors(shapes: Mapping[str, tuple[int, ...]], arch: UViTArch) -> UViTArch:
        """The architecture that a checkpoint's shapes show; what they cannot show comes from `arch`.

        Raises ModelError for the kinds of U-ViT that have no class labels.
        """
        width, channels, patch, _ = shapes["patch_embed.proj.weight"]
        if "label_emb.weight" not in shapes:
            text = "text to image" if "context_embed.weight" in shapes else "unconditional, as of CIFAR-10 and CelebA"
            raise ModelError(f"a U-ViT without class labels ({text}) is not supported: give a class-conditional one")
        half = sum(n.startswith("in_blocks.") and n.endswith("norm1.weight") for n in shapes)
        return msgspec.structs.replace(
            arch,
            img_size=side(shapes["pos_embed"][1] - EXTRA) * patch,
            patch_size=patch,
            in_chans=channels,
            embed_dim=width,
            depth=arch.depth if arch.depth // 2 == half else 2 * half,
            mlp_ratio=layers.mlp_ratio(width, shapes["mid_block.mlp.fc1.weight"][0]),
            qkv_bias="mid_block.attn.qkv.bias" in shapes,
            mlp_time_embed="time_embed.0.weight" in shapes,
            num_classes=shapes["label_emb.weight"][0],
            conv="final_layer.weight" in shapes,
            skip="out_blocks.0.skip_linear.weight" in shapes,
        )

    @staticmethod
    def unshown(arch: UViTArch, fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Unshown:
        """The number of heads, whether the last row of the class table is a class, and the noise schedule."""
        gaps = Unshown()
        if "noise_schedule" not in fields and arch.in_chans != LATENTS:
            gaps = gaps.and_missing("noise_schedule", PIXELS.format(arch.in_chans))
        gaps = gaps.with_heads(SIZES, arch.depth, arch.embed_dim, fields)
        rows = shapes["label_emb.weight"][0]
        if "null_class" not in fields and rows == IMAGENET + 1:
            gaps = gaps.and_known(null_class=True)
        elif "null_class" not in fields and "num_classes" not in fields:
            gaps = gaps.and_missing("null_class", last_row(rows, "null_class true", "null_class false"), {"null_class": True})
        return gaps

    def tensors(self) -> dict[str, tuple[int, ...]]:
        a = self.arch
        d, p, hidden = a.embed_dim, a.patch_size, layers.mlp_width(a.embed_dim, a.mlp_ratio)
        shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, EXTRA + (a.img_size // p) ** 2, d)}

        def linear(name: str, out: int, inner: int, bias: bool = True) -> None:
            shapes[f"{name}.weight"] = (out, inner)
            if bias:
                shapes[f"{name}.bias"] = (out,)

        def norm(name: str) -> None:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (d,)

        shapes["patch_embed.proj.weight"], shapes["patch_embed.proj.bias"] = (d, a.in_chans, p, p), (d,)
        shapes["label_emb.weight"] = (a.num_classes, d)
        if a.mlp_time_embed:
            linear("time_embed.0", 4 * d, d)
            linear("time_embed.2", d, 4 * d)
        for block in (*self.ins, "mid_block", *self.outs):
            norm(f"{block}.norm1")
            linear(f"{block}.attn.qkv", 3 * d, d, a.qkv_bias)
            linear(f"{block}.attn.proj", d, d)
            norm(f"{block}.norm2")
            linear(f"{block}.mlp.fc1", hidden, d)
            linear(f"{block}.mlp.fc2", d, hidden)
            if a.skip and block in self.outs:
                linear(f"{block}.skip_linear", d, 2 * d)
        norm("norm")
        linear("decoder_pred", p * p * a.in_chans, d)
        if a.conv:
            shapes["final_layer.weight"], shapes["final_layer.bias"] = (a.in_chans, a.in_chans, 3, 3), (a.in_chans,)
        return shapes

    def call(self, run: Runner, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
        h = run("embed", x, rows, run("time", t), run("label", request[CLASS_LABELS]))

        def block(h: Any, at: str) -> Any:
            h = run.residual(h, run.sublayer("attn", h, at=at), f"{at}.attn")
            return run.residual(h, run.sublayer("mlp", h, at=at), f"{at}.mlp")

        stack = []
        for at in self.ins:
            h = block(h, at)
            stack.append(h)
        h = block(h, "mid_block")
        for at in self.outs:
            h = block(run("skip", h, stack.pop(), at=at) if self.arch.skip else h, at)
        return run("final", h)

    # the segment kinds: activations, then weights

    def time(self, t: Tensor, *mlp: Tensor) -> Any:
        """t (R,) float32, fractional -> the time token (R, 1, D), float32 if there is no MLP."""
        token = sinusoid(t, half=self.arch.embed_dim // 2)
        if mlp:
            token = linear(silu(linear(token, *mlp[:2])), *mlp[2:])
        return unsqueeze(token, axis=1)

    def embed(
        self, x: Tensor, rows: Tensor, time: Tensor, label: Tensor, weight: Tensor, bias: Tensor, position: Tensor
    ) -> Any:
        """x (B, C, H, W), rows (R,), time and label tokens (R, 1, D) -> tokens (R, 2 + T, D)."""
        patches = gather(layers.patches(x, self.arch.patch_size, weight, bias), rows)
        tokens = concat(label, layers.to(time, label.dtype), patches, axis=1)
        return add(layers.stream(tokens), layers.stream(position))

    def attn(self, h: Tensor, norm: Tensor, norm_bias: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D) -> (R, T, D)."""
        qkv, qkv_bias = (weights[0], weights[1]) if self.arch.qkv_bias else (weights[0], None)
        h = layer_norm(h, norm, norm_bias, eps=EPS)
        return layers.stream(layers.attention(h, self.arch.num_heads, (qkv, qkv_bias), (weights[-2], weights[-1])))

    def final(self, h: Tensor, norm: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, *conv: Tensor) -> Any:
        """h (R, 2 + T, D) -> (R, C, H, W) float32: the sampler amplifies the rounding of this one small product."""
        h, norm, norm_bias, weight, bias, *kernel = (layers.wide(v) for v in (h, norm, norm_bias, weight, bias, *conv))
        tokens = linear(layer_norm(tail(h, start=EXTRA), norm, norm_bias, eps=EPS), weight, bias)
        channels, height, width = self.latent
        out = unpatchify(tokens, patch=self.arch.patch_size, channels=channels, height=height, width=width)
        return conv2d(out, *kernel, padding=1) if kernel else out


def label(y: Tensor, table: Tensor) -> Any:
    """y (R,) -> the label token (R, 1, D)."""
    return unsqueeze(gather(table, y), axis=1)


def skip(h: Tensor, old: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """The long skip: a projection of [h, old], (R, T, D) twice -> (R, T, D)."""
    return layers.stream(linear(concat(h, old, axis=2), weight, bias))


def mlp_(h: Tensor, norm: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Any:
    """h (R, T, D) -> (R, T, D); the exact (erf) GELU."""
    return layers.stream(linear(gelu(linear(layer_norm(h, norm, norm_bias, eps=EPS), w1, b1)), w2, b2))
