"""The section of stage train."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, PlainValidator

from stages.contracts.block_patterns import BlockPattern
from stages.contracts.params.fields import (
    Alpha,
    Breach,
    BrokenRulesError,
    CommitHash,
    Fraction,
    Positive,
    Rank,
    Rate,
    Section,
    Seed,
    Sha256,
    Sigma,
    Text,
    check_pinned,
    rule,
)
from stages.contracts.params.idle import Use, require_effect
from stages.contracts.params.phases import Phases

OptimiserName = Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule-free-adamw"]
SchedulerName = Literal["constant", "linear", "cosine", "cosine-restarts", "polynomial"]


def _number_or_auto(value: object) -> object:
    if value != "auto" and (type(value) is not int or value < 1):
        raise ValueError("must be a whole number of at least 1, or auto")
    return value


Steps = Annotated[int | Literal["auto"], PlainValidator(_number_or_auto)]


def _check_pattern(text: str) -> str:
    BlockPattern.parse(text)
    return text


Blocks = list[Annotated[str, AfterValidator(_check_pattern)]]
"""Patterns of blocks, see contracts/block_patterns.py."""

LEAST_PRODIGY_RATE: Final = 0.1
"""Below it a rate of AdamW's was left in place by mistake."""


class BlockSetting(Section):
    """What some of the trained blocks have of their own."""

    blocks: Annotated[Blocks, Field(min_length=1)] = Field(
        description="Patterns such as double.0-3, single.7 or single; within train.blocks."
    )
    rank: Rank = Field(description="Rank of the modules of these blocks.")
    alpha: Alpha = Field(description="Their alpha: Delta W is (alpha / rank) B A.")
    learning_rate: Rate = Field(
        description="Their rate where the others have train.learning_rate or a phase's; one "
        "schedule for both."
    )


class TrainingAdapterParams(Section):
    """A LoRA that the base carries in training alone, pinned by a commit or by its hash."""

    file: Text = Field(
        description="Path of the .safetensors file: in the repository, or on this machine."
    )
    repository: Text | None = Field(
        description="Hub repository, such as ostris/FLUX.1-schnell-training-adapter, or null."
    )
    revision: CommitHash | None = Field(description="Commit of the repository.")
    sha256: Sha256 | None = Field(
        description="SHA-256 of the file; needed where there is no repository."
    )

    @rule
    def _is_pinned(self) -> None:
        check_pinned(self.repository, self.revision)
        if self.repository is None and self.sha256 is None:
            raise ValueError("a file of this machine is pinned by its hash: set sha256")


