"""Which way each metric is better. DVC's metric files cannot say it, and a review must know.

Names are `<stage>.<key>` of `data/<stage>/metrics.json`. What is not here describes the input or
the settings (pictures, steps, blocks present): it is neither good nor bad.
"""

from __future__ import annotations

from typing import Final, Literal

Direction = Literal["higher", "lower"]

BETTER: Final[dict[str, Direction]] = {
    "prepare.images_rejected": "lower",
    "prepare.exact_duplicates": "lower",
    "prepare.near_duplicates": "lower",
    "prepare.images_blurred": "lower",
    "prepare.images_strongly_upscaled": "lower",
    "caption.tokens_over_limit": "lower",
    "train.improvement": "higher",
    "train.validation_loss": "lower",
    "train.regularisation_loss": "lower",
    "train.preservation_loss": "lower",
    "attribute.completeness_error": "lower",
    "evaluate.bleed": "lower",
    "evaluate.noise_floor_mse": "lower",
    "evaluate.rank_tau": "higher",
    "slim.blocks_kept": "lower",
    "slim.bytes": "lower",
    "slim.bytes_ratio": "lower",
    "slim.recovery": "higher",
    "slim.recovery_low": "higher",
    "slim.recovery_develop": "higher",
    "slim.recovery_develop_low": "higher",
}


def worse_by(name: str, before: float, after: float) -> float:
    """Return how much worse a metric has become, in its own unit; negative if it is better.

    Raises:
        KeyError: the metric has no direction.
    """
    return before - after if BETTER[name] == "higher" else after - before
