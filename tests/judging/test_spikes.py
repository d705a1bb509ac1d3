"""Steps that stand out, and whose fault they are."""

from __future__ import annotations

import numpy as np

from stages.judging.spikes import find_spikes
from stages.judging.uses import Use

NAMES = [f"picture-{number}" for number in range(10)]


def run(
    bad: str | None, factor: float = 4.0, steps: int = 120, noise: float = 0.05
) -> tuple[dict[int, float], dict[int, list[Use]]]:
    """Return losses and uses of a run of two pictures a step; `bad` has `factor` times the loss."""
    random = np.random.default_rng(0)
    losses, uses = {}, {}
    for step in range(1, steps + 1):
        names = random.choice(NAMES, 2, replace=False)
        step_uses = [Use(str(name), float(random.uniform(0.05, 0.95))) for name in names]
        usual = [(0.3 + 2 * (use.sigma - 0.4) ** 2) * (1 + 20 / (step + 20)) for use in step_uses]
        parts = [
            loss * (factor if use.picture == bad else 1.0)
            for loss, use in zip(usual, step_uses, strict=True)
        ]
        losses[step] = float(np.mean(parts) * random.normal(1.0, noise))
        uses[step] = step_uses
    return losses, uses


def test_the_picture_is_named() -> None:
    """It is in every spike, and its neighbours in a batch are not."""
    found = find_spikes(*run("picture-7"))
    assert found is not None
    assert found.picture == "picture-7"
    assert found.factor > 2
    assert found.share > 0.5
    _, uses = run("picture-7")
    assert all("picture-7" in {use.picture for use in uses[step]} for step in found.steps)


def test_noise_levels_are_no_spikes() -> None:
    """The loss of a level may be three times another's; a run without a bad picture has none."""
    losses, uses = run(None)
    assert max(losses.values()) > 2 * min(losses.values())
    assert find_spikes(losses, uses) is None


def test_a_spike_of_no_picture_names_none() -> None:
    """Single steps that went wrong, with other pictures each time."""
    losses, uses = run(None)
    for step in (30, 60, 90, 110):
        losses[step] *= 5
    found = find_spikes(losses, uses)
    assert found is not None
    assert found.steps == (30, 60, 90, 110)
    assert found.picture is None


def test_too_few_steps_say_nothing() -> None:
    """What is usual cannot be known from ten steps."""
    assert find_spikes(*run("picture-7", steps=10)) is None


def test_one_spike_of_a_batch_accuses_nobody() -> None:
    """It may be either picture, and each was fine all other times."""
    losses, uses = run(None)
    losses[50] *= 5
    found = find_spikes(losses, uses)
    assert found is not None
    assert (found.steps, found.picture) == ((50,), None)


def test_weights_of_the_loss_are_no_spikes() -> None:
    """sigma^-2 weighs a step at low noise a hundred times; some steps may weigh nothing."""
    losses, uses = run(None)
    weighed = {
        step: [
            Use(use.picture, use.sigma, 0.0 if step % 7 == 0 else use.sigma**-2)
            for use in step_uses
        ]
        for step, step_uses in uses.items()
    }
    random = np.random.default_rng(1)
    for step, step_uses in weighed.items():
        parts = [use.weight * (0.3 + 2 * (use.sigma - 0.4) ** 2) for use in step_uses]
        losses[step] = float(np.mean(parts) * random.normal(1.0, 0.05))
    assert find_spikes(losses, weighed) is None
    losses[60] *= 5
    found = find_spikes(losses, weighed)
    assert found is not None
    assert found.steps == (60,)
