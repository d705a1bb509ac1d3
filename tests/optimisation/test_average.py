"""The moving average is kept beside the weights and never in their place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.families.noise import keyed_normal
from stages.optimisation.average import Average


def weights_of(step: int) -> torch.Tensor:
    """Return the weights after a step."""
    return keyed_normal([3, 2], "weights", step)


def test_is_the_average_of_what_it_saw() -> None:
    """Old times decay, the rest; at first faster, so that the start counts for little."""
    parameters = {"one": nn.Parameter(weights_of(0))}
    average = Average(parameters, decay=0.5)
    expected = weights_of(0)
    for step in range(1, 13):
        parameters["one"].data.copy_(weights_of(step))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights_of(step)
    torch.testing.assert_close(average.weights["one"], expected)
    assert torch.equal(parameters["one"], weights_of(12))


def test_is_on_the_model_for_a_while_only() -> None:
    """The weights come back to the bit, also when what is done with the average fails."""
    parameters = {"one": nn.Parameter(weights_of(0))}
    average = Average(parameters, decay=0.9)
    parameters["one"].data.copy_(weights_of(1))
    average.update(1)

    def fail() -> None:
        with average.applied():
            assert torch.equal(parameters["one"], average.weights["one"])
            assert not torch.equal(parameters["one"], weights_of(1))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(parameters["one"], weights_of(1))


def test_goes_on_from_saved_weights() -> None:
    """A restored average continues to the same bits."""
    one, other = ({"one": nn.Parameter(weights_of(0))} for _ in "12")
    average, later = Average(one, 0.9), Average(other, 0.9)
    one["one"].data.copy_(weights_of(1))
    average.update(1)
    later.restore({"one": average.weights["one"].clone()})
    for parameters, kept in ((one, average), (other, later)):
        parameters["one"].data.copy_(weights_of(2))
        kept.update(2)
    assert torch.equal(average.weights["one"], later.weights["one"])
