"""Stage `captioner`: a small BLIP that writes the world's sentence for a picture.

Reads the drawings and the oddities; writes a folder that `BlipProcessor.from_pretrained` and
`BlipForConditionalGeneration.from_pretrained` load, and `metrics.json` outside of it with the share
of attribute words that are right on held-out drawings. Parameters: section `captioner`.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
)

from nano.averaging import WeightAverage
from nano.checkpoint import Checkpoint
from nano.judge import read_scenes
from nano.optimization import MuonAndAdamW
from nano.parameters import load_section
from nano.schedule import constant_then_linear
from nano.vocabulary import build_caption_vocabulary
from nano.world import ATTRIBUTES, Scene, parse_caption

logger = logging.getLogger(__name__)

BLOCK_PREFIXES = ("vision_model.encoder.layers.", "text_decoder.bert.encoder.layer.")
_IGNORED_LABEL = -100  # what the loss of transformers' language models leaves out
_CAPTION_TOKENS = 20
_MEAN, _DEVIATION = 0.5, 0.5


@dataclass(frozen=True)
class CaptionerParameters:
    """The captioner's shape and training."""

    seed: int
    side_px: int
    patch_px: int
    width: int
    vision_layers: int
    text_layers: int
    steps: int
    batch_size: int
    oddity_share: float  # of each batch: unknown objects, whose shape and colour are not asked for
    noise: float  # largest standard deviation of the noise on a picture in -1..1
    shift_px: int  # largest shift of a picture
    learning_rate: float
    last_learning_rate_share: float
    constant_share: float
    warm_up_steps: int
    ema_decay: float
    checkpoint_seconds: float
    validation_pictures: int


def build_processor(side_px: int) -> BlipProcessor:
    """A processor that scales pictures to `side_px` squares and knows the world's words."""
    tokenizer = BertTokenizer(vocab=build_caption_vocabulary(), model_max_length=_CAPTION_TOKENS)
    image_processor = BlipImageProcessorPil(
        size={"height": side_px, "width": side_px},
        image_mean=[_MEAN] * 3,
        image_std=[_DEVIATION] * 3,
    )
    return BlipProcessor(image_processor, tokenizer)


def build_captioner(
    parameters: CaptionerParameters, tokenizer: BertTokenizer
) -> BlipForConditionalGeneration:
    """An untrained BLIP with a vision transformer and a text decoder of the same width."""
    shape = {
        "hidden_size": parameters.width,
        "intermediate_size": 4 * parameters.width,
        "projection_dim": parameters.width,
        "num_attention_heads": parameters.width // 24,
        "initializer_range": 0.02,
    }
    text = {
        **shape,
        "vocab_size": len(tokenizer),
        "encoder_hidden_size": parameters.width,
        "num_hidden_layers": parameters.text_layers,
        "max_position_embeddings": _CAPTION_TOKENS,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **shape,
        "num_hidden_layers": parameters.vision_layers,
        "image_size": parameters.side_px,
        "patch_size": parameters.patch_px,
    }
    config = BlipConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=parameters.width,
        image_text_hidden_size=parameters.width,
    )
    model = BlipForConditionalGeneration(config)
    embeddings = model.vision_model.embeddings
    embeddings.position_embedding.data[0, 1:] = plane_waves(
        parameters.side_px // parameters.patch_px, parameters.width
    )
    return model


def plane_waves(side: int, width: int) -> torch.Tensor:
    """(side * side, width): sines and cosines of row and column at growing frequencies.

    The vision transformer's position embeddings start from these; from small random ones it took
    thousands of steps to tell left from right.
    """
    frequencies = torch.pi / 2 * torch.arange(1, width // 4 + 1).float() / 4
    places = torch.linspace(-1, 1, side)[:, None] * frequencies
    waves = torch.cat([places.sin(), places.cos()], dim=1)  # (side, width / 2)
    rows, columns = waves.repeat_interleave(side, 0), waves.repeat(side, 1)
    return torch.cat([rows, columns], dim=1) * 0.5


def small_pictures(pictures: np.ndarray, side_px: int) -> np.ndarray:
    """The pictures scaled as the processor does (bicubic); uint8 (pictures, side, side, 3)."""
    size = (side_px, side_px)
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
            for picture in pictures
        ]
    )


