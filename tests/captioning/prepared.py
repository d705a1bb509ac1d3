"""A folder of prepared pictures and the raw folder beside it, without running `prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from stages.contracts.tables import ACCEPTED, MANIFEST, SKIPPED, write_table
from stages.runtime.files import sha256_file
from tests.imaging.drawings import scenery

SIDE_PX = 64


@dataclass(frozen=True)
class Raw:
    """A picture by its path below the raw folder; a sub-folder is its concept."""

    source: str
    split: str = "train"
    repeats: int = 1
    regularisation: bool = False
    skipped: bool = False
    held_out: bool = False  # for validation, from the training folder

    @property
    def concept(self) -> str:
        """The sub-folder's name or nothing."""
        return PurePosixPath(self.source).parent.name

    @property
    def name(self) -> str:
        """The picture's name in every later stage."""
        stem = PurePosixPath(self.source).stem
        return f"{self.concept}-{stem}" if self.concept else stem


def write_prepared(folder: Path, raws: dict[str, Path], pictures: list[Raw]) -> None:
    """Write images/ and manifest.csv to `folder`, and raw pictures to `raws` by their split."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for seed, picture in enumerate(pictures):
        raw = raws["train" if picture.held_out else picture.split] / picture.source
        raw.parent.mkdir(parents=True, exist_ok=True)
        if picture.skipped:
            raw.write_bytes(b"")
        else:
            scenery(SIDE_PX, SIDE_PX, seed).save(raw)
            scenery(SIDE_PX, SIDE_PX, seed).save(folder / "images" / f"{picture.name}.png")
        rows.append(_row(folder, picture, raw))
    write_table(MANIFEST, pd.DataFrame(rows), folder / "manifest.csv")


def _row(folder: Path, picture: Raw, raw: Path) -> dict[str, object]:
    path = folder / "images" / f"{picture.name}.png"
    size = 0 if picture.skipped else SIDE_PX
    return {
        "image": picture.name,
        "file": "" if picture.skipped else path.name,
        "concept": picture.concept,
        "repeats": picture.repeats,
        "regularisation": picture.regularisation,
        "split": picture.split,
        "status": SKIPPED if picture.skipped else ACCEPTED,
        "reason": "zero bytes" if picture.skipped else "",
        "source": picture.source,
        "source_sha256": "" if picture.skipped else sha256_file(raw),
        "sha256": "" if picture.skipped else sha256_file(path),
        "original_width_px": size,
        "original_height_px": size,
        "width_px": size,
        "height_px": size,
        "exif_orientation": 0 if picture.skipped else 1,
        "upscale": 0.0 if picture.skipped else 1.0,
        "mask_sha256": "",
        "blur": 0.0 if picture.skipped else 100.0,
        "perceptual_hash": "" if picture.skipped else "0" * 16,
        "near_duplicate_of": "",
        "caption_source": "",
    }
