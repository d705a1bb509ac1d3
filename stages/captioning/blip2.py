"""BLIP-2 (Li et al., 2023, arXiv:2301.12597) as a captioner, from a local folder.

An instruction, such as `a photo of` or `Question: what is shown? Answer:`, opens the sentence; it
is no part of the caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessorPil

from stages.captioning.interface import Captioner, one_by_one
from stages.captioning.pretrained import Parts, load_parts, refused, tokens_left
from stages.captioning.rules import tidy
from stages.contracts.params import CaptionParams


@dataclass(frozen=True)
class _Blip2:
    parts: Parts
    prompt: torch.Tensor  # [1, tokens]: image placeholders, then the instruction
    max_new_tokens: int


def load_blip2(params: CaptionParams, folder: Path, device: torch.device) -> Captioner:
    """Return a function from pictures to captions; see `interface.Captioner`.

    Raises:
        WeightsError: the folder lacks a part, holds weights of another model, or only a pickle.
    """
    parts = load_parts(
        "BLIP-2",
        folder,
        {"blip-2": Blip2ForConditionalGeneration},
        BlipImageProcessorPil,
        precision=params.precision,
        device=device,
    )
    if parts.model.config.image_token_index is None:
        what = "cannot be loaded as BLIP-2 (config.json states no image_token_index)"
        raise refused(folder, what, "Take a newer revision of the repository.")
    prompt = _prompt(parts, params.instruction).to(device)
    limit = tokens_left(parts, params.max_new_tokens, prompt.shape[1])
    return one_by_one(partial(_write_caption, _Blip2(parts, prompt, limit)))


def _prompt(parts: Parts, instruction: str) -> torch.Tensor:
    settings = parts.model.config
    if not instruction:
        # What the model does of itself: placeholders and the start marker.
        image = [settings.image_token_index] * settings.num_query_tokens
        return torch.tensor([[*image, settings.text_config.bos_token_id]])
    processor = Blip2Processor(
        parts.image_processor, parts.tokenizer, num_query_tokens=settings.num_query_tokens
    )
    nothing = Image.new("RGB", (32, 32))
    prompt: torch.Tensor = processor(
        images=nothing, text=instruction, return_tensors="pt"
    ).input_ids
    return prompt


@torch.inference_mode()
def _write_caption(blip2: _Blip2, image: Image.Image) -> str:
    model = blip2.parts.model
    inputs = blip2.parts.image_processor(images=image, return_tensors="pt")
    tokens = model.generate(
        pixel_values=inputs.pixel_values.to(model.device, model.dtype),
        input_ids=blip2.prompt,
        attention_mask=torch.ones_like(blip2.prompt),
        max_new_tokens=blip2.max_new_tokens,
        do_sample=False,
        num_beams=1,
    )
    # A decoder-only language model (OPT) repeats the prompt before its answer, T5 does not.
    start = blip2.prompt.shape[1] if model.config.use_decoder_only_language_model else 0
    return tidy(str(blip2.parts.tokenizer.decode(tokens[0, start:], skip_special_tokens=True)))
