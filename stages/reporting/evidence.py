"""All that the pipeline found out about one LoRA, read and checked before a word is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pandas as pd

from stages.contracts.blocks import BASE, BlockId, numbered_blocks
from stages.contracts.errors import Problem, TableError
from stages.contracts.tables import (
    BLOCKS,
    CAPTIONS,
    CURVE,
    DIAGNOSIS,
    HISTORY,
    MANIFEST,
    PICTURES,
    RENDERED,
    SCORES,
    WORDS,
    Table,
    accepted,
    read_table,
)

Metrics = Mapping[str, float]
Content = TypeVar("Content")

METRIC_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "split": ("double_blocks", "single_blocks"),
    "train": (
        "validation_loss_base",
        "validation_loss",
        "improvement",
        "selected_step",
        "selected_weights",
        "selected_because",
    ),
    "attribute": ("completeness_error", "blocks_for_half"),
    "evaluate": ("effect_mse", "heatmap_top", "prompts", "seeds"),
    "slim": ("blocks_kept", "bytes", "bytes_ratio", "recovery", "recovery_low"),
}
"""What the page cannot be written without, by stage; other metrics are shown where they exist."""


@dataclass(frozen=True)
class Folders:
    """Where each stage's outputs lie; `manifest` and `adapter` are files."""

    manifest: Path
    adapter: Path
    prepared: Path
    captioned: Path
    trained: Path
    split: Path
    rendered: Path
    attributed: Path
    evaluated: Path
    slimmed: Path


@dataclass(frozen=True)
class BlockResult:
    """A block of the base model and what was measured of it; None where there is no such number.

    A block that is not present has no row in any table, which is not the same as a row of zeros.
    """

    block: BlockId
    present: bool
    kept: bool
    numbers: Mapping[str, float]

    def number(self, name: str) -> float | None:
        """Return a column of the BLOCKS table, or None where it is empty or the block absent."""
        return self.numbers.get(name)


@dataclass(frozen=True)
class Making:
    """The tables on how the LoRA was made, and from what."""

    images: pd.DataFrame
    captions: pd.DataFrame
    words: pd.DataFrame
    history: pd.DataFrame
    scores: pd.DataFrame
    diagnosis: pd.DataFrame


@dataclass(frozen=True)
class Evidence:
    """The checked content of all folders; tables as in stages/contracts/tables.py.

    `making` is None for a LoRA that was not trained here; then `metrics` has nothing of `prepare`,
    `caption` and `train`.
    """

    folders: Folders
    weights: Mapping[str, Any]
    metrics: Mapping[str, Metrics]
    making: Making | None
    rendered: pd.DataFrame
    measured: pd.DataFrame
    curve: pd.DataFrame
    blocks: tuple[BlockResult, ...]

    @property
    def present(self) -> tuple[BlockResult, ...]:
        """The blocks that the LoRA has weights for, in model order."""
        return tuple(result for result in self.blocks if result.present)

    @property
    def ranked(self) -> tuple[BlockResult, ...]:
        """The present blocks, largest share first; equal shares in model order."""
        return tuple(sorted(self.present, key=lambda result: -result.numbers["share"]))


def read_evidence(folders: Folders) -> Evidence:
    """Return everything that the report shows, except the pictures themselves.

    Raises:
        TableError: files are missing or break their contract; all of them are named.
    """
    problems: list[Problem] = []
    made_here = is_made_here(folders)
    makings = _making_places(folders) if made_here else {}
    tables = {
        name: _collect(problems, lambda at=at: read_table(*at))  # type: ignore[misc]
        for name, at in (_table_places(folders) | makings).items()
    }
    metrics = {
        stage: _collect(problems, lambda at=(stage, folder): _read_metrics(*at))  # type: ignore[misc]
        for stage, folder in _metric_places(folders, made_here).items()
    }
    weights = _collect(problems, lambda: _read_json(folders.manifest))
    if not folders.adapter.is_file():
        problems.append(Problem(str(folders.adapter), "missing", "Check params split.adapter."))
    if problems:
        raise TableError("The report cannot be written", problems)
    making = None
    if made_here:
        own = {name: tables.pop(name) for name in makings}
        making = Making(**own | {"images": accepted(own["images"])})
    blocks = _block_results(
        metrics["split"], tables.pop("blocks"), tables["curve"], metrics["slim"]
    )
    return Evidence(folders, weights, metrics, making, blocks=blocks, **tables)


