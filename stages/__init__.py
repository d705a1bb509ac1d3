"""The stages of the pipeline, and the environment that their libraries read when imported."""

import logging
import os
from typing import Final

STARTED_BY: Final = os.getppid()
"""The process that started this one, noted before anything slow is imported."""

# Deterministic matrix products on CUDA (torch.use_deterministic_algorithms).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Two lines at every import about torchvision, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The libraries' bars for loading a file; our own progress (runtime/progress.py) is not affected.
os.environ.setdefault("TQDM_DISABLE", "1")
# What torchao, where it is installed, says at import about GPU kernels that this machine has not.
for _name in (
    "torchao",
    "torch.utils._pytree",
    "diffusers.quantizers.torchao.torchao_quantizer",
):
    logging.getLogger(_name).setLevel(logging.ERROR)
