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
_SHAPE_BITS: Final = 48
_COEFFICIENT_DIGITS: Final = 3
_CELLS: Final = 2
_NEUTRAL: Final = 128.0  # Cb and Cr of every grey
_COLOUR_STEPS: Final = (-16.0, 16.0)  # far enough from neutral for a grey picture's noise


def perceptual_hash(pixels: npt.NDArray[np.uint8]) -> int:
    """Return the picture's hash, 0 to 2^64 - 1: 48 bits of shape, then 16 of colour.

    Shape: the picture is reduced to 32x32 grey; the 48 lowest frequencies of its cosine transform
    give one bit each: over their median or not (N. Krawetz, "Looks Like It", hackerfactor.com,
    2011). Colour: Cb and Cr, each averaged over 2x2 cells, say which of two steps they are over.
    So pictures of one shape on a green and on a blue ground are two pictures.

    Args:
        pixels: uint8 [H, W, 3], RGB.
    """
    small = Image.fromarray(pixels).convert("YCbCr").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    planes = np.asarray(small, dtype=np.float64)
    bits = np.concatenate([_shape_bits(planes[..., 0]), _colour_bits(planes[..., 1:])])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicates(hashes: Sequence[int], bits: int) -> list[tuple[int, int]]:
    """Return all pairs of positions (first < second) whose hashes differ in at most `bits` bits."""
    values = np.array(hashes, dtype=np.uint64)
    pairs = []
    for first in range(len(values)):
        distances = np.bitwise_count(values[first + 1 :] ^ values[first])
        pairs += [(first, first + 1 + int(after)) for after in np.flatnonzero(distances <= bits)]
    return pairs


def _shape_bits(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    basis = _cosines()
    # Rounded, or the bits of a plain picture would be decided by rounding errors.
    table = np.round(basis @ grey @ basis.T, _COEFFICIENT_DIGITS)
    places = sorted(np.ndindex(_KEPT, _KEPT), key=lambda place: (sum(place), place))
    low = np.array([table[place] for place in places[:_SHAPE_BITS]])
    return np.asarray(low > np.median(low))


def _colour_bits(chroma: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    width = _SIDE // _CELLS
    cells = chroma.reshape(_CELLS, width, _CELLS, width, 2).mean(axis=(1, 3)) - _NEUTRAL
    return np.stack([cells > step for step in _COLOUR_STEPS]).ravel()


def _cosines() -> npt.NDArray[np.float64]:
    """Return the 8 lowest rows of the cosine transform of length 32 (DCT-II, not normalised)."""
    positions = (2 * np.arange(_SIDE) + 1) / (2 * _SIDE)
    return np.cos(np.pi * np.arange(_KEPT)[:, None] * positions[None, :])
