"""The section of stage train."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from stages.contracts.params.fields import Fraction, Positive, Section, Seed, Sigma

OptimiserName = Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule-free-adamw"]
SchedulerName = Literal["constant", "linear", "cosine", "cosine-restarts", "polynomial"]


def _number_or_auto(value: object) -> object:
    if value != "auto" and (type(value) is not int or value < 1):
        raise ValueError("must be a whole number of at least 1, or auto")
    return value


Steps = Annotated[int | Literal["auto"], PlainValidator(_number_or_auto)]


class TrainParams(Section):
    """The LoRA: its shape, its optimiser and how it is watched."""

    rank: Annotated[int, Field(ge=1, le=512)] = Field(description="Rank of every module.")
    alpha: Annotated[float, Field(gt=0.0)] = Field(
        description="Delta W is (alpha / rank) B A; alpha = rank gives scale 1."
    )
    targets: Literal["all", "attention", "attention+mlp"] = Field(
        description="Linear layers of the blocks that get an adapter (all: 494 on FLUX.1)."
    )
    steps: Steps = Field(
        description="Optimiser steps; auto: 100 per training picture, at least 500, at most 4000."
    )
    batch: Positive = Field(description="Pictures per forward and backward pass.")
    accumulation: Positive = Field(
        description="Passes per step; their gradients are averaged, as those of one batch."
    )
    optimiser: OptimiserName = Field(
        description="Turns gradients into updates; adamw8bit needs a CUDA GPU and bitsandbytes."
    )
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        description="The optimiser's rate; prodigy finds its own and takes this as a factor: 1.0."
    )
    scheduler: SchedulerName = Field(
        description="Course of the rate after warm-up; schedule-free-adamw needs constant."
    )
    scheduler_cycles: Positive = Field(description="Times that cosine-restarts starts anew.")
    scheduler_power: Annotated[float, Field(gt=0.0)] = Field(
        description="Exponent of the polynomial scheduler; 1 is a straight line."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        description="Steps over which the rate rises linearly from 0."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        description="Share of the weights taken off per unit of rate and step."
    )
    gradient_clip: Annotated[float, Field(gt=0.0)] = Field(
        description="Largest norm of the whole gradient."
    )
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        description="Decay of a moving average of the weights, kept beside them; 0 keeps none."
    )
    timesteps: Literal["sigmoid", "uniform"] = Field(
        description="Distribution of the noise level: sigmoid of a normal draw, or uniform."
    )
    guidance: Annotated[float, Field(ge=0.0)] = Field(
        description="Guidance embedding in training; 1.0 keeps FLUX.1-dev's distillation intact."
    )
    caption_dropout: Fraction = Field(description="Share of samples trained on the empty caption.")
    adapter_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        description="Share of each module's ranks that a sample is trained without."
    )
    gradient_checkpointing: bool = Field(description="Trade time for memory in the backward pass.")
    seed: Seed = Field(description="Decides the adapter's start and every draw of the run.")
    validation_every: Positive = Field(description="Steps between two validations.")
    validation_sigmas: Annotated[list[Sigma], Field(min_length=1)] = Field(
        description="Fixed noise levels at which validation loss is measured."
    )
    probe_pictures: Annotated[int, Field(ge=0)] = Field(
        description="Training pictures measured as the held-out ones are, to see overfitting."
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

    @model_validator(mode="after")
    def _schedule_free_has_no_schedule(self) -> Self:
        if self.optimiser == "schedule-free-adamw" and self.scheduler != "constant":
            raise ValueError(
                f"optimiser schedule-free-adamw averages its weights in place of a falling rate: "
                f"scheduler must be constant, not {self.scheduler}"
            )
        return self
