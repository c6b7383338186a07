"""What a user calls to make an artefact or to change one: `compile`, `build` and `link`; an `Artefact` comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artefact import store
from ..artefact.manifest import Manifest
from ..backends import builds, units
from ..backends.building import BuildSettings
from ..backends.descriptors import buildable, built
from ..errors import UsageError
from ..runtime.pipeline import Pipeline, load
from ..runtime.request import folder
from ..support.extras import needs_compiler
from ..support.files import Report
from ..support.log import logged
from ..support.progress import Progress, Watch, unseen, unwatched
from .foreign import AS_IT_IS, options_with
from .link import bind
from .request import Loras, PathOrSchedule, loras_of
from .storing import Storing


@dataclass(frozen=True, repr=False)
class Artefact:
    """A compiled model on disk.  It stands wherever a path may, so every function that takes a folder takes it, too.

    `manifest` is what was written, when it was written: files that change later are found when they are loaded.
    """

    path: Path
    manifest: Manifest = field(compare=False)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Artefact:
        """The artefact in a folder, without a look at its files but the manifest.  Raises ArtefactError."""
        return Artefact(folder(path), store.read(folder(path), verify=False))

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return self.manifest.bytes

    @property
    def random_weights(self) -> bool:
        """Whether its weights are random, so that its images mean nothing."""
        return self.manifest.denoiser.weights is not None and self.manifest.denoiser.weights.random is not None

    def load(self, **options: Any) -> Pipeline:
        """The same as `l2c_export.load` with this folder."""
        return load(self.path, **options)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        manifest = self.manifest
        weights = (
            "no weights yet" if manifest.denoiser.weights is None else "random weights" if self.random_weights else "linked"
        )
        name = manifest.denoiser.name or manifest.denoiser.family
        calls = " or ".join(str(len(program.calls)) for program in manifest.programs.values())
        graphs = len({graph for program in manifest.all_programs() for graph in program.step_graphs})
        return (
            f"<Artefact {self.path}: {name}, {calls} calls, {graphs} graphs, "
            f"{manifest.precision}, batch {manifest.batch}, {weights}, {self.bytes / 2**20:.1f} MB>"
        )


def compile(
    schedule: PathOrSchedule | Sequence[PathOrSchedule] | None = None,
    *,
    out: str | os.PathLike[str] = "engines",
    model: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    lora: Loras = (),
    steps: int | Sequence[int] | None = None,
    threshold: float | None = None,
    rule: str | None = None,
    level: str | None = None,
    full_first: int | None = None,
    full_last: int | None = None,
    router_kind: str = AS_IT_IS.router_kind,
    budget: int | None = None,
    full_calls: str | None = None,
    sampler: str | os.PathLike[str] | None = None,
    guidance: str | None = None,
    batch: int = 1,
    precision: str = "fp32",
    fp32: str | Sequence[str] = (),
    bf16: str | Sequence[str] = (),
    backend: str = "auto",
    link: str = "shared",
    cache: bool = True,
    hoist: bool = True,
    fold: bool = True,
    max_graphs: int | None = None,
    with_vae: bool = False,
    vae: str | os.PathLike[str] | None = None,
    with_text: bool = False,
    text_precision: str = "fp32",
    store: Storing = (),
    size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    tokens: int | None = None,
    cut: str | None = None,
    dump: str | os.PathLike[str] | None = None,
    report: Report = logged,
    progress: Progress = unseen,
    watch: Watch = unwatched,
) -> Artefact:
    """Compile a schedule and a diffusion transformer into the folder `out`, and return what is there now.

    - `schedule`: the path of a router, of a schedule (JSON) or of a steps mask, a file of another tool, which is recognised by
      its content, a rule such as "every:2", or a `Schedule`; only the demo model brings its own.  `steps` are sampling steps
      (DiT) or network evaluations (U-ViT), `threshold` is for a router's scores, in 0..1.  Several schedules, or several
      numbers of steps for one, become programs of one artefact, which a request chooses by its steps.  `cache=False` compiles
      the uncached twin.
    - `rule`, `level`, `full_first`, `full_last`: how the calls of a rule such as "every:5" follow that are not full: "reuse" or
      "taylor:M", at the level "sublayer", "stack" or "output", and how many calls at the start and the end are full besides.
    - `router_kind`, `budget`, `full_calls`: what files of other tools leave open: "harmonica" for a router of that training,
      the number of computed steps (LeMiCa), a rule for the calls that are computed (L2P).
    - `model`: a name ("DiT-XL/2", "demo"), the folder or id of a pipeline of diffusers, or a JSON file; by default what fits
      the weights.  `weights`: a checkpoint, a folder of diffusers, or "random[:SEED]"; without any, or with
      "none", `link` binds them later.
      `lora`: "FILE" or "FILE:SCALE", or several, which are merged into the weights.
    - `sampler`: "ddim", "dpm-solver++", or a scheduler of diffusers by class or file.  `guidance`: "first3", "all" or "none".
    - `batch`: the most images of one call.  `precision`: "fp32", "fp16", "bf16" or "fp8", bf16 whose sublayers
      multiply in e4m3, for `backend="cuda"`; `fp32` names sublayers to keep in float32, `bf16` those of fp8 without e4m3.
    - `backend`: "auto", "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx", or what else `backends/descriptors.py` lists;
      for those of TensorRT engines are built, too.
      `link`: "shared" for an engine per segment, "static" for one per distinct call.
    - `hoist=False` and `fold=False` leave a pass out; `max_graphs` merges calls, which then compute more, never less.
    - `with_vae` adds the decoder of the pipeline, `vae` that of another folder, so that images come out.
    - `with_text` adds the text encoders of the pipeline, so that a request may say `prompt`; with
      `text_precision` "bf16" most of T5's weights are stored in half the bytes.
    - `store`: "fp16", "bf16" or "int8" for matrices that are stored so, and widened when the artefact is loaded: what is
      computed stays as `precision` says.  {"text": "int8", "denoiser": "fp16"}, or ["fp16", "text=int8"], for one component
      (denoiser, text, decoder).
    - `size`, height and width in pixels, and `tokens` of a prompt: what a captured transformer of diffusers is compiled for; by
      default what its configuration and its family say.  Several sizes become programs of one artefact, too.
    - `cut`: a regular expression for names of modules of such a transformer, whose outputs then can be cached, too.
    - `dump`: a folder for every stage of the compiler, as text.
    - `report` is told in lines what is understood and done, by default the log; `progress` which stage begins, how many
      parts it has and, part by part, that they are done; `watch` how far an engine is that takes long to build.

    Raises L2CError, with nothing written: UsageError for a value, ScheduleError, ModelError or WeightsError for a file,
    ArtefactError for a folder that is not ours to write, BackendError for a library that is missing.
    """
    needs_compiler()
    from .compile import compile_artefact

    options = options_with(
        schedule, steps, report, router_kind=router_kind, budget=budget, full_calls=full_calls,
        out=out, model=model, weights=weights, lora=lora, threshold=threshold, rule=rule, level=level,
        full_first=full_first, full_last=full_last, sampler=sampler, guidance=guidance,
        batch=batch, precision=precision, fp32=fp32, bf16=bf16, backend=backend, link=link, cache=cache, hoist=hoist, fold=fold,
        max_graphs=max_graphs, with_vae=with_vae, vae=vae, with_text=with_text, text_precision=text_precision,
        store=store, size=size, tokens=tokens, cut=cut, dump=dump,
    )  # fmt: skip
    if options.backend in built():
        check_built(options.backend)
    started = time.perf_counter()
    artefact = Artefact(options.out, compile_artefact(options, report, progress))
    report(f"{options.out}: {artefact.bytes / 2**20:.1f} MB in {time.perf_counter() - started:.1f} s")
    if options.backend not in built():
        return artefact
    return build(artefact, options.backend, report=report, progress=progress, watch=watch)


def check_built(backend: str) -> None:
    """Refuse, before long work for it, a backend that builds nothing or whose library is missing.  Raises L2CError."""
    buildable(backend).imported()


def build(
    path: str | os.PathLike[str],
    backend: str,
    *,
    targets: str | Sequence[str] = (),
    batch: str | None = None,
    level: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    report: Report = logged,
    progress: Progress = unseen,
    watch: Watch = unwatched,
) -> Artefact:
    """Add engines to the artefact in `path`: for the `backend` "tensorrt" on this GPU, or "tensorrt-rtx" on `targets` ("sm86").

    It needs neither torch nor onnx.  `batch` is "MIN:OPT:MAX" images, by default 1 to what the artefact was compiled for;
    `level` (0 to 5) how long the library may search for fast kernels, and `timing_cache` a file for what it measured.
    `version_compatible` engines run with later releases of the same major version, `hardware_compatible` ones on every GPU
    from Ampere on, more slowly.  `report`, `progress` and `watch` are those of `compile`.
    Raises ArtefactError, BackendError or UsageError; the artefact is complete, without the new build, after an error.
    """
    artefact = Artefact.read(path)
    chosen = (targets,) if isinstance(targets, str) else tuple(targets)
    settings = BuildSettings(
        targets=chosen, level=level, version_compatible=version_compatible, hardware_compatible=hardware_compatible
    )
    cache = None if timing_cache is None else Path(timing_cache)
    step = progress("building engines", units.count(artefact.manifest) if backend in built() else 1)
    manifest = builds.build(artefact.path, backend, settings, batch, cache, report, step, watch)
    return Artefact(artefact.path, manifest)


def link(
    path: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    lora: Loras = (),
    report: Report = logged,
    progress: Progress = unseen,
) -> Artefact:
    """Bind weights to the artefact in `path`, or swap them; nothing is exported or built again.

    `weights` is a checkpoint (.safetensors, .index.json, .pt), a folder of diffusers, or "random[:SEED]"; without any, those
    that the artefact has.  `lora`, "FILE" or "FILE:SCALE" or several, is merged into them: W + scale * alpha / rank * B @ A.
    Merging into what is bound adds to what was merged before: `weights` begins anew.  `report` is told of assumptions, of
    engines that go and what of a LoRA is left out, by default the log; `progress` of the bytes that are written.
    Raises UsageError, ArtefactError or WeightsError; the artefact keeps the weights that it had, after an error.
    """
    folder, loras = Artefact.read(path).path, loras_of(lora)
    if weights is None and not loras:
        raise UsageError("weights=.. is missing: give weights to bind, or lora=.. to merge into those that are bound")
    source = None if weights is None else os.fspath(weights)
    artefact = Artefact(folder, bind(folder, source, report, progress, loras))
    report(f"{folder}: linked with {' + '.join([source or 'the weights that it had', *loras])}")
    return artefact
