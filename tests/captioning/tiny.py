"""A complete BLIP of a few thousand numbers that always says the word it is told to say."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
)

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "robot", "field", ",")
NOTHING = "[SEP]"


def write_tiny_blip(folder: Path, favourite: str | None) -> Path:
    """Write a captioner that answers with `favourite` again and again, or by its random weights.

    `NOTHING` as favourite makes every answer empty.
    """
    torch.manual_seed(0)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "initializer_range": 1.0,
    }
    text = {
        **shape,
        "vocab_size": len(WORDS),
        "encoder_hidden_size": 16,
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shape, "image_size": 32, "patch_size": 16}
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    )
    if favourite is not None:
        model.text_decoder.cls.predictions.bias.data[WORDS.index(favourite)] = 1e6
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder
