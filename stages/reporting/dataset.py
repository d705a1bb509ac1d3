"""The pictures the LoRA was trained on, with the captions it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.reporting.evidence import Evidence
from stages.reporting.pictures import thumbnail


@dataclass(frozen=True)
class Item:
    """One picture of the dataset."""

    name: str
    source: str
    picture: str
    caption: str
    origin: str
    change: str
    tokens: int
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
    constant_words: Sequence[str]


def show_dataset(evidence: Evidence, longest_px: int) -> Dataset | None:
    """Return all pictures with their captions, in the order of their names.

    None for a LoRA that was not trained here.
    """
    making = evidence.making
    if making is None:
        return None
    rows = making.images.merge(making.captions, on=["image", "split"], how="left")
    rows = rows.fillna({"caption": "", "origin": "none", "change": "none", "t5_tokens": 0})
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
                tokens=int(row["t5_tokens"]),
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
        tokens_over_limit=int(evidence.metrics["caption"].get("tokens_over_limit", 0)),
    )
