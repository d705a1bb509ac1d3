"""Out of memory says what to change."""

from __future__ import annotations

import pytest
import torch

from stages.contracts.errors import TrainingError
from stages.contracts.params import TrainParams
from stages.training.memory import explained_memory

TOO_MUCH = 10**15


def test_cpu_allocator(params: TrainParams) -> None:
    """A petabyte is refused by the allocator; the message names the step and every way out."""
    with pytest.raises(TrainingError) as caught, explained_memory(params, 3):
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    message = str(caught.value)
    assert "Training ran out of memory" in message
    assert "step 3: " in message
    assert "can't allocate memory" in message
    ways = ["quantised", "gradient_checkpointing: true", "encode.size_px", "train.rank below 2"]
    ways.insert(3, "train.batch: 1 with train.accumulation: 2, which trains the same")
    places = [message.index(way) for way in ways]
    assert places == sorted(places)
    assert "(5) train.rank" in message
    assert "starts from the base model" in message


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_other_kinds_of_no_memory(params: TrainParams, error: BaseException) -> None:
    """CUDA's own error and Python's mean the same."""
    said = pytest.raises(TrainingError, match=r"CUDA out of memory|MemoryError")
    with said as caught, explained_memory(params, 1):
        raise error
    assert caught.value.__cause__ is error


def test_only_what_is_left_to_change_is_advised(params: TrainParams) -> None:
    """Who has checkpointing on and one picture per pass is not told to do so."""
    least = {"gradient_checkpointing": True, "batch": 1, "rank": 1}
    thrifty = params.model_copy(update=least)
    with pytest.raises(TrainingError) as caught, explained_memory(thrifty, 1):
        raise MemoryError
    assert "(2) a smaller encode.size_px. Other" in str(caught.value)


def test_other_errors_pass(params: TrainParams) -> None:
    """A bug is not called a lack of memory."""
    with pytest.raises(RuntimeError, match="shapes"), explained_memory(params, 1):
        raise RuntimeError("shapes cannot be multiplied")
