"""Manifests with something changed."""

from __future__ import annotations

from msgspec.structs import replace

from l2c_export.artefact.manifest import Manifest


def changed(manifest: Manifest, **fields: object) -> Manifest:
    """The manifest with other fields, wherever they stand: its own, the denoiser's, the first program's or its size's."""
    program = next(iter(manifest.programs.values()))
    size = manifest.denoiser.sizes[program.size]

    def of(record: object) -> dict[str, object]:
        return {name: value for name, value in fields.items() if name in record.__struct_fields__}

    sizes = {**manifest.denoiser.sizes, program.size: replace(size, **of(size))}
    denoiser = replace(manifest.denoiser, **{"sizes": sizes, **of(manifest.denoiser)})
    programs = {**manifest.programs, str(program.steps): replace(program, **of(program))}
    return replace(manifest, **{"denoiser": denoiser, "programs": programs, **of(manifest)})
