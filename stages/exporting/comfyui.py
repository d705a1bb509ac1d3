"""What one needs to go on in ComfyUI: workflows, and a text that says which file goes where."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from stages.contracts.params import Params
from stages.exporting.flux_workflow import Dressing, Scene, flux_workflow
from stages.exporting.graph import Json, api_format, ui_format
from stages.exporting.models import BaseFiles, Fit, base_files, flux_fit
from stages.exporting.strength import Recommendation, recommend_strength

_SHAPES: Final = {"portrait": (832, 1216), "landscape": (1216, 832)}
"""About a megapixel, which FLUX.1 was trained at, with sides in multiples of 64."""

_MISFIT: Final = (
    "This LoRA cannot be used in ComfyUI: its base model is none that ComfyUI loads, and its "
    "shapes are not those of FLUX.1 (width 3072). On FLUX.1 ComfyUI would skip every layer of it "
    "with a shape error and draw the base model's picture. These files show what a run on FLUX.1 "
    "gets: names are {title}'s."
)
_UNREAD: Final = (
    "The LoRA's tensors have other names than diffusers', so its shapes were not compared with "
    "FLUX.1's. ComfyUI reads kohya's names as well."
)


@dataclass(frozen=True)
class Finished:
    """A trained and slimmed LoRA: both files, how they are shown, the sweep, Inspire's vector."""

    adapter: Path
    shown: str
    slim: Path
    shown_slim: str
    sweep: pd.DataFrame
    block_vector: str


def comfyui_files(finished: Finished, params: Params) -> dict[str, str]:
    """Return names and texts of all files: three workflows in two shapes and formats, a README."""
    base = base_files(params.fetch)
    fit = flux_fit(finished.adapter)
    advice = recommend_strength(finished.sweep, params.slim.recovery)
    stem = _file_stem(params.caption.trigger)
    full = Dressing("full", f"{stem}.safetensors", advice.strength)
    slim = Dressing("slim", f"{stem}-slim.safetensors", advice.strength)
    files = {"README.md": _readme(finished, params, base, fit, advice)}
    for name, dressings in {"full": [full], "slim": [slim], "compare": [full, slim]}.items():
        for shape, (width, height) in _SHAPES.items():
            scene = Scene(
                params.prompts.develop[0],
                params.prompts.seeds[0],
                params.sampling.steps,
                params.sampling.guidance,
                width,
                height,
            )
            notes = (*_fit_notes(base, fit), *_notes(finished, advice, full in dressings))
            nodes = flux_workflow(base, dressings, scene, f"blocklens/{stem}", notes)
            files[f"{name}-{shape}.json"] = _written(ui_format(nodes))
            files[f"{name}-{shape}.api.json"] = _written(api_format(nodes))
    return files


def _written(content: Json) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _file_stem(trigger: str) -> str:
    """Return the trigger as part of a file's name on any system."""
    return "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in trigger)


def _fit_notes(base: BaseFiles, fit: Fit) -> tuple[str, ...]:
    misfit = _MISFIT.format(title=base.title)
    return {"fits": (), "other shapes": (misfit,), "other names": (_UNREAD,)}[fit]


def _notes(finished: Finished, advice: Recommendation, with_vector: bool) -> tuple[str, ...]:
    notes = (f"Strength {advice.strength:g}: {advice.because}.",)
    if not with_vector:
        return notes
    vector = (
        "Block vector for Inspire Pack's `Lora Loader (Block Weight)`, for the full file alone. "
        "With it the full file acts like the slim one; never use it on the slim file, whose blocks "
        f"would take the values of others.\n\n{finished.block_vector.strip()}"
    )
    return (*notes, vector)


def _readme(
    finished: Finished, params: Params, base: BaseFiles, fit: Fit, advice: Recommendation
) -> str:
    stem = _file_stem(params.caption.trigger)
    remark: Mapping[Fit, str] = {
        "fits": "Names and shapes of the LoRA are those of FLUX.1's blocks.",
        "other shapes": f"**{_MISFIT.format(title=base.title)}**",
        "other names": _UNREAD,
    }
    rows = [
        *((f"models/{file.folder}/{file.name}", file.source, file.size) for file in base.files),
        (f"models/loras/{stem}.safetensors", finished.shown, _bytes(finished.adapter)),
        (f"models/loras/{stem}-slim.safetensors", finished.shown_slim, _bytes(finished.slim)),
    ]
    table = "".join(f"| `{path}` | {source} | {size} |\n" for path, source, size in rows)
    columns = ("strength", "recovery", "recovery_low", "direction")
    numbers = zip(*(finished.sweep[name].astype(float) for name in columns), strict=True)
    sweep = "".join(
        f"| {strength:g} | {' | '.join(map(_number, rest))} |\n"
        for strength, *rest in sorted(numbers)
    )
    return f"""# {params.report.title} in ComfyUI

{remark[fit]}

## Which file goes where

Below ComfyUI's folder; copy the two LoRA files under these names. `models/text_encoders` does as
well as `models/clip`.

| file | from | size |
|---|---|---|
{table}
## Which workflow

| file | what it draws |
|---|---|
| `full-portrait.json`, `full-landscape.json` | with the LoRA as trained |
| `slim-portrait.json`, `slim-landscape.json` | with the slim file |
| `compare-portrait.json`, `compare-landscape.json` | both, same prompt and seed, two pictures |

Drag one into ComfyUI's page. The files that end in `.api.json` are the same graphs for a script:
each is the value of `prompt` in the body of `POST /prompt`. They need no custom nodes.
Prompt, seed, steps and guidance are those of `params.yaml`: “{params.prompts.develop[0]}”.
The trigger is `{params.caption.trigger}`.

## Strength

Begin with **{advice.strength:g}**: {advice.because}. This is measured on the full LoRA; the slim
file stands in for it. Recovery compares with the pictures at strength 1, so it says how much of the
effect is there, not which picture is better.

| strength | recovery | at least | direction |
|---|---|---|---|
{sweep}
## Block vector

For Inspire Pack's `Lora Loader (Block Weight)`, and for the **full** file alone: with it the full
file acts like the slim one.

    {finished.block_vector.strip()}
"""


def _bytes(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
