"""LoRAs that are merged into captured transformers, against diffusers' own modules that were fused by peft, or by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
import loras
import numpy as np
import pytest
import torch
from prompted import IMAGES_OF, PIPELINES
from safetensors.torch import load_file

import l2c_export
from l2c_export.artefact import store
from l2c_export.compiler.link import bind
from l2c_export.errors import WeightsError
from l2c_export.schedules.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
