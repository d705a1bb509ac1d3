"""The model card of a LoRA: what the Hub reads in its head, and what a person reads below."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
from huggingface_hub import ModelCardData

from stages.contracts.params import FetchParams, Params

_TAGS: Final = ("text-to-image", "lora", "diffusers", "template:sd-lora", "flux")


@dataclass(frozen=True)
class Sample:
    """A picture: its prompt, and its path in the repository."""

    prompt: str
    path: str


def write_card(
    params: Params, blocks: pd.DataFrame, slim_metrics: Path, samples: Sequence[Sample]
) -> str:
    """Return README.md.

    Args:
        params: all of params.yaml.
        blocks: the BLOCKS table.
        slim_metrics: metrics.json of stage slim.
        samples: pictures of held-out prompts.
    """
    base = params.fetch.repository
    head = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        instance_prompt=params.caption.trigger,
        tags=list(_TAGS),
        widget=[{"text": one.prompt, "output": {"url": one.path}} for one in samples],
        base_model=base,
    ).to_yaml()
    slim = json.loads(slim_metrics.read_text(encoding="utf-8"))
    ranked = blocks.sort_values(["share", "block"], ascending=[False, True])
    columns = ("block", "share", "share_low", "share_high", "only_recovery", "bytes")
    rows = zip(*(ranked[name].tolist() for name in columns), strict=True)
    table = "".join(
        f"| {block} | {share:.1%} | {low:.1%} to {high:.1%} "
        f"| {'–' if pd.isna(only) else f'{only:.2f}'} | {size:,} |\n"
        for block, share, low, high, only, size in rows
    )
    trained_on = f"[{base}](https://huggingface.co/{base})" if base else _file_name(params.fetch)
    return f"""---
{head}
---

# {params.report.title}

A LoRA for {trained_on}. Begin the prompt with `{params.caption.trigger}`.

| file | what it is |
|---|---|
| `adapter.safetensors` | the whole LoRA |
| `adapter-slim.safetensors` | {slim["blocks_kept"]} blocks, {slim["bytes_ratio"]:.0%} of the size |

On held-out prompts the slim file recovers {slim["recovery"]:.2f} of the effect (interval from
{slim["recovery_low"]:.2f}, by resampling the few pictures there are). Both files have diffusers'
names, which ComfyUI reads too. Pictures were drawn in {params.sampling.steps} steps at guidance
{params.sampling.guidance:g}.

## Which block does what

Share: part of the effect that is the block's; shares add up to 100 %. Alone: recovery of the
block without the others.

| block | share | interval | alone | bytes |
|---|---|---|---|---|
{table}"""


def _file_name(fetch: FetchParams) -> str:
    """Return what a base model that is no repository is called, without a path of this machine."""
    if fetch.single_files is not None:
        return Path(fetch.single_files.transformer).stem
    return Path(fetch.folder).absolute().name
