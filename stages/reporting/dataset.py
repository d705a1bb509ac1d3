"""The pictures the LoRA was trained on, with the captions it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stages.reporting.evidence import Evidence, Metrics
from stages.reporting.pictures import thumbnail
from stages.reporting.words import count

_WARNED_OF: Final = {
    "images_rejected": "rejected",
    "exact_duplicates": "the same as another one",
    "images_blurred": "blurred",
    "images_strongly_upscaled": "strongly enlarged",
    "images_with_bars": "with bars at the edges",
    "images_near_black": "almost black",
    "images_near_uniform": "almost of one colour",
}
"""Counts of stage `prepare` that deserve a second look, in words; see docs/dataset.md."""


@dataclass(frozen=True)
class Item:
    """One picture of the dataset."""

    name: str
    source: str
    picture: str
    caption: str
    origin: str
    change: str
    clip_tokens: int
    t5_tokens: int
    cut: bool
    original_size: str
    near_duplicate_of: str
    turned: bool


@dataclass(frozen=True)
class Dataset:
    """Training and validation pictures, and what is worth a second look."""

    training: Sequence[Item]
    validation: Sequence[Item]
    generated: int
    near_duplicates: int
    tokens_over_limit: int
    clip_tokens: str
    t5_tokens: str
    warnings: Sequence[str]
    constant_words: Sequence[str]


def show_dataset(evidence: Evidence, longest_px: int) -> Dataset | None:
    """Return all pictures with their captions, in the order of their names.

    None for a LoRA that was not trained here.
    """
    making = evidence.making
    if making is None:
        return None
    rows = making.images.merge(making.captions, on=["image", "split"], how="left")
    rows = rows.fillna({"caption": "", "origin": "none", "change": "none"})
    rows = rows.fillna({"clip_tokens": 0, "t5_tokens": 0, "clip_cut": 0.0, "t5_cut": 0.0})
    items: dict[str, list[Item]] = {"train": [], "validation": []}
    for row in rows.sort_values("image").to_dict("records"):
        picture = thumbnail(evidence.folders.prepared / "images" / row["file"], longest_px)
        items[row["split"]].append(
            Item(
                name=row["image"],
                source=row["source"],
                picture=picture,
                caption=row["caption"],
                origin=row["origin"],
                change=row["change"],
                clip_tokens=int(row["clip_tokens"]),
                t5_tokens=int(row["t5_tokens"]),
                cut=max(row["clip_cut"], row["t5_cut"]) > 0.0,
                original_size=f"{row['original_width_px']} × {row['original_height_px']}",
                near_duplicate_of=row["near_duplicate_of"],
                turned=row["exif_orientation"] != 1,
            )
        )
    return Dataset(
        training=items["train"],
        validation=items["validation"],
        generated=sum(item.origin == "generated" for item in items["train"]),
        near_duplicates=sum(bool(item.near_duplicate_of) for item in items["train"]),
        constant_words=making.words.loc[making.words["share"] == 1.0, "word"].tolist(),
        clip_tokens=_range([item.clip_tokens for item in items["train"]]),
        t5_tokens=_range([item.t5_tokens for item in items["train"]]),
        warnings=_warnings(evidence.metrics["prepare"]),
        tokens_over_limit=int(evidence.metrics["caption"].get("tokens_over_limit", 0)),
    )


def _range(numbers: Sequence[int]) -> str:
    """Return `15 to 17`, or `15` where all are the same; empty for none."""
    if not numbers:
        return ""
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def _warnings(prepared: Metrics) -> list[str]:
    """Return what stage `prepare` warned of, `2 pictures blurred`; near duplicates apart."""
    found = [
        f"{count(int(prepared[key]), 'picture')} {words}"
        for key, words in _WARNED_OF.items()
        if prepared.get(key, 0) > 0
    ]
    if prepared.get("low_variety", 0) > 0:
        found.append("most pictures look alike")
    if prepared.get("outside_kind", 0) > 0:
        found.append("an unusual number of pictures for prepare.kind")
    return found
