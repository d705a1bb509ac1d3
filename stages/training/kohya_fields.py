"""How a run was trained, in the header fields that kohya's tools, Civitai and A1111 show.

Names and forms are sd-scripts' (train_network.py and flux_train_network.py, `metadata[...]`): each
value is Python's `str` of it, so what a run does not have is "None". `ss_network_dropout` drops
single numbers, which we lack; ours drops ranks, and stands in `ss_network_args` as there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from stages.contracts.params import ModelParams, TrainParams
from stages.encoding.encoded import Encoded, Picture
from stages.optimisation.phases import phase_of
from stages.optimisation.schedule import pictures_per_step, total_steps

OPTIMISERS: Final = MappingProxyType(
    {
        "adamw": ("torch.optim.adamw.AdamW", {}),
        "adamw8bit": ("bitsandbytes.optim.adamw.AdamW8bit", {}),
        "adafactor": (
            "transformers.optimization.Adafactor",
            {"scale_parameter": False, "relative_step": False},
        ),
        "lion": ("pytorch_optimizer.optimizer.lion.Lion", {}),
        "prodigy": (
            "pytorch_optimizer.optimizer.prodigy.Prodigy",
            {"bias_correction": True, "safeguard_warmup": True},
        ),
        "schedule-free-adamw": ("pytorch_optimizer.optimizer.schedulefree.ScheduleFreeAdamW", {}),
    }
)
"""Class of each optimiser, and what it is given besides rate and decay."""

_SCHEDULERS: Final = {"cosine-restarts": "cosine_with_restarts"}
_TIMESTEPS: Final = {"logit-normal": "sigma", "shifted": "flux_shift"}
_WEIGHTINGS: Final = {"sigma-sqrt": "sigma_sqrt", "min-snr": "none"}


def kohya_fields(
    params: TrainParams, model: ModelParams, data: Encoded, step: int
) -> dict[str, str]:
    """Return the fields of a run after `step` steps, apart from those of base and network."""
    batch = pictures_per_step(params)
    uses = sum(picture.repeats for picture in data.training)
    own = batch * (1 - params.regularisation_share if data.regularisation else 1)
    values = {
        "batch_size_per_device": params.batch,
        "cache_latents": True,
        "clip_skip": None,
        "dataset_dirs": json.dumps(_folders(data.training), sort_keys=True),
        "epoch": math.ceil(step * own / uses),
        "fp8_base": model.quantisation == "fp8",
        "gradient_accumulation_steps": params.accumulation,
        "guidance_scale": params.guidance,
        "loss_type": "l2",
        "lr_scheduler": _scheduler(params),
        "min_snr_gamma": params.min_snr_gamma if params.loss_weighting == "min-snr" else None,
        "model_prediction_type": "raw",
        "network_dropout": None,
        "noise_offset": None,
        "num_batches_per_epoch": math.ceil(uses / own),
        "num_epochs": math.ceil(total_steps(params) * own / uses),
        "num_validation_images": len(data.validation),
        "optimizer": _optimiser(params),
        "prior_loss_weight": params.regularisation_weight,
        "reg_dataset_dirs": json.dumps(_folders(data.regularisation), sort_keys=True),
        "text_encoder_lr": None,
        "timestep_sampling": _TIMESTEPS.get(params.timesteps, params.timesteps),
        "unet_lr": phase_of(step, params).params.learning_rate,
        "weighting_scheme": _weighting(params),
        "zero_terminal_snr": False,
    }
    if params.timesteps in ("logit-normal", "shifted"):
        values |= {"logit_mean": params.timestep_location, "logit_std": params.timestep_scale}
    return {f"ss_{name}": str(value) for name, value in values.items()}


def _optimiser(params: TrainParams) -> str:
    """Return class and arguments as sd-scripts writes them (train_util.get_optimizer)."""
    name, given = OPTIMISERS[params.optimiser]
    arguments = {"weight_decay": params.weight_decay, **given}
    return f"{name}({','.join(f'{key}={value}' for key, value in arguments.items())})"


def _scheduler(params: TrainParams) -> str:
    """Return diffusers' name of the course, which are sd-scripts' names."""
    if params.scheduler == "constant" and params.warmup_steps:
        return "constant_with_warmup"
    return _SCHEDULERS.get(params.scheduler, params.scheduler)


def _weighting(params: TrainParams) -> str:
    """Return sd-scripts' name for both: how noise levels are drawn as sigmas, or are weighed."""
    if params.timesteps == "logit-normal" and params.loss_weighting == "none":
        return "logit_normal"
    return _WEIGHTINGS.get(params.loss_weighting, params.loss_weighting)


def _folders(pictures: Sequence[Picture]) -> dict[str, dict[str, int]]:
    """Return how many pictures each sub-folder (concept) has, and their repeats.

    "train" is the folder above them; pictures that the base model made are in `class`.
    """
    found: dict[str, dict[str, int]] = {}
    for picture in pictures:
        folder = picture.name.rpartition("/")[0] or "train"
        entry = found.setdefault(folder, {"n_repeats": picture.repeats, "img_count": 0})
        entry["img_count"] += 1
    return found
