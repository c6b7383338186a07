"""A small, seeded portion of what scripts/torture.py does to manifests of format 2: whole ones, changed and signed again."""

from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from manifests import changed

import l2c_export
from l2c_export import ArtefactError, L2CError, Schedule
from l2c_export.artefact import store
from l2c_export.artefact.records import FILE

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
TRIALS = 60


@pytest.fixture(scope="module")
def altered():
    sys.path.append(str(ROOT / "scripts"))
    import altered

    sys.path.remove(str(ROOT / "scripts"))
    return altered


@pytest.fixture(scope="module")
def forecast(tmp_path_factory, own_cache):
    """Programs with banks of forecasts, and with a range of the stack and explicit terms."""
    folder = tmp_path_factory.mktemp("forecast")
    (folder / "model.json").write_text((ROOT / "tests" / "golden" / "v2" / "model.json").read_text())
    options = {"model": folder / "model.json", "batch": 2, "backend": "onnxruntime"}
    ranged = Schedule.every(1, family="dit", steps=4, columns=4).computing([range(4), range(4), (0, 1), (0, 1)])
    ranged = ranged.following({2: {"stack[1:2]": "taylor:1"}, 3: {"stack[1:2]": [[2, 2.5], [3, -1.5]]}})
    artefact = l2c_export.compile("every:5", rule="taylor:2", steps=10, weights="random:1", out=folder / "banks", **options)
    assert any(call.banks for call in artefact.manifest.program().calls)
    l2c_export.compile(
        [ranged, *(Schedule.read(artefact.path / "schedule.json"),)], weights="random:1", out=folder / "all", **options
    )
    return folder / "all"


@pytest.mark.parametrize("kind", ["texts", "forecast"])
def test_every_manifest_is_refused_in_a_line_or_used_as_it_says(kind, altered, forecast, prompted_by, tmp_path):
    folder = shutil.copytree(prompted_by("flux").out if kind == "texts" else forecast, tmp_path / "engines")
    whole, wanted, counts = (folder / FILE).read_bytes(), altered.used(folder, "shared"), Counter()
    for seed in range(TRIALS):
        (folder / FILE).write_bytes(altered.signed(whole, random.Random(f"{kind} {seed}")))
        said = ""
        try:
            store.read(folder, verify=False)
            counts["harmless" if altered.used(folder, "shared") == wanted else "other"] += 1
        except L2CError as refused:
            said = str(refused)
            counts["refused"] += 1
        assert "\n" not in said, seed
    assert counts.total() == TRIALS
    assert counts["refused"] > TRIALS / 2
    assert counts["harmless"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]


@pytest.mark.parametrize(("before", "behind", "says"), [
    ("{behind}", "{before}", r"levels\['stack\[1:2\]'\]: '.*' is not made before '.*': compile the artefact again"),
    ("{before}", "nowhere", r"'stack\[1:2\]' follows from earlier calls, and no call makes it: compile the artefact again"),
])  # fmt: skip
def test_a_level_whose_ends_pytorch_does_not_pass_is_refused(before, behind, says, forecast, tmp_path):
    """Engines need no ends of levels; the reference that they are compared with does."""
    folder = shutil.copytree(forecast, tmp_path / "engines")
    manifest = store.read(folder)
    ends = dict(zip(("before", "behind"), manifest.denoiser.levels["stack[1:2]"], strict=True))
    levels = {"stack[1:2]": (before.format(**ends), behind.format(**ends))}
    store.write_manifest(folder, changed(manifest, levels=levels))
    with pytest.raises(ArtefactError, match=says):
        l2c_export.verify(folder, backend="onnxruntime", threads=1, steps=4)
