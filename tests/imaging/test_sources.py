"""Every file of the folders is found once, with the use that params and content give it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from stages.imaging.sources import find_sources, split_of
from tests.imaging.drawings import scenery
from tests.stages.test_prepare import params


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """A training folder with one concept, and a validation folder."""
    for name in ("train/a.png", "train/hats/b.png", "validation/c.png", "validation/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        scenery(40, 40).save(tmp_path / name)
    return tmp_path / "train", tmp_path / "validation"


def test_files_and_refusals_are_told_apart(roots: tuple[Path, Path]) -> None:
    """A validation picture named like a training picture is refused, not both used."""
    found = find_sources(*roots, params())
    assert [(source.name, source.split) for source in found.pictures] == [
        ("a", "train"),
        ("hats-b", "train"),
        ("c", "validation"),
    ]
    ((refused, problem),) = found.refused
    assert (refused.relative, refused.split) == ("a.jpg", "validation")
    assert "same name as the training picture a.png" in problem.what
    assert found.problems == ()


def test_split_is_a_share_of_all_hashes(roots: tuple[Path, Path]) -> None:
    """About the share asked for is held out; a larger share holds out the same ones and more."""
    source = find_sources(*roots, params()).pictures[0]
    hashes = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(2000)]
    held_out = {
        share: {one for one in hashes if split_of(source, one, share) == "validation"}
        for share in (0.0, 0.1, 0.25)
    }
    assert not held_out[0.0]
    assert held_out[0.1] < held_out[0.25]
    assert len(held_out[0.1]) == pytest.approx(200, abs=40)
    regularisation = replace(source, regularisation=True)
    assert {split_of(regularisation, one, 0.25) for one in hashes} == {"train"}
