"""Stage `export`: puts the trained parts together as one diffusers FluxPipeline folder.

Writes `data/nano-flux`. The transformer is stored in half precision to stay small; it is rounded
before the verdict is taken, so float32 arithmetic on the stored numbers gives the judged pictures.
"""

import argparse
import logging
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from nano.architecture import (
    build_autoencoder,
    build_clip,
    build_scheduler,
    build_t5,
    build_transformer,
)
from nano.vocabulary import build_clip_tokenizer, build_t5_tokenizer

logger = logging.getLogger(__name__)

DOUBLE_BLOCKS = 19
SINGLE_BLOCKS = 38


def build_text_encoders() -> tuple[CLIPTextModel, T5EncoderModel]:
    """Untrained text encoders that fit the tokenizers."""
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    clip = build_clip(len(clip_tokenizer), clip_tokenizer.bos_token_id, clip_tokenizer.eos_token_id)
    return clip, build_t5(len(t5_tokenizer))


def assemble(
    transformer: FluxTransformer2DModel,
    autoencoder: AutoencoderKL,
    clip: CLIPTextModel,
    t5: T5EncoderModel,
) -> FluxPipeline:
    """A FluxPipeline of these parts with nano-flux's tokenizers and FLUX.1-dev's scheduler."""
    return FluxPipeline(
        scheduler=build_scheduler(),
        vae=autoencoder.eval(),
        text_encoder=clip.eval(),
        tokenizer=build_clip_tokenizer(),
        text_encoder_2=t5.eval(),
        tokenizer_2=build_t5_tokenizer(),
        transformer=transformer.eval(),
    )


def write_pipeline(pipeline: FluxPipeline, out: Path) -> None:
    """Saves the pipeline at `out`, transformer in float16; other folders in `out` are kept."""
    out.mkdir(parents=True, exist_ok=True)
    pipeline.transformer.half()
    pipeline.save_pretrained(out, safe_serialization=True)
    pipeline.transformer.float()


def load_parts(
    transformer: Path, autoencoder: Path, text_encoders: Path
) -> tuple[FluxTransformer2DModel, AutoencoderKL, CLIPTextModel, T5EncoderModel]:
    """The trained parts in float32."""
    return (
        FluxTransformer2DModel.from_pretrained(transformer, dtype=torch.float32),
        AutoencoderKL.from_pretrained(autoencoder, dtype=torch.float32),
        CLIPTextModel.from_pretrained(text_encoders / "clip", dtype=torch.float32),
        T5EncoderModel.from_pretrained(text_encoders / "t5", dtype=torch.float32),
    )


def export_random(out: Path) -> None:
    """A complete folder of untrained parts, to build against while the real ones are trained."""
    torch.manual_seed(0)
    clip, t5 = build_text_encoders()
    transformer = build_transformer(DOUBLE_BLOCKS, SINGLE_BLOCKS)
    write_pipeline(assemble(transformer, build_autoencoder(), clip, t5), out)


def export(
    transformer: Path, autoencoder: Path, text_encoders: Path, captioner: Path | None, out: Path
) -> None:
    """The trained pipeline at `out`, and the captioner in its folder `captioner`."""
    write_pipeline(assemble(*load_parts(transformer, autoencoder, text_encoders)), out)
    if captioner is not None:
        shutil.copytree(captioner, out / "captioner", dirs_exist_ok=True)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transformer", type=Path)
    parser.add_argument("--autoencoder", type=Path)
    parser.add_argument("--text-encoders", type=Path)
    parser.add_argument("--captioner", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.transformer is None:
        export_random(arguments.out)
        return
    export(
        arguments.transformer,
        arguments.autoencoder,
        arguments.text_encoders,
        arguments.captioner,
        arguments.out,
    )


if __name__ == "__main__":
    main()
