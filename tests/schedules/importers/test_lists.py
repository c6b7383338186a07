"""Lists of computed steps with the residual of all blocks: LeMiCa, MagCache, cache-dit, masks; MeanCache, which is refused."""

from __future__ import annotations

import numpy as np
import pytest
from foreign import DIT, FLUX, bits, imported, schedule
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.errors import ScheduleError, UsageError
from l2c_export.schedules.importers.imported import Known
from l2c_export.schedules.values import sublayers_of

TEN_OF_50 = [0, 1, 3, 7, 14, 21, 28, 35, 42, 49]
UVIT = Known("uvit", sublayers_of("uvit", 6), "dpm-solver++")


def rules(result):
    """The rules of the calls that do not compute everything."""
    return [call.rules for call in result.calls if len(call.computed) < result.columns]


# LeMiCa


@pytest.mark.parametrize("content", [TEN_OF_50, {"10": TEN_OF_50}, {"calc_dict": {"10": TEN_OF_50}}, f"{{10: {TEN_OF_50}}}",
                                     f"10: {TEN_OF_50}", "[0, 1, 3, 7,\n 14, 21, 28, 35, 42, 49,]"])  # fmt: skip
def test_ten_of_50_steps(content):
    result = schedule(content, steps=50)
    assert [n for n, bit in enumerate(bits(result)) if bit == "1"] == TEN_OF_50
    assert rules(result) == [{"stack": "reuse"}] * 40
    assert not any(call.computed for call in result.calls if call.rules)


def test_of_several_budgets_one_is_chosen():
    lists = {"3": [0, 2, 5], "2": [0, 4]}
    assert bits(schedule(lists, steps=6, budget=2)) == "100010"
    assert bits(schedule(lists, steps=6, budget=3)) == "101001"
    with pytest.raises(ScheduleError, match=r"it has lists of 2, 3 computed steps: choose one with budget=\.\."):
        schedule(lists, steps=6)
    with pytest.raises(UsageError, match=r"budget=4: the file has lists of 2, 3 computed steps"):
        schedule(lists, steps=6, budget=4)


@given(st.sets(st.integers(1, 19), max_size=19))
def test_any_list(steps):
    listed = [0, *sorted(steps)]
    if listed in ([0], [0, 1]):
        return
    assert bits(schedule(listed, steps=20)) == "".join(str(int(n in listed)) for n in range(20))


@pytest.mark.parametrize(("content", "says"), [
    ({"2": [0, 6]}, r"step 6 is computed, but there are 6 calls: give the steps=\.\."), ({"2": [1, 3]}, "and 0 first"),
    ({"3": [0, 3, 2]}, "give them ascending"), ({"3": [0, 3]}, "list of 3 computed steps has 2"), ({"1": []}, "and 0 first"),
    ({"2": [0, "3"]}, "a computed step of 2 is '3': give a whole number"), ({"2": [0, 2.0]}, r"a computed step of 2 is 2\.0"),
    ({"2": [0, -1]}, "a computed step of 2 is -1"),
    ({"2": [0, 1], "02": [0, 3]}, "two of the 2 lists are of one number"),
])  # fmt: skip
def test_a_wrong_list(content, says):
    with pytest.raises(ScheduleError, match=says):
        schedule(content, steps=6)


def test_a_list_does_not_say_how_many_steps_there_are():
    with pytest.raises(UsageError, match=r"a list of computed steps \(LeMiCa\) does not say how many .*give steps=\.\."):
        schedule([0, 1, 3])


# MagCache


def walked(ratios, threshold, most, retention, steps, forced=()):
    """The steps that run, as the published loop decides it."""
    ratios, count = np.array(ratios), steps
    if len(ratios) != count:
        ratios = ratios[np.round(np.arange(count) * ((len(ratios) - 1) / (count - 1))).astype(int)]
    scale, error, skipped, text = 1.0, 0.0, 0, ""
    for n in range(count):
        skip = False
        if n >= int(retention * count + 0.5):
            scale, skipped = scale * ratios[n], skipped + 1
            error += abs(1 - scale)
            skip = error <= threshold and skipped <= most and n not in forced
            if not skip:
                scale, error, skipped = 1.0, 0.0, 0
        text += str(int(not skip))
    return text


