"""Qwen's vision-language models (arXiv:2502.13923, arXiv:2511.21631) as captioners, from a folder.

Their processor class insists on torchvision for its videos, so the prompt is put together here from
the same parts: the tokenizer's chat template, one placeholder per merged patch of the picture, and
the marks that say which tokens are picture (transformers, qwen3_vl/processing_qwen3_vl.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLForConditionalGeneration,
)

from stages.captioning.interface import Captioner, one_by_one
from stages.captioning.pretrained import Parts, load_parts, refused, tokens_left
from stages.captioning.rules import tidy
from stages.contracts.params import CaptionParams


@dataclass(frozen=True)
class _QwenVL:
    parts: Parts
    prompt: str
    placeholder: str
    max_new_tokens: int


def load_qwen_vl(params: CaptionParams, folder: Path, device: torch.device) -> Captioner:
    """Return a function from pictures to captions; see `interface.Captioner`.

    Raises:
        WeightsError: the folder lacks a part, holds weights of another model, or only a pickle.
    """
    parts = load_parts(
        "Qwen-VL",
        folder,
        {
            "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
            "qwen3_vl": Qwen3VLForConditionalGeneration,
        },
        Qwen2VLImageProcessorPil,
        precision=params.precision,
        device=device,
    )
    placeholder = str(parts.tokenizer.convert_ids_to_tokens(parts.model.config.image_token_id))
    prompt = _prompt(parts, folder, params.instruction)
    if prompt.count(placeholder) != 1:
        what = f"cannot be loaded as Qwen-VL (its chat template has no place {placeholder})"
        raise refused(folder, what)
    return one_by_one(
        partial(_write_caption, _QwenVL(parts, prompt, placeholder, params.max_new_tokens))
    )


def _prompt(parts: Parts, folder: Path, instruction: str) -> str:
    """Return the chat in which the instruction is asked about one picture, ready for the answer."""
    template = parts.tokenizer.chat_template
    beside = folder / "chat_template.json"  # where older repositories keep it
    try:
        if template is None and beside.is_file():
            template = json.loads(beside.read_text(encoding="utf-8"))["chat_template"]
        if template is None:
            raise refused(folder, "holds no chat template (chat_template.jinja)")
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        return str(
            parts.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
            )
        )
    except (ValueError, KeyError, TypeError, TemplateError) as error:
        raise refused(folder, f"its chat template cannot be used ({error})") from error


@torch.inference_mode()
def _write_caption(qwen: _QwenVL, image: Image.Image) -> str:
    model, processor = qwen.parts.model, qwen.parts.image_processor
    inputs = processor(images=image, return_tensors="pt")
    placeholders = int(inputs.image_grid_thw[0].prod()) // processor.merge_size**2
    text = qwen.prompt.replace(qwen.placeholder, qwen.placeholder * placeholders)
    prompt = qwen.parts.tokenizer(text, return_tensors="pt")
    tokens = model.generate(
        input_ids=prompt.input_ids.to(model.device),
        attention_mask=prompt.attention_mask.to(model.device),
        pixel_values=inputs.pixel_values.to(model.device, model.dtype),
        image_grid_thw=inputs.image_grid_thw.to(model.device),
        mm_token_type_ids=(prompt.input_ids == model.config.image_token_id).int().to(model.device),
        max_new_tokens=tokens_left(qwen.parts, qwen.max_new_tokens, prompt.input_ids.shape[1]),
        do_sample=False,
        num_beams=1,
    )
    answer = tokens[0, prompt.input_ids.shape[1] :]
    return tidy(str(qwen.parts.tokenizer.decode(answer, skip_special_tokens=True)))
