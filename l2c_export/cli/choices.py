"""What options choose from.

Of some, the modules that know more load libraries, for which a help should not wait: a test compares them.
"""

from __future__ import annotations

from ..backends import descriptors
from ..ir.precisions import FP8

BACKENDS = (descriptors.AUTO, *descriptors.names())
BUILT = (*descriptors.built(), *descriptors.prepared())  # that something can be built for beforehand
PREPARED = descriptors.prepared()  # and of these for any GPU
LOADED = sorted(descriptors.loaded())  # that run any artefact
TARGETS = {d.name: d.targets for d in descriptors.BACKENDS if d.targets}  # whose GPU need not be here
PRECISIONS = descriptors.precisions()
TRAINED = tuple(precision for precision in PRECISIONS if precision != FP8)  # of a model that is trained for
TEXT_PRECISIONS = ("fp32", "bf16")
LINKS = ("shared", "static")
LEVELS = ("sublayer", "stack", "output")
GUIDANCE = ("first3", "all", "none")
DEVICES = ("cpu", "h100", "rtx4090", "orin")  # that times are predicted for
METHODS = ("teacache", "fbcache", "magcache")  # that are made static
ERRORS = ("latents", "output")  # that training keeps small
