"""A small but complete data/ folder: what all stages before `evaluate` and `report` write.

The pictures are drawn, the numbers invented but consistent: a block's picture is `none` with a
part of `full` mixed in, and its share is that part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from stages.captioning.words import count_words
from stages.contracts.blocks import BlockId, numbered_blocks
from stages.contracts.params import Params, load_params
from stages.contracts.tables import (
    CAPTIONS,
    CURVE,
    DIAGNOSIS,
    HISTORY,
    MANIFEST,
    RENDERED,
    SCORES,
    SHARES,
    SPLIT_INDEX,
    WORDS,
    write_table,
)
from stages.evaluate import evaluate
from stages.runtime.files import write_json

ROOT = Path(__file__).parents[2]
ADAPTER_BYTES = 1_300_000
HELD_OUT_SEEDS = [100, 101]
EVIL_CAPTION = 'tok, a <script>alert("caption")</script> & "quoted" robot'

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Example:
    """What the example holds: block counts, absent blocks, prompts x seeds, picture side."""

    double_blocks: int = 19
    single_blocks: int = 38
    absent: tuple[str, ...] = ()
    prompts: int = 2
    seeds: int = 2
    side_px: int = 128

    @property
    def present(self) -> list[BlockId]:
        """The blocks that the adapter has, in model order."""
        every = numbered_blocks(self.double_blocks, self.single_blocks)
        return [block for block in every if str(block) not in self.absent]


def example_params() -> Params:
    """Return the params the example was made with: two held-out prompts, two seeds."""
    params = load_params(ROOT / "params.yaml")
    shown = {"held_out": params.prompts.held_out[:2], "held_out_seeds": HELD_OUT_SEEDS}
    return params.model_copy(update={"prompts": params.prompts.model_copy(update=shown)})


def example_folders(data: Path) -> dict[str, Path]:
    """Return the paths that `report` takes, by flag."""
    stages = {
        "prepared": "prepare",
        "captioned": "caption",
        "trained": "train",
        "split": "split",
        "rendered": "render",
        "attributed": "attribute",
        "evaluated": "evaluate",
        "slimmed": "slim",
    }
    files = {
        "manifest": data / "fetch" / "manifest.json",
        "adapter": data / "train" / "adapter.safetensors",
    }
    return {**files, **{flag: data / stage for flag, stage in stages.items()}}


def write_example(data: Path, example: Example) -> None:
    """Write data/fetch … data/slim, the real `evaluate` included."""
    write_intake(data, example.side_px)
    write_training(data, example.side_px)
    write_lens(data, example)
    evaluate(
        example_params().evaluate,
        data / "render",
        data / "attribute" / "shares.csv",
        data / "split" / "index.csv",
        data / "evaluate",
    )
    write_slim(data, example)


def write_intake(data: Path, side_px: int) -> None:
    """Write data/fetch, data/prepare and data/caption."""
    (data / "fetch").mkdir(parents=True)
    file = {"path": "transformer/config.json", "size_bytes": 512, "sha256": "0" * 64}
    manifest = {"folder": "data/nano-flux", "repository": None, "revision": None, "files": [file]}
    write_json(data / "fetch" / "manifest.json", manifest)
    images = data / "prepare" / "images"
    images.mkdir(parents=True)
    names = [f"{index:02d}" for index in range(24)] + [f"v{index}" for index in range(6)]
    for index, name in enumerate(names):
        Image.fromarray(_robot(side_px, index)).save(images / f"{name}.png")
    splits = ["train"] * 24 + ["validation"] * 6
    write_table(MANIFEST, _manifest(names, splits), data / "prepare" / "manifest.csv")
    metrics = {"images_total": 30, "images_accepted": 30, "images_rejected": 0}
    write_json(data / "prepare" / "metrics.json", {**metrics, "near_duplicates": 1})
    (data / "caption").mkdir()
    write_table(CAPTIONS, _captions(names, splits), data / "caption" / "captions.csv")
    words = count_words(_captions(names, splits)["caption"].tolist(), "tok")
    write_table(WORDS, words, data / "caption" / "words.csv")
    counts = {"captions_user": 24, "captions_generated": 6, "tokens_over_limit": 0}
    write_json(data / "caption" / "metrics.json", counts)


def _manifest(names: Sequence[str], splits: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": names,
            "file": [f"{name}.png" for name in names],
            "concept": "",
            "repeats": 1,
            "regularisation": False,
            "split": splits,
            "status": "accepted",
            "reason": "",
            "source": [f"robot-{name}.jpg" for name in names],
            "source_sha256": [f"{index:064x}" for index in range(len(names))],
            "sha256": [f"{index + 100:064x}" for index in range(len(names))],
            "original_width_px": 1400,
            "original_height_px": 1100,
            "width_px": 1024,
            "height_px": 1024,
            "exif_orientation": [6 if name == "03" else 1 for name in names],
            "upscale": 0.5,
            "mask_sha256": "",
            "blur": 200.0,
            "perceptual_hash": [f"{index:016x}" for index in range(len(names))],
            "near_duplicate_of": ["04" if name == "07" else "" for name in names],
            "caption_source": "txt",
        }
    )


def _captions(names: Sequence[str], splits: Sequence[str]) -> pd.DataFrame:
    texts = [f"tok, a robot in picture {name}, plain yellow background" for name in names]
    texts[2] = EVIL_CAPTION
    changes = ["none"] * len(names)
    changes[5] = "trigger added"
    return pd.DataFrame(
        {
            "image": names,
            "split": splits,
            "caption": texts,
            "trigger": "tok",
            "origin": [
                "generated" if name in {f"{i:02d}" for i in range(18, 24)} else "user"
                for name in names
            ],
            "written_by": "captions.csv",
            "change": changes,
            "clip_tokens": 12,
            "t5_tokens": [14 + index % 5 for index in range(len(names))],
            "clip_cut": 0.0,
            "t5_cut": 0.0,
        }
    )


def write_training(data: Path, side_px: int) -> None:
    """Write data/train: history, samples, a checkpoint's name and a stand-in adapter."""
    samples = data / "train" / "samples"
    samples.mkdir(parents=True)
    steps = np.arange(0, 401, 10)
    noise = np.random.default_rng(0).normal(0.0, 0.02, len(steps))
    loss = 0.2 + 0.22 * np.exp(-steps / 90.0) + noise
    validation = np.array(
        [0.21 + 0.2 * math.exp(-s / 80.0) if s % 50 == 0 else np.nan for s in steps]
    )
    history = pd.DataFrame(
        {
            "step": steps,
            "loss": np.where(steps == 0, np.nan, loss),
            "gradient_norm": np.where(steps == 0, np.nan, 0.5),
            "learning_rate": np.where(steps == 0, 0.0, 0.001),
            "validation_loss": validation,
            "validation_loss_low": 1.4 * validation,
            "validation_loss_middle": 0.8 * validation,
            "validation_loss_high": validation,
            "probe_loss": 0.98 * validation,
            "validation_loss_ema": np.nan,
            "probe_loss_ema": np.nan,
            "regularisation_loss": float("nan"),
            "preservation_loss": float("nan"),
        }
    )
    write_table(HISTORY, history, data / "train" / "history.csv")
    for step in (0, 100, 200, 300, 400):
        for prompt in range(2):
            mixed = _mix(_shape(side_px, prompt), _robot(side_px, prompt), step / 400)
            Image.fromarray(mixed).save(samples / f"step-{step:04d}-{prompt}.png")
    _write_adapter(data / "train" / "adapter.safetensors", ADAPTER_BYTES)
    metrics: dict[str, object] = {
        "validation_loss_base": 0.41,
        "validation_loss": 0.2117,
        "improvement": 0.4837,
    }
    _write_verdict(data / "train", side_px)
    reason = "step 400 of 400: lowest validation loss (0.2117), 48 % below base"
    metrics["selected_because"] = reason
    sizes = {
        "selected_step": 400,
        "selected_weights": "raw",
        "trainable_parameters": 325_000,
        "adapter_bytes": ADAPTER_BYTES,
    }
    write_json(data / "train" / "metrics.json", {**metrics, **sizes})


