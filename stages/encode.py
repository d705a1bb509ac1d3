"""Cache what training needs of pictures and captions: latents and text embeddings.

Reads:   prepared pictures and their manifest (--images), captions (--captions), the base model's
         VAE and text encoders (--weights).
Writes:  latents-<hash>.safetensors per picture, text-<hash>.safetensors per caption and prompt
         and for the empty caption, index.csv (ENCODED).
Params:  encode, model; of prompts those without the trigger, by which train measures bleed.

Every file is named after the hash of what went in, so that training, which loads neither VAE nor
text encoders, cannot pair a picture with another one's caption.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError

from stages.contracts.errors import DatasetError, Problem
from stages.contracts.params import EncodeParams, ModelParams, PromptsParams
from stages.contracts.tables import CAPTIONS, ENCODED, MANIFEST, accepted, read_table, write_table
from stages.families.latents import encode_pictures, training_size
from stages.families.loading import load_text_encoders, load_vae
from stages.families.text import encode_prompts
from stages.families.weights import Manifest, ensure_weights, read_manifest
from stages.runtime.console import run_stage
from stages.runtime.device import configure_torch
from stages.runtime.files import sha256_file
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track
from stages.training.encoded import (
    INDEX,
    Latents,
    file_name,
    prompt_name,
    write_latents,
    write_text,
)

_PICTURE_PARTS = ("vae",)
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_HALF_RANGE = 127.5  # 0-255 becomes -1..1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    """One prepared picture with its caption."""

    name: str
    path: Path
    sha256: str
    split: str
    repeats: int
    caption: str


def encode(
    params: EncodeParams,
    model: ModelParams,
    prompts: PromptsParams,
    *,
    weights: Path,
    images: Path,
    captions: Path,
    out: Path,
) -> None:
    """Write latents, text embeddings and their index into `out`."""
    sources = _read_sources(images, captions)
    folder = ensure_weights(weights)
    drawn = {"sample": params.sample_prompts, "plain": prompts.without_trigger}
    index = _index(sources, drawn, params, model, read_manifest(weights))
    device = configure_torch()
    texts = dict(zip(index["text_file"], index["caption"], strict=True))
    _log.info(
        "%d pictures at %d pixels, %d different texts", len(sources), params.size_px, len(texts)
    )
    with replace_folder(out) as work:
        vae = load_vae(folder, device)
        for source in track(sources, len(sources), "pictures"):
            pixels = _read_pixels(source.path, params.size_px)
            mean, std = encode_pictures(vae, pixels)
            name = index.loc[index["name"] == source.name, "latents_file"].item()
            write_latents(work / name, Latents(mean[0].cpu(), std[0].cpu()))
        del vae  # on a small card the text encoders need its memory
        encoders = load_text_encoders(folder, model.precision, device)
        for name, text in track(texts.items(), len(texts), "captions"):
            (embedding,) = encode_prompts(encoders, [text], model.text_tokens)
            write_text(work / name, embedding)
        write_table(ENCODED, index, work / INDEX)


def _read_sources(images: Path, captions: Path) -> list[_Source]:
    """Return the prepared pictures, each checked against its manifest and its caption.

    Raises:
        DatasetError: a picture is missing, was changed, or has no caption of its own.
    """
    rows = accepted(read_table(MANIFEST, images / "manifest.csv")).to_dict("records")
    captioned = {row["image"]: row for row in read_table(CAPTIONS, captions).to_dict("records")}
    unknown = captioned.keys() - {row["image"] for row in rows}
    again = "Run `dvc repro caption`."
    problems = [Problem(f"{captions}, {name}", "no such picture", again) for name in unknown]
    sources = []
    for row in rows:
        caption = captioned.get(row["image"])
        if caption is None or caption["split"] != row["split"]:
            what = "no caption" if caption is None else f"split {caption['split']}"
            what = f"{what}, expected one of split {row['split']}"
            problems.append(Problem(f"{captions}, {row['image']}", what, again))
            continue
        path = images / "images" / row["file"]
        sources.append(
            _Source(
                row["image"], path, row["sha256"], row["split"], row["repeats"], caption["caption"]
            )
        )
    problems += [problem for source in sources if (problem := _changed(source))]
    if problems:
        raise DatasetError("Pictures and captions do not belong together", problems)
    return sources


def _changed(source: _Source) -> Problem | None:
    again = "Run `dvc repro --force prepare`."
    if not source.path.is_file():
        return Problem(str(source.path), "missing", again)
    if sha256_file(source.path) != source.sha256:
        return Problem(str(source.path), "differs from its manifest (SHA-256)", again)
    return None


def _index(
    sources: Sequence[_Source],
    prompts: Mapping[str, Sequence[str]],
    params: EncodeParams,
    model: ModelParams,
    manifest: Manifest,
) -> pd.DataFrame:
    def text_row(kind: str, name: str, caption: str) -> dict[str, str | int]:
        text_file = file_name(
            "text",
            manifest,
            _TEXT_PARTS,
            caption=caption,
            text_tokens=model.text_tokens,
            precision=model.precision,
        )
        return {
            "kind": kind,
            "name": name,
            "split": "",
            "repeats": 1,
            "caption": caption,
            "latents_file": "",
            "text_file": text_file,
        }

    pictures = [
        {
            **text_row("image", source.name, source.caption),
            "split": source.split,
            "repeats": source.repeats,
            "latents_file": file_name(
                "latents", manifest, _PICTURE_PARTS, picture=source.sha256, size_px=params.size_px
            ),
        }
        for source in sources
    ]
    drawn = [
        text_row(kind, prompt_name(kind, number), prompt)
        for kind, texts in prompts.items()
        for number, prompt in enumerate(texts)
    ]
    return pd.DataFrame([*pictures, *drawn, text_row("empty", "empty", "")])


def _read_pixels(path: Path, size_px: int) -> torch.Tensor:
    """Return the picture [1, 3, H, W] in [-1, 1], cut and resized with Lanczos if need be.

    A square one gets sides of `size_px`, one of another shape about that area (`training_size`).

    Raises:
        DatasetError: the file is not an RGB picture.
    """
    try:
        with Image.open(path) as file:
            image = file.copy()
    except (OSError, UnidentifiedImageError) as error:
        problem = Problem(
            str(path), f"cannot be read ({error})", "Run `dvc repro --force prepare`."
        )
        raise DatasetError("A prepared picture is damaged", [problem]) from error
    if image.mode != "RGB":
        what = f"pixel format {image.mode}, expected RGB"
        raise DatasetError(
            "A prepared picture is not as prepare writes it",
            [Problem(str(path), what, "Run `dvc repro --force prepare`.")],
        )
    size = training_size(*image.size, size_px)
    if image.size != size:
        image = image.crop(_box(image.size, size)).resize(size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return (pixels / _HALF_RANGE - 1).permute(2, 0, 1)[None]


def _box(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest centred box with the proportions of `shape`: a stretch would be learnt."""
    width = min(size[0], round(size[1] * shape[0] / shape[1]))
    height = min(size[1], round(size[0] * shape[1] / shape[0]))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return (left, top, left + width, top + height)


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        encode,
        sections=("encode", "model", "prompts"),
        paths=("weights", "images", "captions", "out"),
    )


if __name__ == "__main__":
    main()
