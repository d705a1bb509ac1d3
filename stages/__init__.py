"""The stages of the pipeline, and the environment that their libraries read when imported."""

import os

# Deterministic matrix products on CUDA (torch.use_deterministic_algorithms).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Two lines at every import about torchvision, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The libraries' bars for loading a file; our own progress (runtime/progress.py) is not affected.
os.environ.setdefault("TQDM_DISABLE", "1")
