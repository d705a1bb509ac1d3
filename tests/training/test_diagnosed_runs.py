"""Every condition that the diagnosis names, made to happen by real training.

Losses are made to go wrong on the small transformer, whose steps take milliseconds; what pictures
show, and a rate that breaks a trained model, on nano-flux.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import FluxTransformer2DModel

from stages.contracts.params import TrainParams
from stages.families.noise import keyed_normal
from stages.training.diagnosis import NOTHING_WRONG, Evidence, Finding, diagnose
from stages.training.encoded import Encoded, Latents, Picture
from stages.training.loop import Run, train_adapter
from stages.training.scoring import Score
from stages.training.uses import uses_of_step
from tests.training.conftest import LATENT_SHAPE, attach, make_picture

SOUND = Score(0, 900.0, 90.0, 0.1, 0.9, 40.0, 1.1, collapsed=False)
Diagnose = Callable[..., dict[str, Finding]]


def subject(name: str, spread: float) -> Picture:
    """Return a picture of the one subject of all pictures, with `spread` times its own content."""
    picture = make_picture(name)
    shared = keyed_normal(LATENT_SHAPE, "subject")
    mean = shared + spread * picture.latents.mean
    return replace(picture, latents=Latents(mean, picture.latents.std))


@pytest.fixture
def trained(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams, tmp_path: Path
) -> Diagnose:
    """Return a function that trains the small model and gives what is found, by name."""

    def run(
        *, pictures: int = 10, spread: float = 0.5, broken: int | None = None, **changes: object
    ) -> dict[str, Finding]:
        chosen = {"rank": 4, "alpha": 4.0, "caption_dropout": 0.0, "warmup_steps": 0}
        whole = {"checkpoint_every": 10**6, "sample_every": 10**6, "probe_pictures": 4}
        settings = params.model_copy(update={**chosen, **whole, **changes})
        attach(tiny_flux, settings)
        training = [subject(f"picture-{number}", spread) for number in range(pictures)]
        if broken is not None:
            latents = training[broken].latents
            wild = Latents(4 * latents.mean, latents.std)
            training[broken] = replace(training[broken], latents=wild)
        held_out = tuple(subject(f"held-out-{number}", spread) for number in range(3))
        data = replace(encoded, training=tuple(training), validation=held_out)
        journal = train_adapter(
            Run(tiny_flux, data, settings, lambda _: {}, list), tmp_path / "state"
        )
        uses = {row.step: uses_of_step(data, settings, row.step) for row in journal.history[1:]}
        found = diagnose(Evidence(journal.history, uses, [SOUND], 0))
        return {finding.name: finding for finding in found}

    return run


@pytest.mark.slow
def test_nothing_wrong(trained: Diagnose) -> None:
    """Ten pictures of one subject, a fitting rate, long enough."""
    found = trained(steps=120, validation_every=10, learning_rate=0.005)
    assert set(found) == {NOTHING_WRONG}


def test_under_fitting(trained: Diagnose) -> None:
    """The same with a third of the steps and less than half the rate: it was still falling."""
    found = trained(steps=40, validation_every=5, learning_rate=0.002)
    assert set(found) == {"under-fitting"}
    assert found["under-fitting"].numbers["last_quarter"] > 0.15


def test_plateau(trained: Diagnose) -> None:
    """A rate of nearly nothing: the loss never gets going."""
    found = trained(steps=40, validation_every=5, learning_rate=1e-7)
    assert set(found) == {"loss plateaued early", "under-fitting"}
    assert "Raise train.learning_rate" in found["loss plateaued early"].advice


@pytest.mark.slow
def test_spikes_name_the_picture(trained: Diagnose) -> None:
    """One of twelve pictures has latents that are four times too large."""
    found = trained(
        steps=100, validation_every=10, learning_rate=0.005, batch=1, pictures=12, broken=3
    )
    assert set(found) == {"loss spikes"}
    assert "The picture is picture-3: 100.0 % of its uses spiked." in found["loss spikes"].words


@pytest.mark.slow
def test_over_fitting(trained: Diagnose) -> None:
    """Two pictures with little in common, learnt by heart."""
    found = trained(steps=150, validation_every=10, learning_rate=0.01, pictures=2, spread=2.0)
    assert set(found) == {"over-fitting"}
    assert found["over-fitting"].numbers["gap"] > 0.2
