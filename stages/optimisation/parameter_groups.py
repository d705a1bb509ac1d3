"""The adapter's matrices as an optimiser takes them: one group per learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from stages.adapters.keys import parse_key
from stages.contracts.params import TrainParams
from stages.families.architecture import block_of
from stages.families.chosen_blocks import names_block

FACTOR: Final = "rate_factor"
"""Key of an optimiser's group: its learning rate as a multiple of the run's."""


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], params: TrainParams
) -> list[dict[str, Any]]:
    """Return torch's parameter groups of the matrices, by the name that each has in a file.

    The order of the matrices is kept within a group, and the groups are in the order of their first
    matrix. Without train.block_settings there is one group.
    """
    if not params.block_settings:
        return [{"params": list(parameters.values()), FACTOR: 1.0}]
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(rate_factor(name, params), []).append(parameter)
    return [{"params": values, FACTOR: factor} for factor, values in groups.items()]


def rate_factor(name: str, params: TrainParams) -> float:
    """Return the learning rate of a matrix as a multiple of train.learning_rate.

    Args:
        name: such as `transformer.transformer_blocks.7.attn.to_q.lora_A.weight`.
        params: of the run.
    """
    block = block_of(parse_key(name).module)
    for setting in params.block_settings:
        if names_block(setting.blocks, block):
            return setting.learning_rate / params.learning_rate
    return 1.0


def set_group_rates(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its own factor; a group that states none has factor 1."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)
