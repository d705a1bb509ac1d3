"""The LoRA of few blocks at a higher rank beside the one of all blocks, at equal bytes."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from flows.focus_plan import Focus
from flows.review.pictures import Shown, draw_pictures
from flows.review.revisions import fetch_output
from stages.contracts.errors import BlocklensError

PICTURES: Final = "data/slim/images"
TRAIN: Final = "data/train/metrics.json"
SLIM: Final = "data/slim/metrics.json"
SHOWN_SHOTS: Final = 4
Picture = npt.NDArray[np.float64]

PAGE: Final = """\
# Few blocks at a higher rank

Written by `{command}`; do not edit.

The LoRA of `params.yaml` has all {blocks} blocks at rank {rank}. Stage slim kept {blocks_kept} of
them: {chosen}. Those alone were trained again from nothing, same data, seed and steps, at rank
{rank_again} (alpha {alpha:g}), the largest that is no more bytes.

{table}

Validation loss: {verdict} (before training {validation_loss_base:.6f}). It says which of the two
predicts pictures better that neither has seen. Recovery says how much of the first LoRA's effect is
in the pictures of {held_out_pictures} held-out prompts and seeds; a LoRA trained again may draw as
well and yet otherwise (below 0: farther from them than pictures without a LoRA are). One training
each: a small difference holds for this seed.

![Without a LoRA, all blocks, slimmed, trained again]({picture})

The second training is the experiment `{name}`;
`dvc exp apply` brings it into the working tree.
"""
_COLUMNS: Final = (
    "LoRA",
    "blocks",
    "rank",
    "parameters",
    "bytes",
    "validation loss",
    "recovery",
)


class PicturesError(BlocklensError, RuntimeError):
    """Pictures of a run that are in no cache within reach."""


@dataclass(frozen=True)
class Comparison:
    """Both LoRAs' metrics, and a picture that shows them on the same prompts and noise."""

    metrics: dict[str, float]
    picture: bytes


def compare(
    root: Path, name: str, focused: Mapping[str, Mapping[str, float]], plan: Focus, rank: int
) -> Comparison:
    """Return the run in the working tree (its LoRA of rank `rank`) beside the experiment `name`.

    `focused` has the experiment's metrics by file. Recovery is the mean over held-out pictures of
    1 - MSE(picture, full) / MSE(none, full), `none` and `full` being the first run's.

    Raises:
        PicturesError: the pictures of one of the two are nowhere.
    """
    train, slim = (json.loads((root / file).read_text(encoding="utf-8")) for file in (TRAIN, SLIM))
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "first", Path(folder) / "again"
        for revision, place in ((None, ours), (name, theirs)):
            if not fetch_output(root, revision, PICTURES, place):
                what = "the working tree" if revision is None else revision
                raise PicturesError(f"{PICTURES} of {what} is neither here nor in DVC's cache")
        shots = sorted(path.name for path in ours.iterdir() if path.is_dir())
        slimmed = [_recovery(ours / shot, ours / shot / "slim.png") for shot in shots]
        again = [_recovery(ours / shot, theirs / shot / "full.png") for shot in shots]
        picture = draw_pictures([_shown(ours, theirs, shot) for shot in shots[:SHOWN_SHOTS]])
    metrics = {
        "blocks": plan.whole,
        "blocks_kept": plan.kept,
        "rank": rank,
        "rank_again": plan.rank,
        "bytes": train["adapter_bytes"],
        "bytes_slim": slim["bytes"],
        "bytes_again": focused[TRAIN]["adapter_bytes"],
        "parameters": train["trainable_parameters"],
        "parameters_again": focused[TRAIN]["trainable_parameters"],
        "validation_loss_base": train["validation_loss_base"],
        "validation_loss": train["validation_loss"],
        "validation_loss_again": focused[TRAIN]["validation_loss"],
        "recovery_slim": _rounded(slimmed),
        "recovery_again": _rounded(again),
        "held_out_pictures": len(shots),
    }
    return Comparison(metrics, picture)


def write_focus(path: Path, made: Comparison, plan: Focus, name: str, command: str) -> str:
    """Return the page, after writing it, its picture (.jpg) and its metrics (.json)."""
    text = PAGE.format(
        **made.metrics,
        command=command,
        name=name,
        picture=path.with_suffix(".jpg").name,
        chosen=", ".join(f"`{block}`" for block in plan.blocks),
        alpha=plan.alpha,
        table=_table(made.metrics),
        verdict=_verdict(made.metrics["validation_loss"], made.metrics["validation_loss_again"]),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".jpg").write_bytes(made.picture)
    numbers = json.dumps(made.metrics, indent=2, sort_keys=True)
    path.with_suffix(".json").write_text(numbers + "\n", encoding="utf-8")
    return text


def _table(found: Mapping[str, float]) -> str:
    """Return the Markdown table; an empty cell was not measured."""
    kept = str(found["blocks_kept"])
    rows = [
        _COLUMNS,
        ("---", *["---:"] * (len(_COLUMNS) - 1)),
        (
            "all blocks",
            str(found["blocks"]),
            str(found["rank"]),
            f"{found['parameters']:,}",
            f"{found['bytes']:,}",
            f"{found['validation_loss']:.6f}",
            "1.000",
        ),
        (
            "all blocks, slimmed",
            kept,
            str(found["rank"]),
            "",
            f"{found['bytes_slim']:,}",
            "",
            f"{found['recovery_slim']:.3f}",
        ),
        (
            "few blocks, trained again",
            kept,
            str(found["rank_again"]),
            f"{found['parameters_again']:,}",
            f"{found['bytes_again']:,}",
            f"{found['validation_loss_again']:.6f}",
            f"{found['recovery_again']:.3f}",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _verdict(first: float, again: float) -> str:
    if first == again:
        return "the same"
    word = "lower" if again < first else "higher"
    return f"that of the few blocks is {abs(first - again) / first:.1%} {word}"


def _recovery(references: Path, picture: Path) -> float:
    none, full, shown = map(_pixels, (references / "none.png", references / "full.png", picture))
    return 1 - float(np.mean((shown - full) ** 2)) / float(np.mean((none - full) ** 2))


def _shown(ours: Path, theirs: Path, shot: str) -> Shown:
    files: Sequence[tuple[str, Path]] = (
        ("without", ours / shot / "none.png"),
        ("all blocks", ours / shot / "full.png"),
        ("slimmed", ours / shot / "slim.png"),
        ("trained again", theirs / shot / "full.png"),
    )
    return Shown(shot, "held out", tuple((label, _opened(file)) for label, file in files))


def _pixels(path: Path) -> Picture:
    return np.asarray(_opened(path), dtype=np.float64)


def _opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")


def _rounded(values: Sequence[float]) -> float:
    return float(f"{np.mean(values):.6g}")
