"""The section of stage train."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.contracts.params.fields import Fraction, Positive, Section, Seed, Sigma


class TrainParams(Section):
    """The LoRA: its shape, its optimiser and how it is watched."""

    rank: Annotated[int, Field(ge=1, le=512)] = Field(description="Rank of every module.")
    alpha: Annotated[float, Field(gt=0.0)] = Field(
        description="Delta W is (alpha / rank) B A; alpha = rank gives scale 1."
    )
    targets: Literal["all", "attention", "attention+mlp"] = Field(
        description="Linear layers of the blocks that get an adapter (all: 494 on FLUX.1)."
    )
    steps: Positive = Field(description="Optimiser steps.")
    batch: Positive = Field(description="Pictures per step.")
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="AdamW's rate.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        description="Steps over which the rate rises linearly from 0."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(description="AdamW's decay.")
    gradient_clip: Annotated[float, Field(gt=0.0)] = Field(
        description="Largest norm of the whole gradient."
    )
    timesteps: Literal["sigmoid", "uniform"] = Field(
        description="Distribution of the noise level: sigmoid of a normal draw, or uniform."
    )
    guidance: Annotated[float, Field(ge=0.0)] = Field(
        description="Guidance embedding in training; 1.0 keeps FLUX.1-dev's distillation intact."
    )
    caption_dropout: Fraction = Field(description="Share of samples trained on the empty caption.")
    gradient_checkpointing: bool = Field(description="Trade time for memory in the backward pass.")
    seed: Seed = Field(description="Decides the adapter's start and every draw of the run.")
    validation_every: Positive = Field(description="Steps between two validations.")
    validation_sigmas: Annotated[list[Sigma], Field(min_length=1)] = Field(
        description="Fixed noise levels at which validation loss is measured."
    )
    checkpoint_every: Positive = Field(
        description="Steps between two checkpoints; a multiple of validation_every."
    )
    sample_every: Positive = Field(description="Steps between two sets of sample pictures.")
    sample_seed: Seed = Field(description="Noise seed of the sample pictures.")
    select: Literal["best", "last"] = Field(
        description="Which checkpoint becomes the adapter: lowest validation loss, or the last."
    )

    @model_validator(mode="after")
    def _checkpoints_are_validated(self) -> Self:
        if self.checkpoint_every % self.validation_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of "
                f"validation_every ({self.validation_every}), so that each has a loss to choose by"
            )
        return self