class TrainParams(Section):
    """The LoRA: its shape, its optimiser and how it is watched."""

    rank: Rank = Field(description="Rank of every module, block_settings apart.")
    alpha: Alpha = Field(description="Delta W is (alpha / rank) B A; alpha = rank gives scale 1.")
    targets: Literal["all", "attention", "attention+mlp", "kohya"] = Field(
        description="Linear layers of the blocks that get an adapter (all: 494 on FLUX.1); kohya: "
        "all, with one A for the layers that sd-scripts sees as one (304)."
    )
    blocks: Blocks = Field(
        description="Blocks that are trained: patterns such as double.0-3 or single.7; [] is all."
    )
    block_settings: list[BlockSetting] = Field(
        description="Rank, alpha and rate of single blocks; each block in one setting at most."
    )
    steps: Steps = Field(
        description="Optimiser steps; auto: 100 per training picture, at least 500, at most 4000. "
        "Those of phases come on top."
    )
    phases: Phases = Field(
        description="Phases that follow the one which rank, alpha, steps and learning_rate "
        "describe; each begins with the adapter of the one before."
    )
    batch: Positive = Field(description="Pictures per forward and backward pass.")
    accumulation: Positive = Field(
        description="Passes per step; their gradients are averaged, as those of one batch."
    )
    optimiser: OptimiserName = Field(
        description="Turns gradients into updates; adamw8bit needs a CUDA GPU and bitsandbytes."
    )
    learning_rate: Rate = Field(
        description="The optimiser's rate; prodigy finds its own and takes this as a factor: 1.0."
    )
    scheduler: SchedulerName = Field(
        description="Learning-rate schedule after warm-up; schedule-free-adamw needs constant."
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
    timesteps: Literal["sigmoid", "logit-normal", "uniform", "shifted"] = Field(
        description="Distribution of the noise level: sigmoid of a standard normal draw; of one "
        "with timestep_location and timestep_scale; uniform; or the second, shifted towards noise "
        "by resolution as FLUX.1-dev's sampler does."
    )
    timestep_location: float = Field(
        description="Mean of the normal draw of logit-normal and shifted; above 0 is more noise."
    )
    timestep_scale: Annotated[float, Field(gt=0.0)] = Field(
        description="Standard deviation of the normal draw of logit-normal and shifted."
    )
    loss_weighting: Literal["none", "sigma-sqrt", "cosmap", "min-snr"] = Field(
        description="Weight of a sample's loss by its noise level; validation has none."
    )
    min_snr_gamma: Annotated[float, Field(gt=0.0)] = Field(
        description="Largest signal-to-noise ratio that min-snr counts in full."
    )
    training_adapter: TrainingAdapterParams | None = Field(
        description="LoRA that undoes a distillation while training, off in pictures "
        "(FLUX.1-schnell), or null."
    )
    guidance: Annotated[float, Field(ge=0.0)] | None = Field(
        description="Guidance embedding in training; 1.0 keeps FLUX.1-dev's distillation intact, "
        "null leaves the embedder out (Flex.1-alpha). Models without one ignore it."
    )
    caption_dropout: Fraction = Field(description="Share of samples trained on the empty caption.")
    adapter_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        description="Share of each module's ranks that a sample is trained without."
    )
    masked_loss: bool = Field(
        description="Weigh the loss by the transparency of pictures that have any."
    )
    mask_floor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        description="Weight of a wholly transparent place, where an opaque one has 1, under "
        "masked_loss."
    )
    regularisation_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        description="Share of the samples that are regularisation or class pictures, where there "
        "are any."
    )
    regularisation_weight: Annotated[float, Field(ge=0.0)] = Field(
        description="Weight of such a sample in the loss, where another one has 1."
    )
    output_preservation: Annotated[float, Field(ge=0.0)] = Field(
        description="Weight of the difference between the model with and without the adapter on "
        "captions without the trigger; 0: not computed."
    )
    output_preservation_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        description="Share of the samples on which that difference is measured; each costs two "
        "more forward passes and a backward one."
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
    select: Literal["best", "last"] | Positive = Field(
        description="Which checkpoint becomes the adapter: best (lowest validation loss of those "
        "that did not collapse), last, or the one of this step."
    )

    @rule
    def _checkpoints_are_validated(self) -> None:
        if self.checkpoint_every % self.validation_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of "
                f"validation_every ({self.validation_every}), so that each has a loss to choose by"
            )

    @rule
    def _schedule_free_has_no_schedule(self) -> None:
        if self.optimiser == "schedule-free-adamw" and self.scheduler != "constant":
            raise ValueError(
                f"optimiser schedule-free-adamw averages its weights in place of a falling rate: "
                f"scheduler must be constant, not {self.scheduler}"
            )

    @rule
    def _prodigy_has_one_rate(self) -> None:
        factors = {self.learning_rate, *(phase.learning_rate for phase in self.phases)}
        rates = {setting.learning_rate for setting in self.block_settings}
        if self.optimiser == "prodigy" and rates and len(rates | factors) > 1:
            raise ValueError(
                "optimiser prodigy finds one rate for all blocks: every learning_rate in "
                "block_settings must be train.learning_rate, and so must every phase's"
            )
        if self.optimiser == "prodigy" and min(factors) < LEAST_PRODIGY_RATE:
            raise ValueError(
                "optimiser prodigy finds the rate itself and takes learning_rate as a factor: "
                f"{min(factors):g} would train next to nothing, 1.0 is usual"
            )

    @rule
    def _one_setting_per_block(self) -> None:
        patterns = [
            (number, text, BlockPattern.parse(text))
            for number, setting in enumerate(self.block_settings)
            for text in setting.blocks
        ]
        twice = [
            f"{text} (setting {number}) and {other_text} (setting {other_number})"
            for number, text, pattern in patterns
            for other_number, other_text, other in patterns
            if number < other_number and pattern.overlaps(other)
        ]
        if twice:
            raise ValueError(f"block_settings name blocks twice: {', '.join(twice)}")

    @rule
    def _warmup_ends(self) -> None:
        lengths = {"the run": self.steps} if isinstance(self.steps, int) else {}
        lengths |= {f"phases.{number}": phase.steps for number, phase in enumerate(self.phases)}
        remedy = "The rate would never be reached: lower it, or raise steps."
        warmup = self.warmup_steps
        breaches = [
            Breach(
                "warmup_steps", f"{warmup} are not fewer than the {steps} steps of {whose}", remedy
            )
            for whose, steps in lengths.items()
            if warmup >= steps
        ]
        if breaches:
            raise BrokenRulesError(breaches)

    @rule
    def _all_have_an_effect(self) -> None:
        drawn = self.timesteps in ("logit-normal", "shifted")
        preserved = self.output_preservation > 0
        needs = {
            "scheduler_cycles": (self.scheduler == "cosine-restarts", "scheduler: cosine-restarts"),
            "scheduler_power": (self.scheduler == "polynomial", "scheduler: polynomial"),
            "timestep_location": (drawn, "timesteps: logit-normal or shifted"),
            "timestep_scale": (drawn, "timesteps: logit-normal or shifted"),
            "min_snr_gamma": (self.loss_weighting == "min-snr", "loss_weighting: min-snr"),
            "mask_floor": (self.masked_loss, "masked_loss: true"),
            "output_preservation_share": (preserved, "an output_preservation above 0"),
        }
        uses = [Use(f"train.{key}", getattr(self, key), *need) for key, need in needs.items()]
        require_effect(uses, within="train")
