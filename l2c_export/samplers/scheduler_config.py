"""The configuration of a scheduler of diffusers, read as diffusers reads it, without diffusers.

A class takes from a configuration the options that it has, whatever scheduler wrote them, its own defaults for those that are
missing, and some values of other classes as its own (`from_config` and the constructors of diffusers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from ..errors import ScheduleError
from .trained import unlike

Kind = Literal[
    "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
]  # fmt: skip
DDIM, DPM, EULER = KINDS = ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
FLOW, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
FLOWS = (FLOW, HEUN, DPM)  # for models that predict a flow
Spacing = Literal["leading", "linspace", "trailing"]
NO: tuple[Any, ...] = (False, None)
NOISE: tuple[Any, ...] = ("epsilon", "sample", "v_prediction")

# Options that make a step depend on the latents in a way that is not linear, or draw noise, or move the timesteps: those that
# a class has, and the values with which it does not.
REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
    DDIM: {"thresholding": NO, "rescale_betas_zero_snr": NO, "clip_sample": NO, "prediction_type": NOISE},
    DPM: {
        "prediction_type": NOISE,
        "thresholding": NO,
        "rescale_betas_zero_snr": NO,
        "use_karras_sigmas": NO,
        "use_exponential_sigmas": NO,
        "use_beta_sigmas": NO,
        "use_lu_lambdas": NO,
        "use_flow_sigmas": NO,
        "use_dynamic_shifting": NO,
        "algorithm_type": ("dpmsolver++",),
        "variance_type": (None, "fixed_small", "fixed_large"),
        "lambda_min_clipped": (-math.inf, "-inf", None),
    },
    EULER: {
        "rescale_betas_zero_snr": NO,
        "use_karras_sigmas": NO,
        "use_exponential_sigmas": NO,
        "use_beta_sigmas": NO,
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "sigma_min": (None,),
        "sigma_max": (None,),
        "prediction_type": ("epsilon", "v_prediction"),
    },
    FLOW: {
        "invert_sigmas": NO,
        "stochastic_sampling": NO,
        "use_beta_sigmas": NO,
    },
    HEUN: {},
}
OF_FLOWS: dict[str, tuple[Any, ...]] = {  # instead, where DPM-Solver++ is a model's of flows
    "use_flow_sigmas": (True,), "prediction_type": ("flow_prediction",), "final_sigmas_type": ("zero",),
}  # fmt: skip
DEFAULTS = {
    (DDIM, "clip_sample"): True,
    (DPM, "use_flow_sigmas"): False,
    (DPM, "prediction_type"): "epsilon",
}  # of diffusers, where they are refused
# The other fields of a Scheduler that a class has.
COMMON = frozenset({
    "timestep_spacing", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "steps_offset",
    "prediction_type",
})  # fmt: skip
HAS = {
    DDIM: COMMON | {"set_alpha_to_one"},
    DPM: COMMON | {"solver_order", "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type", "use_flow_sigmas",
                   "flow_shift"},
    EULER: COMMON | {"final_sigmas_type"},
    FLOW: frozenset({
        "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
        "max_image_seq_len", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "time_shift_type",
    }),
    HEUN: frozenset({"num_train_timesteps", "shift"}),
}  # fmt: skip
SPACING: dict[str, Spacing] = {
    DDIM: "leading",
    DPM: "linspace",
    EULER: "linspace",
    FLOW: "linspace",
    HEUN: "linspace",
}  # the default
# What a class makes of other classes' values when it is loaded, and so what its own configuration then says.
DEIS, UNIPC, SINGLESTEP = "DEISMultistepScheduler", "UniPCMultistepScheduler", "DPMSolverSinglestepScheduler"
ALIASES: dict[str, dict[str, dict[str, str]]] = {
    DPM: {"solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")},
    SINGLESTEP: {
        "solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
        "algorithm_type": {"deis": "dpmsolver++"},
    },
    UNIPC: {"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")},
    DEIS: {
        "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
        "algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
    },
}


class Scheduler(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a configuration says; the fields are called as there, and those of other schedulers are ignored."""

    kind: Kind
    timestep_spacing: Spacing
    num_train_timesteps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    beta_start: Annotated[float, msgspec.Meta(ge=0)] = 0.0001
    beta_end: Annotated[float, msgspec.Meta(ge=0)] = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    steps_offset: int = 0
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] = "epsilon"
    set_alpha_to_one: bool = True  # DDIM
    solver_order: Literal[1, 2, 3] = 2  # DPM-Solver++
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"  # DPM-Solver++ and Euler
    shift: Annotated[float, msgspec.Meta(gt=0)] = 1.0  # of flows
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_flow_sigmas: bool = False  # of flows with DPM-Solver++
    flow_shift: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    image_seq_len: int = 0  # no option: the tokens of the model's pictures, for dynamic shifting
    from_one: bool = False  # nor is this: whether its pipeline begins at the level 1, whatever the training did

    @staticmethod
    def from_config(config: Mapping[str, Any], where: str, kind: str | None = None, flow: bool = False) -> Scheduler:
        """A `scheduler_config.json`, read as another scheduler's with `kind`, for a model that predicts noise, or a `flow`.

        Raises ScheduleError that names an option that this table cannot follow.
        """
        own = config.get("_class_name")
        kind = str(kind or own)
        if not flow:
            check_noise(own, where)
            check_noise(kind, where)
        able = FLOWS if flow else KINDS
        if kind not in able:
            complaint = "has no _class_name" if kind == str(None) else f"{kind} is not supported"
            raise ScheduleError(f"{where}: {complaint}: use one of {', '.join(able)} as sampler=..")
        values = _as_read(_as_read(config, own), kind) if own != kind else _as_read(config, kind)
        _check(values, kind, where, flow)
        options = {k: v for k, v in values.items() if k in HAS[kind] and (kind != FLOW or v is not None)}
        try:
            return msgspec.convert({"kind": kind, "timestep_spacing": SPACING[kind], **options}, Scheduler)
        except msgspec.ValidationError as error:
            raise ScheduleError(f"{where} is not a scheduler that is supported: {error}") from None

    def differences(self, other: Scheduler) -> list[str]:
        """The fields, of those that its class has, in which another one differs."""
        return [f for f in ("kind", *sorted(HAS[self.kind])) if getattr(self, f) != getattr(other, f)]


