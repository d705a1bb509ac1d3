"""Warnings name the right pictures, once each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.imaging.quality import Quality
from stages.imaging.review import (
    BLURRED,
    COUNT,
    EXACT,
    NEAR,
    VARIETY,
    Reviewed,
    Warned,
    by_picture,
    duplicate_of,
    review,
)
from tests.stages.test_prepare import params

FINE = Quality(blur=100.0, brightest=240.0, spread=50.0, bars=0.0)


def picture(index: int, **changes: object) -> Reviewed:
    """Return a picture with nothing wrong, far from the others."""
    hashed = sum(1 << (bit % 64) for bit in range(index * 13, index * 13 + 20))
    plain = Reviewed(
        f"{index:02d}", f"{index:02d}.png", "train", False, f"{index}", hashed, 1.0, FINE
    )
    return replace(plain, **changes)


def kinds(pictures: list[Reviewed], **changes: object) -> list[str]:
    """Return the kinds of all warnings but the number of pictures."""
    return [w.kind for w in review(pictures, params(**changes)) if w.kind != COUNT]


def test_sound_pictures_give_no_warning() -> None:
    """Twenty different pictures are a character's set."""
    assert kinds([picture(index) for index in range(4)]) == []
    many = [
        picture(0, name=f"{n}", source_sha256=f"{n}", perceptual_hash=n << 40) for n in range(20)
    ]
    assert COUNT not in [w.kind for w in review(many, params())]


@pytest.mark.parametrize(
    ("kind", "fewest", "most"),
    [("style", 10, 50), ("character", 20, 100), ("object", 15, 50), ("complex-style", 50, 200)],
)
def test_number_of_pictures_follows_the_kind(kind: str, fewest: int, most: int) -> None:
    """Validation and regularisation pictures do not count."""
    for count, warned in ((fewest - 1, True), (fewest, False), (most, False), (most + 1, True)):
        pictures = [picture(0, name=f"{n}", source_sha256=f"{n}") for n in range(count)]
        pictures += [picture(1, name="v", split="validation"), picture(2, regularisation=True)]
        found = [w for w in review(pictures, params(kind=kind)) if w.kind == COUNT]
        assert bool(found) == warned


def test_duplicates_name_the_first() -> None:
    """A copy is said to be one, and not once more to be near what its original is near."""
    base = picture(0)
    near = picture(1, perceptual_hash=base.perceptual_hash ^ 0b11)
    copy = replace(base, name="09", source="09.png")
    warnings = review([base, near, picture(2), picture(3), copy], params())
    pairs = {(w.kind, w.names) for w in warnings if w.names}
    assert pairs == {(EXACT, ("09", "00")), (NEAR, ("01", "00"))}
    assert duplicate_of(warnings) == {"09": "00", "01": "00"}


def test_low_variety_is_a_share_of_pairs() -> None:
    """Three of four pictures alike are three of six pairs."""
    alike = [picture(0, name=f"{n}", source_sha256=f"{n}") for n in range(3)]
    assert VARIETY in kinds([*alike, picture(1)])
    assert VARIETY not in kinds([*alike, picture(1)], low_variety_share=0.6)
    assert VARIETY not in kinds([picture(0)])


def test_each_picture_has_each_kind_once() -> None:
    """What is drawn on the contact sheet."""
    warnings = [
        Warned(NEAR, ("b", "a"), ""), Warned(NEAR, ("b", "c"), ""),
        Warned(BLURRED, ("b",), ""), Warned(COUNT, (), ""),
    ]  # fmt: skip
    assert by_picture(warnings) == {"b": [NEAR, BLURRED]}
