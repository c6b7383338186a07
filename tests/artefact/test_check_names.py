"""What a manifest calls segments, graphs and engines becomes names of files: they are checked before any is made."""

from __future__ import annotations

import pytest
from manifests import changed
from msgspec.structs import replace
from recorded import GOLDEN

from l2c_export.artefact import store
from l2c_export.artefact.check import problem
from l2c_export.artefact.check_names import DECODER
from l2c_export.artefact.records import Build, DecoderRecord, FileInfo

SOUND = store.read(GOLDEN / "v2" / "engines")
SEGMENT = next(iter(SOUND.denoiser.segments))
INFO = FileInfo(bytes=1, sha256="0" * 64)
OUTSIDE = ["../x", "/tmp/x", "a/b", "..", ".x", "", "a b", "a\n", "CON:", "a" * 101]


def said(**fields):
    return problem(changed(SOUND, **fields)) or "nothing"


def renamed(names, old, new):
    """The same with another name and a file to it."""
    file = names[old].file.replace(old, new)
    return {new if name == old else name: replace(part, file=file) if name == old else part for name, part in names.items()}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_segment_that_is_called_as_no_file_of_an_engine(name):
    """`l2c build` writes NAME.plan."""
    segments = renamed(SOUND.denoiser.segments, SEGMENT, name)
    graphs = {
        graph: replace(record, nodes=tuple(replace(n, op=name if n.op == SEGMENT else n.op) for n in record.nodes))
        for graph, record in SOUND.all_graphs().items()
    }
    files = {**SOUND.files, segments[name].file: INFO}
    assert "a segment is called" in said(segments=segments, graphs=graphs, files=files)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_graph_that_is_called_as_no_file_of_an_engine(name):
    graphs = renamed(SOUND.all_graphs(), "step-000", name)
    calls = tuple(replace(c, graph=name if c.graph == "step-000" else c.graph) for c in SOUND.program().calls)
    assert "a graph is called" in said(graphs=graphs, calls=calls, files={**SOUND.files, graphs[name].file: INFO})


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", ".x", "a/../../x", "", "a b", "a\n", "CON:"])
def test_a_file_that_is_elsewhere(name):
    assert "outside the artefact" in said(files={**SOUND.files, name: INFO})


def test_the_file_of_a_segment_is_called_as_it_is():
    """A built engine is found by the name of the ONNX file."""
    first, second, *_ = SOUND.denoiser.segments
    swapped = replace(SOUND.denoiser.segments[first], file=SOUND.denoiser.segments[second].file)
    assert f"the file of segment {first} is" in said(segments={**SOUND.denoiser.segments, first: swapped})


def test_a_decoder_is_in_the_file_of_a_decoder():
    decoder = DecoderRecord(file=SOUND.denoiser.segments[SEGMENT].file, scale=2, channels=3, scaling_factor=1.0, tile=8)
    assert "the file of component decoder is" in said(decoder=decoder)


def test_graphs_of_two_sizes_have_two_names():
    other = replace(SOUND.program().size, latent=SOUND.program().latent)
    assert "two sizes have a graph constants" in said(
        denoiser=replace(SOUND.denoiser, sizes={**SOUND.denoiser.sizes, "o": other})
    )


def test_a_weight_is_the_same_in_all_sizes():
    size = SOUND.program().size
    name, origin = next((n, o) for n, o in size.origins.items() if o.kind == "weight" and o.last)
    graphs = {f"other-{name}": replace(graph, file=f"other-{name}.onnx") for name, graph in size.graphs.items()}
    files = {**SOUND.files, **{graph.file: INFO for graph in graphs.values()}}
    other = replace(size, graphs=graphs, origins={**size.origins, name: replace(origin, first=0, last=1)})
    denoiser = replace(SOUND.denoiser, sizes={**SOUND.denoiser.sizes, "o": other})
    assert f"two sizes mean different weights by {name!r}" in said(denoiser=denoiser, files=files)


def built(**fields):
    """What is said of an artefact with engines, one thing about them changed."""
    engines = {name: f"gpu/{name}.plan" for name in SOUND.denoiser.segments}
    sound = {"backend": "tensorrt", "version": "8.6.1", "targets": ("sm90",), "images": (1, 2, 2), "level": None,
             "version_compatible": False, "hardware_compatible": False, "engines": engines}  # fmt: skip
    build = Build(**{**sound, **fields})
    return said(builds={"gpu": build}, files={**SOUND.files, **dict.fromkeys(build.engines.values(), INFO)})


def test_a_build_has_an_engine_for_everything_each_in_a_file():
    engines = {name: f"gpu/{name}.plan" for name in SOUND.denoiser.segments}
    assert built() == "nothing"
    assert f"has no engine {SEGMENT}" in built(engines={n: file for n, file in engines.items() if n != SEGMENT})
    assert "has two engines in one file" in built(engines={**engines, DECODER: engines[SEGMENT]})


@pytest.mark.parametrize("images", [(0, 1, 2), (2, 1, 2), (1, 2, 1), (1, 1, 3)])
def test_a_build_is_for_images_that_the_artefact_makes(images):
    assert "images of 2" in built(images=images)
