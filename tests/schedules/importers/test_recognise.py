"""What a file is, by its content; texts that would harm; what is none of the forms."""

from __future__ import annotations

import json

import pytest
from foreign import imported
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.errors import L2CError, ScheduleError, UsageError
from l2c_export.schedules.importers import recognise
from l2c_export.schedules.importers.imported import Selection
from l2c_export.schedules.importers.text import MOST, MOST_YAML, decoded
from l2c_export.schedules.schedule import Schedule

EXAMPLES = {
    "a schedule of SmoothCache": {"attn": [1, 0], "mlp-0": [1, 1]},
    "a list of computed steps (LeMiCa)": {"2": [0, 4]},
    "MagCache's ratios": {"mag_ratios": [1.0, 1.1], "thresh": 0.1, "K": 2, "retention": 0.5},
    "the options of cache-dit": {"cache_config": {"steps_computation_mask": [1, 0]}},
    "the options of OpenVINO GenAI's TaylorSeer Lite": {"cache_interval": 3},
    "a steps mask": {"steps_computation_mask": [1, 0]},
    "a schedule of ECAD for pixart": {"cache_schedule": {"num_inference_steps": 1, "schedule": {"000": {
        "0": {"attn1": True, "attn2": True, "ff": True}}}}},
}  # fmt: skip


@pytest.mark.parametrize("form", EXAMPLES)
def test_a_form_is_recognised(form):
    assert imported(EXAMPLES[form]).form == form
    claims = [importer for importer in recognise.IMPORTERS if importer.claims(EXAMPLES[form])]
    assert len(claims) == 1


@pytest.mark.parametrize(("text", "names"), [
    ("[0, 1]", "a list of computed steps .* and a steps mask"), ("[0]", "a list .* and a steps mask"),
    ({"mag_ratios": [1.0], "cache_interval": 3}, "MagCache's ratios and the options of OpenVINO GenAI's TaylorSeer Lite"),
    ({"cache_schedule": {}, "Fn_compute_blocks": 1}, "a schedule of ECAD and the options of cache-dit"),
])  # fmt: skip
def test_what_two_importers_claim_is_refused(text, names):
    with pytest.raises(ScheduleError, match=f"^it may be {names}: say which in a schedule.json$"):
        imported(text)


def test_ours_is_left_to_us(tmp_path):
    (tmp_path / "s.json").write_bytes(Schedule.every(2, family="dit", steps=4, columns=2).to_json())
    assert recognise.read(tmp_path / "s.json", Selection()) is None


@pytest.mark.parametrize(("content", "says"), [
    ({"weight_map": {}}, "it is an index of weights: give it with weights="),
    ({}, "use one of ours, a schedule of SmoothCache"),
    ("3", "use one of ours"), ([[1, 2], [3]], "use one of ours"), ([1, 2, 4], "use one of ours"), ("hello", "use one of ours"),
])  # fmt: skip
def test_what_is_none_of_them(content, says):
    with pytest.raises(ScheduleError, match=says):
        imported(content)


@pytest.mark.parametrize(("chosen", "says"), [
    ({"level": "stack"}, "level='stack': a schedule of SmoothCache does not ask for it"),
    ({"budget": 3}, "budget=3: a schedule of"),
    ({"full_calls": "every:2"}, "full_calls='every:2': a schedule of"), ({"threshold": 0.5}, r"threshold=0\.5: a schedule of"),
])  # fmt: skip
def test_what_has_no_effect_is_refused(chosen, says):
    with pytest.raises(UsageError, match=says):
        imported({"attn": [1, 0]}, **chosen)


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(("text", "says"), [
    (BOMB, r"it has an alias \(\*\.\.\): write out"), ("a: !!python/object/apply:os.system ['touch harmed']", "neither JSON"),
    ("[" * 100_000, "nested too deeply"), ("? " * 5000, "nested too deeply"), ("a: [1, 2", "nor YAML in line 1"),
    ("{" + '"a":{' * 60_000, "nested too deeply"), ("a: 1\n---\na: 2", "nor YAML"), ("[1, 0\xff", "use one of ours|nor YAML"),
    ("\x00\x01", "neither JSON"), ("a: " + "9" * 5000, "neither JSON"), ("a: 2001-99-99", "neither JSON|use one of ours"),
    ("x " * MOST_YAML, "for YAML it is too large: give at most 256 KB"),
    (" " * MOST + "[1]", "it has 4 MB: a schedule has at most 4"),
], ids=range(13))  # fmt: skip
def test_a_text_that_would_harm_is_refused_in_one_line(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScheduleError, match=says) as caught:
        imported(text)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode)
       | st.recursive(st.none() | st.booleans() | st.integers(-3, 60) | st.floats() | st.sampled_from(
           ["attn", "mlp-0", "mask", "1001", "fast", "mag_ratios", "cache_config", "000"]),
           lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
               ["attn", "mlp-0", "attn1", "2", "10", "mag_ratios", "thresh", "K", "retention", "cache_config", "mask",
                "steps_computation_mask", "num_inference_steps", "Fn_compute_blocks", "cache_schedule", "schedule", "000", "0",
                "cache_interval", "disable_cache_after_step", "edge_source", "calc_dict"]), inner, max_size=4),
           max_leaves=12).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_anything_is_read_or_refused_in_one_line(data):
    said = ""
    try:
        result = recognise.of_content(decoded(data), Selection())
    except L2CError as error:
        result, said = None, str(error)
    assert len(said.splitlines()) <= 1
    assert result is None or result.form
