"""Runs on the tiny model, as the trainer's tests have them."""

from tests.training.conftest import (
    encoded,
    make_run,
    model,
    one_thread,
    params,
    usual_signals,
)

__all__ = ["encoded", "make_run", "model", "one_thread", "params", "usual_signals"]
