"""What a person should know of a set of pictures that may all be used.

Nothing here refuses a picture; each warning names the pictures it is about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from stages.contracts.params import PrepareParams
from stages.imaging.hashing import near_duplicates
from stages.imaging.quality import Quality

PICTURES_FOR: Final[Mapping[str, tuple[int, int]]] = {
    "style": (10, 50),
    "character": (20, 100),
    "object": (15, 50),
    "complex-style": (50, 200),
}
"""Fewest and most training pictures by kind of LoRA; regularisation pictures do not count."""

EXACT, NEAR, BLURRED, BLACK, UNIFORM, UPSCALED, BARS, COUNT, VARIETY = (
    "exact duplicate",
    "near duplicate",
    "blurred",
    "near-black",
    "near-uniform",
    "strongly scaled up",
    "bars at the edges",
    "number of pictures",
    "low variety",
)


@dataclass(frozen=True)
class Reviewed:
    """One accepted picture: what warnings are made of."""

    name: str
    source: str
    split: str
    regularisation: bool
    source_sha256: str
    perceptual_hash: int
    upscale: float
    quality: Quality


@dataclass(frozen=True)
class Warned:
    """One warning: its kind, the names of its pictures (the later ones first), and its words."""

    kind: str
    names: tuple[str, ...]
    words: str


def review(pictures: Sequence[Reviewed], params: PrepareParams) -> list[Warned]:
    """Return all warnings on the set, in a fixed order, `pictures` being in the order of names."""
    single = [warned for picture in pictures for warned in _on_picture(picture, params)]
    return [*single, *_duplicates(pictures, params), *_on_set(pictures, params)]


def duplicate_of(warnings: Sequence[Warned]) -> dict[str, str]:
    """Return each picture that is or nearly is an earlier one -> the first such."""
    first: dict[str, str] = {}
    for kind in (EXACT, NEAR):
        for warned in warnings:
            if warned.kind == kind:
                first.setdefault(warned.names[0], warned.names[1])
    return first


def by_picture(warnings: Sequence[Warned]) -> dict[str, list[str]]:
    """Return picture name -> kinds of its warnings; of a pair, the later picture has it."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for warned in warnings:
        if warned.names and warned.kind not in kinds[warned.names[0]]:
            kinds[warned.names[0]].append(warned.kind)
    return dict(kinds)


def _on_picture(picture: Reviewed, params: PrepareParams) -> Iterator[Warned]:
    quality = picture.quality
    black = quality.brightest < params.black_below
    uniform = quality.spread < params.uniform_below
    if black:
        what = f"99 of 100 pixels darker than {quality.brightest + 1:.0f} of 255"
        yield _warned(BLACK, picture, what)
    if uniform:
        yield _warned(UNIFORM, picture, f"channels vary by {quality.spread:.1f} of 255 only")
    # A black or plain picture has no edges either; once is enough.
    if quality.blur < params.blur_below and not (black or uniform):
        what = f"variance of the Laplacian {quality.blur:.1f}, under {params.blur_below:g}"
        yield _warned(BLURRED, picture, what)
    if picture.upscale > params.upscale_above:
        yield _warned(UPSCALED, picture, f"{picture.upscale:.2f} times")
    if quality.bars > params.bars_above:
        yield _warned(BARS, picture, f"{100 * quality.bars:.0f} % of the picture")


def _warned(kind: str, picture: Reviewed, what: str) -> Warned:
    return Warned(kind, (picture.name,), f"{picture.source}: {kind}, {what}")


def _duplicates(pictures: Sequence[Reviewed], params: PrepareParams) -> Iterator[Warned]:
    hashes = [picture.perceptual_hash for picture in pictures]
    seen: dict[str, Reviewed] = {}
    exact = set()
    for picture in pictures:
        if (first := seen.setdefault(picture.source_sha256, picture)) is not picture:
            exact.add(picture.name)
            yield _pair(EXACT, first, picture)
    for one, other in near_duplicates(hashes, params.near_duplicate_bits):
        # A copy is near to all that its original is near to: said once, for the original.
        if not exact & {pictures[one].name, pictures[other].name}:
            yield _pair(NEAR, pictures[one], pictures[other])


def _pair(kind: str, first: Reviewed, second: Reviewed) -> Warned:
    across = ", one of them for validation only" if first.split != second.split else ""
    words = f"{kind}s{across}: {first.source} and {second.source}"
    return Warned(kind, (second.name, first.name), words)


def _on_set(pictures: Sequence[Reviewed], params: PrepareParams) -> Iterator[Warned]:
    training = [p for p in pictures if p.split == "train" and not p.regularisation]
    fewest, most = PICTURES_FOR[params.kind]
    if not fewest <= len(training) <= most:
        amount = "few" if len(training) < fewest else "many"
        words = f"{len(training)} training pictures are {amount} for kind {params.kind}"
        yield Warned(COUNT, (), f"{words} ({fewest} to {most})")
    pairs = len(training) * (len(training) - 1) // 2
    near = near_duplicates([p.perceptual_hash for p in training], params.similar_bits)
    if pairs and len(near) >= params.low_variety_share * pairs:
        words = f"low variety: {len(near)} of {pairs} pairs of training pictures are much alike"
        yield Warned(VARIETY, (), words)
