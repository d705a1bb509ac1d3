"""What a step was made of is what it was trained on."""

from __future__ import annotations

from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded
from stages.judging.uses import uses_of_step
from stages.training.batches import draw_step, picture_of, step_samples


def test_uses_are_the_steps_own_draws(encoded: Encoded, params: TrainParams) -> None:
    """Names and noise levels, in order, without a record."""
    for step in (1, 2, 7):
        samples = step_samples(encoded, params, step)
        draws = draw_step(encoded, params, samples)
        uses = uses_of_step(encoded, params, step)
        assert [use.picture for use in uses] == [picture_of(encoded, s).name for s in samples]
        assert [use.sigma for use in uses] == [draw.sigma for draw in draws]
        assert len(uses) == params.batch
