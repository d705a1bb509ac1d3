"""What to train again: the blocks that slim kept, at the rank that gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml

from stages.contracts.errors import BlocklensError, Problem
from stages.contracts.params import Params

CURVE: Final = "data/slim/curve.csv"
STRENGTHS: Final = "data/slim/strengths.csv"
RETRAIN: Final = "data/slim/retrain/params.yaml"
TRAINED: Final = "data/train/adapter.safetensors"


class FocusError(BlocklensError, ValueError):
    """A run whose blocks cannot be trained again at another rank."""


@dataclass(frozen=True)
class Focus:
    """Blocks as train.blocks names them, how many of how many, and their rank and alpha."""

    blocks: tuple[str, ...]
    kept: int
    whole: int
    rank: int
    alpha: float

    @property
    def grid(self) -> dict[str, Sequence[Any]]:
        """Return the changes as a grid of one combination."""
        return {
            "train.blocks": [list(self.blocks)],
            "train.rank": [self.rank],
            "train.alpha": [self.alpha],
        }


def plan_focus(root: Path, params: Params) -> Focus:
    """Return what to train again after a whole run in `root`.

    A block's bytes grow with the rank: it is the largest with which the chosen blocks have no more
    of them than all blocks had. Alpha grows along, so that alpha / rank stays.

    Raises:
        FocusError: the run does not suit; every reason is named.
    """
    if problems := _unsuited(params):
        raise FocusError("The blocks of this run cannot be trained again", problems)
    sizes = pd.read_csv(root / CURVE).set_index("blocks")["bytes"]
    strengths = pd.read_csv(root / STRENGTHS)["strength"]
    kept, whole = int((strengths != 0).sum()), len(strengths)
    rank = params.train.rank * int(sizes[whole]) // int(sizes[kept])
    if rank == params.train.rank:
        what = f"{kept} of {whole} blocks are kept: their bytes buy no higher rank"
        problem = Problem(STRENGTHS, what, "Lower slim.recovery, or raise train.rank.")
        raise FocusError("The blocks of this run cannot be trained again", [problem])
    chosen = yaml.safe_load((root / RETRAIN).read_text(encoding="utf-8"))["train"]["blocks"]
    alpha = params.train.alpha * rank / params.train.rank
    return Focus(tuple(chosen), kept, whole, rank, alpha)


def _unsuited(params: Params) -> list[Problem]:
    problems = []
    if params.split.adapter != TRAINED:
        what = f"{params.split.adapter} was not trained here"
        problems.append(Problem("split.adapter", what, f"Set it to {TRAINED}."))
    for name in ("phases", "block_settings"):
        if getattr(params.train, name):
            what = "gives ranks of its own"
            problems.append(Problem(f"train.{name}", what, "Set it to []."))
    return problems
