"""The caption section of params.yaml, with what a test wants otherwise."""

from __future__ import annotations

from typing import Any

from stages.contracts.params import CaptionParams


def caption_params(**changes: Any) -> CaptionParams:
    """Return params for a BLIP without any extras, but for `changes`."""
    values: dict[str, Any] = {
        "trigger": "tok",
        "captioner": "blip",
        "folder": "unused",
        "repository": None,
        "revision": None,
        "precision": "float32",
        "max_new_tokens": 4,
        "instruction": "",
        "subject": "",
        "template": "",
        "prefix": "",
        "suffix": "",
        "tag_threshold": 0.35,
        "character_threshold": 0.85,
    }
    return CaptionParams(**{**values, **changes})
