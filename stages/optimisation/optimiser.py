"""The optimiser of the adapter's matrices: which one, how it is set up, its averaged weights.

All are used with an absolute rate, so that one number means the same for A, which starts random,
and for B, which starts at zero. `optimiser_state.py` saves and restores any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from stages.contracts.errors import HardwareError
from stages.contracts.params import TrainParams
from stages.optimisation.parameter_groups import parameter_groups, set_group_rates
from stages.optimisation.parameter_values import weights_kept
from stages.runtime.machine import optimiser_problems

_Groups = Sequence[dict[str, Any]]


@runtime_checkable
class _TwoPoints(Protocol):
    """An optimiser that takes gradients at one point and returns another."""

    def eval(self) -> None: ...

    def train(self) -> None: ...


def require_optimiser(name: str, device: torch.device) -> None:
    """Raise HardwareError unless the optimiser `name` can run on `device` of this machine.

    Raises:
        HardwareError: a package is missing, or a GPU; all that is missing is named.
    """
    problems = optimiser_problems(name, device.type)
    if problems:
        raise HardwareError("The optimiser cannot run here", problems)


def build_optimiser(
    parameters: Mapping[str, nn.Parameter], params: TrainParams
) -> torch.optim.Optimizer:
    """Return the optimiser that `params` name, on all of `parameters`.

    Its other settings are its library's own, except where a comment says why not.

    Raises:
        HardwareError: adamw8bit without bitsandbytes or without a CUDA GPU.
    """
    require_optimiser(params.optimiser, next(iter(parameters.values())).device)
    groups = parameter_groups(parameters, params)
    rate, decay = params.learning_rate, params.weight_decay
    match params.optimiser:
        case "adamw":  # arXiv 1711.05101, in one fused kernel
            return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
        case "adamw8bit":
            return _eight_bit(groups, rate, decay)
        case "adafactor":
            return _adafactor(groups, rate, decay)
        case "lion":
            return _lion(groups, rate, decay)
        case "prodigy":
            return _prodigy(groups, rate, decay)
        case "schedule-free-adamw":
            return _schedule_free(groups, rate, decay)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> float:
    """Give all of the optimiser's parameters the rate of the step to come, and return it.

    Blocks with a rate of their own have the same multiple of it at every step. Prodigy multiplies
    it by its own estimate of the distance to the solution; what is returned is their product, the
    rate that this step's update has.
    """
    set_group_rates(optimiser, rate)
    return rate * float(optimiser.param_groups[0].get("d", 1.0))


@contextmanager
def evaluation_weights(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> Iterator[None]:
    """Put on the weights that the optimiser means to be used, for as long as the context lasts.

    Schedule-free AdamW takes gradients at one point and returns another, the average (arXiv
    2405.15682, x and y of equation 1). The training weights are put back as they were, to the
    bit: the library's own way there and back would round, so that how often a run is measured
    would decide what it learns. Other optimisers train the weights that they return.
    """
    if not isinstance(optimiser, _TwoPoints):
        yield
        return
    with weights_kept(parameters):
        optimiser.eval()
        try:
            yield
        finally:
            optimiser.train()


def _eight_bit(groups: _Groups, rate: float, decay: float) -> torch.optim.Optimizer:
    """Return AdamW with moments in 8 bits (arXiv 2110.02861)."""
    from bitsandbytes.optim import AdamW8bit

    optimiser: torch.optim.Optimizer = AdamW8bit(groups, lr=rate, weight_decay=decay)
    return optimiser


def _adafactor(groups: _Groups, rate: float, decay: float) -> torch.optim.Optimizer:
    """Return Adafactor (arXiv 1804.04235) from transformers.

    torch's has no absolute rate: it multiplies the rate by a matrix's own size, at least 1e-3,
    and B would stay a thousand times behind A.
    """
    from transformers.optimization import Adafactor

    optimiser: torch.optim.Optimizer = Adafactor(
        groups, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False
    )
    return optimiser


def _lion(groups: _Groups, rate: float, decay: float) -> torch.optim.Optimizer:
    """Return Lion (arXiv 2302.06675); a suitable rate is 3 to 10 times lower than AdamW's."""
    from pytorch_optimizer import Lion  # here: the import takes a second, and few runs need it

    return Lion(groups, lr=rate, weight_decay=decay)


def _prodigy(groups: _Groups, rate: float, decay: float) -> torch.optim.Optimizer:
    """Return Prodigy (arXiv 2306.06101) with the settings of diffusers' FLUX LoRA script.

    examples/dreambooth/train_dreambooth_lora_flux.py: bias correction, and a safeguard that keeps
    a warm-up from spoiling the estimate of the distance.
    """
    from pytorch_optimizer import Prodigy

    return Prodigy(
        groups,
        lr=rate,
        weight_decay=decay,
        bias_correction=True,
        safeguard_warmup=True,
        foreach=True,
    )


def _schedule_free(groups: _Groups, rate: float, decay: float) -> torch.optim.Optimizer:
    """Return schedule-free AdamW (arXiv 2405.15682); warm-up is our schedule's."""
    from pytorch_optimizer import ScheduleFreeAdamW

    return ScheduleFreeAdamW(groups, lr=rate, weight_decay=decay)
