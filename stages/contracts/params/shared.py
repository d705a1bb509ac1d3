"""Sections that belong to no single stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.contracts.params.fields import Positive, Section, Seed, Side, Text, rule


class ModelParams(Section):
    """How the base model is run, in training and in every picture alike."""

    precision: Literal["float32", "bfloat16"] = Field(
        description="Number format of the base model; the adapter itself is always float32."
    )
    quantisation: Literal["none", "int8", "fp8", "nf4"] = Field(
        description="Storage of the blocks' weights: none as precision says, int8 and fp8 one byte "
        "each (torchao), nf4 half a byte (bitsandbytes, GPU only). See docs/hardware.md."
    )
    offload: Literal["none", "group"] = Field(
        description="group: weights wait in main memory and come to the GPU layer by layer; slow, "
        "for cards that they do not fit on."
    )
    text_tokens: Annotated[int, Field(ge=8, le=512)] = Field(
        description="Length, in T5 tokens, that every prompt is padded or cut to (FLUX.1-dev: 512)."
    )

    @rule
    def _weights_fit_together(self) -> None:
        if self.quantisation != "none" and self.precision != "bfloat16":
            raise ValueError(
                f"quantisation: {self.quantisation} computes in bfloat16; set precision: bfloat16"
            )
        if self.quantisation != "none" and self.offload != "none":
            raise ValueError(
                f"quantisation: {self.quantisation} and offload: {self.offload} exclude each "
                "other: a quantised weight cannot be moved part by part"
            )


class SamplingParams(Section):
    """How a picture is made: the same for samples, lens and slim check."""

    size_px: Side = Field(description="Side of the square pictures that are generated, in pixels.")
    steps: Annotated[int, Field(ge=1, le=200)] = Field(description="Euler steps per picture.")
    guidance: Annotated[float, Field(ge=0.0, le=30.0)] = Field(
        description="Value given to the guidance embedding (FLUX.1-dev: 3.5)."
    )
    batch: Positive = Field(
        description="Pictures in one forward pass. With another number pictures agree to the "
        "rounding of the precision, not bit for bit."
    )


class PromptsParams(Section):
    """What the lens looks at. Development prompts choose; held-out ones only confirm."""

    develop: Annotated[list[Text], Field(min_length=1)] = Field(
        description="Prompts with the trigger, for render, attribute and the choice of blocks."
    )
    held_out: Annotated[list[Text], Field(min_length=1)] = Field(
        description="Prompts with the trigger that take no part in any choice."
    )
    without_trigger: list[Text] = Field(
        description="Prompts without the trigger, to measure how far the LoRA bleeds."
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        description="Noise seeds of the development pictures."
    )
    held_out_seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        description="Noise seeds of the held-out pictures; none may be in `seeds`."
    )

    @rule
    def _held_out_means_held_out(self) -> None:
        if shared := set(self.develop) & set(self.held_out):
            raise ValueError(f"prompts both in develop and held_out: {sorted(shared)}")
        if shared_seeds := set(self.seeds) & set(self.held_out_seeds):
            raise ValueError(f"seeds both in seeds and held_out_seeds: {sorted(shared_seeds)}")
