"""Manifests whose text encoders contradict themselves, with a checksum that is right: one line, and no file is touched."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from l2c_export.artefact import store
from l2c_export.artefact.records import FILE
from l2c_export.errors import ArtefactError

TABLE = "shared.weight"


@pytest.fixture
def folder(prompted_by, tmp_path):
    return shutil.copytree(prompted_by("sd3").out, tmp_path / "out")


def third(text):
    return text["encoders"]["text_encoder_3"]


def first(text, name="prompt_embeds"):
    return text["recipe"][name][0]


def renamed(name):
    def change(text):
        text["encoders"][name] = text["encoders"].pop("text_encoder_3")
        for blocks in text["recipe"].values():
            for block in blocks:
                for source in block["sources"]:
                    source["encoder"] = name if source["encoder"] == "text_encoder_3" else source["encoder"]

    return change


@pytest.mark.parametrize(("change", "problem"), [
    (renamed("../../etc/passwd"), "a text encoder is called '../../etc/passwd'"),
    (renamed("decoder"), "a text encoder is called 'decoder'"),
    (lambda t: t["encoders"].clear(), "texts, and no text encoder"),
    (lambda t: third(t).update(tokens=0), "text_encoder_3: 0 tokens"),
    (lambda t: third(t).update(tokens=2**40), "text_encoder_3: 1099511627776 tokens"),
    (lambda t: third(t).update(tokens=15), "14 tokens of text_encoder_3, which has 15"),
    (lambda t: third(t).update(padding=-1), "it pads with -1"),
    (lambda t: third(t).update(padding=10**6), "it pads with 1000000 of"),
    (lambda t: third(t).update(outputs={}), "it makes nothing"),
    (lambda t: third(t).update(outputs={"mask": 1}), "it makes ['mask']"),
    (lambda t: third(t).update(outputs={"last": 0}), "it makes ['last']"),
    (lambda t: third(t).update(outputs={"pooled": 16}), "there is no last of 'text_encoder_3'"),
    (lambda t: third(t).update(outputs={"first": 16}), "damaged: Invalid enum value 'first'"),
    (lambda t: third(t).update(file="weights.safetensors"), "damaged: Object contains unknown field `file`"),
    (lambda t: third(t)["tensors"][TABLE].update(dtype="float8"), "'shared.weight' has no usable type: float8"),
    (lambda t: third(t)["tensors"][TABLE].update(shape=[]), "'shared.weight' has no usable type"),
    (lambda t: third(t)["tensors"][TABLE].update(shape=[2**20, 16]), "its tensors make"),
    (lambda t: third(t)["tensors"].update(ids=third(t)["tensors"].pop("scores.relative_bias")), "a weight is called as an"),
    (lambda t: t["recipe"].pop("prompt_embeds"), "texts make pooled_prompt_embeds of pooled_prompt_embeds, prompt_embeds"),
    (lambda t: t["recipe"].update(seed=[]), "texts make pooled_prompt_embeds, prompt_embeds, seed of"),
    (lambda t: t["recipe"]["prompt_embeds"].pop(), "its blocks are not its 91 tokens"),
    (lambda t: first(t).update(tokens=-14), "-14 tokens of text_encoder, which has 77"),
    (lambda t: first(t)["sources"].extend(first(t)["sources"] * 2), "42 wide, not 16"),
    (lambda t: first(t, "pooled_prompt_embeds")["sources"].pop(), "side by side is 12 wide, not 20"),
    (lambda t: first(t, "pooled_prompt_embeds")["sources"][0].update(output="penultimate"), "penultimate in the shape (20,)"),
    (lambda t: first(t)["sources"][0].update(output="mask"), "mask as float32"),
    (lambda t: first(t)["sources"][0].update(output="pooled"), "pooled in the shape (91, 16)"),
    (lambda t: first(t)["sources"][0].update(encoder="__class__"), "there is no penultimate of '__class__'"),
], ids=[str(n) for n in range(28)])  # fmt: skip
def test_a_contradiction_is_one_line(folder, change, problem):
    raw = msgspec.json.decode((folder / FILE).read_bytes())
    change(raw["text"])
    (folder / FILE).write_bytes(msgspec.json.encode({**raw, "checksum": store.checksum(raw)}))
    with pytest.raises(ArtefactError) as refused:
        store.read(folder)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_listed_is_missed(folder):
    whole = (folder / FILE).read_bytes()
    for name in ("onnx", "safetensors", "tokenizer.json"):
        raw = msgspec.json.decode(whole)
        del raw["files"][f"text/text_encoder_2.{name}"]
        (folder / FILE).write_bytes(msgspec.json.encode({**raw, "checksum": store.checksum(raw)}))
        with pytest.raises(ArtefactError, match=rf"it does not list text/text_encoder_2\.{name}, which it uses"):
            store.read(folder, verify=False)
