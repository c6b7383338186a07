"""SmoothCache: lists by component and block, against a reader that walks through the steps with a cache."""

from __future__ import annotations

import pytest
import torch
from foreign import BLOCKS, DIT, computed, imported, schedule
from hypothesis import given
from hypothesis import strategies as st
from recorded import REFERENCE

from l2c_export.demo import SCHEDULES
from l2c_export.errors import ScheduleError, UsageError
from l2c_export.schedules import routers
from l2c_export.schedules.forms import ScheduleSource
from l2c_export.schedules.importers.imported import Known

DEMO = SCHEDULES["demo"].with_name("router.pt")
entries = st.lists(st.integers(0, 1), max_size=6)


def walked(lists, steps):
    """What runs, module by module: the cache is empty at first, and nothing says to skip what has no list."""
    runs, cache = [], {}
    for step in range(steps):
        runs.append(set())
        for block in range(BLOCKS):
            for part in ("attn", "mlp"):
                names = [f"{part}-{block}", part] if part == "mlp" else [f"attn-{block}", f"attn1-{block}", "attn", "attn1"]
                said = next((lists[name] for name in names if name in lists), [1] * steps)
                if (block, part) not in cache or step >= len(said) or said[step] == 1:
                    cache[block, part] = step
                    runs[step].add(f"blocks.{block}.{part}")
    return runs


@given(st.dictionaries(st.sampled_from(["attn", "mlp", *(f"{p}-{b}" for p in ("attn", "mlp") for b in range(BLOCKS))]),
                       entries, min_size=1).filter(lambda lists: max(map(len, lists.values())) >= 2))  # fmt: skip
def test_every_module_runs_where_a_reader_runs_it(lists):
    result = schedule(lists)
    assert computed(result) == walked(lists, max(map(len, lists.values())))
    assert all(set(call.rules) <= {"*"} for call in result.calls)


@given(st.dictionaries(st.sampled_from(["attn1", "attn1-0", "attn1-2"]), st.lists(st.integers(0, 1), min_size=2, max_size=5),
                       min_size=1))  # fmt: skip
def test_with_diffusers_only_attention_is_cached(lists):
    result = schedule(lists)
    assert computed(result) == walked(lists, result.steps)
    assert all(f"blocks.{b}.mlp" in run for run in computed(result) for b in range(BLOCKS))
    assert "the MLP is always computed" in imported(lists).assumed[0]


def as_lists(path, threshold):
    """A router as SmoothCache would say it: list index s is row steps - 1 - s, and rows of odd numbers are full."""
    rows = torch.load(path, weights_only=False, map_location="cpu")["routers"]
    steps, lists = len(rows), {}
    for row in range(steps):
        active = torch.sigmoid(rows[f"{row}.prob"].float()) > threshold
        for j, run in enumerate(active.tolist()):
            key = f"{('attn', 'mlp')[j % 2]}-{j // 2}"
            lists.setdefault(key, [1] * steps)[steps - 1 - row] = int(run or row % 2 == 1 or row == steps - 1)
    return lists


@pytest.mark.parametrize("path", [DEMO, REFERENCE / "dit_ddim50_real" / "router.pt"], ids=["demo", "DDIM-50"])
def test_the_form_of_a_router_is_the_router_in_every_cell(path):
    if not path.exists():
        pytest.skip("the reference's cases are not here")
    want = routers.read(path).schedule(0.1, None)
    known = Known("dit", want.sublayers, "ddim")
    result = schedule(as_lists(path, 0.1), known)
    assert [call.computed for call in result.calls] == [call.computed for call in want.calls]
    assert any(call.reused for call in result.calls)
    assert result.calls == want.calls


def test_the_sampler_must_be_said():
    unsaid = Known("dit", DIT.sublayers, "ddim", sampler_is_said=False)
    with pytest.raises(UsageError, match=r"SmoothCache does not say its sampler: give sampler=\.\."):
        imported({"attn": [1, 0]}).schedule_for(unsaid, ScheduleSource())


@pytest.mark.parametrize(("lists", "says"), [
    ({"attn": [1, 2]}, "attn has 2 for step 1: use 1 to compute"), ({"attn": [1, True]}, "attn has True for step 1"),
    ({"attn": [1, 0], "ff": [1, 0]}, "'ff' is no component: use attn, mlp or attn1"),
    ({"attn": []}, "every list is empty"), ({"attn1": [1, 0], "mlp": [1, 0]}, "attn1 is of diffusers, where mlp is not cached"),
    ({"attn": [1, 0], "mlp-3": [1, 0]}, r"mlp-3 is of no block of the model, which has 0 to 2: check model=\.\."),
])  # fmt: skip
def test_what_is_wrong_is_named(lists, says):
    with pytest.raises(ScheduleError, match=says):
        schedule(lists)


def test_it_is_for_a_dit():
    with pytest.raises(ScheduleError, match="it is for a DiT, but the model is a uvit"):
        schedule({"attn": [1, 0]}, Known("uvit", ("in_blocks.0.attn",), "dpm-solver++"))


def test_other_steps_than_its_own_are_refused():
    with pytest.raises(ScheduleError, match=r"SmoothCache of 2 steps, but steps=3: use no steps=\.\."):
        schedule({"attn": [1, 0]}, steps=3)
