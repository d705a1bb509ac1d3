"""BLIP (Li et al., 2022, arXiv:2201.12086) as a captioner, from a local folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipImageProcessorPil

from stages.captioning.interface import Captioner, one_by_one
from stages.captioning.pretrained import Parts, load_parts, tokens_left
from stages.captioning.rules import tidy
from stages.contracts.params import CaptionParams


def load_blip(params: CaptionParams, folder: Path, device: torch.device) -> Captioner:
    """Return a function from pictures to captions; see `interface.Captioner`.

    Raises:
        WeightsError: the folder lacks a part, holds weights of another model, or only a pickle.
    """
    parts = load_parts(
        "BLIP",
        folder,
        {"blip": BlipForConditionalGeneration},
        BlipImageProcessorPil,
        precision=params.precision,
        device=device,
    )
    # The decoder's first position is its start marker.
    return one_by_one(partial(_write_caption, parts, tokens_left(parts, params.max_new_tokens, 1)))


@torch.inference_mode()
def _write_caption(parts: Parts, max_new_tokens: int, image: Image.Image) -> str:
    inputs = parts.image_processor(images=image, return_tensors="pt")
    tokens = parts.model.generate(
        pixel_values=inputs.pixel_values.to(parts.model.device, parts.model.dtype),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
    )
    return tidy(str(parts.tokenizer.decode(tokens[0], skip_special_tokens=True)))
