"""A template says the same of every picture of a concept."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from stages.captioning.captioner import load_captioner
from stages.captioning.interface import Picture
from tests.captioning.settings import caption_params


def write(template: str, concepts: list[str], subject: str = "") -> list[str]:
    """Return the captions of one picture per concept."""
    params = caption_params(captioner="template", template=template, subject=subject)
    captioner = load_captioner(params, Path("nowhere"), torch.device("cpu"))
    return list(captioner([Picture(Image.new("RGB", (4, 4)), concept) for concept in concepts]))


def test_gaps_are_filled_in() -> None:
    """Subject and concept stand where the template says, folder names without underscores."""
    captions = write("{subject}, {concept}, plain light", ["at_night", "snow"], "a robot")
    assert captions == ["a robot, at night, plain light", "a robot, snow, plain light"]
    assert write("a drawing", ["", "snow"]) == ["a drawing", "a drawing"]


def test_picture_without_concept_gets_nothing_where_one_is_asked_for() -> None:
    """`a photo of ` would be a caption of nothing."""
    assert write("a photo of {concept}", ["", "_", "snow"]) == ["", "", "a photo of snow"]
