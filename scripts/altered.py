"""JSON as nobody wrote it: values replaced, removed and moved, numbers off, and names that lead elsewhere.

`python scripts/torture.py --only manifests` does that to the manifests of two artefacts that have all that there is, as
somebody would who knows the checksum, and uses the artefacts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import l2c_export  # noqa: E402
from l2c_export import L2CError  # noqa: E402
from l2c_export.artefact import store  # noqa: E402
from l2c_export.artefact.records import FILE  # noqa: E402
from l2c_export.compiler.request import Options  # noqa: E402
from l2c_export.compiler.source import resolve  # noqa: E402
from l2c_export.ir.inputs import usual  # noqa: E402
from l2c_export.runtime.pipeline import Pipeline  # noqa: E402
from l2c_export.schedules.values import values_of  # noqa: E402

NAMES = ("", "x", "x.next", "t", "../x", "/tmp/x", "a/b", "..", "-x", "y@-1", "y@+1", "w[0:2]", "i0", "step-000", "4", "a\nb",
         "\x1b[31m", "\u202e", "\ud800", "'; touch EXECUTED; '", "$(touch EXECUTED)", "{0}", "%s", "CON", "a" * 300,
         "float64", "int32", "float32", "float16", "bf16", "fp32", "static", "none")  # fmt: skip
ODD = (None, True, False, -1, 0, 1, 2, 3, 7, 64, 10**6, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 0.5, 1e-30, 1e30, 1e300,
       *NAMES, [], {}, [[]], [0], [1] * 100, ["x"], {"x": 1})  # fmt: skip
SEED = 7


def json_changed(data: bytes, chance: random.Random) -> bytes:
    """One or two changes of a JSON text."""
    value = json.loads(data)
    for _ in range(chance.randint(1, 2)):
        if isinstance(value, (dict, list)) and value:
            value = chance.choice((replaced, replaced, removed, exchanged, counted, counted, moved, renamed))(value, chance)
    return json.dumps(value).encode()


def replaced(value: Any, chance: random.Random) -> Any:
    """Something else in its place."""
    at, key = place(value, chance)
    at[key] = chance.choice(ODD)
    return value


def removed(value: Any, chance: random.Random) -> Any:
    at, key = place(value, chance)
    del at[key]
    return value


def exchanged(value: Any, chance: random.Random) -> Any:
    """A copy of what stands elsewhere, perhaps beside it."""
    at, key = place(value, chance)
    other, name = (at, chance.choice(keys(at))) if chance.random() < 0.5 else place(value, chance)
    at[key] = json.loads(json.dumps(other[name]))
    return value


def counted(value: Any, chance: random.Random) -> Any:
    """A number that is a little or much larger or smaller."""
    numbers = [(at, key) for at, key in places(value) if type(at[key]) in (int, float)]
    if numbers:
        at, key = chance.choice(numbers)
        at[key] += chance.choice((-1, 1, 2, 1000, -1000, 0.5))
    return value


def moved(value: Any, chance: random.Random) -> Any:
    """Two parts of a list or of an object in each other's place."""
    at, key = place(value, chance)
    other = chance.choice(keys(at))
    at[key], at[other] = at[other], at[key]
    return value


