"""A 64-bit hash that changes little when a picture changes little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

HASH_BITS: Final = 64
_SIDE: Final = 32
_KEPT: Final = 8
_COEFFICIENT_DIGITS: Final = 3


def perceptual_hash(pixels: npt.NDArray[np.uint8]) -> int:
    """Return the picture's hash, 0 to 2^64 - 1.

    The picture is reduced to 32x32 grey; of its cosine transform the 8x8 lowest frequencies each
    give one bit: over the median or not (N. Krawetz, "Looks Like It", hackerfactor.com, 2011).

    Args:
        pixels: uint8 [H, W, 3], RGB.
    """
    small = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.float64)
    basis = _cosines()
    # Rounded, or the bits of a plain picture would be decided by rounding errors.
    low = np.round(basis @ grey @ basis.T, _COEFFICIENT_DIGITS)
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicates(hashes: Sequence[int], bits: int) -> list[tuple[int, int]]:
    """Return all pairs of positions (first < second) whose hashes differ in at most `bits` bits."""
    values = np.array(hashes, dtype=np.uint64)
    pairs = []
    for first in range(len(values)):
        distances = np.bitwise_count(values[first + 1 :] ^ values[first])
        pairs += [(first, first + 1 + int(after)) for after in np.flatnonzero(distances <= bits)]
    return pairs


def _cosines() -> npt.NDArray[np.float64]:
    """Return the 8 lowest rows of the cosine transform of length 32 (DCT-II, not normalised)."""
    positions = (2 * np.arange(_SIDE) + 1) / (2 * _SIDE)
    return np.cos(np.pi * np.arange(_KEPT)[:, None] * positions[None, :])
