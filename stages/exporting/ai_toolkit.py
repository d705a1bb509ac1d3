"""This run as ai-toolkit's YAML; see trainer_words.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stages.contracts.params import Params
from stages.exporting.models import base_files
from stages.exporting.trainer_words import (
    AI_TOOLKIT_OPTIMISERS,
    AI_TOOLKIT_PRECISIONS,
    AI_TOOLKIT_QUANTISATIONS,
    AI_TOOLKIT_TIMESTEPS,
    LAYERS,
    REGULARISATION,
    TRAINING,
    block_indices,
    left_behind,
)

Values = dict[str, Any]


def write_ai_toolkit(params: Params, dataset: str, converted: Path | None) -> tuple[str, list[str]]:
    """Return the YAML and what it could not take along.

    Args:
        params: all of params.yaml.
        dataset: the folder of pictures and captions that stage caption writes for trainers.
        converted: the diffusers folder that stage fetch made of single files, if it is there.
    """
    train = params.train
    remarks = left_behind(params, ("caption_dropout", "ema_decay"))
    optimiser = AI_TOOLKIT_OPTIMISERS.get(train.optimiser, "adamw")
    if train.optimiser not in AI_TOOLKIT_OPTIMISERS:
        remarks.append(f"train.optimiser: {train.optimiser} (adamw is written)")
    if train.timesteps not in AI_TOOLKIT_TIMESTEPS:
        remarks.append(f"train.timesteps: {train.timesteps} (sigmoid is written)")
    if train.alpha != train.rank:
        remarks.append("train.alpha: ai-toolkit trains FLUX with alpha = rank")
    if train.warmup_steps:
        remarks.append(f"train.warmup_steps: {train.warmup_steps}")
    if train.scheduler != "constant":
        remarks.append(f"train.scheduler: {train.scheduler} (constant is written)")
    is_guided = base_files(params.fetch).is_guided
    if is_guided and train.guidance not in (None, 1.0):
        remarks.append(f"train.guidance: {train.guidance:g} (ai-toolkit trains at 1)")
    if params.model.quantisation == "nf4":
        remarks.append(
            "model.quantisation: nf4 (qfloat8 is written: 8 bits for each weight, not 4)"
        )
    if params.fetch.single_files and converted is None:
        remarks.append(
            f"the base model's weights: {params.fetch.folder} has its configs and tokenizers "
            "alone; run `dvc repro fetch` first, or name a diffusers folder in model.name_or_path"
        )
    network: Values = {"type": "lora", "linear": train.rank, "linear_alpha": train.alpha}
    if train.blocks:
        network["network_kwargs"] = {
            "only_if_contains": [
                f"{LAYERS[stack]}{index}."
                for stack in LAYERS
                for index in block_indices(train.blocks, stack)
            ]
        }
    schedule: Values = {
        "batch_size": train.batch,
        **({} if train.steps == "auto" else {"steps": train.steps}),
        "gradient_accumulation": train.accumulation,
        "train_unet": True,
        "train_text_encoder": False,
        "gradient_checkpointing": train.gradient_checkpointing,
        "noise_scheduler": "flowmatch",
        "timestep_type": AI_TOOLKIT_TIMESTEPS.get(train.timesteps, "sigmoid"),
        "optimizer": optimiser,
        "optimizer_params": {"weight_decay": train.weight_decay},
        "lr": train.learning_rate,
        "lr_scheduler": "constant",
        "max_grad_norm": train.gradient_clip,
        "ema_config": {"use_ema": train.ema_decay > 0, "ema_decay": train.ema_decay},
        "dtype": AI_TOOLKIT_PRECISIONS[params.model.precision],
        **({"bypass_guidance_embedding": train.guidance is None} if is_guided else {}),
    }
    process: Values = {
        "type": "sd_trainer",
        "training_folder": "output",
        "device": "cuda:0",
        "training_seed": train.seed,
        "trigger_word": params.caption.trigger,
        "network": network,
        "save": {"dtype": "float32", "save_every": train.checkpoint_every},
        "datasets": [
            {
                "folder_path": f"{dataset}/{TRAINING}",
                "caption_ext": "txt",
                "caption_dropout_rate": train.caption_dropout,
                "cache_latents_to_disk": True,
                "flip_x": params.encode.flip,
                "resolution": params.encode.sizes_px,
            }
        ],
        "train": schedule,
        "model": _model(params, converted),
        "sample": {
            "sampler": "flowmatch",
            "sample_every": train.sample_every,
            "width": params.sampling.size_px,
            "height": params.sampling.size_px,
            "prompts": params.encode.sample_prompts,
            "neg": "",
            "seed": train.sample_seed,
            "guidance_scale": params.sampling.guidance,
            "sample_steps": params.sampling.steps,
        },
    }
    if any(concept.regularisation for concept in params.prepare.concepts):
        regularising = {**process["datasets"][0], "folder_path": f"{dataset}/{REGULARISATION}"}
        process["datasets"].append({**regularising, "is_reg": True})
    if any(concept.repeats > 1 for concept in params.prepare.concepts):
        remarks.append("prepare.concepts: ai-toolkit does not read repeats from folders' names")
    name = "".join(
        sign if sign.isalnum() or sign in "-_" else "-" for sign in params.caption.trigger
    )
    content = {
        "job": "extension",
        "config": {"name": name, "process": [process]},
        "meta": {"name": "[name]", "version": "1.0"},
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100), remarks


def _model(params: Params, converted: Path | None) -> Values:
    folder = params.fetch.folder if converted is None else converted.as_posix()
    model: Values = {
        "name_or_path": params.fetch.repository or folder,
        "is_flux": True,
        "quantize": params.model.quantisation != "none",
    }
    if params.model.quantisation != "none":
        model["qtype"] = AI_TOOLKIT_QUANTISATIONS.get(params.model.quantisation, "qfloat8")
    return model