def is_made_here(folders: Folders) -> bool:
    """Return whether the folders of prepare, caption and train have anything in them.

    All three are empty, but for hidden files, for a LoRA that was not trained here; one that is
    empty alone, or missing, lacks something.
    """
    made = (folders.prepared, folders.captioned, folders.trained)
    return any(
        not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())
        for folder in made
    )


def _making_places(folders: Folders) -> dict[str, tuple[Table, Path]]:
    return {
        "images": (MANIFEST, folders.prepared / "manifest.csv"),
        "captions": (CAPTIONS, folders.captioned / "captions.csv"),
        "words": (WORDS, folders.captioned / "words.csv"),
        "history": (HISTORY, folders.trained / "history.csv"),
        "scores": (SCORES, folders.trained / "scores.csv"),
        "diagnosis": (DIAGNOSIS, folders.trained / "diagnosis.csv"),
    }


def _table_places(folders: Folders) -> dict[str, tuple[Table, Path]]:
    return {
        "rendered": (RENDERED, folders.rendered / "index.csv"),
        "blocks": (BLOCKS, folders.evaluated / "blocks.csv"),
        "measured": (PICTURES, folders.evaluated / "pictures.csv"),
        "curve": (CURVE, folders.slimmed / "curve.csv"),
    }


def _metric_places(folders: Folders, made_here: bool) -> dict[str, Path]:
    making = {
        "prepare": folders.prepared,
        "caption": folders.captioned,
        "train": folders.trained,
    }
    return (making if made_here else {}) | {
        "split": folders.split,
        "attribute": folders.attributed,
        "evaluate": folders.evaluated,
        "slim": folders.slimmed,
    }


def _collect(problems: list[Problem], read: Callable[[], Content]) -> Content:
    """Return what `read` returns; where it fails, keep the problem for one message at the end."""
    try:
        return read()
    except TableError as error:
        problems.extend(error.problems or [Problem(error.summary, "see above", "Run `dvc repro`.")])
        return None  # type: ignore[return-value]  # never used: the problems are raised first


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = Problem(str(path), f"cannot be read ({error})", "Run `dvc repro`.")
        raise TableError("A file of the pipeline cannot be read", [problem]) from error
    return content


def _read_metrics(stage: str, folder: Path) -> dict[str, float]:
    path = folder / "metrics.json"
    content = _read_json(path)
    lacking = [key for key in METRIC_KEYS.get(stage, ()) if key not in content]
    if lacking:
        remedy = f"Run `dvc repro --force {stage}`."
        raise TableError(
            f"{path} is incomplete",
            [Problem(f"{path} {key}", "missing", remedy) for key in lacking],
        )
    return content


def _block_results(
    split: Metrics, table: pd.DataFrame, curve: pd.DataFrame, slim: Metrics
) -> tuple[BlockResult, ...]:
    """Return all blocks of the base model in its order, `base` last."""
    every = [*numbered_blocks(int(split["double_blocks"]), int(split["single_blocks"])), BASE]
    rows = {str(row.pop("block")): row for row in table.to_dict("records")}
    order = curve.sort_values("blocks")
    kept = {str(name) for name in order.loc[order["blocks"] <= slim["blocks_kept"], "added"]}
    return tuple(
        BlockResult(
            block=block,
            present=str(block) in rows,
            kept=str(block) in kept,
            numbers={
                str(name): float(value)
                for name, value in rows.get(str(block), {}).items()
                if not pd.isna(value)
            },
        )
        for block in every
    )
