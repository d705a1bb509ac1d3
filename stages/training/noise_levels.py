"""At which noise levels a LoRA is trained, and how much each of them counts.

With n a standard normal draw and s the sigmoid:

- `sigmoid`      s(n), as ai-toolkit and SimpleTuner train FLUX (ostris/ai-toolkit,
                 timestep_type sigmoid);
- `logit-normal` s(location + scale n) (arXiv 2403.03206, section 3.1; diffusers,
                 training_utils.compute_density_for_timestep_sampling);
- `uniform`      u in [0, 1), what diffusers' FLUX LoRA script draws by default;
- `shifted`      s(location + scale n + mu), where mu grows with the number of tokens as in
                 FLUX.1-dev's sampler. Shifting t to e^mu / (e^mu + 1/t - 1) adds mu to t's logit,
                 so at location 0 this is timestep_sampling flux_shift of kohya-ss/sd-scripts
                 (library/flux_train_utils.py), where the scale is sigmoid_scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, Self

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from stages.contracts.params import TrainParams
from stages.families.noise import keyed_normal, keyed_uniform

# scheduler/scheduler_config.json of black-forest-labs/FLUX.1-dev: tokens and mu of two pictures.
_TOKENS: Final = (256, 4096)
_SHIFTS: Final = (0.5, 1.15)
_SMALLEST_SIGMA: Final = 1e-3  # of the 1000 that FlowMatchEulerDiscreteScheduler has


@dataclass(frozen=True)
class NoiseLevels:
    """A distribution of noise levels in [0, 1]; see the head of this file."""

    kind: Literal["sigmoid", "logit-normal", "uniform", "shifted"]
    location: float
    scale: float

    @classmethod
    def from_params(cls, params: TrainParams) -> Self:
        """Return the distribution that `params` ask for."""
        return cls(params.timesteps, params.timestep_location, params.timestep_scale)


def draw_sigma(levels: NoiseLevels, tokens: int, *key: int | str) -> float:
    """Return the noise level of one sample, a function of `key`.

    Args:
        levels: what it is drawn from.
        tokens: of the sample's picture; `shifted` alone depends on it.
        *key: see `families.noise.keyed_generator`.
    """
    if levels.kind == "uniform":
        return keyed_uniform([1], *key).item()
    logit = levels.location + levels.scale * keyed_normal([1], *key)
    if levels.kind == "shifted":
        logit = logit + resolution_shift(tokens)
    return torch.sigmoid(logit).item()


def resolution_shift(tokens: int) -> float:
    """Return FLUX.1-dev's mu for a picture of `tokens` tokens: 0.5 at 256, 1.15 at 4096."""
    return float(calculate_shift(tokens, *_TOKENS, *_SHIFTS))


def loss_weights(sigmas: torch.Tensor, params: TrainParams) -> torch.Tensor:
    """Return the weight [B] of each sample's velocity loss at its noise level [B], float32.

    - `none`: 1.
    - `sigma-sqrt`: sigma^-2, and `cosmap`: 2 / (pi (1 - 2 sigma + 2 sigma^2)), as in diffusers
      (training_utils.compute_loss_weighting_for_sd3; arXiv 2403.03206, section 3.1). The former
      has no bound; below 0.001, the smallest level there, it stays what it is at 0.001.
    - `min-snr`: min((1 - sigma)^2, gamma sigma^2). Min-SNR (arXiv 2303.09556, section 3.4) weighs
      the error of the predicted clean picture by min(SNR, gamma). Here SNR = ((1 - sigma) /
      sigma)^2, and the clean picture's error is sigma^2 times the velocity's, since it is
      predicted as x_t - sigma v.
    """
    match params.loss_weighting:
        case "none":
            return torch.ones_like(sigmas)
        case "sigma-sqrt":
            return sigmas.clamp(min=_SMALLEST_SIGMA) ** -2
        case "cosmap":
            return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
        case "min-snr":
            return torch.minimum((1 - sigmas) ** 2, params.min_snr_gamma * sigmas**2)
