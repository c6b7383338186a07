"""Artefacts whose weights are stored narrower than they are computed: they run, verify and are linked as any other."""

from __future__ import annotations

import json
import shutil

import loras
import numpy as np
import onnx
import onnxruntime
import pytest
import text_oracle
import texts
import torch
from click.testing import CliRunner
from fake_cuda import FakeCudart
from helpers import needs_precision
from msgspec.structs import replace
from prompted import error
from safetensors.numpy import load_file

import l2c_export
from l2c_export import demo
from l2c_export.artefact import check, store
from l2c_export.artefact import text as component
from l2c_export.backends.cuda import device
from l2c_export.backends.onnxruntime.session import session_options
from l2c_export.cli.main import l2c
from l2c_export.compiler.link import bind
from l2c_export.compiler.request import Options, options_of
from l2c_export.compiler.storing import Stored, listed, parsed
from l2c_export.errors import ArtefactError, UsageError
from l2c_export.runtime.loaded import mapped_weights, weight_names
from l2c_export.weights import stored
from l2c_export.weights.layout import WEIGHTS, mapped

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = "full:0,2"  # of three steps: a full call, a cached one, a full one


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory, own_cache):
    """The demo's weights in int8, and as they are."""
    root = tmp_path_factory.mktemp("narrow")
    for name, kind in (("int8", "int8"), ("fp32", ())):
        l2c_export.compile(SHORT, steps=3, model="demo", out=root / name, store=kind, backend="onnxruntime")
    return root


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_is_right_with_the_weights_that_it_has(artefacts, backend):
    verdict = l2c_export.verify(artefacts / "int8", backend=backend)
    assert verdict.passed
    assert verdict.setting["stored"] == "int8"
    assert l2c_export.check(artefacts / "int8", backend=backend).passed


def test_what_it_costs_is_measured_and_said(artefacts):
    record = store.read(artefacts / "int8").denoiser
    original, kept = load_file(demo.WEIGHTS), mapped(artefacts / "int8" / WEIGHTS, record.tensors)
    names = [name for name, tensor in record.tensors.items() if tensor.stored]
    pairs = [(original[name].astype(np.float64), kept(name).astype(np.float64)) for name in names]
    lost, there = (np.sqrt(sum((x**2).sum() for x in arrays)) for arrays in zip(*((a - b, a) for a, b in pairs), strict=True))
    assert record.narrowing.error == pytest.approx(lost / there, rel=1e-3)
    assert 1e-3 < record.narrowing.error < 1e-2
    for words in (["verify", "--seed", "1"], ["inspect"]):
        done = CliRunner().invoke(l2c, [words[0], str(artefacts / "int8"), *words[1:]])
        assert f"{len(names)} matrices stored in int8, relative error {record.narrowing.error:.1e}" in done.output
    assert "stored" not in CliRunner().invoke(l2c, ["inspect", str(artefacts / "fp32")]).output


def test_it_is_a_quarter_as_large_and_draws_nearly_the_same(artefacts):
    sizes = {name: (artefacts / name / WEIGHTS).stat().st_size for name in ("int8", "fp32")}
    assert sizes["int8"] < 0.27 * sizes["fp32"]
    images = {}
    for name in sizes:
        with l2c_export.load(artefacts / name) as pipe:
            images[name] = pipe([3], seed=0, output_type="np").images
    assert 1e-5 < np.abs(images["int8"] - images["fp32"]).mean() < 0.02


def test_a_checkpoint_is_compared_as_it_would_be_stored(artefacts):
    assert l2c_export.verify(artefacts / "int8", weights=demo.WEIGHTS).passed
    assert l2c_export.verify(artefacts / "fp32", weights=demo.WEIGHTS).passed


def step(folder, value_of, weights=None):
    """What ONNX Runtime makes of the first step graph by itself, perhaps with other weights."""
    manifest = store.read(folder)
    record = manifest.all_graphs()[manifest.program().calls[0].graph]
    options = session_options(True, 1)
    names = weight_names(manifest).intersection(record.inputs) if weights else ()
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weights(name))) for name in names}
    for name, value in values.items():
        options.add_initializer(name, value)
    session = onnxruntime.InferenceSession(folder / record.file, options)
    outputs = session.run(None, {i.name: value_of(i) for i in session.get_inputs()})
    return dict(zip([o.name for o in session.get_outputs()], outputs, strict=True))


