"""The PyTorch side of verification: the cached model in float64, given one request of an artefact."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..artefact import user_weights
from ..artefact.compiled import Compiled
from ..artefact.guidance import guided_request
from ..artefact.manifest import Manifest
from ..errors import UsageError
from ..ir.inputs import Inputs
from ..models import families
from ..support.words import counted
from ..weights.layout import as_loaded, rounded
from .eager import Converted, Denoiser, TracingDenoiser
from .family import family_of
from .stored import stored

LISTED = 64  # numbers of an input that are few enough to say


class Reference:
    """What every call of an artefact should make of `noise` (B, C, ..), `inputs` (B, ..) by name and one or B guidance scales.

    The weights are the artefact's own, unless a checkpoint is given (then an error in the artefact's copy shows too).
    `program` is one of its programs, by default the first.
    `recorded` (solver steps, B, C, ..) replaces the latents at the end of every solver step.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        noise: np.ndarray,
        inputs: Inputs,
        guidance_scale: float | Sequence[float] | np.ndarray,
        checkpoint: Path | None = None,
        recorded: np.ndarray | None = None,
        program: Compiled | None = None,
    ) -> None:
        self.noise, self.inputs = noise, inputs
        self.guidance_scale = np.broadcast_to(np.asarray(guidance_scale, np.float64), len(noise))
        self.setting = {
            "reference": "cached PyTorch, float64",
            "weights": str(checkpoint or "the artefact's own"),
            **{name: values.tolist() for name, values in inputs.items() if values.size <= LISTED},
            "guidance_scale": self.guidance_scale.tolist() if np.ptp(self.guidance_scale) else float(self.guidance_scale[0]),
        }
        self.program, self._recorded = program or manifest.program(), recorded
        self._family, self._spans = family_of(manifest, self.program.program.size), manifest.denoiser.levels
        self._tensors = stored(folder, manifest) if checkpoint is None else checkpoint_tensors(checkpoint, manifest)

    @property
    def is_recorded(self) -> bool:
        """Whether another implementation decides what is right."""
        return self._recorded is not None

    @functools.cache  # noqa: B019  (one per verification)
    def _model(self, dtype: torch.dtype) -> TracingDenoiser:
        return TracingDenoiser(self._family, Converted(self._tensors, dtype), self._spans)

    @functools.cache  # noqa: B019  (one per verification)
    def latents(self) -> list[np.ndarray]:
        """After every call, (B, C, ..) float64."""
        trajectory = [x.numpy().copy() for x in self._run(self._model(torch.float64), torch.float64)]
        if self._recorded is not None:
            ends = [n for n, call in enumerate(self.program.calls) if call.ends_step]
            for n, x in zip(ends, self._recorded, strict=True):
                trajectory[n] = x.astype(np.float64)
        return trajectory

    @functools.cache  # noqa: B019
    def in_float32(self) -> list[np.ndarray]:
        """What PyTorch in float32 makes in every call that is fed these latents, (B, C, ..) float32."""
        latents = []
        for x, expected in zip(self._run(self._model(torch.float32), torch.float32), self.latents(), strict=True):
            latents.append(x.numpy().copy())
            x.copy_(torch.from_numpy(expected))
        return latents

    def traces(self, keep: frozenset[int], single: bool = False) -> dict[int, dict[str, np.ndarray]]:
        """Every value of some calls, by its name in the compiled graphs, when each call is fed the latents; in float64, or
        as PyTorch has them in float32."""
        dtype = torch.float32 if single else torch.float64
        model = self._model(dtype)
        model.keep, model.traces = keep, {}
        for n, (x, expected) in enumerate(zip(self._run(model, dtype), self.latents(), strict=True)):
            x.copy_(torch.from_numpy(expected))
            if n >= max(keep):
                break
        traces, model.keep, model.traces = model.traces, frozenset(), {}
        return {n: {k: v.numpy() for k, v in values.items()} for n, values in traces.items()}

    def _run(self, model: Denoiser, dtype: torch.dtype):  # type: ignore[no-untyped-def]
        guided = guided_request(self.program, self.inputs, self.guidance_scale, "float64")
        request = {name: in_type(torch.from_numpy(values), dtype) for name, values in guided.inputs.items()}
        guidance = torch.from_numpy(guided.strength).to(dtype)
        noise = torch.from_numpy(self.noise).to(dtype) * float(np.float32(self.program.noise_scale))
        return model.steps(self.program.calls, noise, request, guidance)


def in_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats in the type of the model; whole numbers stay what they are."""
    return values.to(dtype) if values.is_floating_point() else values


def checkpoint_tensors(checkpoint: Path, manifest: Manifest) -> dict[str, Tensor]:
    """A checkpoint's, as they would be loaded where matrices are stored narrower: what that costs is no error."""
    tensors, records = user_weights.tensors(checkpoint, manifest), manifest.denoiser.tensors
    narrowed = ((name, as_loaded(name, v, records[name]) if records[name].stored else v) for name, v in tensors)
    return {name: torch.from_numpy(rounded(name, value, "float32")) for name, value in narrowed}


def of_case(
    case: Path, folder: Path, manifest: Manifest, checkpoint: Path | None = None, steps: int | None = None
) -> Reference:
    """A recorded run of the reference implementation: its noise, labels, guidance, and the latents after every step."""
    compiled = manifest.program(steps)
    try:
        config = json.loads((case / "config.json").read_text())
        golden = np.load(case / "golden.npz")
        scale = config["cfg"]["scale"]
        count = min(config["batch"], manifest.batch)
        inputs = {declared.name: golden["y"][:count].astype(declared.dtype) for declared in manifest.inputs[:1]}
        noise = golden["x_T"][:count]
        full = not any(call.earlier or call.reused for call in compiled.calls)
        recorded = golden["full_x" if full else "cached_x"][:, :count]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"golden={str(case)!r}: not a recorded case (config.json and golden.npz): {error}") from None
    if len(recorded) != compiled.steps_of_solver or noise.shape[1:] != compiled.latent:
        raise UsageError(
            f"golden={str(case)!r}: {counted(len(recorded), 'step')} of {noise.shape[1:]} latents, "
            f"not what {folder} was made for"
        )
    usual = 1.0 if scale is None else float(scale) + (1.0 - families.of(config["family"]).unguided)
    return Reference(folder, manifest, noise, inputs, usual, checkpoint, recorded, compiled)
