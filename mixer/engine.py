"""One loaded model, one stack of LoRAs on it, and a picture for every mix of blocks.

The base model and the noise levels are loaded once; a click sets gates. Another strength of a LoRA
in the stack takes the adapter off and puts the new sum on; the base stays where it is. A prompt is
embedded once. The pictures without and with the whole stack are kept for each prompt, seed and
number of steps.

Pictures are made one at a time, in a batch of one: the same mix gives the same bytes on the same
machine, but a picture of stage `render`, which has neighbours, can round differently.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from mixer.choices import Strengths
from stages.adapters.module import Adapter
from stages.adapters.partition import split_by_block
from stages.adapters.stacking import Part, stack
from stages.contracts.blocks import BlockId
from stages.contracts.params import EvaluateParams, ModelParams, Params, SamplingParams
from stages.families.flow import sampling_sigmas
from stages.imaging.heatmap import (
    HeatmapStyle,
    Scale,
    difference,
    draw_heatmap,
    peak,
    shared_scale,
)
from stages.imaging.metrics import Picture, mse, recovery
from stages.runtime.device import configure_torch
from stages.sampling.adapted_generator import adapted, load_generator
from stages.sampling.generation import Generator, Job, generate
from stages.sampling.prompts import NamedPrompt, embed_prompts, name_prompts

KEPT_REFERENCES: Final = 32
"""Pairs of reference pictures in memory; at 1024 px a pair is 6 MB."""


@dataclass(frozen=True)
class Shot:
    """What a picture is of: the words of its prompt, the seed of its noise, and its steps."""

    prompt: str
    seed: int
    steps: int


@dataclass(frozen=True)
class References:
    """The pictures of a shot without the LoRAs and with all blocks of them."""

    none: Picture
    full: Picture

    @property
    def changed(self) -> bool:
        """Whether the LoRAs do anything to this picture."""
        return not np.array_equal(self.none, self.full)


@dataclass(frozen=True)
class MixResult:
    """A mix's picture next to its references, and what can be measured of it.

    `mse_none` and `mse_full` are the distances to the references, `recovery` is None where these
    are equal. `share` is the sum of strength times share over the blocks, None where shares are not
    known. `file_bytes` are those of the mix's tensors in a file of ours.
    """

    picture: Picture
    references: References
    map_none: Picture
    map_full: Picture
    mse_none: float
    mse_full: float
    recovery: float | None
    share: float | None
    blocks_on: int
    file_bytes: int


class Mixer:
    """The model with its stack of LoRAs, until it is closed. For one thread at a time."""

    def __init__(
        self, params: Params, folder: Path, parts: Sequence[Part], shares: Strengths | None
    ) -> None:
        """Load the base model in `folder` and put the sum of `parts` on it.

        `shares` are those of a single part, or None.

        Raises:
            AdapterError: the parts cannot be stacked or do not fit the base model.
            HardwareError: a package or GPU that params.model asks for is missing.
        """
        self._folder = folder
        self._model: ModelParams = params.model
        self._sampling: SamplingParams = params.sampling.model_copy(update={"batch": 1})
        self._style = _style(params.evaluate)
        self._shares = shares
        named = name_prompts(params.prompts)
        self.steps = params.sampling.steps
        self.prompts = tuple(
            prompt.text for prompt in (*named.develop, *named.held_out, *named.without_trigger)
        )
        self._adapter = stack(parts)
        self.parts = tuple(parts)
        texts = [NamedPrompt(text, text) for text in dict.fromkeys(self.prompts)]
        self._bare = load_generator(folder, texts, self._model, self._sampling)
        self._texts = dict(self._bare.texts)
        self._references: OrderedDict[Shot, References] = OrderedDict()
        self._attached = ExitStack()
        self._adapted = self._adapt(self._adapter)

    @property
    def adapter(self) -> Adapter:
        """The sum of the stack, with all blocks as they were trained."""
        return self._adapter

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """The blocks of the stack, in model order."""
        return self._adapter.blocks

    @property
    def shares(self) -> Strengths | None:
        """Each block's share of the effect, where they are known for this very stack."""
        return self._shares if self.as_trained else None

    @property
    def as_trained(self) -> bool:
        """Whether the stack is one LoRA at strength 1."""
        return len(self.parts) == 1 and self.parts[0].strength == 1.0

    def close(self) -> None:
        """Take the adapter off; the mixer is of no use after that."""
        self._attached.close()

    def restack(self, strengths: Sequence[float]) -> None:
        """Give each LoRA of the stack another strength.

        Raises:
            AdapterError: the parts cannot be stacked at these strengths; the stack is as it was.
        """
        if len(strengths) != len(self.parts):
            raise ValueError(f"expected {len(self.parts)} strengths, got {len(strengths)}")
        parts = tuple(
            replace(part, strength=strength)
            for part, strength in zip(self.parts, strengths, strict=True)
        )
        if parts == self.parts:
            return
        adapter = stack(parts)
        self._attached.close()
        self._references.clear()
        self.parts, self._adapter = parts, adapter
        self._adapted = self._adapt(adapter)

    def render_mix(self, strengths: Strengths, shot: Shot) -> MixResult:
        """Return the picture of a mix, next to the references of its shot.

        Args:
            strengths: of every block of the stack.
            shot: what the picture is of.
        """
        references = self.references(shot)
        picture = self._draw(shot, [strengths[block] for block in self.blocks])
        none, full = references.none, references.full
        scale = shared_scale([peak(difference(none, full))])  # one for all mixes of a shot
        shares = self.shares
        return MixResult(
            picture,
            references,
            self._map("against none", picture, none, scale),
            self._map("against full", picture, full, scale),
            mse(picture, none),
            mse(picture, full),
            recovery(picture, none, full) if references.changed else None,
            None if shares is None else sum(strengths[b] * shares[b] for b in self.blocks),
            sum(strengths[block] != 0.0 for block in self.blocks),
            self._file_bytes(strengths),
        )

    def references(self, shot: Shot) -> References:
        """Return the pictures without and with the whole stack, made at most once."""
        if shot not in self._references:
            none, full = (self._draw(shot, [gate] * len(self.blocks)) for gate in (0.0, 1.0))
            self._references[shot] = References(none, full)
            if len(self._references) > KEPT_REFERENCES:
                self._references.popitem(last=False)
        self._references.move_to_end(shot)
        return self._references[shot]

    def _draw(self, shot: Shot, gates: Sequence[float]) -> Picture:
        if shot.prompt not in self._texts:
            named = NamedPrompt(shot.prompt, shot.prompt)
            found = embed_prompts(self._folder, [named], self._model, configure_torch())
            self._texts |= found
        sampling = self._sampling.model_copy(update={"steps": shot.steps})
        sigmas = sampling_sigmas(self._folder, shot.steps, sampling.size_px)
        generator = replace(self._adapted, texts=self._texts, sigmas=sigmas)
        ((_, picture),) = generate(generator, [Job(shot.prompt, shot.seed, tuple(gates))], sampling)
        return picture

    def _adapt(self, adapter: Adapter) -> Generator:
        return self._attached.enter_context(
            adapted(self._bare, adapter, self._sampling, compiled=False)
        )

    def _map(self, label: str, picture: Picture, reference: Picture, scale: Scale) -> Picture:
        return draw_heatmap(label, picture, reference, scale, self._style)

    def _file_bytes(self, strengths: Strengths) -> int:
        parts = split_by_block(self._adapter).items()
        return sum(part.tensor_bytes for block, part in parts if strengths[block] != 0.0)


def _style(params: EvaluateParams) -> HeatmapStyle:
    return HeatmapStyle(params.colour_map, params.heatmap_opacity, params.heatmap_text)
