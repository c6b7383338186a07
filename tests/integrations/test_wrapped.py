"""Live pipelines as people have them: wrapped in what computes the same, or something else; diffusers itself is the oracle."""

from __future__ import annotations

import copy
import types

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from accelerate.hooks import SequentialHook
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0
from small_pipelines import LABELS, images, same_pixels
from torch import nn

import l2c_export
from l2c_export import enable_l2c
from l2c_export.errors import L2CError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


def compiled(pipe):
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def compiled_in_place(pipe):
    pipe.transformer.compile(backend="eager")


def compiled_forward(pipe):
    pipe.transformer.forward = torch.compile(pipe.transformer.forward, backend="eager")


def compiled_blocks(pipe):
    blocks = pipe.transformer.transformer_blocks
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, backend="eager")


def offloaded(pipe):
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))
    assert pipe.transformer.proj_out_1.weight.device.type == "meta"


def offloaded_as_a_whole(pipe):
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"), preload_module_classes=["BasicTransformerBlock"])


def offloaded_with_hooks_in_a_row(pipe):
    offloaded(pipe)
    for module in pipe.transformer.modules():
        if hasattr(module, "_hf_hook"):
            module._hf_hook = SequentialHook(module._hf_hook)


def offloaded_by_model(pipe):
    accelerate.cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))


def fused(pipe):
    for block in pipe.transformer.transformer_blocks:
        with torch.no_grad():
            block.attn1.fuse_projections()
        block.attn1.set_processor(FusedAttnProcessor2_0())


