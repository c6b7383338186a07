"""What a model family is: its tensors, its operations, and one description of its call, which is recorded or executed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from ..errors import ModelError
from ..ir.inputs import RequestInput
from ..support.words import counted
from ..weights.checkpoint import Checkpoint


class Operation(NamedTuple):
    """A kind of operation: a pure function of activations, then weights, written in primitives.

    It returns one value, or a tuple of several.  `weights` are the names of the weights under the module that the operation is
    called at.
    """

    function: Callable[..., Any]
    weights: tuple[str, ...] = ()


class Runner(Protocol):
    """What a family's `call` is written against.  Values are opaque to it."""

    def __call__(self, op: str, *inputs: Any, at: str = "", name: str = "") -> Any:
        """Run a segment kind with the weights of module `at`.  What it makes is called after both, or by its `name`."""

    def sublayer(self, op: str, *inputs: Any, at: str, name: str = "") -> Any:
        """The same for a cacheable attention or MLP.  All that it makes is cached and reused together."""

    def weight(self, tensor: str) -> Any:
        """A tensor of the model as a value, for an operation that does not name its weights."""

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        """A linear layer whose rows are several independent projections, one per name."""

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        """stream + gate * value."""


class Family(Protocol):
    """A model family: its architecture, tensors, segment kinds and one denoising call.

    Its class also has `arch_type`, `named` and `from_tensors`, and may have `shown`, the fields of the architecture that
    tensors show, and `unshown`, which says of the others what follows from published models and what must be asked.
    What is known of a family without its operations is in its descriptor (`families.py`).
    """

    name: ClassVar[str]
    arch: Any
    latent: tuple[int, ...]  # channels, then the axes of a picture or of whatever else it makes
    inputs: tuple[RequestInput, ...]  # what a request says besides the noise
    sublayers: tuple[str, ...]  # router column -> value name
    segments: Mapping[str, Operation]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint."""

    def call(self, run: Runner, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
        """Predict the noise.

        x (B, C, ..) float32 latents; rows (R,) int32: which latent each row of the model's batch uses; t (R,) float32
        timesteps; request: (R, *shape) of every declared input, by name.  Returns (R, C or more, ..).
        """


class CapturedFamily(Family, Protocol):
    """One that is captured from a module of diffusers (`captured/`)."""

    guidance: tuple[str, float]  # mode and scale, as its pipeline has them
    picture_tokens: int
    from_one: bool  # whether its pipeline tells a scheduler of flows to begin at the level 1

    def checkpoint(self, opened: Checkpoint) -> Checkpoint:
        """A checkpoint of diffusers, and what follows from the configuration; without what nothing reads."""


# What no model comes near, and what would take forever to find out.
LARGEST, DEEPEST, MOST_PARAMETERS, MOST_PIXELS = 2**20, 2**10, 2**40, 2**20


def check_sizes(arch: Any, may_be_zero: Collection[str] = ()) -> None:
    """Raise ModelError for a size that is no size."""
    for name, value in msgspec.structs.asdict(arch).items():
        if isinstance(value, (bool, str)):
            continue
        if value <= 0 and name not in may_be_zero:
            raise ModelError(f"the model's {name} is {shown(value)}: must be more than 0")
        most = DEEPEST if name == "depth" else LARGEST
        if not 0 <= value <= most:
            raise ModelError(f"the model's {name} is {shown(value)}: must be from 0 to {most}")


def check_total(family: Family) -> None:
    """Raise ModelError for a model whose sizes are possible one by one, but not together."""
    shapes = family.tensors()
    parameters = sum(math.prod(shape) for shape in shapes.values())
    axes = family.latent[1:]
    if parameters > MOST_PARAMETERS or math.prod(axes) > MOST_PIXELS:
        size = "x".join(map(str, axes))
        raise ModelError(f"{family.name}: {parameters:,} parameters and latents of {size}: check model=..")


def width_of(arch: Any, field: str) -> int:
    """The width of the tokens; 0 without one."""
    return int(getattr(arch, field, 0))


def summary(family: Family, width_field: str) -> str:
    """One line: depth x width, heads, classes and picture size."""
    arch, width = family.arch, width_of(family.arch, width_field)
    size = [f"{arch.depth} x {width}"] if width and hasattr(arch, "depth") else [counted(len(family.sublayers), "sublayer")]
    told = [field for field in family.inputs if field.known == "request"]
    heads = [f"{arch.num_heads} heads"] if hasattr(arch, "num_heads") else []
    return ", ".join([family.name, *size, *heads, *map(asked, told), output_words(family.latent)])


def asked(declared: RequestInput) -> str:
    """An input in words: "1000 classes + null" of labels."""
    null = "+ null" if declared.guides else "without null"
    if declared.choices and not declared.shape:
        return f"{counted(declared.choices, 'class', 'classes')} {null}"
    return f"{declared.name} {' x '.join(map(str, declared.shape))} {null}"


def output_words(latent: Sequence[int]) -> str:
    """What comes out, in words."""
    channels, *axes = latent
    if len(axes) == 2 and channels in (1, 3):
        return f"pictures of {axes[0]} x {axes[1]} pixels"
    of = f"pictures of {8 * axes[0]} x {8 * axes[1]}, " if len(axes) == 2 and channels == 4 else ""
    return f"{of}latents {' x '.join(map(str, latent))}"


def shown(number: float) -> str:
    """A number that may have thousands of digits."""
    return f"{number}" if abs(number) < 10**18 else "a number of more than 18 digits"