def test_a_step_graph_runs_by_itself(artefacts):
    """ONNX Runtime's own operators widen what is stored as we do."""

    def value_of(declared):
        shape = [n if isinstance(n, int) else 2 if n == "R" else 1 for n in declared.shape]
        if declared.type == "tensor(int32)":
            return np.zeros(shape, np.int32)
        return np.random.default_rng(len(declared.name)).standard_normal(shape).astype(np.float32)

    alone, original = (step(artefacts / name, value_of) for name in ("int8", "fp32"))
    wanted = step(artefacts / "fp32", value_of, mapped_weights(artefacts / "int8", store.read(artefacts / "int8")))
    assert all(error(alone[name], value) < 1e-6 for name, value in wanted.items())
    assert error(alone["x.next"], original["x.next"]) > 1e-4


def test_whole_graphs_take_no_narrow_weights(artefacts):
    with pytest.raises(
        UsageError, match=r"link='static': .*its weights are stored in int8, narrower than .*: use link='shared'"
    ):
        l2c_export.load(artefacts / "int8", link="static")
    with pytest.raises(UsageError, match=r"store='fp16': link='static' keeps weights in whole graphs"):
        Options(schedule=SHORT, store=("fp16",), link="static")


def test_other_weights_are_stored_as_those_before(artefacts, tmp_path):
    folder = shutil.copytree(artefacts / "int8", tmp_path / "e")
    before, record = (folder / WEIGHTS).read_bytes(), store.read(folder).denoiser
    lines = []
    bind(folder, "random:3", lines.append)
    after = store.read(folder).denoiser
    assert after.tensors == record.tensors
    assert after.narrowing != record.narrowing
    assert any("63 matrices stored in int8, relative error" in line for line in lines)
    assert l2c_export.verify(folder).passed
    bind(folder, str(demo.WEIGHTS))
    assert (folder / WEIGHTS).read_bytes() == before


def test_weights_may_come_later(artefacts, tmp_path):
    l2c_export.compile(SHORT, steps=3, model="demo", weights="none", out=tmp_path / "e", store="int8")
    assert not store.read(tmp_path / "e").denoiser.narrowing
    assert "matrices stored in int8" in CliRunner().invoke(l2c, ["inspect", str(tmp_path / "e")]).output
    bind(tmp_path / "e", str(demo.WEIGHTS))
    assert (tmp_path / "e" / WEIGHTS).read_bytes() == (artefacts / "int8" / WEIGHTS).read_bytes()


def test_a_lora_is_added_to_what_is_widened_and_stored_again(artefacts, tmp_path):
    folder = shutil.copytree(artefacts / "int8", tmp_path / "e")
    tensors = store.read(folder).denoiser.tensors
    name = "blocks.1.attn.qkv.weight"
    before = np.array(mapped(folder / WEIGHTS, tensors)(name))
    lora = loras.factors({"blocks.1.attn.qkv": before.shape})
    bind(folder, None, loras=[str(loras.saved(tmp_path / "a.safetensors", lora))])
    want = before + lora["blocks.1.attn.qkv"].product.numpy()
    got = mapped(folder / WEIGHTS, tensors)(name)
    step = np.abs(want).max(1, keepdims=True) / 127
    assert (np.abs(got - want) <= 0.501 * step).all()
    assert np.abs(got - before).max() > step.max()
    others = "blocks.2.attn.qkv.weight"
    assert np.array_equal(load_file(folder / WEIGHTS)[others], load_file(artefacts / "int8" / WEIGHTS)[others])
    assert l2c_export.verify(folder).passed


def test_on_a_gpu_lie_the_wide_weights(artefacts):
    manifest = store.read(artefacts / "int8")
    cuda = device.Cuda.__new__(device.Cuda)
    cuda._cudart, cuda.index, cuda.stream = FakeCudart(), 0, 7
    view = mapped_weights(artefacts / "int8", manifest)
    names = weight_names(manifest)
    there = cuda.weights(view, names)
    assert {str(there(name).dtype) for name in names} == {"float32"}
    assert all(np.array_equal(cuda.get(there(name)), view(name)) for name in sorted(names)[:20])


