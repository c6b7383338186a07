"""The pass that puts the products of sublayers into e4m3, and the scales that follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segments import FAMILIES, of_body, off_by
from test_operators import run_onnx

from l2c_export.compiler.onnx.export import export
from l2c_export.compiler.passes.fp8 import records_of, with_fp8
from l2c_export.compiler.record import record
from l2c_export.ir.dtypes import E4M3, Types
from l2c_export.ir.graph import WEIGHT, check
from l2c_export.models import dit
from l2c_export.models.primitives import execute
from l2c_export.weights.recipe import TensorRecord
