"""The precisions by name, and the type of weights and activations at each; without numpy, which a list of them does not need.

The latents and the sampler are float32 in all of them.  In fp8 most products take e4m3 instead (`compiler/passes/fp8.py`).
"""

FP8 = "fp8"
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", FP8: "bfloat16"}
ONE_TYPE = tuple(precision for precision in DTYPES if precision != FP8)  # those whose products are all of one type
