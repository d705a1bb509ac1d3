"""Out of memory says what to change."""

from __future__ import annotations

import re

import pytest
import torch

from stages.contracts.errors import TrainingError
from stages.contracts.params import ModelParams, Params, TrainParams
from stages.training.memory import LOADING, SCORING, explained_memory

TOO_MUCH = 10**15
ON_GPU = torch.OutOfMemoryError("CUDA out of memory.")


def advice(
    params: TrainParams, model: ModelParams, where: str = "step 1", error: Exception = ON_GPU
) -> str:
    """Return the message for an error in that place."""
    with pytest.raises(TrainingError) as caught, explained_memory(params, model, where):
        raise error
    return str(caught.value)


def test_cpu_allocator(params: TrainParams, model: ModelParams) -> None:
    """A petabyte is refused by the allocator; the message names the step and every way out."""
    with pytest.raises(TrainingError) as caught, explained_memory(params, model, "step 3"):
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    message = str(caught.value)
    assert "Training ran out of memory" in message
    assert "step 3: " in message
    assert "can't allocate memory" in message
    ways = ["quantised", "gradient_checkpointing: true", "encode.sizes_px", "train.rank below 2"]
    ways.insert(3, "train.batch: 1 with train.accumulation: 2, which trains the same")
    places = [message.index(way) for way in ways]
    assert places == sorted(places)
    assert "(5) train.rank" in message
    assert "offload" not in message  # to main memory, which is what ran out
    assert "starts from the base model" in message


@pytest.mark.parametrize("error", [ON_GPU, MemoryError()])
def test_other_kinds_of_no_memory(
    params: TrainParams, model: ModelParams, error: Exception
) -> None:
    """CUDA's own error and Python's mean the same."""
    said = pytest.raises(TrainingError, match=r"CUDA out of memory|MemoryError")
    with said as caught, explained_memory(params, model, "step 1"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("where", ["step 1", LOADING, SCORING])
@pytest.mark.parametrize("error", [ON_GPU, MemoryError()])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("quantisation", "offload"),
    [("none", "none"), ("int8", "none"), ("nf4", "none"), ("none", "group")],
)
def test_every_key_exists(
    params: TrainParams,
    model: ModelParams,
    where: str,
    error: Exception,
    precision: str,
    quantisation: str,
    offload: str,
) -> None:
    """Whatever is advised is in params.yaml by that name."""
    change = {"precision": precision, "quantisation": quantisation, "offload": offload}
    message = advice(params, model.model_copy(update=change), where, error)
    named = re.findall(r"\b([a-z_]+)\.([a-z_]+)\b", message.partition("In order of effect")[2])
    assert ("train", "rank") in named
    for section, key in named:
        kind = Params.model_fields[section].annotation
        assert kind is not None
        assert key in kind.model_fields, f"{section}.{key}"


def test_only_what_is_left_to_change_is_advised(params: TrainParams, model: ModelParams) -> None:
    """Who has checkpointing on and one picture per pass is not told to do so."""
    least = {"gradient_checkpointing": True, "batch": 1, "rank": 1}
    thrifty = params.model_copy(update=least)
    offloaded = model.model_copy(update={"precision": "bfloat16", "offload": "group"})
    message = advice(thrifty, offloaded)
    assert "(1) smaller encode.sizes_px; (2) a machine with more memory. Other" in message


@pytest.mark.parametrize(
    ("quantisation", "first"),
    [
        ("none", "a quantised base: model.quantisation nf4"),
        ("int8", "model.quantisation: nf4, half the weights' memory of int8"),
        ("nf4", "model.offload: group and model.quantisation: none"),
    ],
)
def test_the_base_is_made_smaller_than_it_is(
    params: TrainParams, model: ModelParams, quantisation: str, first: str
) -> None:
    """Nobody is told to quantise a quantised base; what comes last is to leave it off the GPU."""
    chosen = model.model_copy(update={"precision": "bfloat16", "quantisation": quantisation})
    message = advice(params, chosen, LOADING)
    assert f"(1) {first}" in message
    assert "model.offload: group" in message


def test_loading_and_scoring_have_ways_out_of_their_own(
    params: TrainParams, model: ModelParams
) -> None:
    """A base that does not fit the card is not made to fit by a smaller batch."""
    loading, scoring = (advice(params, model, where) for where in (LOADING, SCORING))
    assert "while loading: CUDA out of memory. " in loading
    assert "while scoring: CUDA out of memory. " in scoring
    for message in (loading, scoring):
        assert "encode.sizes_px" not in message
        assert "train.batch" not in message
    assert "sampling.batch" in scoring
    assert "sampling.batch" not in loading


def test_other_errors_pass(params: TrainParams, model: ModelParams) -> None:
    """A bug is not called a lack of memory."""
    with pytest.raises(RuntimeError, match="shapes"), explained_memory(params, model, "step 1"):
        raise RuntimeError("shapes cannot be multiplied")
