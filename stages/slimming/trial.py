"""Whether a slimmer LoRA still does the job, by pictures.

Blocks have strengths: 0 is off, 1 as trained. A row of them is judged by the recovery of its
pictures, 1 - MSE(row, full) / MSE(none, full), and the bootstrap's lower bound over prompts and
seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from stages.contracts.errors import AdapterError, Problem
from stages.contracts.params import SamplingParams
from stages.imaging.metrics import Picture, recovery
from stages.lens.rankings import Resampling
from stages.lens.selection import smallest_passing
from stages.lens.statistics import bootstrap_interval
from stages.runtime.crew import Crew
from stages.runtime.progress import track
from stages.sampling.generation import Job
from stages.sampling.prompts import NamedPrompt
from stages.sampling.session import AS_TRAINED, AdapterVersion, Session, draw_all

Measure: TypeAlias = Callable[[Sequence[int]], list[list[float]]]
"""From sizes to the recoveries of each on a trial's shots."""


@dataclass(frozen=True)
class Shots:
    """Prompts crossed with seeds: (name of the prompt, seed), seeds fastest."""

    prompts: tuple[NamedPrompt, ...]
    seeds: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Iterate over the shots."""
        return iter([(prompt.name, seed) for prompt in self.prompts for seed in self.seeds])

    def __len__(self) -> int:
        """Return the number of shots."""
        return len(self.prompts) * len(self.seeds)

    def of_prompts(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return [shots, …] of values [prompts, …]: a prompt's seeds have the same."""
        return np.repeat(rows, len(self.seeds), axis=0)


@dataclass(frozen=True)
class Renderer:
    """Who makes pictures with any strengths of the `blocks` of a version of the adapter."""

    crew: Crew[Session]
    blocks: int
    sampling: SamplingParams
    version: AdapterVersion = AS_TRAINED

    def draw(
        self, shots: Sequence[tuple[str, int]], strengths: Sequence[npt.ArrayLike]
    ) -> list[list[Picture]]:
        """Return for each of `strengths` its pictures, in the order of `shots`.

        Args:
            shots: prompts and seeds.
            strengths: each [blocks], or [shots, blocks] where every shot has its own.
        """
        jobs = [
            Job(prompt, seed, tuple(np.asarray(row, dtype=np.float64).tolist()))
            for one in strengths
            for (prompt, seed), row in zip(shots, _per_shot(one, len(shots)), strict=True)
        ]
        made = draw_all(self.crew, self.version, jobs, self.sampling.batch)
        pictures = [*track(made, len(jobs), "slim: pictures")]
        return [pictures[start : start + len(shots)] for start in range(0, len(jobs), len(shots))]

    def measure(self, trial: Trial, strengths: Sequence[npt.ArrayLike]) -> list[list[float]]:
        """Return for each of `strengths` the recoveries of the trial's shots; see `draw`."""
        return [trial.recoveries(pictures) for pictures in self.draw([*trial.shots], strengths)]


def _per_shot(strengths: npt.ArrayLike, shots: int) -> npt.NDArray[np.float64]:
    row = np.asarray(strengths, dtype=np.float64)
    return np.broadcast_to(row, (shots, row.shape[-1]))


@dataclass(frozen=True)
class Verdict:
    """Mean recovery over prompts and seeds, and the lower end of its interval."""

    recovery: float
    low: float


@dataclass(frozen=True)
class Trial:
    """Shots and their pictures without and with the whole LoRA."""

    shots: Shots
    none: list[Picture]
    full: list[Picture]

    def recoveries(self, pictures: Sequence[Picture]) -> list[float]:
        """Return the recovery of each of `pictures`, one per shot."""
        return [
            recovery(picture, none, full)
            for picture, none, full in zip(pictures, self.none, self.full, strict=True)
        ]

    def judge(self, recoveries: Sequence[float], resampling: Resampling) -> Verdict:
        """Return how much of the LoRA's effect there is in pictures of these recoveries."""
        crossed = np.array(recoveries).reshape(len(self.shots.prompts), len(self.shots.seeds))
        low, _ = bootstrap_interval(
            crossed, resampling.resamples, resampling.confidence, resampling.seed
        )
        return Verdict(float(crossed.mean()), low)


def draw_references(renderer: Renderer, groups: Sequence[Shots], adapter: Path) -> list[Trial]:
    """Return each group of shots with its pictures of `none` and `full`.

    Raises:
        AdapterError: the LoRA does not change a picture.
    """
    shots = [shot for group in groups for shot in group]
    none, full = renderer.draw(shots, [np.zeros(renderer.blocks), np.ones(renderer.blocks)])
    problems = [
        Problem(
            f"prompt {prompt}, seed {seed}",
            "the picture is the same with and without the LoRA",
            "Train it longer, or choose a prompt that shows it.",
        )
        for (prompt, seed), bare, adapted in zip(shots, none, full, strict=True)
        if np.array_equal(bare, adapted)
    ]
    if problems:
        raise AdapterError(f"There is nothing to recover of {adapter}", problems)
    trials = []
    for group in groups:
        count = len(group)
        trials.append(Trial(group, none[:count], full[:count]))
        none, full = none[count:], full[count:]
    return trials


def find_size(
    trial: Trial, whole: int, asked: float, at_once: int, resampling: Resampling, measure: Measure
) -> tuple[int, dict[int, Verdict]]:
    """Return the smallest size whose lower bound is `asked`, and the verdicts so far.

    Larger sizes are taken to pass where smaller ones do; the whole adapter always passes.

    Args:
        trial: the shots that judge.
        whole: the largest size.
        asked: recovery that the lower bound must reach, in 0..1.
        at_once: sizes that are drawn together.
        resampling: of the lower bound.
        measure: draws and measures sizes.
    """
    tried = {0: Verdict(0.0, 0.0), whole: Verdict(1.0, 1.0)}  # none and full, by definition

    def passing(sizes: Sequence[int]) -> list[bool]:
        for size, recoveries in zip(sizes, measure(sizes), strict=True):
            tried[size] = trial.judge(recoveries, resampling)
        return [tried[size].low >= asked for size in sizes]

    return smallest_passing(whole, at_once, passing), tried
