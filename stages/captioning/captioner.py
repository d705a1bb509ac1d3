"""One small interface for every model that puts a picture into words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from PIL import Image

from stages.captioning.blip import load_blip

Captioner = Callable[[Iterable[Image.Image]], Iterator[str]]
"""From RGB pictures of any size to one caption each, in order, none of which depends on the
others. An answer may be empty: what to do about it is the caller's affair."""

_LOADERS: Final[Mapping[str, Callable[[Path, int, torch.device], Captioner]]] = {"blip": load_blip}


def load_captioner(kind: str, folder: Path, max_new_tokens: int, device: torch.device) -> Captioner:
    """Return the captioner of a kind (`caption.captioner` in params.yaml).

    Args:
        kind: one of the kinds that the params allow.
        folder: its weights, as `save_pretrained` of transformers writes them.
        max_new_tokens: longest caption.
        device: where it runs.

    Raises:
        WeightsError: the folder does not hold such a captioner.
    """
    return _LOADERS[kind](folder, max_new_tokens, device)
