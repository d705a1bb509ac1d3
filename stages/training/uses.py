"""Which pictures a step was made of, and at which noise levels: told again after the run.

Every draw is keyed (batches.py), so this is a function of the data and the params alone: it needs
no record, and it is the same for a run that was resumed or ran on several GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.contracts.params import TrainParams
from stages.training.batches import draw_sample, samples_of_step
from stages.training.encoded import Encoded
from stages.training.noise_levels import NoiseLevels


@dataclass(frozen=True)
class Use:
    """A picture's name and the noise level, in (0, 1), that a step trained it at."""

    picture: str
    sigma: float


def uses_of_step(data: Encoded, params: TrainParams, step: int) -> tuple[Use, ...]:
    """Return what the step (the first is 1) was made of, in all processes together."""
    repeats = [picture.repeats for picture in data.training]
    uses = []
    for sample in samples_of_step(step, params.batch, repeats, params.seed):
        picture = data.training[sample.picture]
        draw = draw_sample(
            picture,
            data.empty,
            sample.use,
            params.seed,
            levels=NoiseLevels.from_params(params),
            dropout=params.caption_dropout,
        )
        uses.append(Use(picture.name, draw.sigma))
    return tuple(uses)