def test_in_half_precision_too(tmp_path):
    needs_precision("openvino", "bf16")
    l2c_export.compile(SHORT, steps=3, model="demo", out=tmp_path / "e", store="int8", precision="bf16", backend="openvino")
    manifest = store.read(tmp_path / "e")
    for graph in manifest.all_graphs().values():
        onnx.checker.check_model(tmp_path / "e" / graph.file, full_check=True)
    view = mapped(tmp_path / "e" / WEIGHTS, manifest.denoiser.tensors)
    assert str(view("blocks.1.attn.qkv.weight").dtype) == "bfloat16"
    assert l2c_export.verify(tmp_path / "e", atol=0.2, rtol=0.2).passed, "the first of so few steps amplifies errors"


# text encoders and decoders


def test_components_are_stored_apart(prompted_by, tmp_path, monkeypatch):
    """The states of an encoder in int8 are those of transformers with the same weights, and pictures are drawn."""
    monkeypatch.setattr(stored, "LEAST", 1)
    monkeypatch.setattr("l2c_export.compiler.onnx.decoder.LEAST", 1)
    whole = prompted_by(texts.MINILM)
    chosen = {"store": ("fp16", "text=int8"), "with_vae": True}
    export = texts.exported(texts.MINILM, whole.folder, tmp_path / "out", **chosen)
    manifest = store.read(export.out)
    encoder = manifest.text.encoders["text_encoder"]
    kept = mapped(export.out / component.weights_file("text_encoder"), encoder.tensors)
    theirs = text_oracle.pipeline(export.folder)
    for name, parameter in theirs.text_encoder.named_parameters():
        if name in encoder.tensors:
            narrowed = bool(encoder.tensors[name].stored)
            assert narrowed == (parameter.ndim > 1 and name.endswith(".weight"))
            lost = error(kept(name), parameter.detach().numpy())
            assert (0 < lost < 0.005) if narrowed else lost == 0
            parameter.data = parameter.data.new_tensor(kept(name))
    wanted = text_oracle.encoded(theirs, ["a cat"], [""], export.tokens)
    for backend in ("onnxruntime", "openvino"):
        with l2c_export.load(export.out, backend=backend) as pipe:
            arrays = pipe.inputs(prompt="a cat")
            assert all(error(arrays[name], value) < 1e-5 for name, value in wanted.items())
            picture = pipe(prompt="a cat", seed=3, output_type="np").images
        with l2c_export.load(whole.out, backend=backend) as pipe:
            plain = pipe(prompt="a cat", seed=3, steps=2, output_type="np").images
        assert error(picture, plain) < 0.05
    assert (manifest.denoiser.stored, manifest.decoder.stored) == ("float16", "float16")
    sizes = {name: (entry.out / "vae/decoder.onnx").stat().st_size for name, entry in (("narrow", export), ("whole", whole))}
    assert sizes["narrow"] < sizes["whole"]
    done = CliRunner().invoke(l2c, ["inspect", str(export.out)])
    assert "text_encoder: 19 matrices stored in int8, relative error" in done.output
    assert "decoder: stored in float16" in done.output


# what is asked for


@pytest.mark.parametrize(("options", "meant"), [
    ("int8", Stored("int8", "int8", "fp16")), (["fp16", "text=int8"], Stored("fp16", "int8", "fp16", frozenset({"text"}))),
    ({"text": "bf16"}, Stored(None, "bf16", None, frozenset({"text"}))), ((), Stored()),
    ("decoder=fp16", Stored(None, None, "fp16", frozenset({"decoder"}))),
])  # fmt: skip
def test_what_is_meant(options, meant):
    assert parsed(listed(options)) == meant


@pytest.mark.parametrize(("options", "problem"), [
    ({"store": "int4"}, r"store='int4': use one of fp16, bf16, int8, for one component behind denoiser= or text= or decoder="),
    ({"store": "vae=fp16"}, r"store='vae=fp16': use one of"), ({"store": "=fp16"}, None),
    ({"store": ["fp16", "int8"]}, r"store='int8': all is 'fp16' already: give it once"),
    ({"store": "text=int8"}, r"store='text=\.\.': there is none without with_text=True"),
    ({"store": "decoder=fp16"}, r"store='decoder=\.\.': there is none without with_vae=True"),
    ({"store": "decoder=int8", "with_vae": True}, r"store='decoder=int8': .*: use decoder=fp16, or none"),
    ({"store": "fp16", "precision": "bf16"}, r"store='fp16': weights of bf16 are no wider than that: use int8"),
    ({"store": "text=bf16", "with_text": True, "text_precision": "bf16"}, r"store='bf16': weights of bf16 are no wider"),
])  # fmt: skip
def test_what_cannot_be_stored_is_refused(options, problem):
    if problem is None:
        assert options_of(SHORT, **options).stored.denoiser == "fp16"
        return
    with pytest.raises(UsageError, match=problem):
        options_of(SHORT, **options)


