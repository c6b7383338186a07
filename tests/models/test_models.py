"""The two model families: their tensors, their operations against plain numpy, and the eager model against recordings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import OWN_CASES, case
from hypothesis import given
from hypothesis import strategies as st
from recorded import close
from safetensors.numpy import load_file

from l2c_export.compiler.compile import lower
from l2c_export.compiler.source import resolve
from l2c_export.errors import ModelError
from l2c_export.ir.graph import LOOP, PLAIN_OPS, WEIGHT
from l2c_export.ir.inputs import class_labels
from l2c_export.ir.names import rows_of
from l2c_export.ir.precisions import DTYPES, ONE_TYPE
from l2c_export.models import dit, families, lookup, primitives, uvit
from l2c_export.models.dit import DiT
from l2c_export.models.uvit import UViT
from l2c_export.pytorch.eager import Denoiser, Eager
from l2c_export.samplers.reference import updates
from l2c_export.weights.checkpoint import Checkpoint

CASES = sorted(path.name for path in OWN_CASES.iterdir())
every_case = pytest.mark.parametrize("name", CASES)
both_families = pytest.mark.parametrize("family", [DiT(dit.DiTArch(8, 2, 4, 32, 3, 2)), UViT(uvit.UViTArch(8, 2, 4, 32, 4, 2))],
                                        ids=["dit", "uvit"])  # fmt: skip


def source(name):
    """What the compiler understands of a case: the family and the schedule."""
    return resolve(case(name).options(None))


def weights_of(name):
    return {n: torch.from_numpy(v) for n, v in load_file(case(name).path / "model.safetensors").items()}


pytestmark = pytest.mark.usefixtures("one_thread")


# the eager model against the reference implementation


class Call(NamedTuple):
    timestep: float
    computed: tuple[int, ...]
    reused: tuple[int, ...]
    coefficients: tuple[float, float, float]
    ends_step: bool
    derived: None = None


def calls_of(schedule):
    table = updates(schedule.sampler, schedule.steps)
    pairs = zip(schedule.calls, table, strict=True)
    return [Call(call.timestep, call.computed, call.reused, update.coefficients, update.ends_step) for call, update in pairs]


def null_labels(origin, count):
    return origin.family.inputs[0].without(count) if origin.guidance != "none" else []


def steps(name, cached):
    """(the call, the latents after it) of a case; the latents may be changed."""
    chosen, origin = case(name), source(name)
    calls = calls_of(origin.schedule if cached else origin.schedule.uncached())
    golden, n = chosen.golden, chosen.config["batch"]
    request = {"class_labels": torch.tensor([*golden["y"][:n], *null_labels(origin, n)], dtype=torch.int32)}
    guided = 3 if origin.guidance == "first3" else 4
    guidance = (chosen.scale - 1) * (torch.arange(4) < guided).float().reshape(1, 4, 1, 1)
    run = Denoiser(origin.family, weights_of(name)).steps(calls, torch.from_numpy(golden["x_T"][:n]), request, guidance)
    return zip(calls, run, strict=True)


@every_case
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "full"])
def test_the_eager_model_follows_the_reference(name, cached):
    golden = case(name).golden["cached_x" if cached else "full_x"]
    seen = [x.clone() for call, x in steps(name, cached) if call.ends_step]
    assert close(np.stack(seen), golden[:, : case(name).config["batch"]])


@every_case
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "full"])
def test_every_step_that_starts_from_recorded_latents_ends_at_recorded_ones(name, cached):
    """Errors of earlier steps do not count here, so less is allowed."""
    golden = iter(case(name).golden["cached_x" if cached else "full_x"])
    for call, x in steps(name, cached):
        if call.ends_step:
            want = torch.from_numpy(next(golden)[: len(x)])
            assert (x - want).abs().max() < 1e-5 * max(1, want.abs().max()), call
            x.copy_(want)


def test_the_last_item_is_what_a_call_returns():
    name = "dit_batch3_no_cfg"
    origin, golden = source(name), case(name).golden
    request = {"class_labels": torch.tensor(golden["y"], dtype=torch.int32)}
    arguments = calls_of(origin.schedule), torch.from_numpy(golden["x_T"]), request
    whole = Denoiser(origin.family, weights_of(name))(*arguments, torch.zeros(1, 4, 1, 1))
    assert close(whole.numpy(), golden["cached_final"])
    assert np.array_equal(arguments[1].numpy(), case(name).golden["x_T"]), "the noise is only read"


@every_case
def test_one_call_predicts_the_recorded_noise(name):
    """The sharpest comparison: kinds of GELU and the epsilon of a norm show here."""
    golden, origin, n = case(name).golden, source(name), case(name).config["batch"]
    halves = 1 if origin.guidance == "none" else 2
    request = {"class_labels": torch.tensor([*golden["y"][:n], *null_labels(origin, n)], dtype=torch.int32)}
    for k, t in enumerate(golden["t"]):
        if case(name).uvit:
            x, want = golden["full_xin"][k], np.concatenate([golden["full_cond"][k], golden["full_uncond"][k]])
        else:
            x, want = golden["full_x"][k - 1][:n] if k else golden["x_T"][:n], golden["full_raw"][k]
        run = Eager(origin.family, weights_of(name), frozenset(), {}, {})
        rows, times = torch.arange(n, dtype=torch.int32).repeat(halves), torch.full((halves * n,), float(t))
        with torch.no_grad():
            prediction = origin.family.call(run, torch.from_numpy(x), rows, times, request).numpy()
        assert np.abs(prediction - want).max() < 3e-5, f"call {k}"
        assert tuple(run.fresh) == origin.family.sublayers


# tensors and names


@every_case
def test_the_tensors_are_those_of_the_checkpoint(name):
    stored = {n: tuple(v.shape) for n, v in weights_of(name).items()}
    family = source(name).family
    assert family.tensors() == stored
    assert type(family).from_tensors(stored, family.arch) == family.arch


PAPERS = {  # millions of parameters: table 4 of arXiv 2212.09748, table 1 of 2209.12152
    "DiT-S/2": 33, "DiT-S/4": 33, "DiT-S/8": 33, "DiT-B/2": 130, "DiT-B/4": 130, "DiT-L/2": 458, "DiT-XL/2": 675,
    "DiT-XL/4": 675, "DiT-XL/8": 676, "DiT-XL/2@512": 676, "U-ViT-M/4": 131, "U-ViT-L/2": 287, "U-ViT-L/4": 287,
    "U-ViT-H/2": 501, "U-ViT-H/4@512": 501,
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_a_name_has_the_parameters_of_its_paper(name):
    family, known, assumed = lookup.resolve(name, None, None, None)
    assert (known, assumed) == (name, ())
    assert sum(math.prod(shape) for shape in family.tensors().values()) == pytest.approx(PAPERS[name] * 1e6, rel=0.01)
    assert family.latent == ((4, 64, 64) if "@512" in name else (4, 32, 32))
    assert family.inputs == (class_labels(1000, 1000),)
    assert lookup.resolve(None, None, None, shaped(family)).family.arch == family.arch, "the shapes alone say the same"


@pytest.mark.parametrize("name", ["DiT-XL", "DiT-XL/3", "DiT-Q/2", "DiT-XL/2@1024", "U-ViT-H", "U-ViT-H/8", "U-ViT-XL/2", "",
                                  "dit-xl/2", "SD3"])  # fmt: skip
def test_other_names_are_refused(name):
    with pytest.raises(ModelError, match=f"unknown model '{name}': use for example DiT-XL/2"):
        lookup.resolve(name, None, None, None)


@both_families
def test_a_column_is_the_attention_or_the_mlp_of_a_block(family):
    tensors = family.tensors()
    blocks = [name.rpartition(".") for name in family.sublayers]
    assert [kind for _, _, kind in blocks] == ["attn", "mlp"] * (len(blocks) // 2)
    assert all(a[0] == b[0] for a, b in zip(blocks[::2], blocks[1::2], strict=True))
    for block, _, kind in blocks:
        assert f"{block}.{'attn.qkv' if kind == 'attn' else 'mlp.fc1'}.weight" in tensors
    names = [block for block, _, _ in blocks[::2]]
    assert names == (["blocks.0", "blocks.1", "blocks.2"] if family.name == "dit" else
                     ["in_blocks.0", "in_blocks.1", "mid_block", "out_blocks.0", "out_blocks.1"])  # fmt: skip


@pytest.mark.parametrize("name", ["dit_tiny_odd_resetN", "uvit_tiny_variant"])
@pytest.mark.parametrize("precision", ONE_TYPE)
def test_a_recorded_call_is_made_of_the_familys_operations_and_reads_every_tensor(name, precision):
    options = case(name).options(None, precision=precision)
    graph, family = lower(options, resolve(options)).whole, source(name).family
    assert {node.op for node in graph.nodes} - PLAIN_OPS == {*family.segments, "update"}
    assert graph.outputs == ("x.next",)
    assert graph.values["x.next"].shape == ("B", *family.latent)
    assert [node.name for node in graph.nodes if node.name in family.sublayers] == list(family.sublayers)
    weights = [name for name in graph.inputs if graph.kind(name) == WEIGHT]
    assert {rows_of(name)[0] for name in weights} == set(family.tensors())
    assert {graph.values[name].dtype for name in weights} == {DTYPES[precision]}
    read = {}
    for name in weights:
        tensor, rows = rows_of(name)
        read.setdefault(tensor, []).extend(range(family.tensors()[tensor][0])[rows])
    assert all(sorted(rows) == list(range(family.tensors()[n][0])) for n, rows in read.items()), "every row once"
    others = {name: graph.kind(name) for name in graph.inputs if graph.kind(name) != WEIGHT}
    loop = {"x", "base", "rows", "conditional", "unconditional", "guidance", "coefficients"}
    assert {name for name, kind in others.items() if kind in LOOP} == loop
    assert others.keys() == {*loop, "t", "request.class_labels"}


# architectures


@st.composite
def archs(draw):
    flag, one_of = st.booleans(), st.sampled_from
    patch, heads = draw(one_of([1, 2, 4])), draw(st.integers(1, 4))
    size, width = patch * draw(st.integers(1, 6)), heads * draw(one_of([2, 6, 10]))
    common = size, patch, draw(st.integers(1, 5)), width, draw(st.integers(2, 5)), heads, draw(one_of([1.0, 4.0]))
    classes = draw(st.integers(2, 20))
    if draw(flag):
        return DiT, dit.DiTArch(*common, draw(one_of([0.0, 0.1])), classes, draw(flag))
    return UViT, uvit.UViTArch(*common, draw(flag), draw(flag), classes, draw(flag), draw(flag))


@given(archs())
def test_the_shapes_of_a_checkpoint_show_its_architecture(drawn):
    family, arch = drawn
    assert family.from_tensors(family(arch).tensors(), arch) == arch


def shaped(family, name="w.pt", **args):
    """A checkpoint of a model, of which only the shapes and what its training noted count."""
    return Checkpoint(Path(name), family.tensors(), np.zeros, args)


def described(path, **arch):
    path.write_text(json.dumps({"family": "dit", "arch": {"hidden_size": 32, "num_heads": 2, "depth": 2, **arch}}))
    return lookup.resolve(str(path), None, None, None)[0]


def test_what_a_description_leaves_out_is_that_of_xl(tmp_path):
    plain = described(tmp_path / "m.json").arch
    assert described(tmp_path / "m.json", use_checkpoint=False).arch == plain, "which only saves memory in training"
    assert plain == dit.DiTArch(hidden_size=32, num_heads=2, depth=2)


@pytest.mark.parametrize(("key", "says"), [
    ("num_head", "'num_head': use num_heads"), ("qk_norm", "'qk_norm': known are input_size, "),
    ("img_size", "'img_size': use input_size"),
])  # fmt: skip
def test_unknown_keys_of_an_architecture_are_refused(tmp_path, key, says):
    with pytest.raises(ModelError, match=rf"m\.json: unknown key {says}"):
        described(tmp_path / "m.json", **{key: 1})


def test_unknown_keys_beside_an_architecture_are_refused_but_for_those_of_a_recorded_run(tmp_path):
    arch = {"hidden_size": 32, "num_heads": 2, "depth": 2}
    (tmp_path / "m.json").write_text(json.dumps({"family": "dit", "arch": arch, "prediction": "velocity"}))
    with pytest.raises(ModelError, match="unknown key 'prediction': known are family, arch"):
        lookup.resolve(str(tmp_path / "m.json"), None, None, None)
    assert lookup.resolve(str(case("dit_batch3_no_cfg").path / "config.json"), None, None, None)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"depth": "3"}, "`int`, got `str`.*depth"), ({"depth": 2.5}, "`int`, got `float`.*depth"),
    ({"learn_sigma": "yes"}, "`bool`, got `str`.*learn_sigma"), ({"mlp_ratio": None}, "`float`, got `null`.*mlp_ratio"),
    ({"num_heads": 5}, "hidden_size 32 must be a multiple of num_heads 5"), ({"input_size": 7}, "input_size 7 of patch_size 2"),
])  # fmt: skip
def test_wrong_values_of_an_architecture_are_refused(tmp_path, wrong, says):
    with pytest.raises(ModelError, match=says):
        described(tmp_path / "m.json", **wrong)


@pytest.mark.parametrize("wrong", [{key: 0} for key in ("input_size", "patch_size", "in_channels", "hidden_size", "depth",
                                                        "num_heads", "mlp_ratio", "num_classes")], ids=str)  # fmt: skip
def test_an_architecture_of_nothing_is_refused(tmp_path, wrong):
    with pytest.raises(ModelError, match=next(iter(wrong))):
        described(tmp_path / "m.json", **wrong)


def test_an_odd_width_of_a_unet_is_refused():
    with pytest.raises(ModelError, match="embed_dim 31"):
        UViT(uvit.UViTArch(8, 2, 4, 31, 2, 1))


@pytest.mark.parametrize("text", [
    "[]", "null", '"x"', "{", '{"family": "dit"}', '{"arch": {}}', '{"family": "gan", "arch": {}}',
    '{"family": "dit", "arch": null}', "[" * 10**5,
    '{"family": ["dit"], "arch": {}}',
])  # fmt: skip
def test_a_file_that_describes_no_model_is_named(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ModelError, match=r"m\.json"):
        lookup.resolve(str(tmp_path / "m.json"), None, None, None)


# operations against formulas


def rng(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(a)) for a in arrays]


def norm(x, eps):
    x = x.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def attend(x, heads, qkv, bias, proj, proj_bias):
    """Attention in float64, image by image and head by head; qkv's rows are laid out (3, heads, head size)."""
    out = np.zeros(x.shape)
    size = x.shape[-1] // heads
    for image, tokens in enumerate(x):
        mixed = []
        for head in range(heads):
            q, k, v = (
                tokens @ qkv.reshape(3, heads, size, -1)[i, head].T + bias.reshape(3, heads, size)[i, head] for i in range(3)
            )
            scores = np.exp(q @ k.T / np.sqrt(size))
            mixed.append(scores / scores.sum(1, keepdims=True) @ v)
        out[image] = np.concatenate(mixed, 1) @ proj.T + proj_bias
    return out


