"""Files of LoRAs: what their names, their notes and their numbers say, and what is refused in one line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import loras
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from l2c_export.errors import UsageError, WeightsError
from l2c_export.weights import lora_keys
from l2c_export.weights.lora import open_lora

MADE = loras.factors({"a.b": (6, 4), "c": (4, 3, 2, 2)}, seed=1)


@pytest.fixture
def file(tmp_path):
    return loras.saved(tmp_path / "a.safetensors", MADE)


def test_products_are_those_of_the_definition(file):
    read = open_lora(f"{file}:-0.5")
    assert read.products.keys() == MADE.keys()
    for module, factor in MADE.items():
        got = read.delta(module)
        assert got.dtype == np.float32
        assert read.shape(module) == got.shape
        assert np.allclose(got, -0.5 * factor.product.numpy(), atol=1e-6)


@pytest.mark.parametrize(("text", "scale"), [("", 1.0), (":1", 1.0), (":-0.25", -0.25), (":1e-1", 0.1), (":0", 0.0)])
def test_a_scale_stands_behind_a_colon(file, text, scale):
    assert open_lora(f"{file}{text}").scale == scale


def test_a_colon_may_be_of_the_name(file):
    other = file.rename(file.with_name("a:2"))
    assert open_lora(other).scale == 1
    assert open_lora(f"{other}:3").scale == 3


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_a_scale_is_finite(file, text):
    with pytest.raises(UsageError, match="the scale must be a finite number"):
        open_lora(f"{file}:{text}")


def test_a_file_that_is_not_there(tmp_path, file):
    (tmp_path / "empty").mkdir()
    for text, says in (
        (f"{file}:strong", "no such file, and 'strong' is no scale: use FILE or FILE:SCALE"),
        (f"{tmp_path}/b.safetensors", "no such file: use FILE or FILE:SCALE"),
        (f"{tmp_path}/b.safetensors:2", "no such file"),
        (f"{tmp_path}/empty:2", "the folder holds no pytorch_lora_weights.safetensors: give the file"),
        ("", "lora='': "),
    ):
        with pytest.raises(UsageError, match=says):
            open_lora(text)
    file.rename(tmp_path / "empty" / "pytorch_lora_weights.safetensors")
    assert open_lora(f"{tmp_path}/empty:2").products.keys() == MADE.keys()


def noted(path: Path, settings: dict[str, object], before: str = "") -> Path:
    told = {f"{before}{name}": value for name, value in settings.items()}
    save_file(loras.tensors(MADE), path, {"lora_adapter_metadata": json.dumps(told)})
    return path


@pytest.mark.parametrize(("settings", "factors"), [
    ({"r": 2, "lora_alpha": 8}, (8 / 2, 8 / 3)),
    ({"r": 2, "lora_alpha": 8, "use_rslora": True}, (8 / math.sqrt(2), 8 / math.sqrt(3))),
    ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"b": 1}}, (1 / 2, 8 / 3)),
    ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"^b": 1, "^c": 6}}, (8 / 2, 6 / 3)),
    ({"r": 2, "lora_alpha": 8, "alpha_pattern": None, "init_lora_weights": "gaussian"}, (8 / 2, 8 / 3)),
])  # fmt: skip
@pytest.mark.parametrize("before", ["", "transformer."])
def test_what_peft_notes_in_the_file(tmp_path, settings, factors, before):
    read = open_lora(noted(tmp_path / "a.safetensors", settings, before))
    assert [product.factor for product in read.products.values()] == pytest.approx(factors)


def test_what_peft_notes_beside_its_own_file(tmp_path):
    path = tmp_path / "adapter_model.bin"
    loras.saved(
        path, MADE, lambda module, part: loras.diffusers_name(module, part).replace("transformer.", "base_model.model.")
    )
    with pytest.raises(WeightsError, match=r"adapter_config.json is missing beside it, which says the scale"):
        open_lora(path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8, "peft_type": "LORA"}))
    assert [product.factor for product in open_lora(tmp_path).products.values()] == [8 / 2, 8 / 3]


@pytest.mark.parametrize(("settings", "says"), [
    ({"r": 2, "lora_alpha": 8, "use_dora": True}, "use_dora True is not supported: only a plain LoRA is"),
    ({"r": 2, "lora_alpha": 8, "lora_bias": True}, "lora_bias True is not supported"),
    ({"r": 2, "lora_alpha": 8, "peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
    ({"r": 2, "lora_alpha": 8, "init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
    ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"a.*": 1}}, r"alpha_pattern 'a.\*' is not supported"),
    ({"r": 2, "lora_alpha": "much"}, "what it notes of its LoRA is damaged: Expected `float`"),
    ({"r": 2}, "what it notes of its LoRA is damaged: Object missing required field `lora_alpha`"),
])  # fmt: skip
def test_what_is_more_than_a_product_is_refused(tmp_path, settings, says):
    with pytest.raises(WeightsError, match=says):
        open_lora(noted(tmp_path / "a.safetensors", settings))


def test_an_alpha_may_be_a_whole_number_of_any_kind(tmp_path):
    held = loras.tensors(MADE, loras.kohya_name)
    for alpha in (torch.tensor(8), torch.tensor(8.0, dtype=torch.bfloat16), torch.tensor([8], dtype=torch.int32)):
        save_file(held | {"lora_unet_a_b.alpha": alpha}, tmp_path / "a.safetensors")
        torch.save(held | {"lora_unet_a_b.alpha": alpha}, tmp_path / "a.pt")
        for name in ("a.safetensors", "a.pt"):
            read = open_lora(tmp_path / name)
            assert [product.factor for product in read.products.values()] == [8 / 2, 1]
            assert read.flat == {"a_b", "c"}


DOWN, UP = "transformer.a.lora_A.weight", "transformer.a.lora_B.weight"
GOOD = {DOWN: torch.ones(2, 4), UP: torch.ones(6, 2)}


@pytest.mark.parametrize(("changes", "says"), [
    ({"transformer.b.hada_w1_a": torch.ones(2, 2)}, "transformer.b.hada_w1_a is of a LoHa, which is not supported"),
    ({"lora_unet_b.lokr_w1": torch.ones(2, 2)}, "lora_unet_b.lokr_w1 is of a LoKr"),
    ({"transformer.a.lora_magnitude_vector": torch.ones(6)}, "is of a DoRA, which is not supported"),
    ({"lora_unet_a.dora_scale": torch.ones(6)}, "lora_unet_a.dora_scale is of a DoRA"),
    ({"transformer.b.lora_embedding_A": torch.ones(2, 2)}, "is of a LoRA of an embedding"),
    ({"lora_unet_b.lora_mid.weight": torch.ones(2, 2)}, "is of a LoRA with a third factor"),
    ({"transformer.a.lora_B.bias": torch.ones(6)}, "is of a LoRA of biases"),
    ({"diffusion_model.norm.diff_b": torch.ones(6)}, "is of a difference of whole tensors"),
    ({"transformer.proj_out.weight": torch.ones(6, 4)}, "transformer.proj_out.weight is no tensor of a LoRA"),
    ({"b.prob": torch.ones(6)}, "b.prob is no tensor of a LoRA: give a file of peft, diffusers or kohya"),
    ({UP: None}, "transformer.a.lora_A.weight has no part lora_up beside it"),
    ({DOWN: None}, "holds no LoRA of a transformer, none: give one of this model"),
    ({"transformer.b.alpha": torch.tensor(1.0)}, "transformer.b.alpha has no part lora_down beside it"),
    ({UP: torch.ones(6, 3)}, r"lora_A.weight of shape \[2, 4\] and transformer.a.lora_B.weight of \[6, 3\] make no product"),
    ({DOWN: torch.ones(4), UP: torch.ones(6)}, "make no product"),
    ({DOWN: torch.ones(0, 4), UP: torch.ones(6, 0)}, "make no product"),
    ({UP: torch.ones(6, 2, 3, 3), DOWN: torch.ones(2, 4, 3, 3)}, "make no product"),
    ({"transformer.a.alpha": torch.tensor(float("nan"))}, "transformer.a.alpha is no finite number"),
    ({"transformer.a.alpha": torch.ones(2)}, "transformer.a.alpha is no finite number"),
    ({"transformer.a.lora_down.weight": torch.ones(2, 4)}, "say the same twice"),
    ({DOWN: torch.ones(2, 4, dtype=torch.int8)}, "has dtype I8: use one of F32, F16, BF16, F64"),
    ({DOWN: None, UP: None, "text_encoder.a.lora_A.weight": torch.ones(2, 4)},
     "holds no LoRA of a transformer, only one of text_encoder: give one of this model"),
])  # fmt: skip
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path, changes, says):
    held = {name: tensor for name, tensor in {**GOOD, **changes}.items() if tensor is not None}
    path = tmp_path / "a.safetensors"
    save_file(held, path)
    with pytest.raises(WeightsError, match=says) as raised:
        open_lora(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_numbers_that_are_none(tmp_path):
    save_file({**GOOD, UP: torch.full((6, 2), float("nan"))}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"transformer.a.lora_B.weight holds NaN or infinite values"):
        open_lora(tmp_path / "a.safetensors").delta("a")


class Payload:
    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def test_nothing_in_a_pickle_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": GOOD, "step": 3}, "a.safetensors")  # whatever it is called
    assert open_lora("a.safetensors").products.keys() == {"a"}
    torch.save({**GOOD, "more": Payload()}, "b.bin")
    with pytest.raises(WeightsError, match=r"b.bin is not a checkpoint: it wants to import .*; nothing was executed"):
        open_lora("b.bin")
    Path("c.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(WeightsError, match=r"is not a checkpoint: it is a pickle, but not one of torch.save"):
        open_lora("c.bin")
    assert not Path("EXECUTED").exists()


@given(
    st.text(alphabet="ab._01lorA", max_size=20), st.sampled_from(["lora_A.weight", "lora_B.weight", "lora.up.weight", "alpha"])
)
def test_a_name_is_taken_apart_and_nothing_of_it_is_lost(module, part):
    key = lora_keys.parsed(f"{module}.{part}")
    assert (key is None) == (module == "")
    if key:
        assert key.module == module or module.endswith(key.module)
