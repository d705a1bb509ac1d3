"""Raw pictures in, checked pictures of one size or of buckets out.

Reads:  the folders of training and validation pictures (their captions are caption's affair).
Writes: images/<image>.png, images/masks/<image>.png of those with transparency, manifest.csv,
        sheet.jpg, metrics.json.
Params: prepare.

Every file of both folders is checked before anything is accepted. One that cannot be used stops
the stage, with all others in the same message, or is listed in the manifest as skipped.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import pandas as pd
from PIL import Image

from stages.contracts.errors import DatasetError, Problem
from stages.contracts.params import PrepareParams
from stages.contracts.tables import ACCEPTED, MANIFEST, MASKS, SKIPPED, write_table
from stages.imaging.colour import plain_mode, to_srgb
from stages.imaging.dataset_sheet import SHOWN_CELLS, Cell, draw_dataset, make_thumbnail
from stages.imaging.fit import place, scale, upscale_factor
from stages.imaging.hashing import perceptual_hash
from stages.imaging.inspection import PictureLimits, PictureRefusedError, read_picture
from stages.imaging.png import encode_png
from stages.imaging.quality import measure
from stages.imaging.review import (
    BARS,
    BLACK,
    BLURRED,
    EXACT,
    UNIFORM,
    UPSCALED,
    VARIETY,
    Reviewed,
    Warned,
    by_picture,
    duplicate_of,
    review,
)
from stages.imaging.sources import Source, find_sources, split_of
from stages.runtime.console import run_stage
from stages.runtime.files import sha256_file, write_json
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track

_MOST_WORKERS: Final = 8
"""Each holds one decoded picture: 400 MB at the largest that the default limits let in."""

_OPAQUE: Final = 255

_PICTURE_METRICS: Final = {
    "exact_duplicates": EXACT,
    "images_blurred": BLURRED,
    "images_near_black": BLACK,
    "images_near_uniform": UNIFORM,
    "images_strongly_upscaled": UPSCALED,
    "images_with_bars": BARS,
}

_log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Prepared:
    """A row of the manifest in the making, and what a person should know of the picture."""

    origin: Source
    reviewed: Reviewed
    sha256: str
    original: tuple[int, int]
    size: tuple[int, int]
    mask_sha256: str
    exif_orientation: int
    notes: tuple[str, ...]


_Skipped = tuple[Source, Problem]


def prepare(params: PrepareParams, *, images: Path, validation: Path, out: Path) -> None:
    """Write every picture of both folders in sRGB at its target size, a manifest and a sheet.

    Raises:
        DatasetError: there is a picture, a name or a folder that cannot be used, or no picture is
            left for a split; all are listed.
    """
    sources = find_sources(images, validation, params)
    with replace_folder(out) as work:
        (work / "images").mkdir()
        job = partial(_prepare_picture, params=params, folder=work / "images")
        results = list(track(_in_order(job, sources.pictures), len(sources.pictures), "prepare"))
        prepared = sorted(
            (result for result in results if isinstance(result, _Prepared)),
            key=lambda result: result.origin.name,
        )
        skipped = [*sources.refused, *(r for r in results if not isinstance(r, _Prepared))]
        _require_usable(params, sources.problems, prepared, skipped)
        warnings = review([picture.reviewed for picture in prepared], params)
        _log_all(prepared, skipped, warnings)
        manifest = _manifest(prepared, skipped, duplicate_of(warnings))
        write_table(MANIFEST, manifest, work / "manifest.csv")
        (work / "sheet.jpg").write_bytes(_sheet(work / "images", prepared, skipped, warnings))
        write_json(work / "metrics.json", _metrics(prepared, skipped, warnings))
    _log.info("prepare: %d pictures, %d skipped", len(prepared), len(skipped))


def _in_order(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield the results in the order of the items, worked out on all cores.

    Threads, not processes: decoding, scaling and encoding run outside Python's lock, and a new
    process would need longer to start than 30 pictures take.
    """
    cores = int(os.environ.get("BLOCKLENS_THREADS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(max(1, min(cores, _MOST_WORKERS))) as executor:
        yield from executor.map(function, items)


def _prepare_picture(source: Source, params: PrepareParams, folder: Path) -> _Prepared | _Skipped:
    limits = PictureLimits(params.min_side_px, params.max_pixels, params.max_aspect)
    try:
        picture = read_picture(source.path, limits)
    except PictureRefusedError as error:
        return source, error.problem
    # Scaled before the colours are converted: a tenth of the pixels for a phone's photograph.
    scaled = scale(plain_mode(picture.image), params.size_px, params.fit, params.focus)
    colours, notes = to_srgb(scaled, params.background)
    side = params.size_px
    size = (side, side) if params.fit == "pad" else colours.size
    pixels = place(colours, size, params.background)
    data = encode_png(pixels)
    (folder / f"{source.name}.png").write_bytes(data)
    original = picture.width_px, picture.height_px
    sha256 = sha256_file(source.path)
    return _Prepared(
        origin=source,
        reviewed=Reviewed(
            name=source.name,
            source=source.relative,
            split=split_of(source, sha256, params.validation_share),
            regularisation=source.regularisation,
            source_sha256=sha256,
            perceptual_hash=perceptual_hash(pixels),
            upscale=upscale_factor(*original, params.size_px, params.fit),
            quality=measure(pixels, place(colours, colours.size, params.background)),
        ),
        sha256=hashlib.sha256(data).hexdigest(),
        original=original,
        size=(pixels.shape[1], pixels.shape[0]),
        mask_sha256=_write_mask(scaled, size, folder / MASKS / f"{source.name}.png"),
        exif_orientation=picture.exif_orientation,
        notes=picture.notes + notes,
    )


def _write_mask(image: Image.Image, size: tuple[int, int], path: Path) -> str:
    """Write how opaque a prepared picture is, and return the file's hash; "" where it all is."""
    if image.mode != "RGBA" or image.getchannel("A").getextrema() == (_OPAQUE, _OPAQUE):
        return ""
    data = encode_png(place(image.getchannel("A"), size, [0]))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _require_usable(
    params: PrepareParams,
    problems: Sequence[Problem],
    prepared: Sequence[_Prepared],
    skipped: Sequence[_Skipped],
) -> None:
    """Raise what stops the stage: all that is wrong, or a split without a picture."""
    found = list(problems)
    if params.on_invalid == "fail":
        found += dict.fromkeys(problem for _, problem in skipped)
    splits = {picture.reviewed.split for picture in prepared if not picture.origin.regularisation}
    if not found:
        remedies = {
            "train": "Put usable pictures into prepare.images, not in regularisation alone.",
            "validation": "Put usable pictures into prepare.validation_images, or raise "
            "prepare.validation_share.",
        }
        found = [
            Problem(f"split {split}", "no picture", remedy)
            for split, remedy in remedies.items()
            if split not in splits
        ]
    if found:
        raise DatasetError("These pictures cannot be used", found)


def _log_all(
    prepared: Sequence[_Prepared], skipped: Sequence[_Skipped], warnings: Sequence[Warned]
) -> None:
    for _, problem in skipped:
        _log.warning("skipped: %s", problem)
    for picture in prepared:
        reviewed, (width, height) = picture.reviewed, picture.original
        for note in picture.notes:
            _log.warning("%s: %s", reviewed.source, note)
        if reviewed.upscale > 1:
            size = f"{width}x{height} pixels"
            _log.warning(
                "%s: scaled up %.2f times from %s", reviewed.source, reviewed.upscale, size
            )
    for warned in warnings:
        if warned.kind != UPSCALED:  # said above, with its factor
            _log.warning("%s", warned.words)


def _metrics(
    prepared: Sequence[_Prepared], skipped: Sequence[_Skipped], warnings: Sequence[Warned]
) -> dict[str, int]:
    kinds = Counter(kind for kinds in by_picture(warnings).values() for kind in kinds)
    splits = Counter(picture.reviewed.split for picture in prepared)
    set_kinds = {warned.kind for warned in warnings if not warned.names}
    return {
        "images_total": len(prepared) + len(skipped),
        "images_accepted": len(prepared),
        "images_rejected": len(skipped),
        "images_train": splits["train"],
        "images_validation": splits["validation"],
        "images_regularisation": sum(picture.origin.regularisation for picture in prepared),
        "images_masked": sum(picture.mask_sha256 != "" for picture in prepared),
        "images_upscaled": sum(picture.reviewed.upscale > 1 for picture in prepared),
        **{metric: kinds[kind] for metric, kind in _PICTURE_METRICS.items()},
        "near_duplicates": len(duplicate_of(warnings)),
        "outside_kind": int(bool(set_kinds - {VARIETY})),
        "low_variety": int(VARIETY in set_kinds),
    }


def _sheet(
    folder: Path,
    prepared: Sequence[_Prepared],
    skipped: Sequence[_Skipped],
    warnings: Sequence[Warned],
) -> bytes:
    """Return the contact sheet; of a large set the pictures with something to say come first."""
    tags = by_picture(warnings)
    lost = [Cell(source.relative, ["skipped", problem.what], None) for source, problem in skipped]
    lost.sort(key=lambda cell: cell.label)
    room = max(0, SHOWN_CELLS - len(lost))
    chosen = sorted(prepared, key=lambda picture: picture.origin.name not in tags)[:room]
    chosen.sort(key=lambda picture: picture.origin.name)

    def cell(picture: _Prepared) -> Cell:
        name = picture.origin.name
        held_out = ["held out"] if picture.reviewed.split == "validation" else []
        with Image.open(folder / f"{name}.png") as image:
            thumbnail = make_thumbnail(image)
        return Cell(
            name + "".join(f" ({word})" for word in held_out), tags.get(name, []), thumbnail
        )

    cells = [*lost[:SHOWN_CELLS], *_in_order(cell, chosen)]
    total = len(prepared) + len(skipped)
    shown = "" if len(cells) == total else f", {len(cells)} of them shown"
    notes = [warned.words for warned in warnings if not warned.names]
    return draw_dataset(f"{total} pictures, {len(skipped)} skipped{shown}", notes, cells)


def _manifest(
    prepared: Sequence[_Prepared], skipped: Sequence[_Skipped], twins: dict[str, str]
) -> pd.DataFrame:
    return pd.DataFrame(
        [_accepted_row(picture, twins) for picture in prepared]
        + [_skipped_row(source, problem) for source, problem in skipped]
    )


def _accepted_row(picture: _Prepared, twins: dict[str, str]) -> dict[str, object]:
    reviewed = picture.reviewed
    return _row(picture.origin) | {
        "file": f"{reviewed.name}.png",
        "split": reviewed.split,
        "status": ACCEPTED,
        "source_sha256": reviewed.source_sha256,
        "sha256": picture.sha256,
        "original_width_px": picture.original[0],
        "original_height_px": picture.original[1],
        "width_px": picture.size[0],
        "height_px": picture.size[1],
        "exif_orientation": picture.exif_orientation,
        "upscale": reviewed.upscale,
        "mask_sha256": picture.mask_sha256,
        "blur": reviewed.quality.blur,
        "perceptual_hash": f"{reviewed.perceptual_hash:016x}",
        "near_duplicate_of": twins.get(reviewed.name, ""),
    }


def _skipped_row(source: Source, problem: Problem) -> dict[str, object]:
    return _row(source) | {"status": SKIPPED, "reason": problem.what}


def _row(source: Source) -> dict[str, object]:
    """Return a row of the manifest with what is known before the file is opened."""
    numbers = ("original_width_px", "original_height_px", "width_px", "height_px")
    empty: dict[str, object] = {
        **dict.fromkeys(MANIFEST.schema.columns, ""),
        **dict.fromkeys((*numbers, "exif_orientation"), 0),
        **dict.fromkeys(("blur", "upscale"), 0.0),
    }
    return {
        **empty,
        "image": source.name,
        "concept": source.concept,
        "repeats": source.repeats,
        "regularisation": source.regularisation,
        "split": source.split,
        "source": source.relative,
        "caption_source": source.caption_source,
    }


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(prepare, sections=("prepare",), paths=("images", "validation", "out"))


if __name__ == "__main__":
    main()
