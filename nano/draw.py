"""Stage `draw`: the scenes, and the pictures for captioner and autoencoder alone.

Writes `OUT/{training,held_out,oddities,figures,scribbles}.npy`, uint8 (pictures, height, width,
3), and `OUT/{training,held_out,oddities}.txt` with one caption a line. Parameters: section `draw`.
"""

import argparse
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nano.drawing import draw_figure, draw_oddity, draw_scene, draw_scribble
from nano.parameters import load_section
from nano.world import Scene, all_scenes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DrawParameters:
    """How many pictures of which size are drawn."""

    seed: int
    side_px: int  # pictures are square
    training_pictures: int
    held_out_pictures: int
    scribbles: int  # pictures for the autoencoder alone
    figures: int  # pictures for the autoencoder alone
    oddities: int  # pictures of unknown objects, for the captioner alone


def _stack(pictures: Iterable[Image.Image]) -> np.ndarray:
    """uint8 (pictures, height, width, 3)."""
    return np.stack([np.asarray(picture) for picture in pictures])


def _choose(scenes: list[Scene], count: int, random: np.random.Generator) -> list[Scene]:
    """`count` different scenes in random order."""
    return [scenes[index] for index in random.permutation(len(scenes))[:count]]


def draw(parameters: DrawParameters, directory: Path) -> None:
    """Draws every picture of the recipe into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    scenes = list(all_scenes())
    splits = {
        "training": ([s for s in scenes if not s.held_out], parameters.training_pictures),
        "held_out": ([s for s in scenes if s.held_out], parameters.held_out_pictures),
    }
    for stream, (name, (candidates, count)) in enumerate(splits.items()):
        chosen = _choose(candidates, count, np.random.default_rng((parameters.seed, stream)))
        pictures = (
            draw_scene(
                scene, parameters.side_px, np.random.default_rng((parameters.seed, stream, index))
            )
            for index, scene in enumerate(chosen)
        )
        np.save(directory / f"{name}.npy", _stack(pictures))
        (directory / f"{name}.txt").write_text("".join(f"{s.caption}\n" for s in chosen))
        logger.info("%s: %d pictures", name, count)
    draw_oddities(parameters, splits["training"][0], directory)
    extras = {
        "scribbles": (2, draw_scribble, parameters.scribbles),
        "figures": (4, draw_figure, parameters.figures),
    }
    for name, (stream, draw_one, count) in extras.items():
        pictures = (
            draw_one(parameters.side_px, np.random.default_rng((parameters.seed, stream, index)))
            for index in range(count)
        )
        np.save(directory / f"{name}.npy", _stack(pictures))


def draw_oddities(parameters: DrawParameters, candidates: list[Scene], directory: Path) -> None:
    """Draws the pictures with unknown objects; their captions name a shape that is not there."""
    chosen = _choose(candidates, parameters.oddities, np.random.default_rng((parameters.seed, 3)))
    pictures = (
        draw_oddity(scene, parameters.side_px, np.random.default_rng((parameters.seed, 3, index)))
        for index, scene in enumerate(chosen)
    )
    np.save(directory / "oddities.npy", _stack(pictures))
    (directory / "oddities.txt").write_text("".join(f"{s.caption}\n" for s in chosen))


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    draw(load_section(arguments.params, "draw", DrawParameters), arguments.out)


if __name__ == "__main__":
    main()
