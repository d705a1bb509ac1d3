"""A captioner's folder, loaded through transformers: safetensors, no remote code, no gaps.

Pictures go through transformers' Pillow processors, so that torchvision, installed or not, changes
no caption. Words are chosen greedily: the same picture has the same caption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from stages.contracts.errors import Problem, WeightsError
from stages.runtime.device import DTYPES

SUMMARY: Final = "The captioner cannot be loaded"
REMEDY: Final = "Set caption.folder to a folder with config.json, tokenizer and safetensors."
_TOKENIZER_FILES: Final = frozenset(
    {"spiece.model", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}
)
_SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass(frozen=True)
class Parts:
    """A captioner's model on its device, its picture processor and its tokenizer."""

    model: Any
    image_processor: Any
    tokenizer: Any


def load_parts(
    name: str,
    folder: Path,
    models: Mapping[str, Any],
    image_processor: Any,
    *,
    precision: str,
    device: torch.device,
) -> Parts:
    """Return what a folder in transformers' layout holds, ready to write.

    Args:
        name: what the captioner is called in messages.
        folder: config.json, tokenizer and safetensors, as `save_pretrained` writes them.
        models: `model_type` of config.json -> class of the model.
        image_processor: class of the picture processor, one of transformers' Pillow ones.
        precision: a key of `device.DTYPES`.
        device: where it runs.

    Raises:
        WeightsError: the folder lacks a part, holds weights of another model, or only a pickle.
    """
    model_class = models[_check_folder(name, folder, models)]
    try:
        processor = image_processor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, loading = model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=DTYPES[precision],
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise refused(folder, f"cannot be loaded as {name} ({reason})") from error
    _check_loading(folder, loading)
    model.to(device).eval().requires_grad_(False)
    for setting in _SAMPLING:
        # They belong to sampling, which is off, and would only be warned about.
        setattr(model.generation_config, setting, None)
    return Parts(model, processor, tokenizer)


def refused(folder: Path, what: str, remedy: str = REMEDY) -> WeightsError:
    """Return the error for one thing that is wrong with a captioner's folder."""
    return WeightsError(SUMMARY, [Problem(str(folder), what, remedy)])


def tokens_left(parts: Parts, max_new_tokens: int, prompt_tokens: int) -> int:
    """Return how many tokens may be written: a decoder cannot outgrow its positions."""
    settings = parts.model.config.get_text_config(decoder=True)
    positions = getattr(settings, "max_position_embeddings", None)
    if positions is None:
        return max_new_tokens
    return max(1, min(max_new_tokens, int(positions) - prompt_tokens))


def _check_folder(name: str, folder: Path, models: Mapping[str, Any]) -> str:
    """Return the folder's model type; transformers makes up a tokenizer that is not there."""
    if not folder.is_dir():
        raise refused(folder, "does not exist")
    names = {path.name for path in folder.iterdir()}
    lacking = []
    if "config.json" not in names:
        lacking.append("config.json")
    if not names & _TOKENIZER_FILES:
        lacking.append(" or ".join(sorted(_TOKENIZER_FILES)))
    if not any(file.endswith(".safetensors") for file in names):
        lacking.append(".safetensors file (pickled weights are not read)")
    if lacking:
        problems = [Problem(str(folder), f"holds no {part}", REMEDY) for part in lacking]
        raise WeightsError(SUMMARY, problems)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise refused(folder, f"cannot be loaded as {name} (config.json is not JSON)") from error
    model_type = settings.get("model_type") if isinstance(settings, dict) else None
    if model_type not in models:
        expected = " or ".join(sorted(models))
        what = f"cannot be loaded as {name} (model_type is {model_type!r}, expected {expected})"
        raise refused(folder, what, "Set caption.captioner to the kind that lies in the folder.")
    return str(model_type)


def _check_loading(folder: Path, loading: dict[str, Any]) -> None:
    """Refuse weights that do not fit: transformers would fill the gaps with random numbers."""
    problems = [
        Problem(str(folder), f"{name} is {what}", REMEDY)
        for kind, what in (
            ("missing_keys", "missing"),
            ("mismatched_keys", "of another shape"),
        )
        for name in sorted(str(key) for key in loading[kind])
    ]
    if problems:
        raise WeightsError("The captioner's weights do not fit its config.json", problems)
