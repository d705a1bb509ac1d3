"""The yardstick: it must not move between runs."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.contracts.errors import TrainingError
from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded, Latents, Picture
from stages.training.validation import (
    measure,
    probe_pictures,
    validation_draws,
    validation_losses,
)
from tests.training.conftest import attach, make_picture

SIGMAS = [0.2, 0.8]


def test_draws_are_fixed(encoded: Encoded) -> None:
    """Every held-out picture at every level, at the posterior's mean, with noise of its own."""
    one, two = (list(validation_draws(encoded.validation, SIGMAS)) for _ in range(2))
    assert [draw.sigma for draw in one] == [0.2, 0.8, 0.2, 0.8]
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(one, two, strict=True))
    assert torch.equal(one[0].clean, encoded.validation[0].latents.mean)
    assert not torch.equal(one[0].noise, one[1].noise)
    assert not torch.equal(one[0].noise, one[2].noise)


def test_other_levels_leave_a_level_as_it_is(encoded: Encoded) -> None:
    """A finer grid of noise levels contains the coarse one."""
    coarse = list(validation_draws(encoded.validation, [0.8]))
    fine = list(validation_draws(encoded.validation, SIGMAS))
    assert torch.equal(coarse[0].noise, fine[1].noise)


@pytest.mark.parametrize("batch", [1, 3])
def test_losses_do_not_depend_on_the_batch(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, batch: int
) -> None:
    """Batch size changes the speed, not the measure."""
    draws = list(validation_draws(encoded.validation, SIGMAS))
    losses = validation_losses(tiny_flux, draws, batch=batch, guidance=1.0)
    whole = validation_losses(tiny_flux, draws, batch=4, guidance=1.0)
    assert losses == pytest.approx(whole, rel=1e-5)
    assert len(losses) == 4


def test_fresh_adapter_measures_the_base_model(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """B starts at zero, so step 0 is the base model's line to beat, bit for bit."""
    draws = list(validation_draws(encoded.validation, SIGMAS))
    base = validation_losses(copy.deepcopy(tiny_flux), draws, batch=4, guidance=1.0)
    attach(tiny_flux, params)
    assert validation_losses(tiny_flux, draws, batch=4, guidance=1.0) == base


def test_shapes_are_measured_apart_and_in_order(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded
) -> None:
    """A wide held-out picture between two squares: each loss is the one it has on its own."""
    first, second = encoded.validation
    latents = Latents(first.latents.mean.reshape(8, 2, 8), first.latents.std.reshape(8, 2, 8))
    draws = [
        draw
        for picture in (second, replace(first, latents=latents), second)
        for draw in validation_draws([picture], SIGMAS)
    ]
    losses = validation_losses(tiny_flux, draws, batch=4, guidance=1.0)
    alone = [validation_losses(tiny_flux, [draw], batch=1, guidance=1.0)[0] for draw in draws]
    assert losses == pytest.approx(alone, rel=1e-5)


def test_bands_are_the_means_of_their_levels(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """Low is below a third, high from two thirds on; a band without a level has no loss."""
    chosen = params.model_copy(update={"validation_sigmas": [0.1, 0.2, 0.9]})
    measures = measure(tiny_flux, encoded, chosen)
    low, high = (
        validation_losses(
            tiny_flux, list(validation_draws(encoded.validation, sigmas)), batch=4, guidance=1.0
        )
        for sigmas in ([0.1, 0.2], [0.9])
    )
    assert measures.validation_loss_low == pytest.approx(sum(low) / 4, rel=1e-5)
    assert measures.validation_loss_middle is None
    assert measures.validation_loss_high == pytest.approx(sum(high) / 2, rel=1e-5)
    assert measures.validation_loss == pytest.approx(sum(low + high) / 6, rel=1e-5)


def test_measures_do_not_depend_on_the_run(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """Another seed, rate or step count: the same points, hence the same losses."""
    other = params.model_copy(update={"seed": 7, "learning_rate": 0.5, "steps": 9})
    assert measure(tiny_flux, encoded, params) == measure(tiny_flux, encoded, other)


def test_probe_measures_training_pictures(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """As if they were held out, so that the gap between the two losses is overfitting."""
    swapped = replace(encoded, validation=encoded.training)
    whole = params.model_copy(update={"probe_pictures": 100})
    expected = measure(tiny_flux, swapped, whole).validation_loss
    assert measure(tiny_flux, encoded, whole).probe_loss == pytest.approx(expected, rel=1e-5)
    none = params.model_copy(update={"probe_pictures": 0})
    assert measure(tiny_flux, encoded, none).probe_loss is None


def with_broken_latents(picture: Picture, value: float) -> Picture:
    """Return the picture with latents that are not numbers."""
    mean = torch.full_like(picture.latents.mean, value)
    return replace(picture, latents=replace(picture.latents, mean=mean))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("step", "advice"), [(0, "dvc repro encode"), (4, "train.learning_rate")])
def test_broken_pictures_are_named(
    tiny_flux: FluxTransformer2DModel,
    encoded: Encoded,
    params: TrainParams,
    value: float,
    step: int,
    advice: str,
) -> None:
    """A held-out and a probed picture: each at each level, in one message, and no other one."""
    first, second = encoded.validation
    wild = replace(
        encoded,
        validation=(first, with_broken_latents(second, value)),
        training=(with_broken_latents(encoded.training[0], value), *encoded.training[1:]),
    )
    chosen = params.model_copy(update={"validation_sigmas": SIGMAS, "probe_pictures": 5})
    with pytest.raises(TrainingError, match="4 problems") as caught:
        measure(tiny_flux, wild, chosen, step)
    message = str(caught.value)
    assert f"Training cannot go on after step {step}" in message
    for name, kind in (("held-out-1", "held-out"), ("picture-0", "training")):
        for sigma in SIGMAS:
            assert f"step {step}, picture {name}, sigma {sigma:.4f}: loss is " in message
        assert message.count(f"({kind} picture)") == 2
    assert advice in message
    whole = replace(wild, validation=(first,))
    assert measure(tiny_flux, whole, chosen.model_copy(update={"probe_pictures": 0}), step)


def test_probe_is_stable() -> None:
    """The order of the set does not matter, and a new picture replaces at most one."""
    pictures = [make_picture(f"picture-{index}") for index in range(9)]
    names = [picture.name for picture in probe_pictures(pictures, 4)]
    assert names == [picture.name for picture in probe_pictures(pictures[::-1], 4)]
    assert len(names) == 4
    for left_out in pictures:
        rest = [picture for picture in pictures if picture is not left_out]
        after = {picture.name for picture in probe_pictures(rest, 4)}
        assert len(set(names) - after) <= 1
