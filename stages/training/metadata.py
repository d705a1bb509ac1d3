"""What an adapter file says about itself, in the fields that other tools show.

`ss_*` are kohya's (sd-scripts, library/train_util.py), read by ComfyUI, Civitai, A1111 and
lora-inspector; `modelspec.*` is Stability-AI/ModelSpec 1.0.1; `blocklens.*` are ours and say from
what the adapter can be trained again. No date, host, path or commit: equal runs are equal bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stages.contracts.params import ModelParams, TrainParams
from stages.families.architecture import Architecture
from stages.runtime.fingerprint import package_versions
from stages.training.encoded import Encoded, Picture
from stages.training.schedule import pictures_per_step

_MODELSPEC_VERSION = "1.0.1"
_IMPLEMENTATION = "https://github.com/black-forest-labs/flux"


@dataclass(frozen=True)
class Origin:
    """What an adapter is trained on: the base (repository@revision or manifest hash) and data."""

    base: str
    architecture: Architecture
    data: Encoded


def adapter_metadata(
    origin: Origin, params: TrainParams, model: ModelParams, step: int
) -> dict[str, str]:
    """Return the text fields of the adapter that the run has after `step` steps."""
    side = origin.data.size_px
    title = "flux-1-dev" if origin.architecture.guidance else "flux-1-schnell"
    return {
        "ss_base_model_version": "flux1",
        "ss_learning_rate": repr(params.learning_rate),
        "ss_max_train_steps": str(params.steps),
        "ss_network_args": json.dumps({"targets": params.targets}),
        # The file itself has scale 1: alpha / rank is multiplied into B where it is written.
        "ss_network_alpha": repr(float(params.rank)),
        "ss_network_dim": str(params.rank),
        "ss_network_module": "peft.tuners.lora",
        "ss_num_train_images": str(len(origin.data.training)),
        "ss_output_name": "adapter",
        "ss_resolution": f"({side}, {side})",
        "ss_seed": str(params.seed),
        "ss_steps": str(step),
        "ss_tag_frequency": json.dumps({"train": tag_frequency(origin.data.training)}),
        "ss_total_batch_size": str(pictures_per_step(params)),
        "ss_v2": "False",
        "modelspec.architecture": f"{title}/lora",
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.sai_model_spec": _MODELSPEC_VERSION,
        "modelspec.title": "adapter",
        "blocklens.base": origin.base,
        "blocklens.dataset": origin.data.sha256,
        "blocklens.model": json.dumps(model.model_dump(), sort_keys=True),
        "blocklens.packages": json.dumps(package_versions(), sort_keys=True),
        "blocklens.step": str(step),
        "blocklens.train": json.dumps(params.model_dump(), sort_keys=True),
    }


def tag_frequency(pictures: Sequence[Picture]) -> dict[str, int]:
    """Return how many captions hold each of their comma-separated parts, most frequent first."""
    parts = Counter(
        part for picture in pictures for part in {tag.strip() for tag in picture.caption.split(",")}
    )
    return dict(sorted(parts.items(), key=lambda item: (-item[1], item[0])))
