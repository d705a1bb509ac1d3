"""Cache what training needs of pictures and captions: latents and text embeddings.

Reads:   prepared pictures and their manifest (--images), captions (--captions), the base model's
         VAE and text encoders (--weights); for class pictures its transformer too.
Writes:  latents-<hash>.safetensors per picture and size, and per mirrored one;
         text-<hash>.safetensors per caption, per caption without trigger where asked for, per
         prompt and for the empty caption; class-<prompt>-<number>.png; index.csv (ENCODED).
Params:  encode, model; of prompts those without the trigger, by which train measures bleed; of
         sampling what class pictures are made with.

Every file is named after the hash of what went in, so that training, which loads neither VAE nor
text encoders, cannot pair a picture with another one's caption.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from stages.contracts.errors import DatasetError, Problem
from stages.contracts.params import EncodeParams, ModelParams, SamplingParams
from stages.contracts.tables import (
    CAPTIONS,
    ENCODED,
    MANIFEST,
    MASKS,
    accepted,
    read_table,
    write_table,
)
from stages.encoding.encoded import (
    INDEX,
    Latents,
    write_latents,
    write_text,
)
from stages.encoding.pixels import read_mask, read_pixels
from stages.encoding.views import Source, SourceView, index_table, views_of
from stages.families.latents import encode_pictures
from stages.families.loading import load_text_encoders, load_vae
from stages.families.quantisation import require_hardware
from stages.families.text import encode_prompts
from stages.families.weights import ensure_weights, read_manifest
from stages.imaging.png import encode_png
from stages.runtime.console import run_stage
from stages.runtime.device import configure_torch
from stages.runtime.files import sha256_file
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track
from stages.sampling.class_pictures import class_pictures, draw_class_pictures

_log = logging.getLogger(__name__)


def encode(
    params: EncodeParams,
    model: ModelParams,
    plain_prompts: list[str],
    steps: int,
    guidance: float,
    batch: int,
    *,
    weights: Path,
    images: Path,
    captions: Path,
    out: Path,
) -> None:
    """Write latents, text embeddings and their index into `out`.

    Args:
        params: what is encoded.
        model: how texts are encoded, and class pictures made.
        plain_prompts: prompts without the trigger.
        steps: of a class picture.
        guidance: of a class picture.
        batch: class pictures in one forward pass.
        weights: manifest of the base model.
        images: prepared pictures and their manifest.
        captions: their table.
        out: folder to write.

    Raises:
        DatasetError: pictures and captions do not belong together.
        HardwareError: this machine cannot run the base model as `model` says: train could not.
    """
    device = configure_torch()
    require_hardware(model, device)
    sources = _read_sources(images, captions)
    folder = ensure_weights(weights)
    manifest = read_manifest(weights)
    largest = max(params.sizes_px)
    drawing = SamplingParams(size_px=largest, steps=steps, guidance=guidance, batch=batch)
    with replace_folder(out) as work:
        sources += _make_class_pictures(params, model, drawing, folder, device, work)
        views = [view for source in sources for view in views_of(source, params, manifest)]
        drawn = {"sample": params.sample_prompts, "plain": plain_prompts}
        index = index_table(sources, views, drawn, params, model, manifest)
        texts = dict(zip(index["text_file"], index["caption"], strict=True))
        texts |= dict(zip(index["plain_text_file"], index["plain_caption"], strict=True))
        texts.pop("", None)
        sizes = ", ".join(map(str, params.sizes_px))
        _log.info("%d pictures at %s pixels, %d different texts", len(sources), sizes, len(texts))
        vae = load_vae(folder, device)
        for view in track(views, len(views), "pictures"):
            write_latents(work / view.file, _encode_view(vae, view))
        del vae  # on a small card the text encoders need its memory
        encoders = load_text_encoders(folder, model.precision, device)
        for name, text in track(texts.items(), len(texts), "captions"):
            (embedding,) = encode_prompts(encoders, [text], model.text_tokens)
            write_text(work / name, embedding)
        write_table(ENCODED, index, work / INDEX)


def _encode_view(vae: AutoencoderKL, view: SourceView) -> Latents:
    """Return the latents of one view. Pixels are mirrored, not latents: a VAE is not symmetric."""
    pixels = read_pixels(view.source.path, view.size_px)
    mask = None if view.source.mask is None else read_mask(view.source.mask, view.size_px)
    if view.mirrored:
        pixels = pixels.flip(-1)
        mask = None if mask is None else mask.flip(-1)
    mean, std = encode_pictures(vae, pixels)
    return Latents(mean[0].cpu(), std[0].cpu(), mask)


def _make_class_pictures(
    params: EncodeParams,
    model: ModelParams,
    sampling: SamplingParams,
    folder: Path,
    device: torch.device,
    work: Path,
) -> list[Source]:
    """Let the base model make its pictures of the class prompts; write them and return them."""
    if not params.class_prompts:
        return []
    wanted = class_pictures(len(params.class_prompts), params.class_pictures)
    size_px = sampling.size_px
    _log.info("the base model makes %d class pictures of %d pixels", len(wanted), size_px)
    drawn = draw_class_pictures(folder, params.class_prompts, wanted, model, sampling, device)
    sources = []
    for picture, pixels in zip(wanted, track(drawn, len(wanted), "class pictures"), strict=True):
        path = work / f"{picture.name}.png"
        data = encode_png(pixels)
        path.write_bytes(data)
        sources.append(
            Source(
                # Users' files never have a slash in their names.
                name=f"class/{picture.name}",
                path=path,
                sha256=hashlib.sha256(data).hexdigest(),
                mask=None,
                mask_sha256="",
                split="train",
                repeats=1,
                regularisation=True,
                own_px=float(size_px),
                caption=params.class_prompts[picture.prompt],
                trigger="",
            )
        )
    return sources


def _read_sources(images: Path, captions: Path) -> list[Source]:
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
        sources.append(_source(images / "images", row, caption))
    problems += [problem for source in sources for problem in _changed(source)]
    if problems:
        raise DatasetError("Pictures and captions do not belong together", problems)
    used = [source for source in sources if not (source.held_out and source.regularisation)]
    if left := len(sources) - len(used):
        _log.warning("%d regularisation pictures are held out: nothing is measured on them", left)
    return used


def _source(folder: Path, row: dict[Hashable, Any], caption: dict[Hashable, Any]) -> Source:
    masked = bool(row["mask_sha256"])
    names = ("sha256", "mask_sha256", "split", "repeats", "regularisation")
    return Source(
        name=row["image"],
        path=folder / row["file"],
        mask=folder / MASKS / row["file"] if masked else None,
        own_px=math.sqrt(row["width_px"] * row["height_px"]) / max(1.0, row["upscale"]),
        caption=caption["caption"],
        trigger=caption["trigger"],
        **{name: row[name] for name in names},
    )


def _changed(source: Source) -> Iterator[Problem]:
    again = "Run `dvc repro --force prepare`."
    files = [(source.path, source.sha256)]
    files += [] if source.mask is None else [(source.mask, source.mask_sha256)]
    for path, sha256 in files:
        if not path.is_file():
            yield Problem(str(path), "missing", again)
        elif sha256_file(path) != sha256:
            yield Problem(str(path), "differs from its manifest (SHA-256)", again)


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        encode,
        sections=(
            "encode",
            "model",
            "prompts.without_trigger",
            "sampling.steps",
            "sampling.guidance",
            "sampling.batch",
        ),
        paths=("weights", "images", "captions", "out"),
    )


if __name__ == "__main__":
    main()