def _augmented(
    pictures: np.ndarray, parameters: CaptionerParameters, random: np.random.Generator
) -> torch.Tensor:
    """Pixel values (batch, 3, side, side) of slightly shifted, softened and noisy pictures."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    margin = parameters.shift_px
    padded = functional.pad(pixels, (margin,) * 4, mode="replicate")
    left, top = random.integers(0, 2 * margin + 1, 2)
    side = parameters.side_px
    pixels = padded[..., top : top + side, left : left + side]
    if random.random() < 0.3:
        pixels = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), "replicate"), 3, 1)
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    noise = torch.randn(pixels.shape, generator=generator) * float(
        random.uniform(0, parameters.noise)
    )
    return (pixels + noise) * float(random.uniform(0.9, 1.0))


def encode_captions(
    scenes: Sequence[Scene], tokenizer: BertTokenizer, known_objects: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers and labels, both int64 (captions, tokens).

    Every caption has the same number of tokens but for "in the middle" and the like, all of three
    words, so nothing is padded. Labels leave out size, colour and shape of unknown objects.
    """
    tokens = tokenizer([scene.caption for scene in scenes], return_tensors="pt").input_ids
    labels = tokens.clone()
    object_words = slice(3, 5)  # [CLS] a SIZE | COLOUR SHAPE | on the left ...
    labels[~torch.tensor(known_objects), object_words] = _IGNORED_LABEL
    return tokens, labels


def attribute_words_right(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of right words of each attribute; a sentence outside the grammar has none."""
    right = dict.fromkeys(ATTRIBUTES, 0)
    for caption, scene in zip(captions, scenes, strict=True):
        try:
            said = parse_caption(caption.replace(" ,", ","))
        except ValueError:
            continue
        for name in ATTRIBUTES:
            right[name] += getattr(said, name) == getattr(scene, name)
    return {name: count / len(scenes) for name, count in right.items()}


@torch.no_grad()
def write_captions(
    model: BlipForConditionalGeneration, processor: BlipProcessor, pictures: Sequence[Image.Image]
) -> list[str]:
    """One sentence per picture, of any size."""
    captions: list[str] = []
    for start in range(0, len(pictures), 50):
        inputs = processor(images=list(pictures[start : start + 50]), return_tensors="pt")
        tokens = model.generate(
            pixel_values=inputs.pixel_values, max_new_tokens=_CAPTION_TOKENS - 1, do_sample=False
        )
        captions += processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [caption.replace(" ,", ",") for caption in captions]


def train_captioner(
    parameters: CaptionerParameters, processor: BlipProcessor, drawings: Path, state_file: Path
) -> BlipForConditionalGeneration:
    """The captioner, trained on the training drawings and the oddities."""
    names = ("training", "oddities")
    pictures = [
        small_pictures(np.load(drawings / f"{name}.npy", mmap_mode="r"), parameters.side_px)
        for name in names
    ]
    scenes = [read_scenes(drawings / f"{name}.txt") for name in names]
    logger.info("pictures are ready")
    torch.manual_seed(parameters.seed)
    model = build_captioner(parameters, processor.tokenizer)
    optimizer = MuonAndAdamW(model, BLOCK_PREFIXES, parameters.learning_rate)
    average = WeightAverage(model, parameters.ema_decay)
    checkpoint = Checkpoint(state_file, parameters.checkpoint_seconds)
    first_step = 0
    if (state := checkpoint.load()) is not None:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        average.updates = first_step = state["step"]
    odd = round(parameters.batch_size * parameters.oddity_share)
    counts = (parameters.batch_size - odd, odd)
    known = [True] * counts[0] + [False] * counts[1]
    for step in range(first_step, parameters.steps):
        random = np.random.default_rng((parameters.seed, step))
        chosen = [
            random.integers(0, len(source), count)
            for source, count in zip(pictures, counts, strict=True)
        ]
        batch = np.concatenate(
            [source[index] for source, index in zip(pictures, chosen, strict=True)]
        )
        batch_scenes = [scenes[source][index] for source in (0, 1) for index in chosen[source]]
        tokens, labels = encode_captions(batch_scenes, processor.tokenizer, known)
        pixels = _augmented(batch, parameters, random)
        loss = model(pixel_values=pixels, input_ids=tokens, labels=labels).loss.mean()
        torch.autograd.backward(loss)
        factor = constant_then_linear(
            step, parameters.steps, parameters.constant_share, parameters.last_learning_rate_share
        )
        optimizer.step(factor * min(1.0, (step + 1) / parameters.warm_up_steps))
        average.update(model)
        if (step + 1) % 100 == 0:
            logger.info("step %d: loss %.4f", step + 1, loss.item())
        if checkpoint.due():
            checkpoint.save(
                {
                    "step": step + 1,
                    "model": model.state_dict(),
                    "average": average.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
    return average.model


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    parameters = load_section(arguments.params, "captioner", CaptionerParameters)
    processor = build_processor(parameters.side_px)
    model = train_captioner(parameters, processor, arguments.drawings, arguments.state)
    held_out = np.load(arguments.drawings / "held_out.npy", mmap_mode="r")
    count = parameters.validation_pictures
    captions = write_captions(model, processor, [Image.fromarray(p) for p in held_out[:count]])
    scenes = read_scenes(arguments.drawings / "held_out.txt")[:count]
    shares = attribute_words_right(captions, scenes)
    logger.info("held-out drawings: %s", shares)
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    arguments.metrics.write_text(json.dumps(shares, indent=2, sort_keys=True) + "\n")
    arguments.state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
