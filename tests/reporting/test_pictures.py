"""Pictures travel inside the page, small and always the same."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from stages.reporting.pictures import data_uri, full_pictures, map_thumbnail, thumbnail


def opened(uri: str) -> Image.Image:
    """Return the picture in a data URI."""
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_thumbnails_shrink_and_never_grow(tmp_path: Path) -> None:
    """A 128 pixel picture stays 128 pixels wide; a large one keeps its shape."""
    for size, expected in (((400, 200), (100, 50)), ((64, 64), (64, 64))):
        Image.new("RGB", size, (200, 40, 40)).save(tmp_path / "a.png")
        assert opened(thumbnail(tmp_path / "a.png", 100)).size == expected


def test_thumbnails_show_the_picture_and_are_stable(tmp_path: Path) -> None:
    """Colours survive, and DVC sees equal bytes."""
    Image.new("RGB", (32, 32), (200, 40, 40)).save(tmp_path / "a.png")
    once, twice = thumbnail(tmp_path / "a.png", 32), thumbnail(tmp_path / "a.png", 32)
    assert once == twice
    colour = np.asarray(opened(once).convert("RGB"))[16, 16].astype(int)
    assert np.abs(colour - (200, 40, 40)).max() <= 6


def test_maps_keep_their_levels() -> None:
    """The page turns grey into colour: a level that moves is a wrong colour."""
    levels = np.repeat(np.array([[0, 120, 255]], dtype=np.uint8), 24, axis=1).repeat(24, axis=0)
    back = np.asarray(opened(map_thumbnail(levels, 128)).convert("RGB"))
    for column in (12, 36, 60):
        assert np.abs(back[12, column].astype(int) - int(levels[12, column])).max() <= 4


def test_data_uri_is_base64() -> None:
    """Any bytes fit into an attribute."""
    assert data_uri(b"\x00\xff", "font/woff2") == "data:font/woff2;base64,AP8="


def test_pictures_are_shown_in_full_while_there_is_room(tmp_path: Path) -> None:
    """Many prompts make thumbnails of the later ones, not a page too large to mail."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png"] * 3
    full, small = thumbnail(paths[0], 96), thumbnail(paths[0], 16)
    assert full_pictures(paths, 16, 10 * len(full)) == [full] * 3
    assert full_pictures(paths, 16, len(full) + len(small)) == [full, small, small]
