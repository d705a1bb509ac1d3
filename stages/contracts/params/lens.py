"""Sections of the stages that look at an adapter: from split to report."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stages.contracts.block_patterns import BlockPattern
from stages.contracts.blocks import BASE
from stages.contracts.params.fields import (
    CommandPath,
    Fraction,
    Positive,
    Section,
    Seed,
    Sha256,
    Sigma,
    Text,
    rule,
)
from stages.contracts.params.idle import Use, require_effect

Mode = Literal["only", "without"]
Strength = Annotated[float, Field(ge=0.0, le=1.5)]
ChoiceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
"""Small letters: it becomes a file's name, and some systems do not tell A from a."""


def _check_pattern(text: str) -> str:
    if text != str(BASE):
        BlockPattern.parse(text)
    return text


Pattern = Annotated[str, AfterValidator(_check_pattern)]
"""Blocks of one stack, see contracts/block_patterns.py, or `base`."""


class SplitParams(Section):
    """Which adapter is taken apart."""

    adapter: CommandPath = Field(
        description="The LoRA file; data/train/adapter.safetensors is our own."
    )


class RenderParams(Section):
    """Which variants get pictures."""

    modes: Annotated[list[Mode], Field(min_length=1)] = Field(
        description="only: each block by itself; without: all blocks but that one."
    )
    without_trigger_modes: list[Mode] = Field(
        description="The same on prompts without the trigger: without shows which block to drop "
        "so that the LoRA bleeds less. Empty: those prompts get `none` and `full` alone."
    )
    strengths: list[Strength] = Field(
        description="Pictures with the whole LoRA at these strengths, 0 to 1.5."
    )
    groups: dict[ChoiceName, Annotated[list[Pattern], Field(min_length=1)]] = Field(
        description="Bands of blocks by name, such as early: [double.0-6]; each gets a picture "
        "with it alone and one without it."
    )
    subsets: dict[ChoiceName, Annotated[dict[Pattern, Strength], Field(min_length=1)]] = Field(
        description="Strength per block by name, such as faces: {double.0-6: 1.0, single.7: 0.5}; "
        "blocks that are not named are off."
    )
    random_seed: Seed | None = Field(
        description="Pictures with noise in place of each block's weights, of the same norm, as a "
        "control; the seed of the noise, or null for none."
    )
    compile: bool = Field(
        description="Compile the transformer's blocks: minutes at the start, less for each picture "
        "after that. For GPUs; not with int8, fp8 or offload (docs/hardware.md)."
    )

    @rule
    def _nothing_is_named_twice(self) -> None:
        if len(set(self.strengths)) < len(self.strengths):
            raise ValueError(f"strengths names one twice: {self.strengths}")
        if odd := [value for value in self.strengths if round(value, 3) != value]:
            raise ValueError(f"strengths with more than three decimals have no name: {odd}")
        twice = [
            f"{a} and {b} (subset {name})"
            for name, strengths in self.subsets.items()
            for a, b in combinations(sorted(strengths.keys() - {str(BASE)}), 2)
            if BlockPattern.parse(a).overlaps(BlockPattern.parse(b))
        ]
        if twice:
            raise ValueError(f"subsets give a block two strengths: {', '.join(twice)}")


class AttributeParams(Section):
    """Integrated gradients over the block gates."""

    nodes: Annotated[int, Field(ge=1, le=64)] = Field(
        description="Gauss-Legendre nodes on the way from no LoRA to the full one."
    )
    prompts: list[Text] = Field(
        description="More prompts with the trigger, beside prompts.develop. Shares need no picture"
        " per block, and prompts are what makes their ranking stable."
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        description="Noise seeds of the pictures that are noised, for each prompt."
    )
    sigmas: Annotated[list[Sigma], Field(min_length=1)] = Field(
        description="Noise levels at which the velocity is compared."
    )
    resamples: Positive = Field(description="Bootstrap resamples behind each interval.")
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(description="Interval coverage.")
    seed: Seed = Field(description="Seed of the bootstrap.")
    gradient_checkpointing: bool = Field(description="Trade time for memory in the backward pass.")


