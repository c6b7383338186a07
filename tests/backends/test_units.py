"""What an engine is built from: files, and the shapes that they take."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from l2c_export.artefact import store
from l2c_export.backends import builds, units
from l2c_export.backends.building import BuildSettings, Range
from l2c_export.backends.tensorrt.builder import Builder

trt = pytest.importorskip("tensorrt_rtx")


def test_engines_take_every_batch_from_one_image_to_the_compiled_one(half):
    manifest = store.read(half)
    sizes = builds.images(None, manifest)
    by_name = units.units(manifest, sizes)
    program = manifest.program()
    calls, largest = len(program.calls), 2 * manifest.batch
    step = next(node.op for node in program.graphs[program.calls[0].graph].nodes if node.op.startswith("attn"))
    hoisted = next(node.op for node in program.graphs[program.prologue].nodes if node.op.startswith("modulation"))
    assert by_name[step].ranges["R"] == (1, largest, largest)
    assert by_name[hoisted].ranges["R"] == (1, calls * largest, calls * largest)
    constant = next(node.op for node in program.graphs[program.constants].nodes if node.op.startswith("time"))
    assert by_name[constant].ranges["R"] == (1, calls, calls)


def test_what_runs_before_the_loop_is_not_worth_tuning(half):
    manifest = store.read(half)
    once = {name.partition(".")[0] for name, unit in units.units(manifest, builds.images(None, manifest)).items() if unit.once}
    assert once == {"time", "condition", "modulation"}


@pytest.mark.parametrize("link", ["shared", "static"])
def test_a_build_for_gpus_has_an_engine_of_the_decoder(world, tmp_path, link):
    shutil.copytree(world.pictures(), tmp_path / "e")
    manifest = msgspec.structs.replace(store.read(tmp_path / "e"), link=link)
    by_name = units.units(manifest, Range(1, 2, 2))
    assert len(by_name) == units.count(manifest)
    unit = by_name[units.DECODER]
    assert [port.at({axis: sizes.most for axis, sizes in unit.ranges.items()}) for port in unit.ports] == [(1, 4, 8, 8)]
    assert {sizes.least for sizes in unit.ranges.values()} == {1}, "what tiles leave over at an edge"
    builder = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))
    assert len(builder.build(tmp_path / "e" / unit.file, unit.ports, unit.ranges)) > 10_000
