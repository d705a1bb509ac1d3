"""Sections of the stages that look at an adapter: from split to report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.contracts.params.fields import Fraction, Positive, Section, Seed, Sigma, Text


class SplitParams(Section):
    """Which adapter is taken apart."""

    adapter: Text = Field(description="The LoRA file; data/train/adapter.safetensors is our own.")


class RenderParams(Section):
    """Which variants get pictures."""

    modes: Annotated[list[Literal["only", "without"]], Field(min_length=1)] = Field(
        description="only: each block by itself; without: all blocks but that one."
    )


class AttributeParams(Section):
    """Integrated gradients over the block gates."""

    nodes: Annotated[int, Field(ge=1, le=64)] = Field(
        description="Gauss-Legendre nodes on the way from no LoRA to the full one."
    )
    sigmas: Annotated[list[Sigma], Field(min_length=1)] = Field(
        description="Noise levels at which the velocity is compared."
    )
    resamples: Positive = Field(description="Bootstrap resamples behind each interval.")
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(description="Interval coverage.")
    seed: Seed = Field(description="Seed of the bootstrap.")
    gradient_checkpointing: bool = Field(description="Trade time for memory in the backward pass.")


class EvaluateParams(Section):
    """Numbers and heat maps from the pictures."""

    colour_map: Literal["inferno", "magma", "viridis", "turbo", "jet"] = Field(
        description="OpenCV colour map of the heat maps."
    )
    heatmap_scale: Literal["shared", "picture"] = Field(
        description="shared: one scale for all blocks, comparable; picture: each its own."
    )
    heatmap_opacity: Fraction = Field(description="Opacity of the heat map over the picture.")
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


class ReportParams(Section):
    """The page."""

    title: Text = Field(description="Heading of the report.")
    thumbnail_px: Annotated[int, Field(ge=32, le=1024)] = Field(
        description="Longest side of the pictures in the page."
    )
