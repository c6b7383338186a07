"""Training checkpoints: where the model is in them, what is beside it, and pickles that hold more than tensors."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pathlib
import pickle
import resource
import struct
import sys
import time
import types
import zipfile

import hostile
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from l2c_export.errors import ScheduleError, WeightsError
from l2c_export.schedules import routers
from l2c_export.weights import pickled, torch_file
from l2c_export.weights.checkpoint import open_checkpoint


def model(seed=0):
    torch.manual_seed(seed)
    shapes = {"x_embedder.proj.weight": (32, 4, 2, 2), "pos_embed": (1, 16, 32), "blocks.0.attn.qkv.bias": (96,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


RAW, EMA = model(1), model(2)
COUNTERS = {"step": torch.tensor(7), "initted": torch.tensor([True])}


def under(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def check(path, wanted, taken=""):
    checkpoint = open_checkpoint(path)
    assert checkpoint.shapes == {n: tuple(t.shape) for n, t in wanted.items()}
    for name, value in wanted.items():
        assert np.array_equal(checkpoint.read(name), value.float().numpy()), name
    assert checkpoint.taken == taken
    assert (f"({taken})" in checkpoint.described) == bool(taken)
    return checkpoint


# containers


OPTIMIZER = {
    "state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(5.0)}},
    "param_groups": [{"lr": 1e-4, "params": [0]}],
}
ALONE = {
    "model": lambda: {"model": RAW},
    "state_dict": lambda: {"state_dict": RAW, "epoch": 3},
    "model_state_dict": lambda: {"model_state_dict": RAW, "optimizer_state_dict": OPTIMIZER, "loss": 0.5},
    "module": lambda: {"module": RAW, "global_steps": 5},
    "model_ema": lambda: {"model_ema": RAW},
    "any name": lambda: {"denoiser_weights": RAW},
    "nested": lambda: {"checkpoint": {"model": RAW, "opt": OPTIMIZER}},
    "flat and counters": lambda: {**RAW, **COUNTERS},
    "flat and all else": lambda: {**RAW, "opt": OPTIMIZER, "epoch": 3, "args": argparse.Namespace(lr=1)},
    "ddp": lambda: under("module.", RAW),
    "compiled": lambda: {"state_dict": under("_orig_mod.", RAW)},
    "both": lambda: {"model": under("module._orig_mod.", RAW)},
    "lightning": lambda: {"state_dict": {**under("model.", RAW), "loss.weight": torch.ones(2), "vae.a.b": torch.ones(2)}},
    "transformer": lambda: under("transformer.", RAW),
    "ema-pytorch": lambda: {**under("ema_model.", RAW), **COUNTERS},
    "ema-pytorch, wrapped": lambda: {"ema": {**under("ema_model.module.", RAW), **COUNTERS}},
    "optimizer by name": lambda: {"model": RAW, "optimizer": {"exp_avg": model(5), "exp_avg_sq": model(6)}},
    "parameters": lambda: {"model": {n: torch.nn.Parameter(t) for n, t in RAW.items()}},
    "the same twice": lambda: {"model": RAW, "ema": RAW},
}  # fmt: skip


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ALONE)
def test_the_model_is_found_in_every_container(tmp_path, kind, archive):
    torch.save(ALONE[kind](), tmp_path / "w.pt", _use_new_zipfile_serialization=archive)
    check(tmp_path / "w.pt", RAW)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.", "_orig_mod.", "ema_model.", "transformer.", "module._orig_mod.", "net.model."]
)
def test_prefixes_are_left_out_in_safetensors_too(tmp_path, prefix):
    save_file({**under(prefix, RAW), **COUNTERS}, tmp_path / "w")
    check(tmp_path / "w", RAW)


CHOICES = {
    "DiT": (lambda: {"model": RAW, "ema": EMA, "opt": {}, "args": None}, "ema"),
    "timm": (lambda: {"state_dict": RAW, "state_dict_ema": EMA}, "state_dict_ema"),
    "flat": (lambda: {**under("model.", RAW), **under("ema_model.", EMA)}, "ema_model"),
    "ema-pytorch": (lambda: {"ema": {**under("online_model.", RAW), **under("ema_model.", EMA), **COUNTERS}}, "ema.ema_model"),
    "raw beside": (lambda: {"model": RAW, "model_ema": under("module.", EMA)}, "model_ema.module"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHOICES)
def test_of_two_models_the_averaged_one_is_taken_and_named(tmp_path, kind):
    make, taken = CHOICES[kind]
    torch.save(make(), tmp_path / "w.pt")
    check(tmp_path / "w.pt", EMA, taken)


@pytest.mark.parametrize(("factory", "says"), [
    (lambda: {"ema_0.999": RAW, "ema_0.9999": EMA}, r"several models \(ema_0.999, ema_0.9999\): save the one"),
    (lambda: {"model": RAW, "best": EMA}, r"several models \(model, best\)"),
    (lambda: {"epoch": 3, "lr": 0.1}, "expected named tensors, but it holds epoch, lr: give"),
    (lambda: {"opt": OPTIMIZER, "epoch": 1}, "expected named tensors, but it holds opt, epoch: give"),
    (lambda: {"a": {"x.y": torch.ones(2)}, "b": {"x.y": torch.ones(2)}}, "but it holds a, b: give"),
    (lambda: [torch.ones(2)], "but it holds a list: give"),
    (lambda: {"model": torch.nn.Linear(2, 2)}, r"it holds model \(model is a whole module instead of its state_dict\(\)\)"),
    (lambda: torch.nn.Linear(2, 2), r"a whole module \(torch.nn.modules.linear.Linear\) instead of its state_dict\(\)"),
    (lambda: {f"key{i}": i for i in range(9)}, "key0, key1, key2, key3, key4, key5 and 3 more"),
], ids=range(9))  # fmt: skip
def test_where_no_model_can_be_chosen_the_keys_are_named(tmp_path, factory, says):
    torch.save(factory(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=says):
        open_checkpoint(tmp_path / "w.pt")


def test_a_counter_is_one_number_that_no_layer_has(tmp_path):
    save_file({**RAW, "extra": torch.ones(1)}, tmp_path / "w")
    assert "extra" in open_checkpoint(tmp_path / "w").shapes


# pickles


class ConfigDict(dict):
    pass


class Mode(enum.Enum):
    A = 1


class Settings:
    """As a training script has it: never there when the file is read."""

    def __init__(self):
        self.model, self.num_classes, self.where = "DiT-S/2", 10, pathlib.PurePosixPath("/data")


class Slotted:
    __slots__ = ("a",)


def slotted():
    instance = Slotted()
    instance.a = 1
    return instance


OBJECTS = {
    "namespace": lambda: argparse.Namespace(lr=1e-4, betas=(0.9, 0.99), x=None),
    "path": lambda: argparse.Namespace(data_path=pathlib.PurePosixPath("/data/in")),
    "numpy scalar": lambda: {"best": np.float64(2.27)},
    "numpy array": lambda: {"best": np.arange(5)},
    "numpy rng": np.random.get_state,
    "numpy generator": lambda: np.random.default_rng(0),
    "device and dtype": lambda: argparse.Namespace(device=torch.device("cuda", 0), dtype=torch.bfloat16),
    "torch rng": torch.get_rng_state,
    "simple namespace": lambda: types.SimpleNamespace(a=1),
    "dict subclass": lambda: ConfigDict(a=1),
    "date": lambda: datetime.datetime(2024, 1, 1),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "counter": lambda: collections.Counter("ab"),
    "ordered": lambda: collections.OrderedDict(a=1),
    "deque": lambda: collections.deque([1, 2]),
    "size": lambda: torch.Size([1, 2]),
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({1, 2}),
    "complex": lambda: 1j,
    "bytes": lambda: b"x",
    "bytearray": lambda: bytearray(b"x"),
    "slice": lambda: slice(1, 2),
    "big int": lambda: 2**80,
    "enum": lambda: Mode.A,
    "object": Settings,
    "slots": slotted,
    "class": lambda: Settings,
    "function": lambda: np.mean,
    "range": lambda: range(3),
    "tuple keys": lambda: {(1, 2): 3, None: 4, 1.5: 5},
    "recursive": lambda: (lambda x: (x.append(x), x)[1])([]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_tensors_are_read_whatever_lies_beside_them(tmp_path, archive, protocol):
    for name, make in OBJECTS.items():
        path = tmp_path / f"{name}.pt"
        torch.save({"args": make(), "ema": RAW, "more": make()}, path, _use_new_zipfile_serialization=archive,
                   pickle_protocol=protocol)  # fmt: skip
        check(path, RAW)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_tensors_of_all_layouts_are_those_of_pytorch(tmp_path, archive, protocol):
    base = torch.randn(6, 8)
    tensors = {"t": base.t(), "view": base[1:, ::2], "half": base.half()[2:], "bf16": base.bfloat16()[:, 3],
               "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3), "whole": torch.arange(5),
               "double": base.double(), "one": base[5, 7:]}  # fmt: skip
    torch.save({"x": tensors}, tmp_path / "w.pt", _use_new_zipfile_serialization=archive, pickle_protocol=protocol)
    copies = torch_file.load(tmp_path / "w.pt", WeightsError, "a checkpoint", "give one")["x"]
    for name, tensor in torch.load(tmp_path / "w.pt", weights_only=False)["x"].items():
        assert copies[name].shape == tuple(tensor.shape), name
        assert np.array_equal(copies[name].float32(), tensor.float().numpy()), name


def test_big_endian_archives(tmp_path):
    body = np.arange(4, dtype=">f4").tobytes()
    data = hostile._zip(hostile._tensor(4, 0, (4,), (1,)), data__0=body).replace(b"little", b"big\0\0\0")
    path = tmp_path / "r.pt"
    path.write_bytes(data)
    with pytest.raises(ScheduleError):  # the name of the order is damaged
        routers.read(path)
    swapped = hostile._zip(hostile._tensor(4, 0, (4,), (1,)), data__0=body, byteorder=b"big")
    path.write_bytes(swapped)
    assert routers.read(path).logits.tolist() == [[0, 1, 2, 3]]


def test_routers_are_read_by_the_same_means(tmp_path):
    rows = {f"{i}.prob": torch.randn(4) for i in range(4)}
    for name, make in OBJECTS.items():
        torch.save({"routers": rows, "opt": {}, "args": make()}, tmp_path / "r.pt", pickle_protocol=4)
        assert torch.equal(routers.read(tmp_path / "r.pt").logits, torch.stack(list(rows.values()))), name


def omega():
    """Pickled as OmegaConf does it, of classes that are nowhere installed."""
    module = types.ModuleType("omegaconf_like")
    for name in ("DictConfig", "AnyNode", "Metadata"):
        setattr(module, name, type(name, (), {"__module__": module.__name__}))
    sys.modules[module.__name__] = module

    def node(kind, **state):
        instance = getattr(module, kind)()
        instance.__dict__.update(state)
        return instance

    inner = {"model": node("AnyNode", _val="DiT-B/4", _parent=None), "depth": node("AnyNode", _val=12)}
    return node("DictConfig", _metadata=node("Metadata"), _content=inner)


ARGS = {
    "namespace": (lambda: argparse.Namespace(model="DiT-XL/2", lr=1e-4, path=pathlib.PurePosixPath("/x"), sizes=(1, 2)),
                  {"model": "DiT-XL/2", "lr": 1e-4, "sizes": [1, 2]}),
    "simple namespace": (lambda: types.SimpleNamespace(a=1, b=[pathlib.PurePosixPath("/x")]), {"a": 1}),
    "dict": (lambda: {"a": None, 3: 4, "deep": {"b": True}}, {"a": None, "deep": {"b": True}}),
    "dict subclass": (lambda: ConfigDict(a=1, b={"c": 2}), {"a": 1, "b": {"c": 2}}),
    "object": (Settings, {"model": "DiT-S/2", "num_classes": 10}),
    "numpy": (lambda: {"classes": np.int64(1000), "best": np.float32(0.5), "x": np.arange(3)}, {"classes": 1000, "best": 0.5}),
    "omegaconf": (omega, {"model": "DiT-B/4", "depth": 12}),
    "text": (lambda: "--model DiT", {}),
    "none": (lambda: None, {}),
    "tensors": (lambda: {"a": torch.ones(2), "b": 1}, {"b": 1}),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ARGS)
def test_what_a_training_noted_of_itself_is_kept_as_plain_values(tmp_path, kind, protocol):
    make, wanted = ARGS[kind]
    torch.save({"ema": RAW, "args": make()}, tmp_path / "w.pt", pickle_protocol=protocol)
    sys.modules.pop("omegaconf_like", None)
    assert open_checkpoint(tmp_path / "w.pt").args == wanted


def test_nothing_is_imported_looked_up_or_called(tmp_path, monkeypatch):
    """A module that lies in wait on the path, and every way of a pickle to name and call it."""
    (tmp_path / "lurking.py").write_text(
        "open('IMPORTED', 'w')\nclass Made:\n    def __init__(self, *a): open('CALLED', 'w')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    whole = hostile._tensor(4, 0, (4,), (1,))
    weights = b"X\x05\0\0\0model}X\x16\0\0\0x_embedder.proj.weight" + whole[whole.index(b"ctorch._utils") : -3] + b"s"
    named = b"clurking\nMade\n"
    for number, odd in enumerate([
        named, named + b")R", named + b")\x81", named + b")}\x92", b"\x8c\x07lurking\x8c\x04Made\x93)R",
        b"\x8c\x07lurking\x8c\x0dMade.__init__\x93)R", named + b")R}X\x05\0\0\0state" + named + b"sb", named + b"}b",
        b"cbuiltins\ngetattr\n" + named + b"X\x08\0\0\0__init__\x86R)R", b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\1\x85R",
        b"ccollections\nOrderedDict\n" + named + b"\x85R", b"ctorch\nSize\n" + named + b"\x85R",
        b"ctorch._utils\n_rebuild_tensor_v2\n}b", b"cargparse\nNamespace\n)\x81}X\x09\0\0\0__class__" + named + b"sb",
        b"ctorch._utils\n_rebuild_parameter\n" + named + b"\x85R",
    ]):  # fmt: skip
        path = tmp_path / f"{number}.pt"
        body = b"\x80\x04}(" + b"X\x04\0\0\0args" + odd + weights + b"u."
        path.write_bytes(hostile._zip(body, data__0=np.arange(4, dtype=np.float32).tobytes()))
        assert open_checkpoint(path).read("x_embedder.proj.weight").tolist() == [0, 1, 2, 3], number
    assert "lurking" not in sys.modules
    assert not (tmp_path / "IMPORTED").exists()
    assert not (tmp_path / "CALLED").exists()


def colliding() -> bytes:
    """Numbers that Python puts into one place of a dict."""
    numbers = (i * (2**61 - 1) % 2**62 for i in range(70_000))
    return b"\x80\x04}(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) + b"N" for n in numbers) + b"u."


FLOODS = {
    "empty dicts": lambda: b"\x80\x04" + b"}" * 2_100_000 + b".",
    "marks": lambda: b"\x80\x04" + b"(" * 100_000 + b".",
    "far memo": lambda: b"\x80\x04Nr\xff\xff\xff\x7f.",
    "colliding names": colliding,
    "byte array": lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "text": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    "number": lambda: b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "lists in lists": lambda: b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "tuples in tuples": lambda: b"\x80\x04N" + b"\x85" * 200_000 + b".",
    "objects in objects": lambda: b"\x80\x04" + b"cx\ny\n" * 200_000 + b"N" + b"\x85R" * 200_000 + b".",
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("kind", FLOODS)
def test_floods_are_refused_soon_and_take_no_memory(tmp_path, kind, container):
    path = tmp_path / "w.pt"
    path.write_bytes(hostile.CONTAINERS[container](FLOODS[kind]()))
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(WeightsError):
        open_checkpoint(path)
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 600_000, "KB"


def test_args_that_hold_each_other_many_times_are_cut_short():
    value = {"x": 1}
    for _ in range(60):
        value = {"a": value, "b": value, "c": [value] * 10}
    started = time.process_time()
    assert isinstance(pickled.plain(value), dict)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", ["posix.system", "subprocess.Popen", "builtins.eval", "io.open"])
def test_a_file_that_wants_to_run_programs_is_refused_for_that(tmp_path, name):
    class Payload:
        def __reduce__(self):
            module, _, attribute = name.rpartition(".")
            return getattr(__import__(module), attribute), ("touch EXECUTED",)

    torch.save({"ema": RAW, "args": Payload()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=f"it wants to import {name}, which no tensor needs; nothing was executed"):
        open_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("protocol", [0, 1])
def test_pickles_of_the_text_protocols_are_refused(tmp_path, protocol):
    torch.save({"ema": RAW}, tmp_path / "w.pt", pickle_protocol=protocol)
    with pytest.raises(WeightsError, match=r"w\.pt"):
        open_checkpoint(tmp_path / "w.pt")


def test_a_plain_pickle_of_tensors_is_told_from_a_damaged_file(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(RAW))
    with pytest.raises(WeightsError, match=r"it is a pickle, but not one of torch\.save: give the state_dict"):
        open_checkpoint(tmp_path / "w.pkl")


LIES = {
    "one more": (4, 0, (5,), (1,)), "a storage of more": (5, 0, (5,), (1,)), "past the end": (4, 1, (4,), (1,)),
    "far offset": (4, 2**40, (1,), (1,)), "wide stride": (4, 0, (2,), (4,)), "rows": (4, 0, (2, 2), (3, 1)),
    "repeated": (4, 0, (8,), (0,)), "before the start": (4, -1, (4,), (1,)), "backwards": (4, 3, (4,), (-1,)),
    "negative size": (4, 0, (-4,), (1,)), "negative storage": (-4, 0, (4,), (1,)), "axes": (4, 0, (2, 2), (1,)),
    "many axes": (4, 0, (1,) * 40, (1,) * 40),
}  # fmt: skip


def claiming(path, archive, *claims):
    """A file whose only tensor, of a storage of the numbers 0 to 3, makes these claims."""
    body, numbers = hostile._tensor(*claims), np.arange(4, dtype=np.float32).tobytes()
    if archive:
        path.write_bytes(hostile._zip(body, data__0=numbers))
    else:  # a storage's key, location and size are followed by its view, which is none
        whole = hostile._legacy(body.replace(b"tQ", b"NtQ")).removesuffix(pickle.dumps([], 2))
        path.write_bytes(whole + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + numbers)
    return path


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_a_tensor_reads_nothing_but_its_own_numbers(tmp_path, lie, archive):
    path = claiming(tmp_path / "w.pt", archive, *LIES[lie])
    with pytest.raises(WeightsError, match=r"claims more numbers than it has|a size or an offset that is none|\d+ axes"):
        torch_file.load(path, WeightsError, "a checkpoint", "give one")


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_the_same_tensor_without_a_lie_is_read(tmp_path, archive):
    """Else the test above would prove nothing."""
    content = torch_file.load(claiming(tmp_path / "w.pt", archive, 4, 1, (3,), (1,)), WeightsError, "a checkpoint", "give one")
    assert content["routers"]["0.prob"].float32().tolist() == [1, 2, 3]


def test_entries_of_an_archive_that_overlap_are_refused(tmp_path):
    honest = hostile._zip(hostile._tensor(4, 0, (4,), (1,)), data__0=bytes(4096))
    (tmp_path / "w.pt").write_bytes(hostile._overlapping(honest, 3000))
    with pytest.raises(WeightsError, match="the entries of its archive are larger than the file"):
        torch_file.load(tmp_path / "w.pt", WeightsError, "a checkpoint", "give one")


def test_a_packed_archive_is_refused_though_it_is_small(tmp_path):
    """Its numbers would be those of the packed bytes."""
    torch.save({"ema": RAW}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as honest, zipfile.ZipFile(tmp_path / "p.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in honest.namelist():
            packed.writestr(name, honest.read(name))
        packed.writestr("rest", np.random.default_rng(0).bytes(10**6))  # so that all entries would fit into the file
    with pytest.raises(WeightsError, match=r"its archive is packed, which torch\.save does not do"):
        open_checkpoint(tmp_path / "p.pt")
