"""l2c train --search: what it keeps, and whether it is as fast and as good as it says."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy_dit import Blocks
from numpy_loop import denoised
from ruled_trainings import numpy_desk, requested, ruled
from small_trainings import desk, invoke, trained

from l2c_export.schedules.schedule import Schedule
from l2c_export.training.candidates import Candidate, by_stride, kinds, neighbour
from l2c_export.training.lessons import EVALUATE
from l2c_export.training.search import Tried, undominated

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_frontier_is_what_nothing_beats(points):
    tried = [Tried(full=(n,), rules=(("output", "reuse"),), seconds=s, error=e) for n, (s, e) in enumerate(points)]
    frontier = {(one.seconds, one.error) for one in undominated(tried)}
    beaten = {(s, e) for s, e in points if any((a, b) != (s, e) and a <= s and b <= e for a, b in points)}
    assert frontier == set(points) - beaten


def test_candidates_by_stride():
    candidates = list(by_stride(10, ("*.attn", "*.mlp"), ("sublayer", "output")))
    assert Candidate((0, 1, 5), (("output", "taylor:1"),)) in candidates
    assert Candidate((0, 4, 8), (("*.attn", "reuse"), ("*.mlp", "reuse"))) in candidates
    assert all(len(one.full) < 10 for one in candidates)
    assert kinds(("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn")) == ("*.attn", "*.mlp")


def test_neighbours_differ_in_one_thing_and_begin_in_full():
    chance, candidate = np.random.default_rng(0), Candidate((0, 3, 6), (("*.attn", "taylor:1"), ("*.mlp", "reuse")))
    seen = [neighbour(candidate, 9, ("*.attn", "*.mlp"), ("sublayer", "stack", "output"), chance) for _ in range(300)]
    assert all(0 in one.full and len(one.full) < 9 and one.full == tuple(sorted(set(one.full))) for one in seen)
    assert all(abs(len(one.full) - 3) <= 1 for one in seen)
    assert {one.full for one in seen} >= {(0, 4, 6), (0, 2, 6), (0, 3, 7), (0, 3), (0, 3, 6, 8)}
    assert {one.level for one in seen} == {"sublayer", "stack", "output"}
    assert {one.rules for one in seen} >= {(("*.attn", "taylor:2"), ("*.mlp", "reuse")), (("stack", "taylor:1"),)}
    assert not [one for one in seen if one.full != candidate.full and one.rules != candidate.rules]


def test_a_frontier_is_as_good_and_as_fast_as_it_says(tmp_path):
    here = numpy_desk(tmp_path)
    line = f"train {here.line} --steps 6 --data self --search --iterations 40 --batch 2"
    summary = trained(f"{line} --out {tmp_path}/out --json")
    points, tried = summary["points"], summary["tried"]
    assert len(tried) == 40
    assert len({json.dumps([one["full"], one["rules"]]) for one in tried}) == 40
    assert [p["seconds"] for p in points] == sorted(p["seconds"] for p in points)
    assert all(a["error"] > b["error"] for a, b in itertools.pairwise(points))
    noise, labels = requested(here.subject(steps=6).request(EVALUATE, 0))
    uncached = denoised(here.weights, noise, {}, None, 6, labels)
    files = sorted((tmp_path / "out").glob("schedule-*.json"))
    assert len(files) == len(points)
    known = [n for n, point in enumerate(points) if not any(rule == "taylor:3" for _, rule in point["rules"])]
    assert len(known) > 2
    for n in known:
        schedule = Schedule.read(tmp_path / f"out/schedule-{n + 1}.json")
        assert [i for i, call in enumerate(schedule.calls) if not call.rules] == points[n]["full"]
        stack = Blocks("stack", 0, 2) if "stack" in schedule.values.levels else None
        latents = denoised(here.weights, noise, ruled(schedule), stack, 6, labels)
        error = np.sqrt(np.square(latents - uncached).mean() / np.square(uncached).mean())
        assert points[n]["error"] == pytest.approx(error, rel=1e-3)
        dry = invoke(
            f"export --schedule {tmp_path}/out/schedule-{n + 1}.json {here.line.partition(' --guid')[0]} --dry-run --json"
        )
        assert points[n]["seconds"] == json.loads(dry.stdout)["schedule"]["total"]["seconds"]
    assert (tmp_path / "out/tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_the_files_and_a_new_search_replaces_the_old(tmp_path):
    line = desk(tmp_path, "uvit") + f" --steps 6 --data self --search --batch 1 --out {tmp_path}/out"
    invoke(f"{line} --iterations 12")
    done = invoke(f"{line} --iterations 2")
    assert done.exit_code == 0, done.stderr
    files = sorted(path.name for path in (tmp_path / "out").glob("schedule-*.json"))
    assert 1 <= len(files) <= 2
    assert [word for word in done.stdout.split() if word.startswith("schedule-")] == files
    assert "uncached" in done.stdout
