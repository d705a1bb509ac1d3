"""Raw pictures in, checked squares out.

Reads:  the folders of training and validation pictures (their .txt captions are caption's affair).
Writes: images/<image>.png, manifest.csv, metrics.json.
Params: prepare.

Every picture of both folders is checked before anything is accepted: one that cannot be used
stops the stage, with all others that cannot be used in the same message.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pandas as pd

from stages.contracts.errors import DatasetError, Problem
from stages.contracts.params import PrepareParams
from stages.contracts.tables import ACCEPTED, MANIFEST, write_table
from stages.imaging.colour import plain_mode, to_srgb
from stages.imaging.fit import place, scale
from stages.imaging.folder import (
    CAPTION_SUFFIX,
    FolderListing,
    concept_of,
    list_folder,
    picture_name,
    shared_names,
)
from stages.imaging.hashing import near_duplicates, perceptual_hash
from stages.imaging.inspection import PictureLimits, PictureRefusedError, read_picture
from stages.imaging.png import encode_png
from stages.imaging.quality import blur
from stages.runtime.console import run_stage
from stages.runtime.files import sha256_file, write_json
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track

_MOST_WORKERS: Final = 8
"""Each holds one decoded picture: 400 MB at the largest that the default limits let in."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    path: Path
    root: Path
    split: str
    caption_source: str


@dataclass(frozen=True)
class _Prepared:
    """A row of the manifest in the making, and what a person should know of the picture."""

    name: str
    concept: str
    split: str
    source: str
    caption_source: str
    source_sha256: str
    sha256: str
    width_px: int
    height_px: int
    exif_orientation: int
    blur: float
    perceptual_hash: int
    notes: tuple[str, ...]


def prepare(params: PrepareParams, *, images: Path, validation: Path, out: Path) -> None:
    """Write every picture of both folders as an sRGB square of `params.size_px`, and a manifest.

    Raises:
        DatasetError: there is a picture, a name or a folder that cannot be used; all are listed.
    """
    sources, problems = _sources(images, validation)
    with replace_folder(out) as work:
        (work / "images").mkdir()
        job = partial(_prepare_picture, params=params, folder=work / "images")
        results = list(track(_in_order(job, sources), len(sources), "prepare"))
        problems += [result for result in results if isinstance(result, Problem)]
        if problems:
            raise DatasetError("These pictures cannot be used", problems)
        prepared = sorted(
            (result for result in results if isinstance(result, _Prepared)), key=lambda r: r.name
        )
        twins = _twins(prepared, params.near_duplicate_bits)
        write_table(MANIFEST, _manifest(prepared, twins, params.size_px), work / "manifest.csv")
        metrics = {
            "images_total": len(sources),
            "images_accepted": len(prepared),
            "images_rejected": len(sources) - len(prepared),
            "images_upscaled": _upscaled(prepared, params),
            "near_duplicates": len(twins),
        }
        write_json(work / "metrics.json", metrics)
    _log.info("prepare: %d pictures of %d px", len(prepared), params.size_px)


def _sources(images: Path, validation: Path) -> tuple[list[_Source], list[Problem]]:
    roots = {"train": images, "validation": validation}
    listings = {split: list_folder(root) for split, root in roots.items()}
    refused = [refusal for listing in listings.values() for refusal in listing.refused]
    refused += shared_names(
        listings["train"].pictures, images, listings["validation"].pictures, validation
    )
    problems = [problem for listing in listings.values() for problem in listing.problems]
    problems += dict.fromkeys(refusal.problem for refusal in refused)
    sources = [
        _Source(path, roots[split], split, _caption_source(path, roots[split], listing))
        for split, listing in listings.items()
        for path in listing.pictures
    ]
    return sources, problems


def _caption_source(path: Path, root: Path, listing: FolderListing) -> str:
    captioned = {picture_name(caption, root) for caption in listing.captions}
    return CAPTION_SUFFIX.removeprefix(".") if picture_name(path, root) in captioned else ""