def _write_verdict(train: Path, side_px: int) -> None:
    scores = pd.DataFrame(
        {
            "step": [0, 200, 400, 400],
            "weights": ["raw", "raw", "raw", "ema"],
            "validation_loss": [0.41, 0.23, 0.2117, 0.22],
            "probe_loss": [0.4, 0.22, 0.2, 0.21],
            "effect_mse": [0.0, 300.0, 500.0, 400.0],
            "plain_mse": [0.0, 100.0, 200.0, 150.0],
            "bleed": [np.nan, 1 / 3, 0.4, 0.375],
            "diversity": [1.0, 0.9, 0.8, 0.85],
            "detail": [40.0, 38.0, 37.0, 37.5],
            "nearest_training": [1.4, 1.1, 0.9, 1.0],
            "collapsed": False,
            "chosen": [False, False, True, False],
        }
    )
    write_table(SCORES, scores, train / "scores.csv")
    found = {"finding": "bleeding", "words": "Pictures moved.", "advice": "Take less steps."}
    write_table(DIAGNOSIS, pd.DataFrame([{**found, "numbers": "{}"}]), train / "diagnosis.csv")
    Image.fromarray(_robot(side_px, 0)).save(train / "sheet.png")


def write_lens(data: Path, example: Example) -> None:
    """Write data/split, data/render and data/attribute."""
    parts = block_parts(example)
    blocks = [str(block) for block in example.present]
    for stage in ("split", "attribute"):
        (data / stage).mkdir(parents=True)
    index = pd.DataFrame(
        {
            "block": blocks,
            "modules": [14 if block.startswith("double") else 6 for block in blocks],
            "rank": 8,
            "parameters": [9000 if block.startswith("double") else 4000 for block in blocks],
            "bytes": [36_500 if block.startswith("double") else 16_400 for block in blocks],
            "norm": [0.4 + 3.0 * part for part in parts],
            "relative_norm": [0.02 + 0.2 * part for part in parts],
        }
    )
    write_table(SPLIT_INDEX, index, data / "split" / "index.csv")
    counts = {"double_blocks": example.double_blocks, "single_blocks": example.single_blocks}
    write_json(
        data / "split" / "metrics.json", {"blocks_present": len(blocks), "modules": 494, **counts}
    )
    shares = pd.DataFrame(
        {
            "block": blocks,
            "share": parts,
            "low": [part - 0.25 * abs(part) - 0.002 for part in parts],
            "high": [part + 0.3 * abs(part) + 0.002 for part in parts],
            "prior": [0.02 + 0.2 * part for part in parts],
            "plain_share": [float(place == 0) for place in range(len(parts))],
        }
    )
    write_table(SHARES, shares, data / "attribute" / "shares.csv")
    half = int(np.searchsorted(np.cumsum(sorted(parts, reverse=True)), 0.5)) + 1
    scores = {"completeness_error": 0.0031, "top_block_share": float(max(parts))}
    write_json(data / "attribute" / "metrics.json", {**scores, "blocks_for_half": half})
    _write_pictures(data / "render", example, dict(zip(blocks, parts, strict=True)))


