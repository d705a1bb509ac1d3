"""What an optimiser is said to keep is what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.training_state import STATE_BYTES, average_bytes, state_bytes
from stages.contracts.params import TrainParams, load_params
from stages.families.noise import keyed_normal
from stages.optimisation.average import Average
from stages.optimisation.optimiser import build_optimiser
from tests.presets import ROOT

SHAPES = {"transformer.a.lora_A.weight": (16, 512), "transformer.a.lora_B.weight": (768, 16)}
SINGLE_NUMBERS = 64
"""Bytes of counts and other single numbers that an optimiser keeps for a matrix, at most."""


@pytest.fixture
def params() -> TrainParams:
    """The demo's recipe."""
    return load_params(ROOT / "params.yaml").train


def kept(name: str, params: TrainParams, device: torch.device) -> int:
    """Return the bytes of an optimiser's tensors after two steps."""
    matrices = {
        key: nn.Parameter(keyed_normal(shape, key).to(device)) for key, shape in SHAPES.items()
    }
    optimiser = build_optimiser(matrices, params.model_copy(update={"optimiser": name}))
    for step in range(2):
        for key, matrix in matrices.items():
            matrix.grad = keyed_normal(matrix.shape, key, step).to(device)
        optimiser.step()
    # bitsandbytes keeps its table of the 256 values for each matrix, but one in all.
    tensors = {
        tensor.untyped_storage().data_ptr(): tensor.numel() * tensor.element_size()
        for state in optimiser.state.values()
        for key, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and not key.startswith("qmap")
    }
    return sum(tensors.values())


@pytest.mark.parametrize("name", sorted(set(STATE_BYTES) - {"adamw8bit"}))
def test_state_is_as_large_as_computed(params: TrainParams, name: str) -> None:
    """All tensors of the real optimiser after two steps, single numbers apart."""
    computed = state_bytes(name, SHAPES.values())
    found = kept(name, params, torch.device("cpu"))
    assert computed <= found <= computed + SINGLE_NUMBERS * len(SHAPES)


@pytest.mark.gpu
def test_eight_bit_state_is_as_large_as_computed(params: TrainParams) -> None:
    """Moments of a byte a number, and a scale for 256 of them."""
    pytest.importorskip("bitsandbytes")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    computed = state_bytes("adamw8bit", SHAPES.values())
    found = kept("adamw8bit", params, torch.device("cuda"))
    assert computed <= found <= computed + SINGLE_NUMBERS * len(SHAPES)


def test_average_is_as_large_as_computed() -> None:
    """One float32 copy of every matrix."""
    matrices = {key: nn.Parameter(torch.zeros(shape)) for key, shape in SHAPES.items()}
    weights = Average(matrices, 0.9).weights
    found = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    assert average_bytes(SHAPES.values()) == found


def test_every_optimiser_is_counted() -> None:
    """One that is added to the params has a size here."""
    annotation = TrainParams.model_fields["optimiser"].annotation
    assert set(STATE_BYTES) == set(annotation.__args__)
