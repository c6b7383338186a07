"""Whether the names of segments and graphs can be those of files and engines, and mean one thing each.

An engine is written to a file that is called as its segment or graph, and found by the name of its ONNX file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import PurePosixPath

from .integrity import NAME
from .manifest import Manifest
from .records import Build, DenoiserRecord, Origin

DECODER = "decoder"  # what its engine is called
PART = re.compile(r"(?!\.)[\w.+-]{1,100}", re.ASCII)  # of a file's name


def problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the names of a manifest."""
    model = manifest.denoiser
    segments = {name: segment.file for name, segment in model.segments.items()}
    graphs = {name: graph.file for name, graph in manifest.all_graphs().items()}
    components = {DECODER: manifest.decoder.file} if manifest.decoder else {}
    for what, files in (("segment", segments), ("graph", graphs), ("component", components)):
        yield from (f"a {what} is called {name[:100]!r}" for name in files if not PART.fullmatch(name))
        yield from (f"the file of {what} {name} is {file}" for name, file in files.items() if not _is_file_of(name, file))
    outside = [name for name in manifest.files if not NAME.fullmatch(name)]
    yield from (f"it names {name[:100]!r}, which is outside the artefact" for name in outside)
    counts = Counter(name for size in model.sizes.values() for name in size.graphs)
    yield from (f"two sizes have a graph {name}" for name, count in counts.items() if count > 1)
    engines = {*(segments if manifest.link == "shared" else graphs), *components}
    for name, build in manifest.builds.items():
        yield from (f"the build {name[:100]} {wrong}" for wrong in _build(build, engines, manifest.batch))
    yield from _weights(model)


def _is_file_of(name: str, file: str) -> bool:
    return PurePosixPath(file).name == f"{name}.onnx"


def _build(build: Build, engines: Set[str], batch: int) -> Iterator[str]:
    if missing := engines - build.engines.keys():
        yield f"has no engine {min(missing)}"
    if len(set(build.engines.values())) < len(build.engines):
        yield "has two engines in one file"
    least, usual, most = build.images
    if not 1 <= least <= usual <= most <= batch:
        yield f"is for {least}, {usual} and {most} images of {batch}"


def _weights(model: DenoiserRecord) -> Iterator[str]:
    """A weight has one name in all graphs: engines of several read it by that."""
    meant: dict[str, Origin] = {}
    for size in model.sizes.values():
        for name, origin in size.origins.items():
            if origin.kind == "weight" and meant.setdefault(name, origin) != origin:
                yield f"two sizes mean different weights by {name!r}"