def check_noise(kind: object, where: str) -> None:
    """Refuse the configuration of a scheduler whose models predict neither noise nor data nor v.  Raises ScheduleError."""
    if "Flow" in str(kind):
        raise ScheduleError(
            f"{where}: {kind} is not supported: its models predict a flow: use one that predicts noise, data or v"
        )
    if "EDM" in str(kind):
        raise ScheduleError(
            f"{where}: {kind} is not supported: its models are preconditioned by sigma: use one that predicts noise, data or v"
        )


def _as_read(config: Mapping[str, Any], kind: object) -> Mapping[str, Any]:
    """A configuration after a class has read it."""
    aliases = ALIASES.get(str(kind), {})
    values = {option: aliases.get(option, {}).get(str(value), value) for option, value in config.items()}
    # DPM-Solver takes "deis" for its own algorithm, but checks how it may end before that
    if kind == DPM and values.get("algorithm_type") == "deis" and values.get("final_sigmas_type") == "sigma_min":
        values["algorithm_type"] = "dpmsolver++"
    return values


def _check(config: Mapping[str, Any], kind: str, where: str, flow: bool) -> None:
    refused = REFUSED[kind] | (OF_FLOWS if flow and kind == DPM else {})
    for option, allowed in refused.items():
        value = config.get(option, DEFAULTS.get((kind, option), allowed[0]))
        if value not in allowed:
            absent = "" if option in config else ", the default,"
            other = "" if flow or unlike("ddim", config) else ", or use sampler='ddim'"
            raise ScheduleError(
                f"{where}: {option} = {value!r}{absent} is not supported: it must be {allowed[0]!r} (give sampler=.. a "
                f"scheduler_config.json that says so, if the model does without){other}"
            )
