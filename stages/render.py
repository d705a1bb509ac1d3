"""Make the pictures of the block lens: without the LoRA, with it, with and without each block.

Reads:   the base model (--weights: its manifest), the adapter (--adapter).
Writes:  images/<prompt>-<seed>/<variant>.png, index.csv (RENDERED), metrics.json.
Params:  render, model, sampling, prompts.

Development prompts get every variant, prompts without the trigger only `none` and `full`, which
show how far the LoRA bleeds. Finished pictures are kept in $BLOCKLENS_STATE (.blocklens) until all
are there, so a render that was killed goes on with the missing ones.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from stages.adapters.files import read_adapter
from stages.adapters.module import Adapter
from stages.contracts.blocks import BlockId
from stages.contracts.params import (
    ModelParams,
    PromptsParams,
    RenderParams,
    SamplingParams,
    Section,
)
from stages.contracts.tables import RENDERED, write_table
from stages.families.weights import ensure_weights
from stages.imaging.png import encode_png
from stages.runtime.console import run_stage
from stages.runtime.device import configure_torch
from stages.runtime.files import sha256_file, write_json
from stages.runtime.fingerprint import run_fingerprint
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track
from stages.sampling.generation import Generator, Job, generate, open_generator
from stages.sampling.prompts import NamedPrompt, name_prompts
from stages.sampling.variants import FULL, NONE, REPEAT, Variant, gate_values, only, without

_MAKE: Final = {"only": only, "without": without}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Picture:
    """One picture to make."""

    prompt: NamedPrompt
    seed: int
    variant: Variant

    @property
    def file(self) -> str:
        """Its path below the stage's folder."""
        return f"images/{self.prompt.name}-{self.seed}/{self.variant.file_stem}.png"


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
    """
    source = read_adapter(adapter)
    folder = ensure_weights(weights)
    pictures = _plan(params, prompts, source.blocks)
    sections = {"render": params, "model": model, "sampling": sampling, "prompts": prompts}
    state = _state_folder(sections, weights, adapter)
    batches = list(_unfinished(pictures, sampling.batch, state))
    _announce(pictures, batches, len(source.blocks))
    if batches:
        used = {picture.prompt: None for picture in pictures}
        with open_generator(folder, source, used, model, sampling) as generator:
            _make(generator, source, batches, sampling, state)
    with replace_folder(out) as work:
        shutil.copytree(state / "images", work / "images", copy_function=shutil.copyfile)
        write_table(RENDERED, _index(pictures), work / "index.csv")
        write_json(work / "metrics.json", _metrics(pictures))
    shutil.rmtree(state)


def _plan(
    params: RenderParams, prompts: PromptsParams, blocks: Sequence[BlockId]
) -> list[_Picture]:
    """Return all pictures in the order in which they are made.

    Pictures of one block lie side by side: a batch with few blocks on skips the others. `repeat`
    is last, far from `full`, so that its batch is made of other pictures.
    """
    named = name_prompts(prompts)
    every = (*named.develop, *named.without_trigger)
    modes = dict.fromkeys(params.modes)
    plan = [(NONE, every), (FULL, every)]
    plan += [(_MAKE[mode](block), named.develop) for mode in modes for block in blocks]
    plan += [(REPEAT, named.develop)]
    return [
        _Picture(prompt, seed, variant)
        for variant, shown in plan
        for prompt in shown
        for seed in dict.fromkeys(prompts.seeds)
    ]


def _state_folder(params: dict[str, Section], weights: Path, adapter: Path) -> Path:
    """Return the folder of this very render's finished pictures."""
    inputs = {
        "weights": sha256_file(weights),
        "adapter": sha256_file(adapter),
        "device": configure_torch().type,  # two devices round differently
    }
    values = {name: section.model_dump() for name, section in params.items()}
    root = Path(os.environ.get("BLOCKLENS_STATE", ".blocklens")) / "render"
    return root / run_fingerprint(values, inputs, Path(__file__))


def _unfinished(
    pictures: Sequence[_Picture], batch: int, state: Path
) -> Iterator[Sequence[_Picture]]:
    """Yield the batches that lack a picture.

    Batches are cut from the whole plan, never from what is left of it: a picture has the same
    neighbours whether or not the render was killed.
    """
    for start in range(0, len(pictures), batch):
        together = pictures[start : start + batch]
        if not all((state / picture.file).is_file() for picture in together):
            yield together


def _announce(
    pictures: Sequence[_Picture], batches: Sequence[Sequence[_Picture]], blocks: int
) -> None:
    missing = sum(len(batch) for batch in batches)
    _log.info(
        "%d pictures of %d variants (%d blocks): %d to make, %d kept from a run that was stopped",
        len(pictures),
        len({picture.variant for picture in pictures}),
        blocks,
        missing,
        len(pictures) - missing,
    )


def _make(
    generator: Generator,
    adapter: Adapter,
    batches: Sequence[Sequence[_Picture]],
    sampling: SamplingParams,
    state: Path,
) -> None:
    pictures = [picture for batch in batches for picture in batch]
    made = (
        (batch[index], pixels)
        for batch in batches
        for index, pixels in generate(generator, _jobs(batch, adapter.blocks), sampling)
    )
    for picture, pixels in track(made, len(pictures), "render"):
        _keep(state / picture.file, encode_png(pixels))


def _jobs(pictures: Sequence[_Picture], blocks: Sequence[BlockId]) -> list[Job]:
    return [
        Job(picture.prompt.name, picture.seed, gate_values(picture.variant, blocks))
        for picture in pictures
    ]


def _keep(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _index(pictures: Sequence[_Picture]) -> pd.DataFrame:
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


def _metrics(pictures: Sequence[_Picture]) -> dict[str, int]:
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
