"""Distributions of noise levels and weights of the loss, each against its source."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from scipy import stats

from stages.contracts.params import TrainParams
from stages.families.noise import keyed_normal
from stages.training.noise_levels import NoiseLevels, draw_sigma, loss_weights, resolution_shift

DRAWS = 3000
SIGMAS = torch.linspace(0.001, 0.999, 41)


def draws(kind: str, location: float, scale: float, tokens: int = 1024) -> torch.Tensor:
    """Return many draws in float64."""
    levels = NoiseLevels(kind, location, scale)  # type: ignore[arg-type]
    sigmas = [draw_sigma(levels, tokens, "test", number) for number in range(DRAWS)]
    return torch.tensor(sigmas, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "location", "scale", "mean"),
    [
        ("sigmoid", 0.0, 1.0, 0.0),
        ("logit-normal", -0.7, 0.5, -0.7),
        ("logit-normal", 1.0, 2.0, 1.0),
        ("shifted", 0.0, 1.0, 0.63),
        ("shifted", 0.5, 1.5, 1.13),
    ],
)
def test_the_logit_is_normal(kind: str, location: float, scale: float, mean: float) -> None:
    """Kolmogorov-Smirnov against the stated normal; 1024 tokens (512 pixels) shift by 0.63."""
    logits = torch.logit(draws(kind, location, scale)).numpy()
    assert stats.kstest(logits, "norm", args=(mean, scale)).pvalue > 0.01
    assert stats.kstest(logits, "norm", args=(mean + 0.2 * scale, scale)).pvalue < 1e-6


def test_uniform_is_uniform() -> None:
    """Kolmogorov-Smirnov against the uniform distribution, and not against the sigmoid's."""
    sigmas = draws("uniform", 0.0, 1.0).numpy()
    assert stats.kstest(sigmas, "uniform").pvalue > 0.01
    assert sigmas.min() >= 0
    assert sigmas.max() < 1


def test_the_default_has_not_changed() -> None:
    """Sigmoid of one keyed normal draw, to the bit: trained adapters depend on it."""
    for use in range(20):
        key = (3, "timestep", use, "a")
        expected = torch.sigmoid(keyed_normal([1], *key)).item()
        assert draw_sigma(NoiseLevels("sigmoid", 0.0, 1.0), 64, *key) == expected


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.63)])
def test_shift_is_the_samplers(tokens: int, mu: float) -> None:
    """The draw is shifted as FLUX.1-dev's scheduler shifts its own noise levels."""
    assert resolution_shift(tokens) == pytest.approx(mu)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    plain = draws("sigmoid", 0.0, 1.0)
    shifted = scheduler.time_shift(resolution_shift(tokens), 1.0, plain)
    torch.testing.assert_close(draws("shifted", 0.0, 1.0, tokens), shifted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("weighting", "scheme"), [("none", "none"), ("sigma-sqrt", "sigma_sqrt"), ("cosmap", "cosmap")]
)
def test_weights_are_diffusers(params: TrainParams, weighting: str, scheme: str) -> None:
    """The same function as compute_loss_weighting_for_sd3."""
    ours = loss_weights(SIGMAS, params.model_copy(update={"loss_weighting": weighting}))
    torch.testing.assert_close(ours, compute_loss_weighting_for_sd3(scheme, sigmas=SIGMAS))


def test_weights_are_finite_everywhere(params: TrainParams) -> None:
    """Also at no noise at all, where sigma^-2 is infinite."""
    for weighting in ("none", "sigma-sqrt", "cosmap", "min-snr"):
        chosen = params.model_copy(update={"loss_weighting": weighting})
        weights = loss_weights(torch.tensor([0.0, 1.0]), chosen)
        assert torch.isfinite(weights).all()
        assert weights.dtype == torch.float32


def test_min_snr_weighs_the_clean_pictures_error(params: TrainParams) -> None:
    """min(SNR, gamma) times the clean picture's squared error, for any prediction."""
    chosen = params.model_copy(update={"loss_weighting": "min-snr", "min_snr_gamma": 5.0})
    generator = torch.Generator().manual_seed(0)
    clean, noise, velocity = torch.randn(3, len(SIGMAS), 16, generator=generator)
    level = SIGMAS[:, None]
    noised = (1 - level) * clean + level * noise
    predicted = noised - level * velocity
    ratio = ((1 - SIGMAS) / SIGMAS) ** 2
    expected = ratio.clamp(max=5.0) * (predicted - clean).square().mean(dim=1)
    error = (velocity - (noise - clean)).square().mean(dim=1)
    torch.testing.assert_close(loss_weights(SIGMAS, chosen) * error, expected)
    # The two branches meet where SNR = gamma, at sigma = 1 / (1 + sqrt(gamma)).
    meeting = torch.tensor([1 / (1 + math.sqrt(5.0))])
    assert loss_weights(SIGMAS, chosen).max() <= loss_weights(meeting, chosen)
