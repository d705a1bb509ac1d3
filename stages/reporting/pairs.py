"""Prompts with a seed, as `render` names them: the unit in which pictures are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

DEVELOP: Final = "develop"
WITHOUT_TRIGGER: Final = "without-trigger"


@dataclass(frozen=True)
class Pair:
    """One prompt with one seed and the picture files of its variants."""

    prompt: str
    seed: int
    text: str
    files: Mapping[str, Path]

    @property
    def key(self) -> str:
        """The pair's name in folders and in the page: develop-0-1."""
        return f"{self.prompt}-{self.seed}"

    @property
    def words(self) -> str:
        """The pair as a person would say it."""
        return f"“{self.text}”, seed {self.seed}"


def read_pairs(rendered: pd.DataFrame, folder: Path, kind: str) -> list[Pair]:
    """Return the pairs of one kind of prompt, in the order of params.yaml, then by seed."""
    rows = rendered[rendered["prompt"].str.rpartition("-")[0] == kind]
    pairs = []
    for _, group in rows.groupby(["prompt", "seed"]):
        files = {
            str(variant): folder / str(file)
            for variant, file in zip(group["variant"], group["file"], strict=True)
        }
        first = group.iloc[0]
        pairs.append(Pair(str(first["prompt"]), int(first["seed"]), str(first["text"]), files))
    return sorted(pairs, key=lambda pair: (int(pair.prompt.rpartition("-")[2]), pair.seed))