ERF = np.vectorize(math.erf)
GELU = {"dit": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "uvit": lambda x: 0.5 * x * (1 + ERF(x / np.sqrt(2)))}  # fmt: skip


@both_families
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["ordinary", "so small that the norm's epsilon shows"])
def test_attention_and_mlp_are_their_formulas(family, scale):
    h, (a, b) = scale * rng(2, 6, 32), rng(2, 2, 1, 32, seed=1)
    shapes = {n.partition(".0.")[2]: s for n, s in family.tensors().items() if n.startswith(("blocks.0", "in_blocks.0"))}
    weights = {n: 0.3 * rng(*s, seed=i) for i, (n, s) in enumerate(shapes.items())}
    if family.name == "dit":
        inputs, normed = (h, a, b), norm(h, 1e-6) * (1 + b) + a
    else:
        normed = {k: norm(h, 1e-5) * weights[f"norm{k}.weight"] + weights[f"norm{k}.bias"] for k in (1, 2)}
        inputs = (h,)
    for kind in ("attn", "mlp"):
        x = normed if family.name == "dit" else normed[1 if kind == "attn" else 2]
        w = [weights[n] for n in family.segments[kind].weights]
        output = family.segments[kind].function(*tensors(*inputs, *w)).numpy()
        if kind == "attn":
            bias = weights.get("attn.qkv.bias", np.zeros(96))
            want = attend(x, 2, weights["attn.qkv.weight"], bias, weights["attn.proj.weight"], weights["attn.proj.bias"])
        else:
            inner = GELU[family.name](x @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"])
            want = inner @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]
        assert np.abs(output - want).max() < 2e-5 * max(1, np.abs(want).max()), kind


