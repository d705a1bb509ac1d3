"""BLIP (Li et al., 2022, arXiv:2201.12086) as a captioner, from a local folder.

Pictures go through transformers' Pillow processor, so that torchvision, installed or not, changes
no caption. Words are chosen greedily: the same picture has the same caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

from stages.captioning.rules import tidy
from stages.contracts.errors import Problem, WeightsError

_SUMMARY: Final = "The captioner cannot be loaded"
_TOKENIZER_FILES: Final = frozenset({"tokenizer.json", "vocab.txt"})
_REMEDY: Final = "Set caption.folder to a folder with config.json, tokenizer and safetensors."


@dataclass(frozen=True)
class _Blip:
    model: Any
    processor: Any
    tokenizer: Any
    max_new_tokens: int


def load_blip(
    folder: Path, max_new_tokens: int, device: torch.device
) -> Callable[[Iterable[Image.Image]], Iterator[str]]:
    """Return a function from pictures to captions; see `captioner.Captioner`.

    Raises:
        WeightsError: the folder lacks a part, holds weights of another model, or only a pickle.
    """
    _check_folder(folder)
    try:
        processor = BlipImageProcessorPil.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, loading = BlipForConditionalGeneration.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        problem = Problem(str(folder), f"cannot be loaded as BLIP ({reason})", _REMEDY)
        raise WeightsError(_SUMMARY, [problem]) from error
    _check_loading(folder, loading)
    model.to(device).eval().requires_grad_(False)
    # A caption that outgrew the decoder's positions would end in an index error; one is the start.
    positions = int(model.config.text_config.max_position_embeddings) - 1
    blip = _Blip(model, processor, tokenizer, min(max_new_tokens, positions))
    return partial(_write_captions, blip)


def _check_folder(folder: Path) -> None:
    """Refuse a folder with parts missing: transformers makes up a tokenizer that is not there."""
    if not folder.is_dir():
        raise WeightsError(_SUMMARY, [Problem(str(folder), "does not exist", _REMEDY)])
    names = {path.name for path in folder.iterdir()}
    lacking = []
    if "config.json" not in names:
        lacking.append("config.json")
    if not names & _TOKENIZER_FILES:
        lacking.append(" or ".join(sorted(_TOKENIZER_FILES)))
    if not any(name.endswith(".safetensors") for name in names):
        lacking.append(".safetensors file (pickled weights are not read)")
    if lacking:
        raise WeightsError(
            _SUMMARY, [Problem(str(folder), f"holds no {name}", _REMEDY) for name in lacking]
        )


def _check_loading(folder: Path, loading: dict[str, Any]) -> None:
    """Refuse weights that do not fit: transformers would fill the gaps with random numbers."""
    problems = [
        Problem(str(folder), f"{name} is {what}", _REMEDY)
        for kind, what in (
            ("missing_keys", "missing"),
            ("mismatched_keys", "of another shape"),
        )
        for name in sorted(str(key) for key in loading[kind])
    ]
    if problems:
        raise WeightsError("The captioner's weights do not fit its config.json", problems)


def _write_captions(blip: _Blip, pictures: Iterable[Image.Image]) -> Iterator[str]:
    for picture in pictures:
        yield _write_caption(blip, picture)


@torch.inference_mode()
def _write_caption(blip: _Blip, picture: Image.Image) -> str:
    inputs = blip.processor(images=picture, return_tensors="pt")
    tokens = blip.model.generate(
        pixel_values=inputs.pixel_values.to(blip.model.device),
        max_new_tokens=blip.max_new_tokens,
        do_sample=False,
        num_beams=1,
    )
    return tidy(str(blip.tokenizer.decode(tokens[0], skip_special_tokens=True)))