def test_on_the_command_line(tmp_path):
    from l2c_export.cli.compile import export

    words = ["--model", "demo", "--schedule", SHORT, "--steps", "3", "--out", str(tmp_path / "e"), "--store"]
    done = CliRunner().invoke(export, [*words, "text=int8"])
    assert "--store" in done.output
    assert "--with-text" in done.output
    assert CliRunner().invoke(export, [*words, "int8"]).exit_code == 0
    assert store.read(tmp_path / "e").denoiser.stored == "int8"


# the manifest


def narrowed(record, **fields):
    name = next(n for n, tensor in record.tensors.items() if tensor.stored == "int8")
    return {**record.tensors, name: replace(record.tensors[name], **fields)}


@pytest.mark.parametrize(("change", "problem"), [
    (lambda d: {"tensors": narrowed(d, stored="float16")}, "its tensors make"),
    (lambda d: {"tensors": narrowed(d, dtype="float16", stored="bfloat16")}, "is stored as bfloat16, and computed as float16"),
    (lambda d: {"tensors": {**d.tensors, "y": replace(d.tensors["pos_embed"], shape=(64,), stored="int8")}}, "has no rows"),
    (lambda d: {"tensors": {**d.tensors, f"{d.narrowing.worst}.scale": d.tensors["pos_embed"]}}, "has no rows with scales"),
    (lambda d: {"narrowing": replace(d.narrowing, error=-1.0)}, "has cost -1.0"),
    (lambda d: {"narrowing": replace(d.narrowing, matrices=0)}, "storing 0 matrices narrower"),
    (lambda d: {"narrowing": replace(d.narrowing, worst="pos_embed")}, "'pos_embed' among them"),
], ids=[str(n) for n in range(7)])  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(artefacts, change, problem):
    manifest = store.read(artefacts / "int8")
    assert check.problem(manifest) is None
    changed = replace(manifest, denoiser=replace(manifest.denoiser, **change(manifest.denoiser)))
    assert problem in check.problem(changed)
    assert "whole graphs" in check.problem(replace(manifest, link="static"))


@pytest.mark.parametrize("stored", ["int4", 8, None, "float32"])
def test_a_type_that_is_unknown_is_refused(artefacts, tmp_path, stored):
    folder = shutil.copytree(artefacts / "int8", tmp_path / "e")
    raw = json.loads((folder / "manifest.json").read_text())
    next(t for t in raw["denoiser"]["tensors"].values() if "stored" in t)["stored"] = stored
    raw["checksum"] = store.checksum(raw)
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(ArtefactError, match=r"manifest.json is damaged: .*stored"):
        l2c_export.load(folder)


def test_a_live_pipeline_is_compared_with_what_is_stored(prompted_by, tmp_path, monkeypatch):
    """As exactly as it is: half a step of 8 bits is no other model, more is."""
    monkeypatch.setattr(stored, "LEAST", 1)
    folder = prompted_by(texts.MINILM).folder
    export = texts.exported(texts.MINILM, folder, tmp_path / "out", (("every:1", 3),), store=("denoiser=int8",))
    ours = l2c_export.enable_l2c(texts.live(folder), export.out)
    latents = [pipe(**texts.asked("pixart", output_type="latent")).images.numpy() for pipe in (texts.live(folder), ours)]
    assert 1e-5 < error(*latents) < 0.1
    weight = ours.transformer.transformer_blocks[1].ff.net[2].weight
    with torch.no_grad():
        weight[0, 0] += 2 * weight[0].abs().max() / 127
    with pytest.raises(UsageError, match=r"has other weights than .*transformer_blocks\.1\.ff\.net\.2\.weight"):
        ours(**texts.asked("pixart"))
