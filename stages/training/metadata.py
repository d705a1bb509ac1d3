"""What an adapter file says about itself, in the fields that other tools show.

`ss_*` are kohya's (sd-scripts, train_network.py), read by ComfyUI, Civitai, A1111 and
lora-inspector; `modelspec.*` is Stability-AI/ModelSpec 1.0.1; `blocklens.*` are ours and say from
what the adapter can be trained again. `ss_network_dim`, `ss_network_alpha` and
`modelspec.hash_sha256` are about the file, so adapters/files.py states them.

No date, author, host or path: equal runs are equal bytes. And no commit, which a change of a README
moves on: `blocklens.code` names the files that decide the weights by their git blob hashes, which
are the same in every commit that has them (`git log --find-object=HASH` lists those).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from stages.contracts.params import ModelParams, TrainParams
from stages.encoding.encoded import Encoded, Picture
from stages.families.architecture import Architecture
from stages.optimisation.phases import phase_of
from stages.optimisation.schedule import pictures_per_step, total_steps
from stages.runtime.fingerprint import package_versions
from stages.training.kohya_fields import kohya_fields

_MODELSPEC_VERSION = "1.0.1"
_IMPLEMENTATION = "diffusers"  # whose names the tensors have
_FLEX_BLOCKS = (8, 38)


@dataclass(frozen=True)
class Origin:
    """What an adapter is made from: base (repository@revision or manifest hash), data and code.

    `code` is the git blob hash of each file of ours that takes part, by its path.
    """

    base: str
    architecture: Architecture
    data: Encoded
    code: Mapping[str, str]


def adapter_metadata(
    origin: Origin, params: TrainParams, model: ModelParams, step: int
) -> dict[str, str]:
    """Return the text fields of the adapter that the run has after `step` steps.

    Those of the network and of the rate are the phase's that the step belongs to.
    """
    phase = phase_of(step, params)
    side = origin.data.size_px
    trigger = origin.data.trigger
    used = {"train": params.model_dump(), "model": model.model_dump()}
    fields = {
        **kohya_fields(params, model, origin.data, step),
        "ss_base_model_version": "flux1",
        "ss_caption_dropout_rate": repr(params.caption_dropout),
        "ss_gradient_checkpointing": str(params.gradient_checkpointing),
        "ss_learning_rate": repr(phase.params.learning_rate),
        "ss_lr_warmup_steps": str(params.warmup_steps),
        "ss_max_grad_norm": repr(params.gradient_clip),
        "ss_max_train_steps": str(total_steps(params)),
        "ss_mixed_precision": "bf16" if model.precision == "bfloat16" else "no",
        "ss_network_args": json.dumps(_network_args(phase.params), sort_keys=True),
        "ss_network_module": "peft.tuners.lora",
        "ss_num_reg_images": str(len(origin.data.regularisation)),
        "ss_num_train_images": str(len(origin.data.training)),
        "ss_output_name": "adapter",
        "ss_resolution": f"({side}, {side})",
        "ss_sd_model_name": origin.base,
        "ss_seed": str(params.seed),
        "ss_steps": str(step),
        "ss_tag_frequency": json.dumps({"train": tag_frequency(origin.data.training)}),
        "ss_total_batch_size": str(pictures_per_step(params)),
        "ss_v2": "False",
        "modelspec.architecture": f"{architecture_name(origin.architecture)}/lora",
        "modelspec.description": _description(origin, phase.params.rank, step, total_steps(params)),
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.sai_model_spec": _MODELSPEC_VERSION,
        "modelspec.title": trigger or "adapter",
        "blocklens.base": origin.base,
        "blocklens.code": json.dumps(origin.code, sort_keys=True),
        "blocklens.dataset": origin.data.sha256,
        "blocklens.model": json.dumps(model.model_dump(), sort_keys=True),
        "blocklens.packages": json.dumps(package_versions(used), sort_keys=True),
        "blocklens.phase": str(phase.number),
        "blocklens.seed": str(params.seed),
        "blocklens.step": str(step),
        "blocklens.train": json.dumps(_without_path(params).model_dump(), sort_keys=True),
    }
    if trigger:
        fields["modelspec.trigger_phrase"] = trigger
        fields["modelspec.usage_hint"] = f"Begin the prompt with {trigger}."
    return fields


def architecture_name(architecture: Architecture) -> str:
    """Return ModelSpec's name of the base; it has none for Flex.1-alpha, whose blocks are fewer."""
    blocks = (architecture.double_blocks, architecture.single_blocks)
    if blocks == _FLEX_BLOCKS:
        return "flex-1-alpha"
    return "flux-1-dev" if architecture.guidance else "flux-1-schnell"


def _without_path(params: TrainParams) -> TrainParams:
    """Return the params with the name alone of a training adapter of this machine.

    Its SHA-256, which such a file is pinned by, says which it was.
    """
    helper = params.training_adapter
    if helper is None or helper.repository is not None:
        return params
    named = helper.model_copy(update={"file": PurePath(helper.file).name})
    return params.model_copy(update={"training_adapter": named})


def _description(origin: Origin, rank: int, step: int, steps: int) -> str:
    """Return in a sentence what the file is; the rest of the fields says it number by number."""
    base = origin.base.partition("@")[0] if "@" in origin.base else "the base model it names"
    return (
        f"LoRA of rank {rank} for {base}, trained on {len(origin.data.training)} pictures, "
        f"after step {step} of {steps}."
    )


def _network_args(params: TrainParams) -> dict[str, Any]:
    """Return what else decides the network, as sd-scripts records its own arguments."""
    return {
        "alpha": params.alpha,
        "blocks": params.blocks,
        "block_settings": [setting.model_dump() for setting in params.block_settings],
        "rank": params.rank,
        "rank_dropout": params.adapter_dropout,
        "targets": params.targets,
    }


def tag_frequency(pictures: Sequence[Picture]) -> dict[str, int]:
    """Return how many captions hold each of their comma-separated parts, most frequent first."""
    parts = Counter(
        part for picture in pictures for part in {tag.strip() for tag in picture.caption.split(",")}
    )
    return dict(sorted(parts.items(), key=lambda item: (-item[1], item[0])))
