"""ECAD: flags by step, block and component, against a reader that walks through the steps."""

from __future__ import annotations

import copy
import random

import pytest
from foreign import DIT, FINE, FLUX, PIXART, computed, imported, schedule
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.errors import ScheduleError

PARTS = {"pixart": ("attn1", "attn2", "ff"), "double": ("full_attn", "full_ff", "full_ff_context"),
         "single": ("single_attn", "single_proj_mlp", "single_proj_out")}  # fmt: skip
MODULES = {"full_attn": "attn", "full_ff": "ff", "full_ff_context": "ff_context", "single_attn": "attn",
           "single_proj_mlp": "proj_mlp", "single_proj_out": "proj_out"}  # fmt: skip


def ecad_file(steps, seed, blocks, single=0, share=0.5):
    """A file with random flags."""
    pick = random.Random(seed)
    parts = PARTS["double" if single else "pixart"]
    kinds = {**{str(b): parts for b in range(blocks)}, **{f"single_{b}": PARTS["single"] for b in range(single)}}
    plan = {f"{s:03}": {b: {p: pick.random() < share for p in own} for b, own in kinds.items()} for s in range(steps)}
    box = {"num_blocks": blocks, "num_inference_steps": steps, "name": "own", "attributes": {}, "schedule": plan}
    box |= {"num_single_blocks": single} if single else {}
    return {"cache_schedule": box, "config": {"height": 256, "width": 512}, "metrics": {}}


def walked(file):
    """The modules that run in every step."""
    box, cache, runs = file["cache_schedule"], set(), []
    for step in range(box["num_inference_steps"]):
        runs.append(set())
        for block, flags in box["schedule"][f"{step:03}"].items():
            for component, flag in flags.items():
                if flag or (block, component) not in cache:
                    cache.add((block, component))
                    where = block.replace("single_", "single_transformer_blocks.")
                    where = where if "." in where else f"transformer_blocks.{where}"
                    runs[step].add(f"{where}.{MODULES.get(component, component)}")
    return runs


@given(st.integers(2, 7), st.integers(0, 10**6))
def test_pixart(steps, seed):
    file = ecad_file(steps, seed, 3)
    assert computed(schedule(file, PIXART)) == walked(file)
    assert imported(file).assumed == ("it was made for height 256, width 512",)


@given(st.integers(2, 7), st.integers(0, 10**6))
def test_flux_with_single_blocks_in_three(steps, seed):
    file = ecad_file(steps, seed, 2, single=3)
    assert computed(schedule(file, FINE)) == walked(file)


@given(st.integers(2, 7), st.integers(0, 10**6))
def test_flux_with_single_blocks_as_one(steps, seed):
    """They are where nothing is used in parts: the parts of a reused output are dead."""
    file = ecad_file(steps, seed, 2, single=3)
    for blocks in file["cache_schedule"]["schedule"].values():
        for flags in blocks.values():
            if flags.get("single_proj_out"):
                flags.update(dict.fromkeys(flags, True))
    runs = [{name for name in run if name in FLUX.sublayers} for run in walked(file)]
    assert computed(schedule(file, FLUX)) == runs


def test_flux_with_single_blocks_in_parts_needs_a_finer_cut():
    file = ecad_file(4, 1, 2, single=3, share=1)
    file["cache_schedule"]["schedule"]["002"]["single_1"]["single_attn"] = False
    says = (r"call 2 computes single_transformer_blocks\.1\.proj_out from a reused single_transformer_blocks\.1\.attn, but .*"
            r"cut=\.\.$")  # fmt: skip
    with pytest.raises(ScheduleError, match=says):
        schedule(file, FLUX)


def changed(change):
    file = copy.deepcopy(ecad_file(3, 0, 3))
    change(file["cache_schedule"], file["cache_schedule"]["schedule"])
    return file


@pytest.mark.parametrize(("change", "says"), [
    (lambda box, plan: plan.pop("001"), "step 1 is missing of 3 steps"),
    (lambda box, plan: plan.update({"003": {}}), "step 3 is more of 3 steps"),
    (lambda box, plan: plan.update({"1": plan["001"]}), "two of the 4 steps have one number"),
    (lambda box, plan: plan.update({"x": {}}), "'x' is no step: use 000"),
    (lambda box, plan: box.update(num_inference_steps=0), "num_inference_steps is 0: give a whole number from 1"),
    (lambda box, plan: box.update(num_inference_steps="3"), "num_inference_steps is '3'"),
    (lambda box, plan: box.pop("schedule"), "cache_schedule has no schedule"),
    (lambda box, plan: plan["001"]["1"].update(ff=1), "step 1, block 1: ff is 1: use true"),
    (lambda box, plan: plan["001"]["1"].pop("ff"), "step 1, block 1: the components must be attn1, attn2, ff"),
    (lambda box, plan: plan["001"]["1"].update(custom_compute_attn=True), r"custom_compute_attn \(T-GATE\) computes with part"),
    (lambda box, plan: plan["001"]["1"].update(custom_compute_ff=False), r"custom_compute_ff \(T-GATE\)"),
    (lambda box, plan: plan["001"].pop("1"), r"transformer_blocks\.1\.\w+ is not in every step"),
    (lambda box, plan: plan["002"].pop("1"), r"transformer_blocks\.1\.\w+ is not in every step"),
    (lambda box, plan: plan.update({"001": []}), "step 1 lists no blocks"),
    (lambda box, plan: plan["001"].update(single_0={}), "'single_0' is no block of pixart"),
    (lambda box, plan: [step.update({"3": step["0"]}) for step in plan.values()],
     r"transformer_blocks\.3\.attn1 is not in the model"),
    (lambda box, plan: [step.pop("2") for step in plan.values()], r"transformer_blocks\.2\.attn1 is not in the file"),
])  # fmt: skip
def test_what_is_wrong_is_named(change, says):
    with pytest.raises(ScheduleError, match=says) as caught:
        schedule(changed(change), PIXART)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("known", [DIT, FLUX])
def test_it_is_for_its_model(known):
    with pytest.raises(ScheduleError, match=f"it is for a pixart, but the model is a {known.family}"):
        schedule(ecad_file(3, 0, 3), known)