def patches(x, p, weight, bias):
    """A convolution with stride = kernel = p, patch by patch, row major."""
    height, width = x.shape[2:]
    corners = [(i, j) for i in range(0, height, p) for j in range(0, width, p)]
    return np.stack([np.einsum("ncij,dcij->nd", x[:, :, i : i + p, j : j + p], weight) + bias for i, j in corners], 1)


def test_tokens_of_a_dit_are_patches_with_their_position():
    family = DiT(dit.DiTArch(6, 2, 3, 16, 1, 2))
    x, weight, bias, position = rng(2, 3, 6, 6), rng(16, 3, 2, 2, seed=1), rng(16, seed=2), rng(1, 9, 16, seed=3)
    tokens = family.embed(*tensors(x, np.array([1, 0, 1], np.int32), weight, bias, position)).numpy()
    assert np.allclose(tokens, patches(x, 2, weight, bias)[[1, 0, 1]] + position, atol=1e-5)


def test_tokens_of_a_unet_are_label_time_and_patches_with_their_position():
    family = UViT(uvit.UViTArch(6, 2, 3, 16, 2, 2))
    x, weight, bias, position = rng(2, 3, 6, 6), rng(16, 3, 2, 2, seed=1), rng(16, seed=2), rng(1, 11, 16, seed=3)
    time, label, rows = rng(3, 1, 16, seed=4), rng(3, 1, 16, seed=5), np.array([1, 0, 1], np.int32)
    tokens = family.embed(*tensors(x, rows, time, label, weight, bias, position)).numpy()
    want = np.concatenate([label, time, patches(x, 2, weight, bias)[rows]], 1) + position
    assert np.allclose(tokens, want, atol=1e-5)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
