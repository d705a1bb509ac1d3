"""A model's adapter brought to a higher rank, another alpha, or both, with Delta W kept.

Delta W = (alpha / rank) B A. New rows of A are drawn as a new adapter's are, their columns of B are
zero, as a new adapter's B is; so they have no effect yet, and both begin to learn. Where alpha /
rank changes, B takes up the difference: exactly where that is a power of two, else to the rounding
of float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from stages.adapters.attach import ADAPTER_NAME, LoraShape, draw_down, lora_layers
from stages.adapters.keys import Key, format_key


@dataclass(frozen=True)
class Growth:
    """How matrices change, by the names that they have in a file; others stay as they are.

    `rows` [more, in] follow those of an A; a B is multiplied by `factors` and gets as many columns
    of zeros as `columns` says.
    """

    rows: Mapping[str, torch.Tensor]
    factors: Mapping[str, float]
    columns: Mapping[str, int]

    def of(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return matrices of the adapter, or of an average of it, as they are afterwards: copies.

        Delta W of the result is that of `weights` for the new scales.
        """
        return {name: self._grown(name, matrix.detach()) for name, matrix in weights.items()}

    def _grown(self, name: str, matrix: torch.Tensor) -> torch.Tensor:
        if name in self.rows:
            return torch.cat([matrix, self.rows[name].to(matrix.device)])
        scaled = matrix * self.factors.get(name, 1.0)
        return nn.functional.pad(scaled, (0, self.columns.get(name, 0)))


def plan_growth(
    transformer: FluxTransformer2DModel, loras: Mapping[str, LoraShape], *key: int | str
) -> Growth:
    """Return how the model's adapter becomes what `loras` say; nothing is changed yet.

    Args:
        transformer: that carries an adapter.
        loras: of the very modules that it is on.
        *key: of the draws, see `keyed_generator`; the name of each A's module is added.

    Raises:
        ValueError: a rank would fall, or the modules are others.
    """
    layers = lora_layers(transformer)
    if layers.keys() != loras.keys():
        raise ValueError("an adapter grows on the modules that it is on")
    rows, factors, columns = {}, {}, {}
    for module, layer in layers.items():
        lora, down = loras[module], layer.lora_A[ADAPTER_NAME].weight
        more = lora.rank - down.shape[0]
        if more < 0:
            raise ValueError(f"{module}: rank {down.shape[0]} cannot become {lora.rank}")
        up_name = format_key(Key(module, "up"))
        factors[up_name] = layer.scaling[ADAPTER_NAME] / (lora.alpha / lora.rank)
        columns[up_name] = more
        if more:
            drawn = draw_down(more, down.shape[1], *key, lora.down_of)
            rows[format_key(Key(module, "down"))] = drawn
    return Growth(rows, factors, columns)


def put_grown(
    transformer: FluxTransformer2DModel,
    loras: Mapping[str, LoraShape],
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Give the model's adapter the shapes of `loras` and trainable matrices of its own.

    `weights` are those that `Growth.of` returned, by the names of `lora_parameters`. Parameters are
    new ones: what held the old ones (an optimiser, a shortened forward) has to be made anew.
    """
    downs: dict[str, nn.Parameter] = {}
    for module, layer in lora_layers(transformer).items():
        lora, down, up = loras[module], layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
        if lora.down_of not in downs:
            downs[lora.down_of] = nn.Parameter(weights[format_key(Key(module, "down"))])
        down.weight = downs[lora.down_of]
        up.weight = nn.Parameter(weights[format_key(Key(module, "up"))])
        down.out_features = up.in_features = layer.r[ADAPTER_NAME] = lora.rank
        layer.lora_alpha[ADAPTER_NAME] = lora.alpha
        layer.scaling[ADAPTER_NAME] = lora.alpha / lora.rank
