"""Scores of pictures, on pictures whose scores are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import extract_adapter, lora_parameters
from stages.contracts.params import TrainParams
from stages.families.noise import keyed_normal
from stages.judging.candidates import BASE_MODEL, Candidate
from stages.judging.scoring import (
    COPY_RATIO,
    Drawn,
    TrainingSet,
    put_adapter,
    score_notes,
    score_pictures,
)
from tests.training.conftest import attach

Image = npt.NDArray[np.uint8]
TRAINING = [keyed_normal([8, 16, 16], "training", number) for number in range(6)]


def noise(number: int) -> Image:
    """Return a picture of random pixels."""
    return np.random.default_rng(number).integers(60, 200, (32, 32, 3), np.uint8)


def brighter(picture: Image, levels: int) -> Image:
    """Return the picture with every value raised."""
    return (picture + np.uint8(levels)).astype(np.uint8)


BASE = Drawn(BASE_MODEL, [noise(0), noise(1)], [noise(2)])


def far(_: Image) -> torch.Tensor:
    """Stand for the latents of any picture: unlike all training pictures."""
    return keyed_normal([8, 16, 16], "far")


def test_effect_and_bleed() -> None:
    """Ten grey levels with the trigger, five without: a quarter of the squared difference."""
    drawn = Drawn(
        Candidate(5), [brighter(each, 10) for each in BASE.samples], [brighter(noise(2), 5)]
    )
    score = score_pictures(drawn, BASE, TrainingSet(TRAINING), far)
    assert (score.candidate.step, score.effect_mse, score.plain_mse, score.bleed) == (
        5,
        100.0,
        25.0,
        0.25,
    )
    assert score.diversity == pytest.approx(1.0, abs=0.01)
    assert not score.collapsed


def test_base_model_has_no_effect_and_no_bleed() -> None:
    """Nothing over nothing is not a number."""
    score = score_pictures(BASE, BASE, TrainingSet(TRAINING), far)
    assert (score.effect_mse, score.bleed, score.diversity) == (0.0, None, 1.0)


def test_collapse_is_uniform_or_alike() -> None:
    """A black picture among others, or the same picture for every prompt."""
    black = np.zeros((32, 32, 3), np.uint8)
    training = TrainingSet(TRAINING)
    assert score_pictures(
        Drawn(Candidate(1), [black, noise(1)], [noise(2)]), BASE, training, far
    ).collapsed
    same = score_pictures(Drawn(Candidate(1), [noise(3)] * 2, [noise(3)]), BASE, training, far)
    assert same.diversity == 0.0
    assert same.collapsed
    uniform_base = Drawn(BASE_MODEL, [black, noise(1)], [noise(2)])
    assert not score_pictures(uniform_base, uniform_base, training, far).collapsed


@pytest.mark.parametrize("side", [16, 32])
def test_a_copy_is_near_a_training_picture(side: int) -> None:
    """One with a little noise is below the line; another one of the kind is about 1."""
    training = TrainingSet(TRAINING)
    large = torch.nn.functional.interpolate(TRAINING[2][None], size=(side, side))[0]
    copy = training.nearest(large + 0.1 * keyed_normal(large.shape, "noise"))
    assert copy is not None
    assert copy < COPY_RATIO
    assert training.nearest(keyed_normal([8, 16, 16], "new")) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("latents", [TRAINING[:1], [TRAINING[0]] * 3])
def test_without_distances_there_is_no_memorisation_score(latents: list[torch.Tensor]) -> None:
    """One picture, or one picture many times, has no usual distance."""
    training = TrainingSet(latents)
    assert training.nearest(TRAINING[0]) is None
    assert score_pictures(BASE, BASE, training, far).nearest_training is None


def test_nothing_drawn_nothing_scored() -> None:
    """Without prompts a run is judged by its losses."""
    empty = Drawn(BASE_MODEL, [], [])
    score = score_pictures(empty, empty, TrainingSet(TRAINING), far)
    assert (score.effect_mse, score.diversity, score.detail, score.collapsed) == (
        None, None, None, False,
    )  # fmt: skip
    assert score_notes(score, None) == []


def test_notes_say_what_was_measured() -> None:
    """One line per score, with collapse last."""
    black = np.zeros((32, 32, 3), np.uint8)
    base = Drawn(BASE_MODEL, [noise(0), noise(1)], [])
    score = score_pictures(Drawn(Candidate(1), [black] * 2, []), base, TrainingSet(TRAINING), far)
    notes = score_notes(score, 0.5)
    assert notes[0] == "validation loss 0.5000"
    assert notes[-1] == "collapsed"
    assert not any("bleed" in note for note in notes)


def test_adapters_are_put_on_as_they_were(
    tiny_flux: FluxTransformer2DModel, params: TrainParams
) -> None:
    """Whatever alpha says: the file's Delta W is the model's; None is the base model."""
    attach(tiny_flux, params.model_copy(update={"rank": 2, "alpha": 6.0}))
    matrices = lora_parameters(tiny_flux)
    with torch.no_grad():
        for name, matrix in matrices.items():
            matrix.copy_(keyed_normal(matrix.shape, name))
    kept = {name: matrix.clone() for name, matrix in matrices.items()}
    adapter = extract_adapter(tiny_flux, {})
    put_adapter(tiny_flux, None)
    assert all(not matrix.any() for name, matrix in matrices.items() if "lora_B" in name)
    put_adapter(tiny_flux, adapter)
    for name, matrix in matrices.items():
        torch.testing.assert_close(matrix.data, kept[name].data)
