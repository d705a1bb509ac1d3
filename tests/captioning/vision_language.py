"""BLIP-2, Florence-2 and Qwen-VL of a few thousand random numbers, in transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

WORDS: Final = ("<pad>", "<s>", "</s>", "<unk>", "a", "robot", "photo", "of", "field", "Describe")
MARKS: Final = ("<image>", "<video>", "<start>", "<end>", "<turn>", "</turn>")
NOTHING: Final = "</s>"
_SIDE_PX: Final = 32
_ALL: Final = WORDS + MARKS
_SHAPE: Final = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
CHAT: Final = (
    "{% for message in messages %}<turn>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<start><image><end>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def write_blip2(folder: Path, favourite: str | None = None) -> Path:
    """Write a BLIP-2 around a small OPT."""
    torch.manual_seed(0)
    vision = {**_SHAPE, "image_size": _SIDE_PX, "patch_size": 16}
    queries = {**_SHAPE, "num_hidden_layers": 2, "vocab_size": 9, "max_position_embeddings": 16}
    text = {
        **_text_ids(),
        "model_type": "opt",
        "hidden_size": 16,
        "ffn_dim": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
    }
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=vision,
            qformer_config=queries,
            text_config=text,
            num_query_tokens=4,
            image_token_index=_ALL.index("<image>"),
        )
    )
    images = BlipImageProcessorPil(size={"height": _SIDE_PX, "width": _SIDE_PX})
    _enlarge(model)
    if favourite is not None:
        # Its language model reads no generation_config.json; the last state is the favourite's own.
        words = model.language_model.model.decoder.embed_tokens.weight.data
        words[_ALL.index(favourite)] *= 5.0
        last = model.language_model.model.decoder.final_layer_norm
        last.weight.data.zero_()
        last.bias.data.copy_(words[_ALL.index(favourite)])
    return _save(folder, model, images, _tokenizer(), None)


def write_florence2(folder: Path, favourite: str | None = None) -> Path:
    """Write a Florence-2: two stages of DaViT and a small BART."""
    torch.manual_seed(0)
    vision = {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [8, 16],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 4,
        "projection_dim": 16,
        "drop_path_rate": 0.0,
    }
    text = {
        **_text_ids(),
        "model_type": "bart",
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    settings = Florence2Config(
        vision_config=vision, text_config=text, image_token_id=_ALL.index("<image>")
    )
    model = Florence2ForConditionalGeneration(settings)
    images = CLIPImageProcessorPil(
        size={"height": _SIDE_PX, "width": _SIDE_PX}, do_center_crop=False
    )
    # 4 by 4 places of the last stage, and their mean.
    images.image_seq_length = 17
    _enlarge(model)
    tokenizer = _tokenizer(extra_special_tokens={"image_token": "<image>"})
    return _save(folder, model, images, tokenizer, favourite)


def write_qwen3_vl(folder: Path, favourite: str | None = None) -> Path:
    """Write a Qwen3-VL with one layer that looks deep into the picture."""
    torch.manual_seed(0)
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {**_qwen_text(), "head_dim": 8}
    settings = Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids())
    return _save_qwen(folder, Qwen3VLForConditionalGeneration(settings), favourite)


def write_qwen2_5_vl(folder: Path, favourite: str | None = None) -> Path:
    """Write a Qwen2.5-VL of two vision blocks."""
    torch.manual_seed(0)
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 16,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    settings = Qwen2_5_VLConfig(text_config=_qwen_text(), vision_config=vision, **_qwen_ids())
    return _save_qwen(folder, Qwen2_5_VLForConditionalGeneration(settings), favourite)


WRITERS: Final[Mapping[str, Callable[..., Path]]] = {
    "blip2": write_blip2,
    "florence2": write_florence2,
    "qwen3": write_qwen3_vl,
    "qwen2.5": write_qwen2_5_vl,
}


def _text_ids() -> dict[str, int]:
    return {"vocab_size": len(_ALL), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _qwen_ids() -> dict[str, int]:
    return {
        "image_token_id": _ALL.index("<image>"),
        "video_token_id": _ALL.index("<video>"),
        "vision_start_token_id": _ALL.index("<start>"),
        "vision_end_token_id": _ALL.index("<end>"),
    }


def _qwen_text() -> dict[str, Any]:
    return {
        **_SHAPE,
        **_text_ids(),
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "rope_theta": 10000.0,
        },
    }


def _save_qwen(folder: Path, model: Any, favourite: str | None) -> Path:
    _enlarge(model)
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    return _save(folder, model, images, _tokenizer(chat_template=CHAT), favourite)


def _tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_ALL)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(MARKS),
        **settings,
    )


def _enlarge(model: torch.nn.Module) -> None:
    """Give every part an influence, which it has not at the start of a training."""
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.6)


def _save(folder: Path, model: Any, images: Any, tokenizer: Any, favourite: str | None) -> Path:
    """Write the parts; a model with a favourite has every other word forbidden."""
    allowed = WORDS[4:] if favourite is None else (favourite,)
    forbidden = [index for index, word in enumerate(_ALL) if word not in allowed]
    model.generation_config.suppress_tokens = forbidden
    model.generation_config.forced_eos_token_id = None
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    for part in (model, images, tokenizer):
        part.save_pretrained(folder)
    return folder
