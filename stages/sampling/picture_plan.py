"""Which pictures the lens looks at, in series that do not depend on one another.

A series is cut into batches of its own, so that asking for one more strength or band of blocks
does not give a block's picture other neighbours: on a GPU the place in a batch can decide how a
product is rounded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from stages.contracts.blocks import BASE, BlockId
from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params import PromptsParams, RenderParams
from stages.families.chosen_blocks import choose_blocks
from stages.sampling.prompts import NamedPrompt, name_prompts
from stages.sampling.variants import (
    FULL,
    NONE,
    REPEAT,
    Variant,
    only,
    only_group,
    random,
    strength,
    subset,
    without,
    without_group,
)

_MODES: Final[dict[str, Callable[[BlockId], Variant]]] = {"only": only, "without": without}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedPicture:
    """One picture to make."""

    prompt: NamedPrompt
    seed: int
    variant: Variant

    @property
    def file(self) -> str:
        """Its path below the stage's folder."""
        return f"images/{self.prompt.name}-{self.seed}/{self.variant.file_stem}.png"


@dataclass(frozen=True)
class Series:
    """Pictures that share batches; with a seed the model has noise in place of the adapter."""

    pictures: tuple[PlannedPicture, ...]
    noise_seed: int | None = None

    def batches(self, size: int) -> Iterator[tuple[PlannedPicture, ...]]:
        """Yield the pictures, `size` at a time."""
        for start in range(0, len(self.pictures), size):
            yield self.pictures[start : start + size]


def plan_pictures(
    params: RenderParams,
    prompts: PromptsParams,
    blocks: Sequence[BlockId],
    model_blocks: Sequence[BlockId],
) -> list[Series]:
    """Return all pictures in the order in which they are made.

    Pictures of one block lie side by side: a batch with few blocks on skips the others. `repeat`
    is a series of its own, so that its batch is made of other pictures than `full`'s.

    Args:
        params: what is asked for.
        prompts: development prompts get every variant, prompts without the trigger `none`, `full`
            and what `without_trigger_modes` says.
        blocks: those of the adapter, in model order.
        model_blocks: those of the base model, which patterns are checked against.

    Raises:
        ParamsError: patterns go beyond the base model.
    """
    named = name_prompts(prompts)
    every = (*named.develop, *named.without_trigger)
    bands, mixes = _bands(params, blocks, model_blocks)
    plan: list[tuple[Sequence[Variant], Sequence[NamedPrompt]]] = [([NONE, FULL], every)]
    plan += [([_MODES[mode](b) for b in blocks], named.develop) for mode in _once(params.modes)]
    plan += [
        ([_MODES[mode](b) for b in blocks], named.without_trigger)
        for mode in _once(params.without_trigger_modes)
    ]
    plan += [
        ([strength(value) for value in params.strengths], named.develop),
        (bands, named.develop),
        (mixes, named.develop),
        ([REPEAT], named.develop),
    ]
    series = [_series(variants, shown, prompts.seeds) for variants, shown in plan]
    if params.random_seed is not None:
        noise = _series([random(block) for block in blocks], named.develop, prompts.seeds)
        series.append(Series(noise.pictures, params.random_seed))
    return [one for one in series if one.pictures]


def _series(
    variants: Sequence[Variant], shown: Sequence[NamedPrompt], seeds: Sequence[int]
) -> Series:
    return Series(
        tuple(
            PlannedPicture(prompt, seed, variant)
            for variant in variants
            for prompt in shown
            for seed in dict.fromkeys(seeds)
        )
    )


def _bands(
    params: RenderParams, blocks: Sequence[BlockId], model_blocks: Sequence[BlockId]
) -> tuple[list[Variant], list[Variant]]:
    """Return the variants of groups and subsets, leaving out those without a block of the adapter.

    A band that is not present has no picture, since one like `none` would say "no effect".
    """
    problems: list[Problem] = []

    def members(patterns: Sequence[str], where: str) -> list[BlockId]:
        plain = [pattern for pattern in patterns if pattern != str(BASE)]
        named, beyond = choose_blocks(plain, model_blocks, where)
        problems.extend(beyond)
        wanted = {*named, *([BASE] if len(plain) < len(patterns) else [])}
        return [block for block in blocks if block in wanted]

    groups = {
        name: members(patterns, f"render.groups.{name}") for name, patterns in params.groups.items()
    }
    subsets = {
        name: {
            block: value
            for pattern, value in strengths.items()
            for block in members([pattern], f"render.subsets.{name}")
        }
        for name, strengths in params.subsets.items()
    }
    if problems:
        raise ParamsError("render names blocks that the base model lacks", problems)
    absent = [name for name, held in {**groups, **subsets}.items() if not held]
    if absent:
        _log.warning("not present in this adapter, so without pictures: %s", ", ".join(absent))
    shown = {name: held for name, held in groups.items() if held}
    bands = [
        make(name, held) for make in (only_group, without_group) for name, held in shown.items()
    ]
    return bands, [subset(name, held) for name, held in subsets.items() if held]


def prompts_of(series: Sequence[Series]) -> tuple[NamedPrompt, ...]:
    """Return the prompts that have pictures, each once, in the order in which they come."""
    return tuple(dict.fromkeys(picture.prompt for one in series for picture in one.pictures))


def _once(modes: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(modes))