def block_parts(example: Example) -> npt.NDArray[np.float64]:
    """Return each present block's part of the effect; one is slightly negative; sum 1."""
    random = np.random.default_rng(7)
    parts = random.gamma(0.6, 1.0, len(example.present))
    parts[0] = -0.02 * parts.sum()
    normed: npt.NDArray[np.float64] = parts / parts.sum()
    return normed


def _write_pictures(render: Path, example: Example, parts: dict[str, float]) -> None:
    params = example_params().prompts
    texts = {f"develop-{i}": params.develop[i % 2] for i in range(example.prompts)}
    rows = []
    for number, (prompt, text) in enumerate(texts.items()):
        for seed in range(example.seeds):
            none = _shape(example.side_px, 3 * number + seed)
            full = _robot(example.side_px, 3 * number + seed)
            pictures = {"none": none, "full": full, "repeat": np.clip(full, 1, 255)}
            for position, (block, part) in enumerate(parts.items()):
                place = position % 7
                pictures[f"only:{block}"] = _mix(none, full, min(1.0, 4.0 * abs(part)), place)
                pictures[f"without:{block}"] = _mix(full, none, min(1.0, 2.0 * abs(part)), place)
            rows += _save(render, prompt, text, seed, pictures)
    bleed = params.without_trigger[0]
    none = _shape(example.side_px, 9)
    pictures = {"none": none, "full": _mix(none, _robot(example.side_px, 9), 0.15)}
    rows += _save(render, "without-trigger-0", bleed, 0, pictures)
    write_table(RENDERED, pd.DataFrame(rows), render / "index.csv")
    write_json(render / "metrics.json", {"variants": 2 * len(parts) + 3, "pictures": len(rows)})


