"""What a run says before its first step: what is trained, for how long, on which pictures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from stages.adapters.attach import LoraShape
from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded
from stages.optimisation.schedule import pictures_per_step, total_steps

_log = logging.getLogger(__name__)


def announce(
    params: TrainParams, data: Encoded, plan: Mapping[str, LoraShape], parameters: int
) -> None:
    """Log the adapter's shape, steps and epochs, and what else the data holds.

    `plan` is that of `targets.plan_lora`; `parameters` how many numbers it trains: both of the
    first phase.
    """
    counts = Counter((lora.rank, lora.alpha) for lora in plan.values())
    kinds = [
        f"rank {rank}, alpha {alpha:g} on {modules} modules"
        for (rank, alpha), modules in counts.items()
    ]
    _log.info("LoRA of %s: %s parameters", "; ".join(kinds), f"{parameters:,}")
    if params.phases:
        later = [f"rank {phase.rank} for {phase.steps} steps" for phase in params.phases]
        _log.info("then, from the adapter so far: %s", ", ".join(later))
    steps, uses = total_steps(params), sum(picture.repeats for picture in data.training)
    own_share = 1 - params.regularisation_share if data.regularisation else 1
    _log.info(
        "%d steps of %d from %d pictures at %d pixels (%.0f epochs), %d held out",
        steps,
        pictures_per_step(params),
        len(data.training),
        data.size_px,
        steps * pictures_per_step(params) * own_share / uses,
        len(data.validation),
    )
    if data.regularisation:
        _log.info(
            "%d regularisation pictures, %g %% of the samples, weight %g",
            len(data.regularisation),
            100 * params.regularisation_share,
            params.regularisation_weight,
        )
    masked = sum(picture.latents.mask is not None for picture in data.training)
    if params.masked_loss:
        _log.info("loss weighed by the masks of %d pictures; the others count wholly", masked)
    elif masked:
        _log.info("%d pictures have masks, which train.masked_loss: false leaves aside", masked)
