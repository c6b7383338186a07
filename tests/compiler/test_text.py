"""Folders with text encoders: as people have them, and those that are refused in one line before anything is compiled."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import sentencepiece
import text_oracle
import texts
import torch
import transformers
from prompted import PIPELINES, error
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import l2c_export
from l2c_export.artefact import store
from l2c_export.artefact import text as component
from l2c_export.compiler import captured, text, tokenizer
from l2c_export.compiler.recipes import RECIPES
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import L2CError, ModelError, UsageError, WeightsError
from l2c_export.models.diffusers import pipeline_folder
from l2c_export.models.text import classes

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = "A photo of a cat, naïve 🐱"


@pytest.fixture
def folder(prompted_by, tmp_path):
    """A pipeline of FLUX of one's own."""
    return shutil.copytree(prompted_by("flux").folder, tmp_path / "model")


def planned(folder: Path, **others: object) -> text.PipelineTexts:
    chosen = {"schedule": "every:1", "steps": 2, "model": str(folder), "size": (64, 64), "tokens": 14, "with_text": True}
    options = Options(**{**chosen, **others})
    return text.planned(options, resolve(options))


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


INDEX, CLIP, T5 = "model_index.json", "text_encoder/config.json", "text_encoder_2/config.json"


@pytest.mark.parametrize(("change", "problem"), [
    (lambda f: edited(f / INDEX, text_encoder_2=["transformers", "UMT5EncoderModel"]), "is a UMT5EncoderModel, where the"),
    (lambda f: edited(f / INDEX, text_encoder_2=["own_code", "T5EncoderModel"]), "is T5EncoderModel of own_code"),
    (lambda f: edited(f / INDEX, text_encoder_2=[None, None]), "names no text_encoder_2, which its pipeline needs"),
    (lambda f: edited(f / INDEX, tokenizer=["transformers", "LlamaTokenizer"]), "is a LlamaTokenizer: only CLIPTokenizer, T5"),
    (lambda f: edited(f / INDEX, tokenizer=[None, None]), "names no tokenizer, which its pipeline needs"),
    (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2: has no fast form (tokenizer.json) that can be made"),
    (lambda f: (f / "tokenizer_2" / "tokenizer.json").write_text("{}"), "tokenizer_2: has no fast form (tokenizer.json)"),
    (lambda f: edited(f / T5, feed_forward_proj="gated-silu"), "feed_forward_proj='gated-silu': use relu or gated-gelu"),
    (lambda f: edited(f / T5, num_layers=4), "does not fit its config.json: encoder.block.3.layer.0"),
    (lambda f: edited(f / T5, d_model=20), ", 16], not ["),
    (lambda f: edited(f / T5, num_heads="x"), "text_encoder_2/config.json does not describe a text encoder"),
    (lambda f: edited(f / T5, vocab_size=20), "has shape"),
    (lambda f: edited(f / CLIP, hidden_act="relu"), "CLIP with hidden_act='relu': only quick_gelu and gelu are supported"),
    (lambda f: edited(f / CLIP, num_attention_heads=3), "CLIP: its width 20 is no multiple of 3 heads"),
    (lambda f: edited(f / "tokenizer" / "tokenizer_config.json", model_max_length=50), "CLIP has 77 positions, and its tok"),
    (lambda f: (f / "text_encoder" / "model.safetensors").unlink(), "text_encoder holds no weights"),
    (lambda f: (f / CLIP).unlink(), "text_encoder/config.json: No such file"),
], ids=[str(n) for n in range(17)])  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused(folder, change, problem):
    change(folder)
    with pytest.raises(L2CError) as refused:
        planned(folder)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def of_rounded_t5(folder, narrow, tokens):
    """What transformers makes of the prompt by matrices in bfloat16 that are called so, and everything else in float32."""
    theirs = text_oracle.pipeline(folder)
    for name, parameter in theirs.text_encoder_2.named_parameters():
        if name.split(".")[-2] in narrow:
            parameter.data = parameter.data.bfloat16().float()
    return text_oracle.encoded(theirs, [PROMPT], [], tokens)["prompt_embeds"]


def test_the_first_t5_has_no_gate(folder, tmp_path):
    texts.t5(folder, "text_encoder_2", 16, proj="relu")
    export = texts.exported("flux", folder, tmp_path / "out", text_precision="bf16")
    read = store.read(export.out).text.encoders["text_encoder_2"].tensors
    narrow = {name.split(".")[-2] for name, tensor in read.items() if tensor.dtype == "bfloat16"}
    assert narrow == {"q", "k", "v", "o", "wi"}
    wanted = of_rounded_t5(folder, narrow, export.tokens)
    for backend in ("onnxruntime", "openvino"):
        with l2c_export.load(export.out, backend=backend) as pipe:
            assert error(pipe.inputs(prompt=PROMPT)["prompt_embeds"], wanted) < 1e-5


@pytest.fixture
def minilm(prompted_by, tmp_path):
    """A pipeline of PixArt with a BERT, of one's own."""
    return shutil.copytree(prompted_by(texts.MINILM).folder, tmp_path / "minilm")


@pytest.mark.parametrize(("changes", "problem"), [
    ({"hidden_act": "relu"}, "BERT with hidden_act='relu': only gelu and gelu_new"),
    ({"is_decoder": True}, "BERT with is_decoder=true: only an encoder with absolute positions"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key': only an encoder"),
    ({"num_attention_heads": 5}, "BERT: its width 24 is no multiple of 5 heads"),
    ({"max_position_embeddings": 13}, "BERT has 13 positions, not 14: use tokens=.. for fewer"),
    ({"vocab_size": 20}, "embeddings.word_embeddings.weight has shape"),
])  # fmt: skip
def test_a_bert_that_cannot_be_used_is_refused(minilm, changes, problem):
    edited(minilm / "text_encoder" / "config.json", **changes)
    with pytest.raises(L2CError) as refused:
        planned(minilm)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("act", ["gelu_new", "gelu_pytorch_tanh"])
def test_a_bert_may_approximate_its_gelu(minilm, tmp_path, act):
    texts.bert(minilm, 24, hidden_act=act)
    export = texts.exported(texts.MINILM, minilm, tmp_path / "out")
    wanted = text_oracle.encoded(text_oracle.pipeline(minilm), [PROMPT], [""], export.tokens)["prompt_embeds"]
    with l2c_export.load(export.out) as pipe:
        assert error(pipe.inputs(prompt=PROMPT)["prompt_embeds"], wanted) < 1e-5


def test_the_first_berts_have_other_names(minilm):
    new, file = planned(minilm), minilm / "text_encoder" / "model.safetensors"
    read = new.encoders["text_encoder"].checkpoint.read
    wanted = {name: np.array(read(name)) for name in new.encoders["text_encoder"].record.tensors}
    old = {f"bert.{name}": value for name, value in load_file(file).items()}
    for ours, theirs in ((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta")):
        old = {name.replace(ours, theirs): value for name, value in old.items()}
    file.unlink()
    save_file({**old, "cls.predictions.bias": torch.zeros(3), "bert.embeddings.position_ids": torch.arange(40)[None]}, file)
    again = planned(minilm).encoders["text_encoder"].checkpoint.read
    assert all(np.array_equal(value, again(name)) for name, value in wanted.items())


@pytest.mark.parametrize(("pipeline", "longest", "tokens"), [
    ("PixArtSigmaPipeline", 32, 32), ("PixArtSigmaPipeline", 512, 300), ("PixArtAlphaPipeline", 512, 120),
    ("PixArtAlphaPipeline", int(1e30), 120), ("PixArtSigmaPipeline", None, 300),
])  # fmt: skip
def test_a_prompt_of_a_bert_is_as_long_as_its_tokenizer_says(minilm, pipeline, longest, tokens):
    """At most as long as its pipeline's."""
    edited(minilm / INDEX, _class_name=pipeline)
    edited(minilm / "tokenizer" / "tokenizer_config.json", model_max_length=longest)
    said = Options(schedule="every:1", steps=2, model=str(minilm), size=(64, 64))
    for options, wanted in ((said, tokens), (replace(said, tokens=9), 9)):
        folder = captured.sized(options, pipeline_folder.read(minilm))
        assert folder.arch["tokens"] == wanted


def test_encoders_of_another_width_than_the_transformers_are_refused(folder):
    texts.t5(folder, "text_encoder_2", 20)
    with pytest.raises(
        ModelError, match=r"its text encoders are not its transformer's: prompt_embeds of a text: .* 20 wide, not"
    ):
        planned(folder)


def test_only_a_pipeline_of_prompts_has_text_encoders(folder, prompted_by):
    with pytest.raises(UsageError, match=r"with_text=True: only a pipeline folder of PixArt, SD3 or FLUX\.1 has any"):
        planned(shutil.copytree(folder / "transformer", folder / "alone"))
    with pytest.raises(UsageError, match=r"tokens=77: this pipeline gives 77 of them to CLIP"):
        planned(prompted_by("sd3").folder, tokens=77)
    with pytest.raises(UsageError, match=r"text_precision='bf16': there are no text encoders without with_text=True"):
        Options(schedule="every:1", text_precision="bf16")


@pytest.mark.parametrize(("family", "index", "tokens"), [
    ("pixart", "PixArtSigmaPipeline", 300), ("pixart", "PixArtAlphaPipeline", 120), ("flux", "FluxPipeline", 512),
    ("schnell", "FluxPipeline", 256), ("sd3", "StableDiffusion3Pipeline", 333),
])  # fmt: skip
def test_a_prompt_has_the_tokens_of_its_pipeline(tmp_path, family, index, tokens):
    folder = PIPELINES[family].folder(tmp_path / "model")
    edited(folder / INDEX, _class_name=index)
    source = resolve(Options(schedule="every:1", steps=2, model=str(folder), size=(64, 64)))
    assert source.family.inputs[0].shape[0] == tokens


def test_old_checkpoints_are_pickles_with_other_names(folder, monkeypatch):
    """Read by our own unpickler; positions in them are no weights."""
    new, old = planned(folder), {}
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    monkeypatch.setattr(torch, "load", None)
    for name, prefix in (("text_encoder", "text_model."), ("text_encoder_2", "")):
        file = folder / name / "model.safetensors"
        old[name] = {prefix + key: value for key, value in load_file(file).items()}
        file.unlink()
    old["text_encoder"]["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    old["text_encoder_2"]["encoder.embed_tokens.weight"] = old["text_encoder_2"]["shared.weight"]
    for name, tensors in old.items():
        torch.save(tensors, folder / name / "pytorch_model.bin")
    again = planned(folder)
    for name, encoder in new.encoders.items():
        read = again.encoders[name].checkpoint.read
        assert encoder.record == again.encoders[name].record
        assert all(np.array_equal(encoder.checkpoint.read(tensor), read(tensor)) for tensor in encoder.record.tensors)


def test_a_pickle_that_runs_a_program_is_not_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({"embeddings.token_embedding.weight": Payload()}, folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        planned(folder)
    assert not (folder / "EXECUTED").exists()


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("EXECUTED"),)


def test_a_tokenizer_of_sentencepiece_is_converted(folder, monkeypatch):
    """T5's as it was released: spiece.model alone."""
    place = folder / "tokenizer_2"
    shutil.rmtree(place)
    place.mkdir()
    (folder / "corpus.txt").write_text("\n".join(texts.CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(place / "spiece"), vocab_size=80, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    ours = Tokenizer.from_str(tokenizer.read(place, "T5TokenizerFast").json.decode())
    theirs = transformers.T5Tokenizer.from_pretrained(place)
    assert all(ours.encode(text).ids == theirs(text).input_ids for text in texts.ODD)
    assert len(ours.encode("a photo of a cat").ids) > 4


def test_half_of_the_bytes_of_t5(prompted_by, tmp_path):
    """With its norms, embeddings and `wo` in float32; the rounding is that of its weights."""
    whole = prompted_by("flux")
    export = texts.exported("flux", whole.folder, tmp_path / "out", text_precision="bf16")
    tensors = store.read(export.out).text.encoders["text_encoder_2"].tensors
    narrow = {name.split(".")[-2] for name, tensor in tensors.items() if tensor.dtype == "bfloat16"}
    assert narrow == {"q", "k", "v", "o", "wi_0", "wi_1"}
    assert {t.dtype for t in store.read(export.out).text.encoders["text_encoder"].tensors.values()} == {"float32"}
    wanted = of_rounded_t5(whole.folder, narrow, export.tokens)
    for backend in ("onnxruntime", "openvino"):
        with l2c_export.load(export.out, backend=backend) as pipe:
            arrays = pipe.inputs(prompt=PROMPT)
        assert error(arrays["prompt_embeds"], wanted) < 1e-5


def test_a_model_is_plain_and_has_no_weights_inside(prompted_by):
    for family in ("pixart", texts.MINILM, "sd3", "flux"):
        out = prompted_by(family).out
        for name, encoder in store.read(out).text.encoders.items():
            model = onnx.load(out / component.onnx_file(name))
            onnx.checker.check_model(model, full_check=True)
            assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
            assert not model.functions
            assert [i.name for i in model.graph.input] == list(encoder.inputs)
            assert not model.graph.initializer
            assert all(i.type.tensor_type.shape.dim[0].dim_param for i in model.graph.input[: 1 + bool(encoder.masked)])
            assert model.ByteSize() < 200_000


def test_the_classes_are_those_of_recipes():
    encoders = ({"text_encoder_3": "T5EncoderModel"}, {"text_encoder": "BertModel"})
    parts = [part for recipe in RECIPES.values() for parts in encoders for part in recipe(100, 77, parts).parts.values()]
    assert {part.kind for part in parts} == set(classes.CLASSES)
    assert all(part.outputs == tuple(sorted(part.outputs)) for part in parts)
