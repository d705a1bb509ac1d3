"""Stage `verdict`: has the judge read pictures that the finished pipeline draws.

Reads the exported pipeline, the judge, the drawings and the demo subject; writes `metrics.json`
(flat, in git) and `sheet.png`. Parameters: section `verdict`.
"""

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageOps

from nano.architecture import TEXT_TOKENS
from nano.autoencoder import mean_square_error, reconstruct
from nano.growing import neighbour_differences
from nano.judge import Judge, load_judge, read_scenes, shares_right
from nano.parameters import load_section
from nano.world import Scene

logger = logging.getLogger(__name__)

_SIDE_PX = 128
_CAPTION_PX = 30


@dataclass(frozen=True)
class VerdictParameters:
    """How many pictures are drawn, and how."""

    seed: int
    pictures: int
    batch_size: int
    inference_steps: int
    guidance: float
    reconstructions: int
    sheet_columns: int
    sheet_rows: int


def generate(
    pipeline: FluxPipeline, captions: list[str], parameters: VerdictParameters, guidance: float
) -> np.ndarray:
    """One picture per caption, uint8 (captions, 128, 128, 3); noise is keyed by its number."""
    pictures: list[np.ndarray] = []
    for start in range(0, len(captions), parameters.batch_size):
        batch = captions[start : start + parameters.batch_size]
        generators = [
            torch.Generator().manual_seed(parameters.seed * 1_000_003 + start + place)
            for place in range(len(batch))
        ]
        images = pipeline(
            batch,
            height=_SIDE_PX,
            width=_SIDE_PX,
            num_inference_steps=parameters.inference_steps,
            guidance_scale=guidance,
            generator=generators,
            max_sequence_length=TEXT_TOKENS,
        ).images
        pictures += [np.asarray(image) for image in images]
        logger.info("%d of %d pictures", len(pictures), len(captions))
    return np.stack(pictures)


def demo_pictures(folder: Path) -> np.ndarray:
    """The demo subject as the pipeline sees it: centred squares of 128 pixels."""
    squares = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".jpg"):
            upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            size = (_SIDE_PX, _SIDE_PX)
            squares.append(np.asarray(ImageOps.fit(upright, size, Image.Resampling.LANCZOS)))
    return np.stack(squares)


def judge_autoencoder(
    pipeline: FluxPipeline,
    judge: Judge,
    pictures: np.ndarray,
    scenes: list[Scene],
    demo: np.ndarray,
) -> dict[str, float]:
    """Errors of reconstructions, and what the judge sees in them: the ceiling of the pipeline."""
    reconstructions = reconstruct(pipeline.vae, pictures)
    metrics = {
        "autoencoder_mse_drawings": mean_square_error(pictures, reconstructions),
        "autoencoder_mse_demo": mean_square_error(demo, reconstruct(pipeline.vae, demo)),
    }
    for name, share in shares_right(judge, reconstructions, scenes).items():
        metrics[f"reconstruction_{name}"] = share
    return metrics


def sibling_metrics(pipeline: FluxPipeline) -> dict[str, float]:
    """How different neighbouring blocks are: 0 is equal, 1.41 unrelated."""
    metrics = {}
    for name, blocks in (
        ("double", pipeline.transformer.transformer_blocks),
        ("single", pipeline.transformer.single_transformer_blocks),
    ):
        differences = neighbour_differences(blocks)
        metrics[f"{name}_neighbours_least_difference"] = min(differences)
        metrics[f"{name}_neighbours_mean_difference"] = sum(differences) / len(differences)
    return metrics


def draw_sheet(pictures: np.ndarray, captions: list[str], columns: int, rows: int) -> Image.Image:
    """The first pictures, each above its prompt on two lines."""
    sheet = Image.new("RGB", (columns * (_SIDE_PX + 52), rows * (_SIDE_PX + _CAPTION_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for place in range(columns * rows):
        x = place % columns * (_SIDE_PX + 52) + 26
        y = place // columns * (_SIDE_PX + _CAPTION_PX) + 2
        sheet.paste(Image.fromarray(pictures[place]), (x, y))
        text = captions[place].replace(", ", ",\n")
        draw.multiline_text((x - 24, y + _SIDE_PX + 1), text, fill="black", font_size=10, spacing=1)
    return sheet


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--captioner-metrics", type=Path, required=True)
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--sheet", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    parameters = load_section(arguments.params, "verdict", VerdictParameters)
    pipeline = FluxPipeline.from_pretrained(arguments.pipeline, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judge = load_judge(arguments.judge / "judge.safetensors")
    scenes = read_scenes(arguments.drawings / "held_out.txt")
    held_out = np.array(np.load(arguments.drawings / "held_out.npy", mmap_mode="r"))
    captions = [scene.caption for scene in scenes[: parameters.pictures]]
    pictures = generate(pipeline, captions, parameters, parameters.guidance)
    generated = shares_right(judge, pictures, scenes[: parameters.pictures])
    count = parameters.reconstructions
    metrics = {
        **{f"generated_{name}": share for name, share in generated.items()},
        **judge_autoencoder(
            pipeline, judge, held_out[:count], scenes[:count], demo_pictures(arguments.demo)
        ),
        **sibling_metrics(pipeline),
        **_prefixed("judge", arguments.judge / "metrics.json"),
        **_prefixed("captioner", arguments.captioner_metrics),
    }
    rounded = {name: round(value, 4) for name, value in metrics.items()}
    arguments.metrics.write_text(json.dumps(rounded, indent=2, sort_keys=True) + "\n")
    sheet = draw_sheet(pictures, captions, parameters.sheet_columns, parameters.sheet_rows)
    sheet.quantize(128).save(arguments.sheet, optimize=True)
    logger.info("%s", rounded)


def _prefixed(prefix: str, path: Path) -> dict[str, float]:
    """The metrics of another stage under its name."""
    return {f"{prefix}_{name}": value for name, value in json.loads(path.read_text()).items()}


if __name__ == "__main__":
    main()