OWN = [1.0] * 3 + [1.07] * 3 + [1.03] * 4 + [1.0] * 14 + [1.07] * 4
LIMITS = {"magcache_thresh": 0.24, "K": 5, "retention_ratio": 0.1}


def test_flux_computes_the_12th_of_28_steps():
    """As the released script has it; diffusers' own MagCache does not."""
    result = schedule({"mag_ratios": OWN, **LIMITS}, FLUX, steps=28)
    assert bits(result) == "1110010001010000010000010010"
    assert rules(result)[0] == {"stack": "reuse"}
    theirs = {"threshold": 0.24, "max_skip_steps": 5, "retention_ratio": 0.1, "num_inference_steps": 28}
    assert bits(schedule({"mag_ratios": OWN, **theirs}, FLUX)) == walked(OWN, 0.24, 5, 0.1, 28)
    assert bits(schedule({"mag_ratios": OWN, **LIMITS}, DIT, steps=28)) == walked(OWN, 0.24, 5, 0.1, 28)
    assert walked(OWN, 0.24, 5, 0.1, 28) != bits(result)


@given(st.lists(st.floats(0.7, 1.4), min_size=1, max_size=30), st.floats(0, 0.6), st.integers(1, 6), st.floats(0.1, 0.6),
       st.integers(5, 40))  # fmt: skip
def test_ratios(ratios, threshold, most, retention, steps):
    content = {"mag_ratios": [1.0, *ratios], "thresh": threshold, "K": most, "retention": retention}
    assert bits(schedule(content, steps=steps)) == walked([1.0, *ratios], threshold, most, retention, steps)


@pytest.mark.parametrize(("change", "says"), [
    ({"mag_ratios": []}, "mag_ratios is no list of numbers"), ({"mag_ratios": [0.9, 1.0]}, "mag_ratios begins with 0.9"),
    ({"mag_ratios": [1.0, "1"]}, r"mag_ratios\[1\] is '1': give a finite number"), ({"K": 0}, "K is 0"),
    ({"K": None}, "K is None"),
    ({"thresh": 0.1}, "magcache_thresh and thresh say the same"), ({"retention_ratio": 1.5}, "a retention ratio of 1.5"),
    ({"retention_ratio": 0.01}, "the retention ratio 0.01 of 6 calls is less than one"), ({"speed": 2}, "with 'speed', which"),
    ({"magcache_thresh": -1}, "a threshold of -1.0"),
    ({"mag_ratios": [1.0] * 12, "num_steps": 6}, "two for each of the 6 steps, with and without a prompt"),
])  # fmt: skip
def test_wrong_ratios(change, says):
    with pytest.raises(ScheduleError, match=says):
        schedule({"mag_ratios": [1.0] * 6, **LIMITS, **change}, steps=6)


@pytest.mark.parametrize("name", LIMITS)
def test_ratios_without_a_limit(name):
    with pytest.raises(ScheduleError, match=f"MagCache's ratios without .*{name}"):
        schedule({"mag_ratios": [1.0] * 6, **{key: value for key, value in LIMITS.items() if key != name}}, steps=6)


# cache-dit

NAMED = {
    "slow": "1111111101110011100110010001", "medium": "1111110110001100011000110001",
    "fast": "1111110100010000100000100001", "ultra": "1111001000001000000100000001",
}  # fmt: skip


def options(mask, **more):
    return {"cache_config": {"num_inference_steps": 28, "steps_computation_mask": mask, "residual_diff_threshold": 0.1, **more}}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_mask_of_cache_dit(name):
    result = schedule(options(name))
    assert bits(result) == NAMED[name]
    assert {key for call in result.calls for key in call.rules} == {"stack"}
    listed = [int(bit) for bit in NAMED[name]]
    assert schedule(options(listed)).calls == result.calls


@pytest.mark.parametrize(("first", "last", "level", "live"), [
    (0, 0, "stack", ()), (1, 0, "stack[1:3]", (0, 1)), (0, 2, "stack[0:1]", (2, 3, 4, 5)), (1, 1, "stack[1:2]", (0, 1, 4, 5)),
])  # fmt: skip
def test_the_first_and_last_blocks_run_live(first, last, level, live):
    result = schedule({"Fn_compute_blocks": first, "Bn_compute_blocks": last, "steps_computation_mask": [1, 0, 0, 1]})
    assert [call.computed for call in result.calls] == [tuple(range(6)), live, live, tuple(range(6))]
    assert rules(result) == [{level: "reuse"}] * 2
    assert result.values.levels == (level,)


