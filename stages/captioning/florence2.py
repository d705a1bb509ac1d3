"""Florence-2 (Xiao et al., 2023, arXiv:2311.06242) as a captioner, from a local folder.

The class is transformers' own: the checkpoints of `florence-community` are in its layout, while
Microsoft's original repositories need their remote code, which is not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)

from stages.captioning.interface import Captioner, one_by_one
from stages.captioning.pretrained import Parts, load_parts, refused, tokens_left
from stages.captioning.rules import tidy
from stages.contracts.params import CaptionParams


@dataclass(frozen=True)
class _Florence2:
    parts: Parts
    processor: Florence2Processor
    task: str
    max_new_tokens: int


def load_florence2(params: CaptionParams, folder: Path, device: torch.device) -> Captioner:
    """Return a function from pictures to captions; see `interface.Captioner`.

    Raises:
        WeightsError: the folder lacks a part, holds weights of another model, or only a pickle.
    """
    parts = load_parts(
        "Florence-2",
        folder,
        {"florence2": Florence2ForConditionalGeneration},
        CLIPImageProcessorPil,
        precision=params.precision,
        device=device,
    )
    lacking = [
        name
        for name, owner in (
            ("image_token", parts.tokenizer),
            ("image_seq_length", parts.image_processor),
        )
        if getattr(owner, name, None) is None
    ]
    if lacking:
        what = f"cannot be loaded as Florence-2 (its settings lack {', '.join(lacking)})"
        raise refused(folder, what, "Take one of florence-community's checkpoints.")
    processor = Florence2Processor(parts.image_processor, parts.tokenizer)
    # Two of the decoder's positions are its start and end markers.
    limit = tokens_left(parts, params.max_new_tokens, 2)
    return one_by_one(
        partial(_write_caption, _Florence2(parts, processor, params.instruction, limit))
    )


@torch.inference_mode()
def _write_caption(florence: _Florence2, image: Image.Image) -> str:
    model = florence.parts.model
    inputs = florence.processor(images=image, text=florence.task, return_tensors="pt")
    tokens = model.generate(
        pixel_values=inputs.pixel_values.to(model.device, model.dtype),
        input_ids=inputs.input_ids.to(model.device),
        attention_mask=inputs.attention_mask.to(model.device),
        max_new_tokens=florence.max_new_tokens,
        do_sample=False,
        num_beams=1,
    )
    return tidy(str(florence.parts.tokenizer.decode(tokens[0], skip_special_tokens=True)))
