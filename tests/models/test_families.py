"""The list of families, and what goes by it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded import ROOT

from l2c_export.errors import ModelError, ScheduleError
from l2c_export.models import families, lookup, notes
from l2c_export.models.descriptor import RouterLayout
from l2c_export.models.families import DIT, UVIT
from l2c_export.schedules import routers
from l2c_export.weights.checkpoint import Checkpoint

THIRD = replace(DIT, name="third", title="Third", mark="third.w", examples=("Third-S",), routed={3: "DiT-S/2"}, lookalike="",
                parts=("a", "b", "c"), router=RouterLayout(row="row{}", container="third"))  # fmt: skip


@pytest.fixture
def third(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "third", THIRD)


def shown(*names, **args):
    """A checkpoint that has tensors of these names."""
    return Checkpoint(ROOT / "w.pt", dict.fromkeys(names, (4, 4)), np.zeros, args)


def test_the_list_needs_no_pytorch():
    code = "import sys; from l2c_export.models import families; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("known", [DIT, UVIT])
def test_a_descriptor_says_what_its_model_is(known):
    model = known.load()
    assert model.name == known.name
    assert all(model.named(name) is not None for name in (*known.examples, *known.routed.values()))
    arch = model.arch_type()
    assert getattr(arch, known.width) == 1152
    assert getattr(arch, known.side) == 32
    assert known.mark in model(arch).tensors()
    for width, name in known.routed.items():
        assert width == routers.width(model(model.named(name)))


def test_no_mark_is_of_two_families():
    assert UVIT.mark not in DIT.load()(DIT.load().arch_type()).tensors()
    assert DIT.mark not in UVIT.load()(UVIT.load().arch_type()).tensors()


def test_what_users_are_told_names_every_family(third):
    assert families.titles("or", "a ") == "a DiT, a U-ViT or a Third"
    with pytest.raises(ModelError, match="knows DiT, U-ViT and Third, and this begins with x"):
        lookup.resolve(None, None, None, shown("x"))
    with pytest.raises(ModelError, match="for example DiT-XL/2, DiT-S/4@512, U-ViT-H/2, SiT-XL/2, Third-S, a pipeline folder"):
        lookup.resolve("Fourth", None, None, None)
    with pytest.raises(ModelError, match="noted model 'PixArt', which is neither DiT nor U-ViT nor Third: remedy"):
        notes.check_name(shown("x", model="PixArt"), "remedy")


def test_what_trainings_call_a_family_is_known(third):
    for name in ("DiT-B/4", "u-vit_small", "UViT", "my third model"):
        notes.check_name(shown("x", model=name), "")
        assert notes.predicts_noise(shown("x", model=name))
    assert not notes.predicts_noise(shown("x", model="thirds"))


def test_an_option_of_its_own_is_none_of_another_model():
    with pytest.raises(ModelError, match="use_rope True"):
        notes.check(shown("x", use_rope=True), ("depth",))
    notes.check(shown("x", use_rope=True), ("use_rope",))


def test_weights_and_routers_say_whose_they_are(third):
    assert lookup.ask(None, None, None, shown("third.w")).kind == "third"
    assert lookup.ask(None, "third", 3, None).name == "DiT-S/2"
    with pytest.raises(ModelError, match="a router of width 4 does not say which model it is for"):
        lookup.ask(None, "third", 4, None)


def test_columns_have_the_names_of_their_parts():
    assert THIRD.sublayers(4) == ("blocks.0.a", "blocks.0.b", "blocks.0.c", "blocks.1.a")
    assert replace(THIRD, parts=()).sublayers(2) == ("0", "1")


def rows(columns, count=3):
    return torch.arange(count * columns, dtype=torch.float32).reshape(count, columns)


@pytest.mark.parametrize("signed", [True, False])
def test_a_router_is_read_as_its_family_lays_it_out(third, tmp_path, monkeypatch, signed):
    layout = THIRD.router._replace(signed=signed)
    monkeypatch.setitem(families.FAMILIES, "third", replace(THIRD, router=layout))
    (tmp_path / "r.pt").write_bytes(routers.encode("third", rows(3), {}, None))
    saved = torch.load(tmp_path / "r.pt", weights_only=False)
    assert list(saved["third"]) == ["row0", "row1", "row2"]
    assert ("family" in saved) == signed
    router = routers.read(tmp_path / "r.pt")
    assert (router.family, router.logits.tolist()) == ("third", rows(3).tolist())


@pytest.mark.parametrize("family", ["dit", "uvit"])
def test_the_references_layouts_stay_what_they_are(third, tmp_path, family):
    (tmp_path / "r.pt").write_bytes(routers.encode(family, rows(4), {}, None))
    saved = torch.load(tmp_path / "r.pt", weights_only=False)
    assert list(saved["routers"] if family == "dit" else saved) == ["0.prob", "1.prob", "2.prob"]
    assert list(saved)[1:] == (["opt", "args"] if family == "dit" else ["1.prob", "2.prob"])
    assert routers.read(tmp_path / "r.pt").family == family


def test_a_router_that_is_laid_out_otherwise_is_refused(third, tmp_path):
    for content, why in (({"third": {"0.prob": rows(3)[0]}, "family": "third"}, "it holds '0.prob' instead of row0, row1, .."),
                         ({"third": {"row0": rows(4)[0]}, "family": "third"}, "its rows must be float vectors of 3 a block"),
                         ({"third": {"row0": rows(3)[0]}}, "a router of unknown family None: known are dit, uvit, third"),
                         ({"row0": rows(3)[0]}, "it holds 'row0' instead of 0.prob, 1.prob, ..")):  # fmt: skip
        torch.save(content, tmp_path / "r.pt")
        with pytest.raises(ScheduleError, match=why):
            routers.read(tmp_path / "r.pt")
