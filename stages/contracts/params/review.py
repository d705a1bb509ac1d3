"""The section of the review: what may get worse before a change is refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from stages.contracts.metrics import BETTER
from stages.contracts.params.fields import Section

Allowance = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class ReviewParams(Section):
    """What `python -m flows.review` holds a change to."""

    limits: dict[str, Allowance] = Field(
        description="How much a metric may get worse, in its own unit: <stage>.<key>: amount."
    )

    @field_validator("limits")
    @classmethod
    def _have_a_direction(cls, limits: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(limits) - set(BETTER)):
            raise ValueError(
                f"no such metric, or neither way is better: {unknown}. Known: {sorted(BETTER)}"
            )
        return limits