def test_each_list_of_blocks_has_its_own_first_ones():
    result = schedule({"Fn_compute_blocks": 1, "steps_computation_mask": [1, 0, 1]}, FLUX)
    assert result.values.levels == ("stack[1:2]", "stack[3:5]")


def test_yaml_says_the_same_as_json():
    text = "cache_config:  # own\n  Fn_compute_blocks: 1\n  num_inference_steps: 28\n  steps_computation_mask: fast\n"
    assert schedule(text) == schedule({"cache_config": {"Fn_compute_blocks": 1, "num_inference_steps": 28,
                                                        "steps_computation_mask": "fast"}})  # fmt: skip
    assert imported(text).assumed == ("steps_computation_policy is static",)


def test_what_is_assumed_is_said():
    assert imported(options("fast")).assumed == (
        "Fn_compute_blocks is 0", "steps_computation_policy is static", "no effect of residual_diff_threshold",
    )  # fmt: skip


@pytest.mark.parametrize(("content", "says"), [
    (options("fast", num_inference_steps=50), "'fast' is known for 28 steps, but num_inference_steps is 50: list the mask"),
    ({"cache_config": {"steps_computation_mask": "fast"}}, "but there is no num_inference_steps"),
    (options("quick"), "the steps mask is 'quick': give a 0 or 1 for each step, or one of slow"),
    (options([1, 0]), "has 2 entries, but num_inference_steps is 28"),
    (options("fast", steps_computation_policy="dynamic"), "steps_computation_policy is 'dynamic', which is decided"),
    (options("fast", enable_taylorseer=True), "enable_taylorseer of cache-dit is not read"),
    (options("fast", Fn_compute_blocks=3), "Fn_compute_blocks 3 and Bn_compute_blocks 0 leave none of the 3 blocks"),
    (options("fast", Fn_compute_blocks=-1), "Fn_compute_blocks is -1"),
    ({"cache_config": None, "Fn_compute_blocks": 1}, "it has no steps_computation_mask, so which steps"),
    ({"cache_config": {"Fn_compute_blocks": 1}}, "it has no steps_computation_mask, so which steps"),
    ({"Fn_compute_blocks": 1, "steps_computation_mask": [0, 1]}, "the steps mask begins with 0"),
])  # fmt: skip
def test_wrong_options_of_cache_dit(content, says):
    with pytest.raises(ScheduleError, match=says):
        schedule(content)


# masks


@pytest.mark.parametrize("content", [[1, 0, 0, 1], {"steps_computation_mask": [1, 0, 0, 1]}, {"mask": "1001"}, '"1001"'])
def test_a_bare_mask_is_of_sublayers_unless_another_level_is_asked_for(content):
    result = schedule(content)
    assert (bits(result), result.values.levels, rules(result)) == ("1001", (), [{"*": "reuse"}] * 2)
    stack = schedule(content, level="stack")
    assert (bits(stack), stack.values.levels, rules(stack)) == ("1001", ("stack",), [{"stack": "reuse"}] * 2)


def test_a_named_mask_alone_is_of_sublayers():
    result = schedule({"steps_computation_mask": "ultra", "num_inference_steps": 28})
    assert (bits(result), result.values.levels) == (NAMED["ultra"], ())


def test_a_mask_for_a_sampler_of_two_evaluations_has_an_entry_for_each():
    assert bits(schedule([1, 0, 0, 1], UVIT)) == "1001"
    with pytest.raises(ScheduleError, match=r"has 5 entries, but dpm-solver\+\+ makes 4 calls"):
        schedule([1, 0, 0, 1, 1], UVIT)


def test_a_mask_without_a_zero_needs_no_level():
    result = schedule([1, 1, 1], level="stack")
    assert (result.values.levels, rules(result)) == ((), [])


# MeanCache


@pytest.mark.parametrize("key", ["edge_source", "edge_order", "cache_jvp"])
def test_the_correction_of_meancache_is_refused_by_name(key):
    with pytest.raises(ScheduleError, match=f"MeanCache corrects what it reuses \\({key}\\).*computed steps alone"):
        schedule({"calc_dict": {"3": [0, 1, 4]}, key: {"3": ["chain"]}}, steps=6)