class DistanceParams(Section):
    """A model that compares pictures by what they show."""

    metric: Literal["clip", "dinov2", "lpips"] = Field(
        description="Kind of model: CLIP's picture half, DINOv2, or LPIPS on VGG16."
    )
    folder: Text = Field(
        description="Folder of its weights in transformers' layout, config.json beside "
        "model.safetensors; for LPIPS VGG16's model.safetensors alone, as timm has it."
    )
    sha256: Sha256 = Field(description="Of model.safetensors: other weights are other numbers.")


class EvaluateParams(Section):
    """Numbers and heat maps from the pictures."""

    colour_map: Literal["inferno", "magma", "viridis", "turbo", "jet"] = Field(
        description="OpenCV colour map of the heat maps."
    )
    heatmap_scale: Literal["shared", "picture"] = Field(
        description="shared: one scale for all blocks, comparable; picture: each its own."
    )
    heatmap_opacity: Fraction = Field(description="Opacity of the heat map over the picture.")
    heatmap_text: bool = Field(description="Write variant and MSE into the corners of each map.")
    sheet_rows: Positive = Field(
        description="Rows of blocks on one page of the contact sheet, 8 blocks in a row."
    )
    top: Positive = Field(description="How many first blocks `only_in_top` is the probability of.")
    distances: list[DistanceParams] = Field(
        description="Models whose distances are measured, too; needs their weights. Empty: none."
    )
    resamples: Positive = Field(description="Bootstrap resamples behind each interval.")
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(description="Interval coverage.")
    seed: Seed = Field(description="Seed of the bootstrap.")


class SlimParams(Section):
    """The smallest adapter that still does the job."""

    recovery: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        description="Recovery that the slim adapter must reach."
    )
    chooser: Literal[
        "interaction", "greedy", "shares", "shrinking", "isolate", "isolate-mse", "ablation", "norm"
    ] = Field(description="Order in which blocks are taken; see stages/slimming/choosers.py.")
    per_byte: bool = Field(description="Divide what a block does by its bytes.")
    refit_ridge: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = Field(
        description="Lets the kept blocks make up for the others by strengths of their own; the"
        " larger, the closer to 1. null: all stay at 1."
    )
    ranks: list[Positive] = Field(
        description="Smaller ranks that the slim file and the whole one are also tried at; each"
        " gives a file of its own beside the slim one."
    )
    candidates: Positive = Field(
        description="Blocks that the greedy chooser tries at each step, best shares first."
    )
    nodes: Annotated[int, Field(ge=1, le=64)] = Field(
        description="Gauss-Legendre nodes of the shares that the shrinking chooser measures anew."
    )
    sigmas: Annotated[list[Sigma], Field(min_length=1)] = Field(
        description="Noise levels at which a set of blocks is scored without pictures."
    )
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(description="Interval coverage.")
    resamples: Positive = Field(description="Bootstrap resamples behind each interval.")
    seed: Seed = Field(description="Seed of the bootstrap.")

    @rule
    def _ranks_are_named_once(self) -> None:
        if len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"ranks names one twice: {self.ranks}")

    @rule
    def _settings_of_choosers_have_an_effect(self) -> None:
        greedy, shrinking = (self.chooser == name for name in ("greedy", "shrinking"))
        uses = [
            Use("slim.candidates", self.candidates, greedy, "chooser: greedy"),
            Use("slim.nodes", self.nodes, shrinking, "chooser: shrinking"),
        ]
        require_effect(uses, within="slim")


class ReportParams(Section):
    """The page."""

    title: Text = Field(description="Heading of the report.")
    origin: CommandPath = Field(
        description="Folder with prepare/, caption/ and train/ of the run that made the LoRA: "
        "data; data/elsewhere, which is empty, for a LoRA that was not trained here."
    )
    thumbnail_px: Annotated[int, Field(ge=32, le=1024)] = Field(
        description="Longest side of the pictures in the page."
    )
