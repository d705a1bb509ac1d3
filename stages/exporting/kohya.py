"""This run as the TOML that kohya's flux_train_network.py takes as --config_file."""

from __future__ import annotations

import json
from typing import Any, Final

from stages.contracts.params import Params
from stages.exporting.models import base_files
from stages.exporting.trainer_words import (
    COUNTS,
    KOHYA_OPTIMISERS,
    REGULARISATION,
    TRAINING,
    block_indices,
    index_ranges,
    left_behind,
)

_SCHEDULERS: Final = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine-restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
}
_TIMESTEPS: Final = {
    "sigmoid": "sigmoid",
    "logit-normal": "sigmoid",
    "uniform": "uniform",
    "shifted": "flux_shift",
}
_WEIGHTINGS: Final = {"none": "none", "sigma-sqrt": "sigma_sqrt", "cosmap": "cosmap"}
_MIXED: Final = {"bfloat16": "bf16", "float32": "no"}

Values = dict[str, Any]


def write_kohya(params: Params, dataset: str) -> tuple[str, list[str]]:
    """Return the TOML and what it could not take along.

    Args:
        params: all of params.yaml.
        dataset: the folder of pictures and captions that stage caption writes for trainers.
    """
    train = params.train
    remarks = left_behind(params, ("caption_dropout", "adapter_dropout", "loss_weighting"))
    if train.loss_weighting not in _WEIGHTINGS:
        remarks.append(f"train.loss_weighting: {train.loss_weighting} (none is written)")
    if train.timesteps in ("logit-normal", "shifted") and train.timestep_location:
        remarks.append(f"train.timestep_location: {train.timestep_location:g} (0 there)")
    if len(params.encode.sizes_px) > 1:
        remarks.append(f"encode.sizes_px: {params.encode.sizes_px} (the first is written)")
    if train.guidance is None and base_files(params.fetch).is_guided:
        remarks.append("train.guidance: null (1.0 is written; sd-scripts cannot leave it out)")
    if params.model.quantisation not in ("none", "fp8"):
        remarks.append(f"model.quantisation: {params.model.quantisation} (fp8_base is written)")
    if params.fetch.single_files is None:
        remarks.append("the base model's files: sd-scripts needs single files; write their paths")
    values = {
        **_model(params),
        **_network(params),
        **_schedule(params),
        **_data(params, dataset),
    }
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items()), remarks


def _model(params: Params) -> Values:
    files, own = base_files(params.fetch), params.fetch.single_files
    return {
        "pretrained_model_name_or_path": own.transformer if own else files.transformer.name,
        "clip_l": own.text_encoder if own else files.clip.name,
        "t5xxl": own.text_encoder_2 if own else files.t5.name,
        "ae": own.autoencoder if own else files.vae.name,
        "t5xxl_max_token_length": params.model.text_tokens,
        "mixed_precision": _MIXED[params.model.precision],
        "fp8_base": params.model.quantisation != "none",
        "sdpa": True,
    }


def _network(params: Params) -> Values:
    """Return the network; the two lists of blocks stand in one network_args."""
    train = params.train
    arguments = []
    if train.blocks:
        for stack in COUNTS:
            ranges = ",".join(index_ranges(block_indices(train.blocks, stack))) or "none"
            arguments.append(f"train_{stack}_block_indices={ranges}")
    if train.adapter_dropout:
        arguments.append(f"rank_dropout={train.adapter_dropout}")
    return {
        "network_module": "networks.lora_flux",
        "network_dim": train.rank,
        "network_alpha": train.alpha,
        "network_train_unet_only": True,
        **({"network_args": arguments} if arguments else {}),
        "output_dir": "output",
        "output_name": "adapter",
        "save_model_as": "safetensors",
        "save_precision": "float",
        "save_every_n_steps": train.checkpoint_every,
    }


def _schedule(params: Params) -> Values:
    train = params.train
    given = [f"weight_decay={train.weight_decay}"]
    if train.optimiser == "adafactor":
        given += ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
    scheduler = _SCHEDULERS[train.scheduler]
    if scheduler == "constant" and train.warmup_steps:
        scheduler = "constant_with_warmup"
    return {
        **({} if train.steps == "auto" else {"max_train_steps": train.steps}),
        "gradient_accumulation_steps": train.accumulation,
        "gradient_checkpointing": train.gradient_checkpointing,
        "seed": train.seed,
        "optimizer_type": KOHYA_OPTIMISERS[train.optimiser],
        "optimizer_args": given,
        "learning_rate": train.learning_rate,
        "lr_scheduler": scheduler,
        "lr_scheduler_num_cycles": train.scheduler_cycles,
        "lr_scheduler_power": train.scheduler_power,
        "lr_warmup_steps": train.warmup_steps,
        "max_grad_norm": train.gradient_clip,
        **_guidance(params),
        "model_prediction_type": "raw",
        "timestep_sampling": _TIMESTEPS[train.timesteps],
        "sigmoid_scale": train.timestep_scale,
        "weighting_scheme": _WEIGHTINGS.get(train.loss_weighting, "none"),
    }


def _guidance(params: Params) -> Values:
    """Return what the guidance embedding is given; nothing for a model that has none."""
    guidance = params.train.guidance
    if not base_files(params.fetch).is_guided:
        return {}
    return {"guidance_scale": 1.0 if guidance is None else guidance}


def _data(params: Params, dataset: str) -> Values:
    side = params.encode.sizes_px[0]
    values: Values = {
        "train_data_dir": f"{dataset}/{TRAINING}",
        "caption_extension": ".txt",
        "caption_dropout_rate": params.train.caption_dropout,
        "resolution": f"{side},{side}",
        "enable_bucket": params.prepare.fit == "bucket",
        "train_batch_size": params.train.batch,
        "flip_aug": params.encode.flip,
        "cache_latents": True,
        # sd-scripts refuses cached texts where captions are dropped
        "cache_text_encoder_outputs": not params.train.caption_dropout,
    }
    if any(concept.regularisation for concept in params.prepare.concepts):
        values["reg_data_dir"] = f"{dataset}/{REGULARISATION}"
        values["prior_loss_weight"] = params.train.regularisation_weight
    return values


def _toml(value: object) -> str:
    """Return a value as TOML, whose strings, numbers and lists of strings are JSON's."""
    return json.dumps(value, ensure_ascii=False)
