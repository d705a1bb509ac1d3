"""What `render` drew of one prompt with one seed, and what can be measured of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stages.imaging.heatmap import difference, peak
from stages.imaging.metrics import Picture, mse, recovery_of_errors
from stages.imaging.similarity import direction, ssim


@dataclass(frozen=True)
class RenderedPair:
    """One prompt with one seed: its references and the files of all its variants."""

    prompt: str
    seed: int
    text: str
    none: Picture
    full: Picture
    files: Mapping[str, Path]

    @property
    def folder(self) -> str:
        """The name of its folder, such as develop-0-1."""
        return f"{self.prompt}-{self.seed}"

    @property
    def kind(self) -> str:
        """The list that its prompt is in, such as develop."""
        return self.prompt.rpartition("-")[0]

    def reference(self, variant: str) -> Picture:
        """Return what a variant is compared with: `full` where something is left out of it."""
        return self.full if variant.startswith(("without", "repeat")) else self.none

    def load(self, variant: str) -> Picture:
        """Return a variant's picture."""
        return load_picture(self.files[variant])


def load_pairs(rendered: pd.DataFrame, folder: Path) -> list[RenderedPair]:
    """Return all pairs of a RENDERED table, in the order of params.yaml, develop first."""
    pairs = []
    for _, group in rendered.groupby(["prompt", "seed"]):
        first = group.iloc[0]
        files = {v: folder / f for v, f in zip(group["variant"], group["file"], strict=True)}
        none, full = load_picture(files["none"]), load_picture(files["full"])
        pair = RenderedPair(
            str(first["prompt"]), int(first["seed"]), str(first["text"]), none, full, files
        )
        pairs.append(pair)
    return sorted(pairs, key=lambda p: (p.kind, int(p.prompt.rpartition("-")[2]), p.seed))


def load_picture(path: Path) -> Picture:
    """Return a picture file as RGB uint8 [height, width, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def measure_picture(pair: RenderedPair, variant: str) -> dict[str, object]:
    """Return the row of the PICTURES table: a picture against both of its references."""
    picture = pair.load(variant)
    effect, to_full = mse(pair.none, pair.full), mse(picture, pair.full)
    changed = effect > 0.0
    return {
        "prompt": pair.prompt,
        "seed": pair.seed,
        "variant": variant,
        "mse_to_none": mse(picture, pair.none),
        "mse_to_full": to_full,
        "recovery": recovery_of_errors(to_full, effect) if changed else np.nan,
        "direction": direction(picture, pair.none, pair.full) if changed else np.nan,
        "ssim_to_none": ssim(picture, pair.none),
        "ssim_to_full": ssim(picture, pair.full),
        "difference_peak": peak(difference(picture, pair.reference(variant))),
    }
