"""What options choose from.

The modules that know more of these names load libraries, for which a help should not wait; a test compares them.
"""

from __future__ import annotations

BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
BUILT = ("tensorrt", "tensorrt-rtx")  # whose engines are built beforehand
PRECISIONS = ("fp32", "bf16", "fp16")
LINKS = ("shared", "static")
GUIDANCE = ("first3", "all", "none")
DEVICES = ("cpu", "h100", "rtx4090", "orin")  # that times are predicted for
ERRORS = ("latents", "output")  # that training keeps small