def other_processors(pipe):
    for block in pipe.transformer.transformer_blocks:
        block.attn1.set_processor(AttnProcessor())


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, as peft makes it."""

    def __init__(self, layer, merged=False, disable_adapters=False, size=0.0):
        super().__init__()
        self.base_layer, self.merged, self.disable_adapters = layer, merged, disable_adapters
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})
        nn.init.constant_(self.lora_B["default"].weight, size)

    def forward(self, x):
        y = self.base_layer(x)
        return y if self.merged or self.disable_adapters else y + self.lora_B["default"](self.lora_A["default"](x))


def adapted(**options):
    def change(pipe):
        attention = pipe.transformer.transformer_blocks[1].attn1
        attention.to_q = Adapted(attention.to_q, **options)

    return change


def scheduler_made_again(pipe):
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)


SAME = {
    "compiled": compiled, "compiled in place": compiled_in_place, "compiled forward": compiled_forward,
    "compiled blocks": compiled_blocks, "offloaded": offloaded, "offloaded as a whole": offloaded_as_a_whole,
    "hooks in a row": offloaded_with_hooks_in_a_row, "offloaded by model": offloaded_by_model, "fused": fused,
    "other processors": other_processors, "merged LoRA": adapted(merged=True),
    "disabled LoRA": adapted(disable_adapters=True, size=1.0), "scheduler made again": scheduler_made_again,
    "compiled and offloaded": lambda pipe: (offloaded(pipe), compiled(pipe)), "float64": lambda pipe: pipe.to(torch.float64),
    "compiled vae": lambda pipe: setattr(pipe, "vae", torch.compile(pipe.vae, backend="eager")),
    "offloaded vae": lambda pipe: accelerate.cpu_offload(pipe.vae, torch.device("cpu")),
}  # fmt: skip


@pytest.mark.parametrize("how", SAME)
def test_what_computes_the_same_is_accepted_and_gives_the_same(engines, live, want, how):
    SAME[how](live)
    enable_l2c(live, engines)
    if how == "float64":  # the noise of another type is other noise
        assert images(live).shape == want.shape
    else:
        assert same_pixels(images(live), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_starts_from_its_own_noise(engines, live, dtype):
    enable_l2c(live.to(dtype), engines)
    drawn = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3), dtype=dtype)
    assert same_pixels(images(live, kind="latent"), live.l2c.compiled(LABELS, 4.0, latents=drawn).latents)


def test_copies_share_the_engines_and_are_undone_alone(engines, live, want):
    other = copy.deepcopy(enable_l2c(live, engines))
    assert other.l2c.compiled is live.l2c.compiled
    live.disable_l2c()
    assert type(live) is diffusers.DiTPipeline
    assert same_pixels(images(other), want)
    with pytest.raises(L2CError, match="cannot be copied"):
        copy.deepcopy(l2c_export.load(engines))


def test_a_transformer_may_be_let_go_once_it_was_compared(engines, live, want):
    enable_l2c(live, engines)
    live.transformer.to("meta")
    assert same_pixels(images(live), want)


class Louder:
    def __call__(self, attn, hidden_states, *positional, **named):
        return 2 * AttnProcessor2_0()(attn, hidden_states, *positional, **named)


class Taught(diffusers.DiTTransformer2DModel):
    def forward(self, *positional, **named):
        return super().forward(*positional, **named)


def louder(pipe):
    pipe.transformer.transformer_blocks[0].attn1.set_processor(Louder())


def taught(pipe):
    pipe.transformer.__class__ = Taught


def patched(pipe):
    block = pipe.transformer.transformer_blocks[0].ff
    block.forward = types.MethodType(lambda self, x: 0 * x, block)


def quantised(pipe):
    pipe.transformer = torch.ao.quantization.quantize_dynamic(pipe.transformer, {nn.Linear}, torch.qint8)


def cast(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def fused_and_changed(pipe):
    fused(pipe)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[1].attn1.to_qkv.weight.mul_(1.01)


OTHER = {
    "LoRA": (adapted(size=1.0), r"adapter such as a LoRA \(transformer_blocks.1.attn1.to_q\).*merge it.*l2c_export.link"),
    "merged but disabled LoRA": (adapted(merged=True, disable_adapters=True), "adapter such as a LoRA"),
    "no weights": (lambda pipe: pipe.transformer.to("meta"), "on the meta device"),
    "processor": (louder, "attention processor Louder"),
    "subclass": (taught, "a Taught with a forward of its own"),
    "patched": (patched, r"a forward of its own \(transformer_blocks.0.ff\)"),
    "quantised": (quantised, "call enable_l2c before quantising or layerwise casting"),
    "layerwise casting": (cast, "as float8_e4m3fn.* before quantising or layerwise casting"),
    "fused and changed": (fused_and_changed, r"other weights .*blocks.1.attn.qkv.weight.*l2c_export.link"),
    "data parallel": (lambda pipe: setattr(pipe, "transformer", nn.DataParallel(pipe.transformer)), "is a DataParallel"),
    "none": (lambda pipe: setattr(pipe, "transformer", None), "is a NoneType"),
    "activation": (lambda pipe: pipe.transformer.register_to_config(activation_fn="gelu"), "activation_fn = 'gelu'"),
    "no scheduler": (lambda pipe: setattr(pipe, "scheduler", None), "pipe.scheduler"),
    "scheduler": (lambda pipe: setattr(pipe, "scheduler", diffusers.PNDMScheduler()), "PNDMScheduler is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("how", OTHER)
def test_what_computes_something_else_is_one_line(engines, live, how):
    change, says = OTHER[how]
    change(live)
    with pytest.raises(L2CError, match=says) as error:
        enable_l2c(live, engines)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["LoRA", "processor", "patched", "none"])
def test_what_is_changed_afterwards_is_seen_by_the_next_call(engines, live, want, how):
    enable_l2c(live, engines)
    change, says = OTHER[how]
    change(live)
    with pytest.raises(UsageError, match=says):
        images(live)


def test_weights_that_are_trained_afterwards_are_seen_by_the_next_call(engines, live):
    enable_l2c(live, engines)
    with torch.no_grad():
        live.transformer.proj_out_2.bias.add_(0.1)
    with pytest.raises(UsageError, match="other weights"):
        images(live)


def test_a_pipeline_with_a_call_of_its_own_keeps_it(engines, live):
    class Mine(diffusers.DiTPipeline):
        def __call__(self, *positional, **named):
            return super().__call__(*positional, **named)

    with pytest.raises(UsageError, match="Mine has a call of its own"):
        enable_l2c(Mine(**live.components), engines)


@pytest.mark.parametrize(
    "generator", [5, np.random.default_rng(0), (torch.Generator(), torch.Generator())], ids=lambda g: type(g).__name__
)
def test_a_live_pipeline_takes_generators_of_pytorch(engines, live, generator):
    with pytest.raises(UsageError, match=r"use torch\.manual_seed"):
        enable_l2c(live, engines)(LABELS, generator=generator)


def test_without_an_autoencoder_there_are_latents(engines, live):
    enable_l2c(live, engines).vae = None
    assert images(live, kind="latent").shape == (2, 4, 8, 8)
    with pytest.raises(UsageError, match="has no vae"):
        images(live)
