"""The phases of training that follow the first one, each checked against the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from stages.contracts.params.fields import Alpha, Positive, Rank, Rate, Section


class PhaseParams(Section):
    """A phase of training: it begins with the adapter that the one before it ends with."""

    rank: Rank = Field(
        description="Rank of every module, block_settings apart; not below the phase before."
    )
    alpha: Alpha = Field(
        description="Delta W is (alpha / rank) B A; a phase begins with the Delta W it finds."
    )
    steps: Positive = Field(description="Optimiser steps of this phase alone.")
    learning_rate: Rate = Field(
        description="The optimiser's rate; warm-up and scheduler begin anew with every phase."
    )


def _check_phases(
    value: Any, accept: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> list[PhaseParams]:
    """Return the phases; what is wrong in one and between two of them is told together.

    `info.data` holds the first phase's rank, so the field stands after `rank`.
    """
    phases: list[PhaseParams] = []
    errors: list[InitErrorDetails] = []
    try:
        phases = accept(value)
    except ValidationError as error:
        errors += [_detail(each) for each in error.errors()]
    if isinstance(value, Sequence):
        errors += _falling_ranks(info.data.get("rank"), value)
    if errors:
        raise ValidationError.from_exception_data("phases", errors)
    return phases


def _falling_ranks(rank: object, phases: Sequence[object]) -> list[InitErrorDetails]:
    """Return an error per phase whose rank is below that of the phase before."""
    errors = []
    for place, phase in enumerate(phases):
        found = phase.get("rank") if isinstance(phase, Mapping) else getattr(phase, "rank", None)
        if isinstance(rank, int) and isinstance(found, int) and found < rank:
            message = (
                f"below the {rank} of the phase before: Delta W cannot be kept at a lower rank. "
                "Stage slim is where adapters shrink"
            )
            error = PydanticCustomError("falling_rank", "{message}", {"message": message})
            errors.append(InitErrorDetails(type=error, loc=(place, "rank"), input=found))
        rank = found
    return errors


def _detail(error: Any) -> InitErrorDetails:
    """Return a reported error in the form that a new report is made from."""
    return InitErrorDetails(
        type=error["type"], loc=error["loc"], input=error["input"], ctx=error.get("ctx", {})
    )


Phases = Annotated[list[PhaseParams], WrapValidator(_check_phases)]
"""Phases in order; see PhaseParams."""
