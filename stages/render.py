"""Make the pictures of the block lens: without the LoRA, with it, with and without each block.

Reads:   the base model (--weights: its manifest), the adapter (--adapter).
Writes:  images/<prompt>-<seed>/<variant>.png, index.csv (RENDERED), metrics.json.
Params:  render, model, sampling, prompts.

Development prompts get every variant (sampling/variants.py). Prompts without the trigger get `none`
and `full`, which show how far the LoRA bleeds, and on request each block's part in that. Finished
pictures are kept in $BLOCKLENS_STATE (.blocklens) until all are there, so a render that was killed
goes on with the missing ones.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from stages.adapters.files import read_adapter
from stages.contracts.blocks import BlockId
from stages.contracts.params import (
    ModelParams,
    PromptsParams,
    RenderParams,
    SamplingParams,
    Section,
)
from stages.contracts.tables import RENDERED, write_table
from stages.families.architecture import read_architecture
from stages.families.weights import ensure_weights
from stages.imaging.png import encode_png
from stages.runtime.console import run_stage
from stages.runtime.crew import Crew, Setting, open_crew
from stages.runtime.device import rounding
from stages.runtime.files import sha256_file, write_json, write_whole
from stages.runtime.fingerprint import run_fingerprint
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track
from stages.runtime.state_folder import run_folder
from stages.sampling.generation import Job
from stages.sampling.picture_plan import PlannedPicture, Series, plan_pictures, prompts_of
from stages.sampling.session import AdapterVersion, Picture, Session, draw, set_scene
from stages.sampling.variants import gate_values

Batch: TypeAlias = tuple[AdapterVersion, tuple[PlannedPicture, ...]]
"""Pictures that are made at once, and the version of the adapter for them."""

_log = logging.getLogger(__name__)


def render(
    params: RenderParams,
    model: ModelParams,
    sampling: SamplingParams,
    prompts: PromptsParams,
    *,
    weights: Path,
    adapter: Path,
    out: Path,
) -> None:
    """Write the pictures of all variants, their index and metrics into `out`.

    Raises:
        AdapterError: the adapter cannot be read or does not fit the base model.
        WeightsError: the base weights are missing or changed.
        ClusterError: the workers of $BLOCKLENS_DASK are not there, or not fit for the work.
    """
    source = read_adapter(adapter)
    folder = ensure_weights(weights)
    series = plan_pictures(params, prompts, source.blocks, read_architecture(folder).blocks)
    pictures = [picture for one in series for picture in one.pictures]
    sections = {"render": params, "model": model, "sampling": sampling, "prompts": prompts}
    state = _state_folder(sections, weights, adapter)
    _announce(pictures, state, len(source.blocks))
    missing = [batch for one in series for batch in _unfinished(one, sampling.batch, state)]
    if missing:
        scene = set_scene(
            weights, adapter, prompts_of(series), model, sampling, compiled=params.compile
        )
        _make(scene, source.blocks, missing, state)
    with replace_folder(out) as work:
        shutil.copytree(state / "images", work / "images", copy_function=shutil.copyfile)
        write_table(RENDERED, _index(pictures), work / "index.csv")
        write_json(work / "metrics.json", _metrics(pictures))
    shutil.rmtree(state)


def _state_folder(params: dict[str, Section], weights: Path, adapter: Path) -> Path:
    """Return the folder of this very render's finished pictures."""
    inputs = {
        "weights": sha256_file(weights),
        "adapter": sha256_file(adapter),
        "rounding": rounding(),
    }
    values = {name: section.model_dump() for name, section in params.items()}
    return run_folder("render", run_fingerprint(values, inputs, Path(__file__)))


def _unfinished(series: Series, batch: int, state: Path) -> Iterator[Batch]:
    """Yield the batches that lack a picture.

    Batches are cut from the whole series, never from what is left of it: a picture has the same
    neighbours whether or not the render was killed.
    """
    for together in series.batches(batch):
        if not all((state / picture.file).is_file() for picture in together):
            yield AdapterVersion(series.noise_seed), together


def _announce(pictures: Sequence[PlannedPicture], state: Path, blocks: int) -> None:
    missing = sum(not (state / picture.file).is_file() for picture in pictures)
    _log.info(
        "%d pictures of %d variants (%d blocks): %d to make, %d kept from a run that was stopped",
        len(pictures),
        len({picture.variant for picture in pictures}),
        blocks,
        missing,
        len(pictures) - missing,
    )


def _make(
    scene: Setting[Session], blocks: Sequence[BlockId], batches: Sequence[Batch], state: Path
) -> None:
    items = ((version, _jobs(pictures, blocks)) for version, pictures in batches)

    def made(crew: Crew[Session]) -> Iterator[tuple[PlannedPicture, Picture]]:
        for index, drawn in crew.each(draw, items):
            yield from zip(batches[index][1], drawn, strict=True)

    with open_crew(scene) as crew:
        total = sum(len(pictures) for _, pictures in batches)
        for picture, pixels in track(made(crew), total, "render"):
            write_whole(state / picture.file, partial(_write, encode_png(pixels)))


def _jobs(pictures: Sequence[PlannedPicture], blocks: Sequence[BlockId]) -> list[Job]:
    return [
        Job(picture.prompt.name, picture.seed, gate_values(picture.variant, blocks))
        for picture in pictures
    ]


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _index(pictures: Sequence[PlannedPicture]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "prompt": picture.prompt.name,
                "text": picture.prompt.text,
                "seed": picture.seed,
                "variant": str(picture.variant),
                "file": picture.file,
            }
            for picture in pictures
        ]
    )


def _metrics(pictures: Sequence[PlannedPicture]) -> dict[str, int]:
    return {
        "variants": len({picture.variant for picture in pictures}),
        "pictures": len(pictures),
    }


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        render,
        sections=("render", "model", "sampling", "prompts"),
        paths=("weights", "adapter", "out"),
    )


if __name__ == "__main__":
    main()
