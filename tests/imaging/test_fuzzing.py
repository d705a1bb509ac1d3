"""No byte that a file may hold gets past our own error, and none makes us wait."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest

from stages.imaging.colour import plain_mode, to_srgb
from stages.imaging.fit import place, scale
from stages.imaging.hashing import perceptual_hash
from stages.imaging.inspection import PictureLimits, PictureRefusedError, read_picture
from stages.imaging.quality import measure
from tests.imaging.drawings import scenery

LIMITS = PictureLimits(min_side_px=8, max_pixels=1_000_000, max_aspect=4.0)
WHITE = (255, 255, 255)
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
MUTATIONS = 250
"""Per format; 2,000 in all."""
LIMIT_S = 20.0
"""Longest that one picture may take: some thousand times what a sound one of this size takes."""


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return the file with some bytes overwritten, cut out, doubled or filled in."""
    changed = bytearray(data)
    # Half of the changes hit the first bytes: that is where headers and sizes are.
    reach = len(changed) if rng.random() < 0.5 else min(len(changed), 200)
    for _ in range(int(rng.integers(1, 9))):
        at, length = int(rng.integers(0, reach)), int(rng.integers(1, 9))
        choice = rng.integers(0, 4)
        if choice == 0:
            changed[at : at + length] = rng.bytes(length)
        elif choice == 1:
            del changed[at : at + length]
        elif choice == 2:
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + length] = rng.choice([b"\xff", b"\x00", b"\x7f"]) * length
    return bytes(changed)


def take_in(path: Path) -> bool:
    """Return whether a picture is accepted, having done to it all that `prepare` does."""
    try:
        picture = read_picture(path, LIMITS)
    except PictureRefusedError:
        return False
    colours, _ = to_srgb(scale(plain_mode(picture.image), 64, "crop", "saliency"), WHITE)
    pixels = place(colours, (64, 64), WHITE)
    assert pixels.shape == (64, 64, 3)
    assert 0 <= perceptual_hash(pixels) < 2**64
    assert measure(pixels, pixels).blur >= 0
    return True


def within_the_limit(path: Path) -> bool:
    """Return what `take_in` does; a picture that hangs fails the test instead of stopping it."""
    answers: list[bool | Exception] = []

    def work() -> None:
        try:
            answers.append(take_in(path))
        except Exception as error:  # noqa: BLE001  # raised again in the test's own thread
            answers.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert answers, f"{path} took more than {LIMIT_S:g} s"
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def fuzz(folder: Path, kind: str, mutations: int) -> int:
    """Return how many of the mutations of one format's file were still accepted."""
    rng = np.random.default_rng(KINDS.index(kind))
    buffer = io.BytesIO()
    scenery(48, 40).save(buffer, kind)
    path = folder / f"picture.{kind.lower()}"
    accepted = 0
    for _ in range(mutations):
        path.write_bytes(mutated(buffer.getvalue(), rng))
        accepted += within_the_limit(path)
    return accepted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_accepted_or_refused(tmp_path: Path, kind: str) -> None:
    """Whatever a disk or a network did to a file, the answer is a picture or a refusal."""
    assert 0 < fuzz(tmp_path, kind, MUTATIONS) < MUTATIONS