def _save(
    render: Path, prompt: str, text: str, seed: int, pictures: dict[str, npt.NDArray[np.uint8]]
) -> list[dict[str, object]]:
    folder = Path("images") / f"{prompt}-{seed}"
    (render / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for variant, picture in pictures.items():
        file = folder / f"{variant.replace(':', '-')}.png"
        Image.fromarray(picture).save(render / file)
        rows.append(
            {
                "prompt": prompt,
                "text": text,
                "seed": seed,
                "variant": variant,
                "file": file.as_posix(),
            }
        )
    return rows


def write_slim(data: Path, example: Example) -> None:
    """Write data/slim: curve, slim adapter, metrics and held-out pictures."""
    parts = block_parts(example)
    blocks = [str(block) for block in example.present]
    order = [blocks[i] for i in np.argsort(-parts)]
    sizes = [36_500 if block.startswith("double") else 16_400 for block in order]
    kept = max(1, len(order) * 2 // 5)
    known = np.maximum(0.0, 1.0 - np.exp(-np.arange(len(order) + 1) / (0.17 * len(order))))
    measured = [n for n in range(len(order) + 1) if n % 5 == 0 or n == kept]
    curve = pd.DataFrame(
        {
            "blocks": range(len(order) + 1),
            "added": ["", *order],
            "bytes": np.cumsum([0, *sizes]),
            "predicted": known / known[-1],
            "recovery": [known[n] - 0.01 if n in measured else np.nan for n in range(len(known))],
            "recovery_low": [
                known[n] - 0.04 if n in measured else np.nan for n in range(len(known))
            ],
        }
    )
    (data / "slim").mkdir(parents=True)
    write_table(CURVE, curve, data / "slim" / "curve.csv")
    _write_adapter(data / "slim" / "adapter-slim.safetensors", int(sum(sizes[:kept])))
    (data / "slim" / "retrain").mkdir()
    vector = ",".join(["1", *("1" if block in order[:kept] else "0" for block in blocks)])
    (data / "slim" / "retrain" / "inspire.txt").write_text(f"{vector}\n", encoding="utf-8")
    write_json(
        data / "slim" / "metrics.json",
        {
            "blocks_kept": kept,
            "bytes": int(sum(sizes[:kept])),
            "bytes_ratio": float(sum(sizes[:kept]) / sum(sizes)),
            "recovery": 0.913,
            "recovery_low": 0.882,
        },
    )
    for prompt in range(2):
        for seed in HELD_OUT_SEEDS:
            folder = data / "slim" / "images" / f"held-out-{prompt}-{seed}"
            folder.mkdir(parents=True)
            none, full = (f(example.side_px, 5 + prompt + seed) for f in (_shape, _robot))
            for name, part in (("none", 0.0), ("full", 1.0), ("slim", 0.93)):
                Image.fromarray(_mix(none, full, part)).save(folder / f"{name}.png")


def _write_adapter(path: Path, size_bytes: int) -> None:
    metadata = {"blocklens.trigger": "tok", "blocklens.selected_step": "400"}
    save_file({"weights": np.zeros(size_bytes // 4, dtype=np.float32)}, path, metadata)


def _background(side_px: int, number: int) -> Image.Image:
    palette: list[Colour] = [(246, 214, 70), (86, 170, 104), (90, 130, 214), (236, 236, 232)]
    image = Image.new("RGB", (side_px, side_px), palette[number % 4])
    draw = ImageDraw.Draw(image)
    if number % 2:
        for left in range(0, side_px, side_px // 8):
            draw.rectangle((left, 0, left + side_px // 20, side_px), fill=palette[(number + 3) % 4])
    return image


def _shape(side_px: int, number: int) -> npt.NDArray[np.uint8]:
    image = _background(side_px, number)
    box = [side_px * x for x in (0.28, 0.26, 0.74, 0.72)]
    colours: list[Colour] = [(210, 50, 50), (60, 70, 190), (120, 60, 170)]
    ImageDraw.Draw(image).ellipse(box, fill=colours[number % 3], outline=(40, 20, 20), width=2)
    return np.asarray(image, dtype=np.uint8)


def _robot(side_px: int, number: int) -> npt.NDArray[np.uint8]:
    image = _background(side_px, number)
    draw = ImageDraw.Draw(image)

    def box(left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        edges = [side_px * x for x in (left, top, right, bottom)]
        draw.rounded_rectangle(edges, radius=side_px * 0.03, fill=fill, outline=(40, 44, 52))

    box(0.34, 0.2, 0.66, 0.45, (150, 168, 184))
    box(0.3, 0.48, 0.7, 0.78, (206, 110, 60))
    box(0.36, 0.8, 0.46, 0.92, (90, 100, 112))
    box(0.54, 0.8, 0.64, 0.92, (90, 100, 112))
    for left in (0.4, 0.54):
        draw.ellipse([side_px * x for x in (left, 0.27, left + 0.07, 0.34)], fill=(70, 220, 230))
    draw.line([side_px * x for x in (0.5, 0.2, 0.5, 0.11)], fill=(40, 44, 52), width=2)
    return np.asarray(image, dtype=np.uint8)


def _mix(
    a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], part: float, place: int | None = None
) -> npt.NDArray[np.uint8]:
    """Return `a` with a part of `b`; with a place, strongest in one band of the picture."""
    weight = np.full(a.shape[:2], part)
    if place is not None:
        rows = np.linspace(0.0, 7.0, a.shape[0])[:, None]
        weight = weight * (0.35 + 0.65 * np.exp(-((rows - place) ** 2) / 2.0))
    mixed = a + (b.astype(np.float64) - a) * weight[:, :, None]
    return mixed.round().astype(np.uint8)
