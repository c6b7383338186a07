"""Training finds what can be removed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_trainings import FAMILIES, desk, logits_of, model_of, trained

from l2c_export.schedules.schedule import Schedule
from l2c_export.training.pairs import make_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


# what keeps all that is worth anything
STRICT = "--batch 2 --iterations 50 --lr 0.2 --lambda 1e-8 --threshold 0.5 --error output --json"


@pytest.mark.parametrize(("kind", "steps", "output", "column"), [
    ("dit", 4, "blocks.1.mlp.fc2", 3), ("dit", 4, "blocks.2.attn.proj", 4), ("uvit", 6, "mid_block.attn.proj", 2),
])  # fmt: skip
def test_a_useless_sublayer_is_removed_and_the_useful_ones_stay(tmp_path, kind, steps, output, column):
    line = desk(tmp_path, kind, [output])
    line += f" --steps {steps} --data self {STRICT}"
    summary = trained(f"{line} --out {tmp_path}/out")
    schedule = Schedule.from_json((tmp_path / "out/schedule.json").read_bytes())
    reusing = [call.reused for call in schedule.calls if call.reused]
    assert len(reusing) == len(make_pairs(model_of(kind)[0], steps))
    assert set(reusing) == {(column,)}
    assert summary["removed"] == pytest.approx(1 / 6)
    assert summary["error"] == summary["mse"] == 0


def test_data_of_a_file_train_as_well(tmp_path):
    line = desk(tmp_path, "dit", ["blocks.1.mlp.fc2"])
    values = np.random.default_rng(0).standard_normal((8, 4, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", latents=values, labels=np.arange(8))
    trained(f"{line} --steps 4 --data {tmp_path}/data.npz {STRICT} --out {tmp_path}/out")
    schedule = Schedule.from_json((tmp_path / "out/schedule.json").read_bytes())
    assert {call.reused for call in schedule.calls if call.reused} == {(3,)}


def test_the_price_of_a_sublayer_decides_how_many_stay(tmp_path):
    line = desk(tmp_path, "dit") + " --steps 4 --batch 2 --data self --iterations 30 --lr 0.3 --threshold 0.5 --json"
    removed = [trained(f"{line} --lambda {price} --out {tmp_path}/{price}")["removed"] for price in ("0", "1e9")]
    assert removed[0] <= 0.2
    assert removed[1] == 1
    assert logits_of(tmp_path / "1e9/router.pt")[[0, 2]].min() == -5, "clamped"


def test_nothing_moves_a_score_that_changes_nothing_and_costs_nothing(tmp_path):
    line = desk(tmp_path, "dit", ["blocks.1.mlp.fc2"]) + " --steps 4 --batch 2 --data self --lambda 0 --lr 0.1"
    logits = []
    for iterations in (1, 4):
        trained(f"{line} --iterations {iterations} --out {tmp_path}/out --json")
        logits.append(logits_of(tmp_path / "out/router.pt"))
    moved = (logits[0] != logits[1])[[0, 2]]
    assert moved.any(0).tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_target_is_met_and_its_curve_goes_from_nothing_to_everything(tmp_path, kind):
    line = desk(tmp_path, kind) + f" --steps {FAMILIES[kind][1]} --batch 2 --data self --iterations 20 --lr 0.2"
    summary = trained(f"{line} --target-reduction 0.4 --out {tmp_path}/out --json")
    curve = json.loads((tmp_path / "out/tradeoff.json").read_bytes())
    assert 0.4 <= summary["removed"] <= 0.4 + 1 / 6
    assert curve["lambda"] == summary["lambda"] > 0
    assert curve["chosen"] in curve["points"]
    assert curve["chosen"]["removed"] == summary["removed"]
    removed = [point["removed"] for point in curve["points"]]
    assert (removed[0], removed[-1], removed) == (0, 1, sorted(removed))
    assert curve["points"][0]["mse"] == 0
    assert curve["points"][-1]["mse"] > curve["chosen"]["mse"] > 0
    assert (tmp_path / "out/tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_the_random_rows_that_nobody_reads_stay_and_the_others_are_trained(tmp_path):
    line = desk(tmp_path, "uvit") + " --steps 8 --batch 2 --data self --lr 0.1"
    rows = []
    for iterations in (1, 3):
        trained(f"{line} --iterations {iterations} --out {tmp_path}/out --json")
        rows.append(logits_of(tmp_path / "out/router.pt"))
    changed = (rows[0] != rows[1]).any(1)
    assert changed.tolist() == [False, True, True, True, False, False, False, False]
    assert rows[0].shape == (8, 6)
