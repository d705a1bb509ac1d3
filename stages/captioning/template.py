"""Captions from a text with gaps: no model, the same words for every picture of a concept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from string import Formatter

import torch

from stages.captioning.interface import Captioner, Picture
from stages.captioning.rules import tidy
from stages.contracts.params import CaptionParams


def load_template(params: CaptionParams, folder: Path, device: torch.device) -> Captioner:
    """Return a function from pictures to `params.template`, its gaps filled in.

    A picture outside any concept's folder gets the empty caption where the template asks for
    {concept}.
    """
    del folder, device
    return partial(_write_captions, params.template, params.subject)


def _write_captions(template: str, subject: str, pictures: Iterable[Picture]) -> Iterator[str]:
    gaps = {field for _, field, _, _ in Formatter().parse(template) if field}
    for picture in pictures:
        # Folder names are often written with underscores in place of spaces.
        values = {"subject": subject, "concept": picture.concept.replace("_", " ").strip()}
        complete = all(values[gap] for gap in gaps)
        yield tidy(template.format(**values)) if complete else ""
