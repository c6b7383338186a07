"""The training that a sampler is for, and what in a scheduler's configuration tells of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The training that the references' samplers are for, in the words of a scheduler_config.json of diffusers; UNSAID is what an
# option says that is absent.
UNSAID = {
    "prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "trained_betas": None,
    "num_train_timesteps": 1000, "rescale_betas_zero_snr": False,
}  # fmt: skip
TRAINED = {
    "ddim": UNSAID,
    "dpm-solver++": {**UNSAID, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}


def unlike(sampler: str, config: Mapping[str, Any]) -> str:
    """What of a scheduler's configuration tells that its model was trained otherwise than a sampler assumes; or nothing."""
    return trained_otherwise(TRAINED[sampler], config)


def trained_otherwise(trained: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The first option of a scheduler's configuration that tells of another training than `trained` does; or nothing."""
    for option, usual in UNSAID.items():
        value = usual if config.get(option) is None else config[option]
        value = tuple(value) if isinstance(value, list) else value
        if value != trained.get(option, usual):
            return f"{option} = {value!r}"
    return ""