def test_a_token_becomes_a_patch_with_its_channels_fastest(patch, high, wide, channels):
    tokens = rng(2, high * wide, patch * patch * channels)
    sizes = {"patch": patch, "channels": channels, "height": high * patch, "width": wide * patch}
    picture = primitives.unpatchify(torch.from_numpy(tokens), **sizes).numpy()
    for row in range(high * patch):
        for column in range(wide * patch):
            token = (row // patch) * wide + column // patch
            entry = ((row % patch) * patch + column % patch) * channels
            assert np.array_equal(picture[:, :, row, column], tokens[:, token, entry : entry + channels])


@given(st.floats(0, 1000), st.integers(1, 64))
def test_a_timestep_is_cosines_then_sines(t, half):
    waves = primitives.sinusoid(torch.tensor([t, 0.0]), half=half).numpy()
    frequencies = np.exp(-np.log(10000) * np.arange(half) / half)
    angles = np.outer([np.float32(t), 0.0], frequencies)
    assert np.allclose(waves, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=3e-4)  # one ulp of 1000 is 6e-5
    assert waves[1].tolist() == [1.0] * half + [0.0] * half


@every_case
def test_the_frequencies_are_the_references(name):
    """To the last bit but one: on Intel's processors PyTorch's exp rounds some otherwise than on AMD's."""
    arch = source(name).family.arch
    waves = (dit.WAVES, arch.frequency_shift) if name.startswith("dit") else (arch.embed_dim // 2,)
    np.testing.assert_array_max_ulp(primitives.frequencies(*waves).numpy(), case(name).golden["temb_freqs"], maxulp=1)


def test_an_architecture_that_cannot_be_is_refused_in_a_line():
    with pytest.raises(ModelError, match=r"^dit: Expected `int`, got `float` - at `\$.depth` in its architecture"):
        families.build("dit", {"depth": 2.5, "hidden_size": 32, "num_heads": 2})
