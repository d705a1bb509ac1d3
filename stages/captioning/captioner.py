"""The captioners that there are, by the kind that `caption.captioner` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch

from stages.captioning.blip import load_blip
from stages.captioning.blip2 import load_blip2
from stages.captioning.florence2 import load_florence2
from stages.captioning.interface import Captioner
from stages.captioning.qwen_vl import load_qwen_vl
from stages.captioning.template import load_template
from stages.captioning.wd14 import load_wd14
from stages.contracts.params import CaptionParams

CAPTIONER_FILES: Final = (
    "*.jinja",
    "*.json",
    "*.model",
    "*.safetensors",
    "*.txt",
    "model.onnx",
    "selected_tags.csv",
)
"""What is wanted of a captioner's repository; pickles are not among it."""

_LOADERS: Final[Mapping[str, Callable[[CaptionParams, Path, torch.device], Captioner]]] = {
    "blip": load_blip,
    "blip2": load_blip2,
    "florence2": load_florence2,
    "qwen-vl": load_qwen_vl,
    "template": load_template,
    "wd14": load_wd14,
}


def load_captioner(params: CaptionParams, folder: Path, device: torch.device) -> Captioner:
    """Return the captioner that the params name.

    Args:
        params: which one, and how it is asked; any kind but `sidecar`, which writes nothing.
        folder: its weights, as docs/captioners.md says for each kind.
        device: where it runs.

    Raises:
        WeightsError: the folder does not hold such a captioner.
    """
    return _LOADERS[params.captioner](params, folder, device)