def _in_order(
    function: Callable[[_Source], _Prepared | Problem], sources: Sequence[_Source]
) -> Iterator[_Prepared | Problem]:
    """Yield the results in the order of the sources, worked out on all cores.

    Threads, not processes: decoding, scaling and encoding run outside Python's lock, and a new
    process would need longer to start than 30 pictures take.
    """
    cores = int(os.environ.get("BLOCKLENS_THREADS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(max(1, min(cores, _MOST_WORKERS))) as executor:
        yield from executor.map(function, sources)


def _prepare_picture(source: _Source, params: PrepareParams, folder: Path) -> _Prepared | Problem:
    limits = PictureLimits(params.min_side_px, params.max_pixels, params.max_aspect)
    try:
        picture = read_picture(source.path, limits)
    except PictureRefusedError as error:
        return error.problem
    # Scaled before the colours are converted: a tenth of the pixels for a phone's photograph.
    scaled = scale(plain_mode(picture.image), params.size_px, params.fit)
    colours, notes = to_srgb(scaled, params.background)
    pixels = place(colours, params.size_px, params.background)
    name = picture_name(source.path, source.root)
    data = encode_png(pixels)
    (folder / f"{name}.png").write_bytes(data)
    return _Prepared(
        name=name,
        concept=concept_of(source.path, source.root),
        split=source.split,
        source=source.path.relative_to(source.root).as_posix(),
        caption_source=source.caption_source,
        source_sha256=sha256_file(source.path),
        sha256=hashlib.sha256(data).hexdigest(),
        width_px=picture.width_px,
        height_px=picture.height_px,
        exif_orientation=picture.exif_orientation,
        blur=blur(pixels),
        perceptual_hash=perceptual_hash(pixels),
        notes=picture.notes + notes,
    )


def _twins(prepared: Sequence[_Prepared], bits: int) -> dict[str, str]:
    """Return each picture that nearly equals an earlier one -> the first such, and log all."""
    twins: dict[str, str] = {}
    for first, second in near_duplicates([picture.perceptual_hash for picture in prepared], bits):
        one, other = prepared[first], prepared[second]
        twins.setdefault(other.name, one.name)
        across = ", one of them for validation only" if one.split != other.split else ""
        _log.warning("near duplicates%s: %s and %s", across, one.source, other.source)
    return twins


def _upscaled(prepared: Sequence[_Prepared], params: PrepareParams) -> int:
    """Return how many pictures were smaller than the square they fill, and log what is to know."""
    count = 0
    for picture in prepared:
        for note in picture.notes:
            _log.warning("%s: %s", picture.source, note)
        side = (min if params.fit == "crop" else max)(picture.width_px, picture.height_px)
        if side < params.size_px:
            count += 1
            _log.warning("%s: scaled up from %d to %d px", picture.source, side, params.size_px)
    return count


def _manifest(prepared: Sequence[_Prepared], twins: dict[str, str], size_px: int) -> pd.DataFrame:
    rows = [
        {
            "image": picture.name,
            "file": f"{picture.name}.png",
            "concept": picture.concept,
            "repeats": 1,
            "regularisation": False,
            "split": picture.split,
            "status": ACCEPTED,
            "reason": "",
            "source": picture.source,
            "source_sha256": picture.source_sha256,
            "sha256": picture.sha256,
            "original_width_px": picture.width_px,
            "original_height_px": picture.height_px,
            "width_px": size_px,
            "height_px": size_px,
            "exif_orientation": picture.exif_orientation,
            "blur": picture.blur,
            "perceptual_hash": f"{picture.perceptual_hash:016x}",
            "near_duplicate_of": twins.get(picture.name, ""),
            "caption_source": picture.caption_source,
        }
        for picture in prepared
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(prepare, sections=("prepare",), paths=("images", "validation", "out"))


if __name__ == "__main__":
    main()