def renamed(value: Any, chance: random.Random) -> Any:
    """A name, wherever it stands: everything that looks it up still finds it."""
    texts = [key for at, key in places(value) if isinstance(at, dict)]
    texts += [at[key] for at, key in places(value) if isinstance(at[key], str)]
    old, new = chance.choice(texts), chance.choice(NAMES)

    def of(part: Any) -> Any:
        if isinstance(part, dict):
            return {of(key): of(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [of(inner) for inner in part]
        return new if part == old else part

    return of(value)


def place(value: Any, chance: random.Random) -> tuple[Any, Any]:
    """Where a change is made: any place with the same chance, or down from the top, where there are few and they say more."""
    if chance.random() < 0.5:
        return chance.choice(list(places(value)))
    while True:
        key = chance.choice(keys(value))
        inner = value[key]
        if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.15:
            return value, key
        value = inner


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All of them, as a container and a key in it."""
    for key in keys(value):
        yield value, key
        yield from places(value[key])


def keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


# an artefact, its manifest altered, in use


def everything(folder: Path) -> Path:
    """Two programs in half precision with an island, weights by recipes, a decoder, a fingerprint and engines for a GPU."""
    import small_pipelines

    small_pipelines.small_pipeline(folder / "pipeline", "ddim")
    engines = folder / "engines"
    l2c_export.compile("every:2", out=engines, model=folder / "pipeline", weights=folder / "pipeline", steps=[4, 2], batch=2,
                       precision="fp16", fp32="blocks.1.mlp", backend="onnxruntime", with_vae=True)  # fmt: skip
    l2c_export.build(engines, "tensorrt-rtx", targets="sm86")
    return engines


def prompted(folder: Path) -> Path:
    """A FLUX of two streams with its text encoders and a decoder: one program with banks of forecasts, one with a range of the
    stack and explicit terms; text encoders in eight bits, and a decoder in sixteen.
    """
    import texts

    pipeline = texts.folder_of("flux", folder / "pipeline")
    of_model = {"model": str(pipeline), "size": (64, 64), "tokens": texts.TOKENS, "batch": 2}
    forecast, full = (
        resolve(Options(schedule, steps=steps, rule=rule, **of_model)).schedule
        for schedule, steps, rule in (("every:5", 10, "taylor:2"), ("every:1", 4, None))
    )
    blocks, every = "stack[1:5]", range(full.columns)
    inside = values_of((*full.sublayers, blocks)).spanned(blocks)
    outside = [j for j in every if j not in inside]
    ranged = full.computing([every, every, outside, outside]).following(
        {2: {blocks: "taylor:1"}, 3: {blocks: [[2, 2.5], [3, -1.5]]}}
    )
    l2c_export.compile([forecast, ranged], out=folder / "engines", **of_model, with_text=True, with_vae=True,
                       store=["text=int8", "decoder=fp16"], backend="onnxruntime")  # fmt: skip
    l2c_export.build(folder / "engines", "tensorrt-rtx", targets="sm86")
    return folder / "engines"


ARTEFACTS = {"dit": everything, "flux": prompted}


def altered(engines: Path, folder: Path, wanted: Mapping[str, str], seed: int) -> str:
    """Change a manifest, and use the artefact: "harmless" where it does what it did, "other" where it does what it now says."""
    chance = random.Random(seed)
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(engines, folder)
    (folder / FILE).write_bytes(signed((folder / FILE).read_bytes(), chance))
    link = chance.choice(("shared", "static"))
    digest = used(folder, link)
    if digest != wanted[link]:
        assert digest == used(folder, link), "what it computes is not the same twice"
    changed_by_us(folder, chance)
    others = {path.name for path in folder.parent.iterdir()} - {folder.name}
    assert not others, f"written beside the artefact: {others}"
    return "harmless" if digest == wanted[link] else "other"


def signed(manifest: bytes, chance: random.Random) -> bytes:
    """A changed manifest, its checksum made right."""
    raw = json.loads(json_changed(manifest, chance))
    if isinstance(raw, dict):
        with contextlib.suppress(UnicodeEncodeError):  # half a character has no checksum
            raw["checksum"] = store.checksum(raw)
    return json.dumps(raw).encode()


def used(folder: Path, link: str) -> str:
    """A digest of all that an artefact makes and says."""
    view = l2c_export.inspect(folder)
    said: list[object] = [view.title, view.table(), view.notes()]
    with l2c_export.load(folder, "onnxruntime", threads=1, link=link) as pipe:
        said += [repr(pipe), *(generated(pipe, program.steps) for program in pipe.manifest.programs.values())]
        with_fingerprint = l2c_export.check(pipe) if pipe.manifest.fingerprint else None
        said += [with_fingerprint and with_fingerprint.passed]
    return hashlib.sha256(repr(said).encode()).hexdigest()


def generated(pipe: Pipeline, steps: int) -> str:
    with_text = pipe.manifest.text or None
    request = {"prompt": "a photo of a cat"} if with_text else usual(pipe.manifest.inputs, min(pipe.manifest.batch, 2))
    output = pipe(
        guidance_scale=2.0, seed=SEED, steps=steps, output_type="np" if pipe.manifest.decoder else "latent", **request
    )
    images = b"" if output.images is None else output.images.tobytes()
    return hashlib.sha256(output.latents.tobytes() + images).hexdigest()


def changed_by_us(folder: Path, chance: random.Random) -> None:
    """One of the commands that write to an artefact.  They may refuse it, in one line."""
    acts: list[Callable[[], object]] = [
        lambda: l2c_export.link(folder, str(folder.parents[1] / "pipeline")),
        lambda: l2c_export.build(folder, "tensorrt-rtx", targets="sm86"),
        lambda: l2c_export.check(folder, backend="onnxruntime", threads=1, record=True),
        lambda: l2c_export.verify(folder, backend="onnxruntime", threads=1),
    ]
    try:
        chance.choice(acts)()
    except L2CError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than a line: {error}") from error
