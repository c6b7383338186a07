"""What a training writes is what the compiler reads."""

from __future__ import annotations

import json

import pytest
from small_trainings import desk, invoke, logits_of, model_of, trained

from l2c_export.errors import ScheduleError
from l2c_export.models import dit, families
from l2c_export.models.descriptor import FamilyDescriptor
from l2c_export.models.dit import DiT
from l2c_export.schedules import routers
from l2c_export.schedules.schedule import Schedule
from l2c_export.training.pairs import make_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("kind", "steps"), [("dit", 6), ("dit", 7), ("uvit", 8), ("uvit", 9)])
def test_the_compiler_takes_the_router_and_the_schedule(tmp_path, kind, steps):
    line = desk(tmp_path, kind) + f" --steps {steps} --batch 2 --data self --iterations 2"
    summary = trained(f"{line} --target-reduction 0.4 --out {tmp_path}/out --json")
    schedule = Schedule.from_json((tmp_path / "out/schedule.json").read_bytes())
    reused = sum(len(call.reused) for call in schedule.calls)
    assert summary["removed"] == pytest.approx(reused / 6 / len(make_pairs(model_of(kind)[0], steps)))
    assert schedule == routers.read(tmp_path / "out/router.pt").schedule(summary["threshold"], steps)
    model = f"--model {tmp_path}/config.json --weights {tmp_path}/model.safetensors"
    costs = []
    for learned in (f"router.pt --threshold {summary['threshold']}", "schedule.json"):
        done = invoke(f"export --schedule {tmp_path}/out/{learned} {model} --dry-run --json")
        assert done.exit_code == 0, done.stderr
        costs.append(json.loads(done.stdout)["schedule"]["total"])
    assert costs[0] == costs[1]


def test_a_router_of_a_uvit_of_odd_depth_is_as_wide_as_the_references(tmp_path):
    arch = {"img_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 4}
    (tmp_path / "odd.json").write_text(json.dumps({"family": "uvit", "arch": arch}))
    line = f"train --model {tmp_path}/odd.json --weights random --steps 4 --batch 1 --data self --iterations 1"
    assert trained(f"{line} --out {tmp_path}/out --json")["random_weights"] is True
    assert logits_of(tmp_path / "out/router.pt").shape == (4, 8)
    assert Schedule.from_json((tmp_path / "out/schedule.json").read_bytes()).columns == 6


class Third(DiT):
    """A family of somebody else."""

    name = "third"

    @staticmethod
    def named(name):
        return None


@pytest.mark.parametrize(("sampler", "rows"), [("ddim", (3, 3)), ("dpm-solver++", (2, 4))])
def test_a_router_of_another_family_is_that_familys(tmp_path, monkeypatch, sampler, rows):
    third = FamilyDescriptor("third", "Third", __name__, "Third", "x_embedder.proj.weight", sampler, ("first3", 4.0))
    monkeypatch.setitem(families.FAMILIES, "third", third)
    arch = {"input_size": 4, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    (tmp_path / "m.json").write_text(json.dumps({"family": "third", "arch": arch}))
    line = f"--model {tmp_path}/m.json --weights random"
    summary = trained(f"train {line} --steps 6 --batch 1 --data self --iterations 1 --out {tmp_path}/out --json")
    assert summary["family"] == "third"
    assert routers.read(tmp_path / "out/router.pt").family == "third"
    schedule = Schedule.from_json((tmp_path / "out/schedule.json").read_bytes())
    assert (schedule.family, schedule.sampler) == ("third", sampler)
    cached = len(make_pairs(Third(dit.DiTArch(**arch)), 6))
    assert (cached, 6 - cached) == rows
    for learned in (f"router.pt --threshold {summary['threshold']}", "schedule.json"):
        done = invoke(f"export --schedule {tmp_path}/out/{learned} {line} --dry-run")
        assert done.exit_code == 0, done.stderr
    monkeypatch.delitem(families.FAMILIES, "third")
    with pytest.raises(ScheduleError, match="a router of unknown family 'third': known are dit, uvit"):
        routers.read(tmp_path / "out/router.pt")
