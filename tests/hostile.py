"""Files that somebody made to do harm: every one must be refused in one line, or change nothing.

`cases` writes them to a folder; each has a reader.  What one that works would do is make a file called EXECUTED in the
current folder.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import torch
from manifests import changed
from onnx import TensorProto, helper

from l2c_export.artefact import integrity, store
from l2c_export.artefact.manifest import Manifest
from l2c_export.artefact.records import FILE, FileInfo, Origin
from l2c_export.compiler.link import bind
from l2c_export.inspection import view
from l2c_export.models import lookup
from l2c_export.runtime.pipeline import load
from l2c_export.schedules import schedule
from l2c_export.weights.recipe import TensorRecord


class Hostile(NamedTuple):
    """A file or folder, and what reads it."""

    name: str
    read: Callable[[], object]


TOUCH = b"touch EXECUTED"
U = b"U" + bytes([len(TOUCH)]) + TOUCH  # as a short string


def _text(word: bytes) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word


def _global4(module: bytes, name: bytes) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _reduce(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


SYSTEM = b"cposix\nsystem\n"
NAMESPACE = b"cargparse\nNamespace\n"
# Every way of a pickle to name or to call something.
PICKLES = {
    "global": _reduce(SYSTEM, U),
    "stack-global": b"\x80\x04" + _reduce(_global4(b"posix", b"system"), U),
    "inst": b"(" + U + b"iposix\nsystem\n",
    "obj": b"(" + SYSTEM + U + b"o",
    "newobj": b"\x80\x02csubprocess\nPopen\n" + U + b"\x85\x81",
    "newobj-ex": b"\x80\x04" + _global4(b"subprocess", b"Popen") + U + b"\x85}\x92",
    "build-setstate": NAMESPACE + b")R}" + b"U\x0c__setstate__" + SYSTEM + b"sb" + U + b"b",
    "build-class": NAMESPACE + b")\x81}" + b"U\x09__class__" + b"csubprocess\nPopen\n" + b"sb",
    "ext1": b"\x80\x02\x82\xf0" + b"(" + U + b"tR",
    "ext4": b"\x80\x02\x84\xf0\x00\x00\x00" + b"(" + U + b"tR",
    "persid": b"Pposix.system\n(" + U + b"tR",
    "binpersid": SYSTEM + b"Q",
    "eval": _reduce(b"c__builtin__\neval\n", b'S\'__import__("os").system("touch EXECUTED")\'\n'),
    "exec": b"\x80\x04" + _reduce(_global4(b"builtins", b"exec"), b"Vopen('EXECUTED', 'w')\n"),
    "open": b"\x80\x04" + _reduce(_global4(b"io", b"open"), b"VEXECUTED\nVw\n"),
    "getattr": _reduce(b"c__builtin__\ngetattr\n", NAMESPACE, b"V__init__\n"),
    "dotted": b"\x80\x04" + _reduce(_global4(b"argparse", b"_os.system"), U),
    "dotted-init": b"\x80\x04" + _global4(b"argparse", b"Namespace.__init__.__globals__"),
    "neighbour": b"\x80\x04" + _reduce(_reduce(_global4(b"argparse", b"FileType"), b"Vw\n"), b"VEXECUTED\n"),
    "torch-os": b"\x80\x04" + _reduce(_global4(b"torch.serialization", b"os.system"), U),
    "torch-load": b"\x80\x04" + _reduce(_global4(b"torch", b"load"), b"Vinner.pt\n"),
    "hub": b"\x80\x04" + _reduce(_global4(b"torch.hub", b"load"), b"Vsomebody/evil\nVx\n"),
    "partial": b"\x80\x04" + _reduce(_reduce(_global4(b"functools", b"partial"), _global4(b"os", b"system"), U), b""),
    "pickle-loads": b"\x80\x04" + _reduce(_global4(b"pickle", b"loads"), b"C\x0fcposix\nsystem\n."),
    "numpy-load": b"\x80\x04" + _reduce(_global4(b"numpy", b"load"), b"Vinner.npy\n", b"N", b"\x88"),
    "ordered-dict": _reduce(b"ccollections\nOrderedDict\n", b"((U\x01a" + SYSTEM + b"ttl"),
    "deep": b"(" * 200_000,
    "deep-lists": b"]" * 100_000 + b"a" * 99_999,
    "long-string": b"\x8d" + struct.pack("<Q", 2**62),
    "long-bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40),
    "long-number": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "negative-number": b"\x8b" + struct.pack("<i", -1),
    "far-memo": b"Nr\xff\xff\xff\xff",
    "far-frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62),
    "empty": b"",
}


def _zip(pickled: bytes, **records: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **records}.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", data)
    return buffer.getvalue()


def _legacy(pickled: bytes) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2)


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "zip": _zip, "legacy": _legacy}


def pickles(folder: Path, engines: Path) -> Iterator[Hostile]:
    """As routers and as checkpoints, in each format that PyTorch reads."""
    for name, body in PICKLES.items():
        for kind, container in CONTAINERS.items():
            path = folder / f"{name}-{kind}.pt"
            path.write_bytes(container(body + b"."))
            yield _router(path) if len(name) % 2 else _checkpoint(path, engines)


def _router(path: Path) -> Hostile:
    return Hostile(f"router {path.name}", lambda: view.inspect(path))


def _checkpoint(path: Path, engines: Path) -> Hostile:
    return Hostile(f"weights {path.name}", lambda: bind(engines, str(path)))


def _tensor(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """What torch.save writes for {"routers": {"0.prob": tensor}}, with the given claims about a storage of 4 numbers."""

    def number(n: int) -> bytes:
        data = n.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(numel) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + number(offset) + numbers(size) + numbers(stride)
    return b"\x80\x02}X\x07\0\0\0routers}X\x06\0\0\x000.prob" + rebuilt + b"\x89ccollections\nOrderedDict\n)RtRss."


TENSORS = {
    "honest-but-one": _tensor(4, 0, (3,), (1,)),
    "large-storage": _tensor(2**40, 0, (4,), (1,)),
    "over-read": _tensor(2**20, 0, (2**20,), (1,)),
    "past-the-end": _tensor(4, 2**40, (4,), (1,)),
    "before-the-start": _tensor(4, -1024, (4,), (1,)),
    "stride-0": _tensor(4, 0, (2**42,), (0,)),
    "negative-stride": _tensor(4, 0, (4,), (-1,)),
    "negative-size": _tensor(4, 0, (-4,), (1,)),
    "negative-storage": _tensor(-4, 0, (4,), (1,)),
}


def archives(folder: Path, engines: Path) -> Iterator[Hostile]:
    """Tensors that lie about their sizes, and zip bombs."""
    for name, body in TENSORS.items():
        path = folder / f"tensor-{name}.pt"
        path.write_bytes(_zip(body, data__0=bytes(16)))
        yield _router(path)
    for name, pickled, record in (("pickle", bytes(2**28), b""), ("storage", TENSORS["honest-but-one"], bytes(2**28))):
        path = folder / f"bomb-{name}.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/data/0", record)
            archive.writestr("archive/version", "3\n")
        yield _router(path)
    overlapping = folder / "bomb-overlapping.pt"
    overlapping.write_bytes(_overlapping(_zip(TENSORS["honest-but-one"], data__0=bytes(4096)), 3000))
    yield _router(overlapping)
    for name in ("../../EXECUTED", "/tmp/EXECUTED", "archive/../../EXECUTED"):
        path = folder / f"zip-{len(name)}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
            archive.writestr("archive/data.pkl", PICKLES["empty"] + b".")
        yield _router(path)


def _overlapping(data: bytes, times: int) -> bytes:
    """An archive whose directory lists its last entry many times."""
    end = data.rindex(b"PK\5\6")
    count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    directory = data[start : start + size]
    more = directory + directory[directory.rindex(b"PK\1\2") :] * times
    tail = b"PK\5\6" + bytes(4) + struct.pack("<HHIIH", count + times, count + times, len(more), start, 0)
    return data[:start] + more + tail


GOOD = {"format": "l2c-schedule", "version": 1, "family": "dit", "sampler": "ddim", "steps": 2, "columns": 2,
        "calls": [{"timestep": 999.0, "computed": [0, 1], "reused": []},
                  {"timestep": 0.0, "computed": [], "reused": [0, 1]}]}  # fmt: skip
DEEP = b"[" * 10**6
SCHEDULES = {
    "deep": DEEP,
    "deep-inside": json.dumps(GOOD).encode().replace(b'"dit"', b'{"a":' * 10**5),
    "columns": json.dumps({**GOOD, "columns": 10**12}).encode(),
    "steps": json.dumps({**GOOD, "steps": 10**18}).encode(),
    "digits": json.dumps(GOOD).encode().replace(b'"steps": 2', b'"steps": ' + b"9" * 5000),
    "negative": json.dumps({**GOOD, "columns": -2}).encode(),
    "nan": json.dumps(GOOD).encode().replace(b"999.0", b"NaN"),
    "infinite": json.dumps(GOOD).encode().replace(b"999.0", b"1e999"),
    "column": json.dumps(GOOD).encode().replace(b"[0, 1]", b"[0, 18446744073709551617]"),
    "unknown": json.dumps({**GOOD, "run": "touch EXECUTED"}).encode(),
    "version": json.dumps({**GOOD, "version": 2}).encode(),
    "utf8": b'{"format": "\xff\xfe"}',
}
ARCH = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2}
CONFIGS = {
    "deep": DEEP,
    "depth": {**ARCH, "depth": 10**9},
    "width": {**ARCH, "hidden_size": 2**62},
    "wide": {**ARCH, "hidden_size": 2**20, "mlp_ratio": 2**20},
    "latents": {**ARCH, "input_size": 2**20},
    "channels": {**ARCH, "in_channels": 2**21, "patch_size": 1},
    "classes": {**ARCH, "num_classes": 10**15},
    "negative": {**ARCH, "depth": -(10**9)},
    "zero": {**ARCH, "num_heads": 0},
    "text": {**ARCH, "hidden_size": "__import__('os').system('touch EXECUTED')"},
    "ratio": b'{"family": "dit", "arch": {"mlp_ratio": 1e999}}',
    "digits": b'{"family": "dit", "arch": {"depth": ' + b"9" * 5000 + b"}}",
    "family": b'{"family": ["dit"], "arch": {}}',
}


def texts(folder: Path, engines: Path) -> Iterator[Hostile]:
    """Schedules and model descriptions."""
    for name, data in SCHEDULES.items():
        path = folder / f"schedule-{name}.json"
        path.write_bytes(data)
        yield Hostile(f"schedule {name}", lambda path=path: schedule.Schedule.read(path))
    for name, config in CONFIGS.items():
        path = folder / f"config-{name}.json"
        path.write_bytes(config if isinstance(config, bytes) else json.dumps({"family": "dit", "arch": config}).encode())
        yield Hostile(f"config {name}", lambda path=path: lookup.resolve(str(path), None, None, None))


def _entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, object] = {
    "overlapping": {"a": _entry(), "b": _entry(offsets=(8, 24))},
    "outside": {"a": _entry(offsets=(0, 2**40), shape=(2**38,))},
    "negative": {"a": _entry(offsets=(-16, 0))},
    "backwards": {"a": _entry(offsets=(16, 0))},
    "gap": {"a": _entry(offsets=(64, 80))},
    "overflow": {"a": _entry(shape=(2**32, 2**32), offsets=(0, 0))},
    "huge-and-empty": {"a": _entry(shape=(2**62, 0), offsets=(0, 0))},
    "shape": {"a": _entry(shape=(5,))},
    "negative-shape": {"a": _entry(shape=(-4,))},
    "type": {"a": _entry(dtype="PICKLE")},
    "name": {"../../EXECUTED": _entry()},
    "text": {"a": "touch EXECUTED"},
    "list": [1, 2],
}


def tensors(folder: Path, engines: Path) -> Iterator[Hostile]:
    """safetensors files whose headers lie."""
    sizes = {"overlapping": 24, "gap": 80, "overflow": 0, "huge-and-empty": 0}
    files = {name: _safetensors(json.dumps(header).encode(), sizes.get(name, 16)) for name, header in HEADERS.items()}
    files["deep"] = _safetensors(DEEP)
    files["long-header"] = (2**62).to_bytes(8, "little") + b"{}"
    files["twice"] = _safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(_entry()).encode(),) * 2))
    for name, data in files.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(data)
        yield _checkpoint(path, engines)


def _safetensors(header: bytes, size: int = 16) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(size)


# artefacts whose author knows the checksums

OUTSIDE = ("../secret", "segments/../../secret", "..\\secret", "C:secret", "nul\0", ".hidden", "a//b", "", "/", "~/secret")


def artefacts(folder: Path, engines: Path) -> Iterator[Hostile]:
    """Copies of an artefact with a manifest, a graph or a link that leads elsewhere."""
    secret = folder / "secret"
    secret.write_bytes(np.ones(64, np.float32).tobytes())

    def copy(name: str) -> Path:
        return shutil.copytree(engines, folder / f"artefact-{name}")

    for name in (
        "../secret",
        str(secret),
        "segments/../../secret",
        "..\\secret",
        "C:secret",
        "nul\0",
        ".hidden",
        "a//b",
        "",
        "/",
    ):
        artefact = copy(f"path-{abs(hash(name))}")
        _edit(artefact, files={**store.read(artefact).files, name: integrity.info(secret)})
        yield Hostile(f"artefact path {name!r}", lambda artefact=artefact: load(artefact))
    for location in ("../secret", "../../secret", str(secret), "weights.safetensors", "secret"):
        for which in ("segments", "graphs") if location != "weights.safetensors" else ("segments",):
            artefact = copy(f"external-{which}-{abs(hash(location))}")
            file = _external(artefact, which, location)
            for backend in ("onnxruntime", "openvino"):
                link = "shared" if which == "segments" else "static"
                yield Hostile(f"artefact {file} with data in {location} on {backend}", _generate(artefact, backend, link))
    for name, change in _changes(store.read(engines)).items():
        artefact = copy(name)
        _edit(artefact, **change)
        yield Hostile(f"artefact {name}", _generate(artefact, "onnxruntime", "shared"))
    for name in ("segments", ".l2c-ready"):
        artefact = copy(f"link-{name}")
        elsewhere = folder / f"elsewhere-{name}"
        (artefact / name).rename(elsewhere) if (artefact / name).exists() else shutil.copytree(engines, elsewhere)
        (artefact / name).symlink_to(elsewhere)
        yield Hostile(f"artefact link {name}", lambda artefact=artefact: load(artefact))
    artefact = copy("ready-through-link")
    (artefact / "tensorrt").symlink_to(folder)
    (artefact / ".l2c-ready" / "tensorrt").mkdir(parents=True)
    (artefact / ".l2c-ready" / "tensorrt" / "EXECUTED").write_text("outside")
    shutil.copy(artefact / FILE, artefact / ".l2c-ready" / FILE)
    yield Hostile("artefact ready through a link", lambda artefact=artefact: load(artefact))


def _edit(folder: Path, **changes: object) -> None:
    store.write_json(folder / FILE, changed(store.read(folder, verify=False), **changes))


def _generate(folder: Path, backend: str, link: str) -> Callable[[], object]:
    return lambda: load(folder, backend, link=link)([1], seed=0).latents


def _external(folder: Path, which: str, location: str) -> str:
    """Let a graph of the artefact read a constant from `location`; the output is then another one."""
    manifest = store.read(folder)
    records = {"segments": manifest.denoiser.segments, "graphs": manifest.all_graphs()}[which]
    record = next(record for name, record in records.items() if name.startswith(("attn", "step")))
    model = onnx.load(folder / record.file, load_external_data=False)
    tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    output = model.graph.output[0].name
    maker = next(node for node in model.graph.node if output in node.output)
    maker.output[list(maker.output).index(output)] = "honest"
    model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("Add", ["honest", "stolen"], [output]))
    (folder / record.file).write_bytes(model.SerializeToString())
    _edit(folder, files={**manifest.files, record.file: integrity.info(folder / record.file)})
    return record.file


def _changes(manifest: Manifest) -> dict[str, dict[str, object]]:
    replace = msgspec.structs.replace
    calls, graphs, values = manifest.program().calls, manifest.program().graphs, manifest.program().size.values
    step, graph = calls[0].graph, graphs[calls[0].graph]
    last, origins = calls[-1], manifest.program().size.origins
    name = next(iter(graph.slots))
    base = name.split("@")[0]
    huge = {n: replace(v, shape=(v.shape[0], *(2**30 for _ in v.shape[1:]))) for n, v in values.items()}
    return {
        "huge-latents": {"latent": (4, 2**20, 2**20)},
        "huge-batch": {"batch": 2**62},
        "huge-values": {"values": huge},
        "huge-cache": {"cache_bytes": (2**50,) * len(manifest.program().cache_bytes)},
        "huge-slot": {"graphs": {**graphs, step: replace(graph, slot_bytes=(2**50,) * len(graph.slot_bytes))}},
        "small-slot": {"graphs": {**graphs, step: replace(graph, slot_bytes=(4,) * len(graph.slot_bytes))}},
        "small-cache": {"cache_bytes": (4,) * len(manifest.program().cache_bytes)},
        "negative-slot": {"graphs": {**graphs, step: replace(graph, slots=dict.fromkeys(graph.slots, -1))}},
        "far-slot": {"graphs": {**graphs, step: replace(graph, slots=dict.fromkeys(graph.slots, 10**9))}},
        "smaller-value": {"values": {**values, base: replace(values[base], shape=(*values[base].shape[:-1], 1))}},
        "larger-value": {"values": {**values, base: replace(values[base], shape=(*values[base].shape[:-1], 2**20))}},
        "infinite-coefficient": {"calls": (replace(calls[0], coefficients=(0.0, 1e308, 1e308)), *calls[1:])},
        "no-calls": {"calls": ()},
        "no-graphs": {"graphs": {}},
        "other-graph": {"calls": (*calls[:-1], replace(last, graph="prologue"))},
        "far-cache": {"calls": (*calls[:-1], replace(last, reads=dict.fromkeys(last.reads, 10**6)))},
        "unread-cache": {"calls": (*calls[:-1], replace(last, reads={}))},
        "tensors": {"tensors": {**manifest.denoiser.tensors, "more": TensorRecord((2**40,), "float32")}},
        "rows": {"origins": {**origins, "pos_embed[5:99999999999]": Origin("weight", "pos_embed", 0, 5, 99999999999)}},
        "nowhere": {"origins": {}},
        "far-row": {"origins": {n: replace(o, offset=2**40) for n, o in origins.items()}},
        "weights": {"files": {**manifest.files, "weights.safetensors": FileInfo(bytes=2**60, sha256="0" * 64)}},
    }


def cases(folder: Path, engines: Path) -> Iterator[Hostile]:
    """All of them, written below `folder`; `engines` is a good artefact that may be read and linked."""
    for kind in (pickles, archives, texts, tensors, artefacts):
        yield from kind(folder, engines)


def sound(path: Path) -> bytes:
    """A router that is what it says, for the tests of this file itself."""
    torch.save({f"{i}.prob": torch.zeros(2) for i in range(4)}, path)
    return path.read_bytes()
