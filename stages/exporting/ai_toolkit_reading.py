"""ai-toolkit's YAML as params; see trainer_words.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stages.exporting.trainer_words import (
    AI_TOOLKIT_OPTIMISERS,
    AI_TOOLKIT_PRECISIONS,
    AI_TOOLKIT_QUANTISATIONS,
    AI_TOOLKIT_TIMESTEPS,
    COUNTS,
    index_ranges,
)

Values = dict[str, Any]

_BLOCK: Final = re.compile(r"transformer\.(single_)?transformer_blocks\.(\d+)\.")
_ARCHITECTURES: Final = ("flux", "flex1")
_ONLY: Final[dict[str, Values]] = {
    "train": {"noise_scheduler": "flowmatch", "train_unet": True},
    "sample": {"sampler": "flowmatch", "neg": ""},
    "model": {"quantize_te": False},
}
"""What has one value here; another is told as left behind."""
_READ: Final = {
    "network": {"type", "linear", "linear_alpha", "rank", "alpha", "network_kwargs"},
    "train": {
        "batch_size",
        "steps",
        "bypass_guidance_embedding",
        "gradient_accumulation",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "optimizer",
        "optimizer_params",
        "lr",
        "dtype",
        "max_grad_norm",
        "ema_config",
        "timestep_type",
        "lr_scheduler",
        "noise_scheduler",
        "train_unet",
        "train_text_encoder",
    },
    "save": {"save_every"},
    "sample": {
        "sampler",
        "sample_every",
        "prompts",
        "seed",
        "guidance_scale",
        "sample_steps",
        "width",
        "height",
        "neg",
    },
    "model": {"name_or_path", "is_flux", "arch", "quantize", "qtype", "quantize_te"},
}
"""What `read_ai_toolkit` looks at; anything else is told as left behind."""


def read_ai_toolkit(process: Mapping[str, Any]) -> tuple[dict[str, Values], list[str]]:
    """Return our values by section and key, and what could not be taken along.

    Args:
        process: the first entry of `config.process`.
    """
    found: dict[str, Values] = {
        "train": {},
        "model": {},
        "encode": {},
        "caption": {},
        "sampling": {},
    }
    parts = {name: dict(process.get(name) or {}) for name in _READ}
    remarks = [
        f"{part}.{key}: {value!r}"
        for part, known in _READ.items()
        for key, value in parts[part].items()
        if key not in known or _ONLY.get(part, {}).get(key, value) != value
    ]
    _count_optimiser_steps(parts, remarks)
    known_parts = {*_READ, "type", "training_folder", "device", "training_seed", "trigger_word"}
    remarks += [str(key) for key in process if key not in known_parts | {"datasets"}]
    _read_network(parts["network"], found["train"], remarks)
    _read_schedule(parts["train"], found, remarks)
    _read_data(process.get("datasets") or [], found, remarks)
    _read_samples(parts["sample"], found, remarks)
    _read_model(parts["model"], found["model"], remarks)
    train = found["train"]
    if "save_every" in parts["save"]:
        train["checkpoint_every"] = train["validation_every"] = parts["save"]["save_every"]
    if "training_seed" in process:
        train["seed"] = process["training_seed"]
    if trigger := process.get("trigger_word"):
        found["caption"]["trigger"] = trigger
    return {section: values for section, values in found.items() if values}, remarks


def foreign_architecture(process: Mapping[str, Any]) -> str | None:
    """Return what the file says of its base model, if that is no FLUX.1 or Flex.1; else None.

    Args:
        process: the first entry of `config.process`.
    """
    model = dict(process.get("model") or {})
    if arch := model.get("arch"):
        # A tag after the colon is taken off there, too (toolkit/config_modules.py).
        return None if str(arch).partition(":")[0] in _ARCHITECTURES else f"arch: {arch}"
    flags = [key for key, value in model.items() if key.startswith("is_") and value]
    if others := [key for key in flags if key != "is_flux"]:
        return f"{others[0]}: true"
    return "is_flux: false" if model.get("is_flux") is False else None


def _count_optimiser_steps(parts: Mapping[str, Values], remarks: list[str]) -> None:
    """Count in optimiser steps what ai-toolkit counts in batches.

    Its legacy `gradient_accumulation_steps` counts every batch as a step, and
    `gradient_accumulation` does not (toolkit/config_modules.py).
    """
    batches = parts["train"].pop("gradient_accumulation_steps", 1)
    if batches in (None, 1):
        return
    if not isinstance(batches, int) or batches < 1:
        remarks.append(f"train.gradient_accumulation_steps: {batches!r}")
        return
    parts["train"]["gradient_accumulation"] = batches
    for part, key in (("train", "steps"), ("save", "save_every"), ("sample", "sample_every")):
        if isinstance(count := parts[part].get(key), int):
            parts[part][key] = max(1, count // batches)
    remarks.append(
        f"train.gradient_accumulation_steps: {batches} counts every batch as a step; steps, "
        f"save_every and sample_every are divided by {batches}"
    )


def _read_model(model: Mapping[str, Any], ours: Values, remarks: list[str]) -> None:
    if "name_or_path" in model:
        remarks.append(f"model.name_or_path: {model['name_or_path']} (see fetch.repository)")
    if model and not (model.get("arch") or model.get("is_flux")):
        remarks.append("model.arch: none in the file; the base model is that of --params")
    if "quantize" not in model:
        return
    kinds = {theirs: name for name, theirs in AI_TOOLKIT_QUANTISATIONS.items()}
    kinds |= {"int8": "int8", "float8": "fp8"}  # torchao's names for the same
    kind = str(model.get("qtype", "qfloat8"))
    if not model["quantize"]:
        ours["quantisation"] = "none"
    elif kind in kinds:
        ours["quantisation"] = kinds[kind]
    else:
        remarks.append(f"model.qtype: {kind} (model.quantisation is that of --params)")


def _read_network(network: Mapping[str, Any], train: Values, remarks: list[str]) -> None:
    if (kind := network.get("type", "lora")) != "lora":
        remarks.append(f"network.type: {kind} (a LoRA is trained here)")
    rank = network.get("rank", network.get("linear"))
    if rank is not None:
        # ai-toolkit leaves alpha out on FLUX, whatever the file says (toolkit/lora_special.py)
        train |= {"rank": rank, "alpha": float(rank)}
        if network.get("linear_alpha", network.get("alpha", rank)) != rank:
            remarks.append("network.linear_alpha: ai-toolkit trains FLUX with alpha = rank")
    given = dict(network.get("network_kwargs") or {})
    if parts := given.pop("only_if_contains", []):
        matches = [_BLOCK.fullmatch(str(part)) for part in parts]
        if all(matches):
            train["blocks"] = _patterns([match for match in matches if match])
        else:
            remarks.append(f"network.network_kwargs.only_if_contains: {parts}")
    remarks += [f"network.network_kwargs.{key}: {value!r}" for key, value in given.items()]


def _patterns(matches: Sequence[re.Match[str]]) -> list[str]:
    indices: dict[str, list[int]] = {stack: [] for stack in COUNTS}
    for match in matches:
        indices["single" if match[1] else "double"].append(int(match[2]))
    return [f"{stack}.{part}" for stack in indices for part in index_ranges(indices[stack])]


def _read_schedule(
    given: Mapping[str, Any], found: Mapping[str, Values], remarks: list[str]
) -> None:
    train = found["train"]
    names = {
        "batch_size": "batch",
        "steps": "steps",
        "gradient_accumulation": "accumulation",
        "gradient_checkpointing": "gradient_checkpointing",
    }
    train |= {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    reals = {"lr": "learning_rate", "max_grad_norm": "gradient_clip"}
    # YAML 1.1 reads `1e-4` as a word
    train |= {ours: float(given[theirs]) for theirs, ours in reals.items() if theirs in given}
    optimiser = str(given.get("optimizer", "adamw")).lower()
    if optimiser in AI_TOOLKIT_OPTIMISERS.values():
        train["optimiser"] = optimiser
    else:
        remarks.append(f"train.optimizer: {optimiser}")
    settings = dict(given.get("optimizer_params") or {})
    if "weight_decay" in settings:
        train["weight_decay"] = float(settings.pop("weight_decay"))
    remarks += [f"train.optimizer_params.{key}: {value!r}" for key, value in settings.items()]
    ema = given.get("ema_config") or {}
    train["ema_decay"] = float(ema.get("ema_decay", 0.999)) if ema.get("use_ema") else 0.0
    kinds = {theirs: ours for ours, theirs in AI_TOOLKIT_TIMESTEPS.items()}
    kind = given.get("timestep_type", "sigmoid")
    if kind in kinds:
        train["timesteps"] = kinds[kind]
    else:
        remarks.append(f"train.timestep_type: {kind}")
    if (course := given.get("lr_scheduler", "constant")) != "constant":
        remarks.append(f"train.lr_scheduler: {course}")
    if "bypass_guidance_embedding" in given:
        train["guidance"] = None if given["bypass_guidance_embedding"] else 1.0
    if given.get("train_text_encoder"):
        remarks.append("train.train_text_encoder: the transformer alone is trained here")
    sizes = {theirs: ours for ours, theirs in AI_TOOLKIT_PRECISIONS.items()}
    if "dtype" in given and given["dtype"] in sizes:
        found["model"]["precision"] = sizes[given["dtype"]]
    elif "dtype" in given:
        remarks.append(f"train.dtype: {given['dtype']}")


def _read_data(
    datasets: Sequence[Mapping[str, Any]], found: Mapping[str, Values], remarks: list[str]
) -> None:
    for number, data in enumerate(datasets):
        rest = dict(data)
        where = f"datasets[{number}]"
        folder = rest.pop("folder_path", None)
        remarks.append(f"{where}.folder_path: {folder} (put pictures where prepare.images says)")
        if number:
            remarks.append(f"{where}: the first data set's settings are taken")
            continue
        rest.pop("cache_latents_to_disk", None)
        if str(rest.get("caption_ext", "txt")).removeprefix(".") == "txt":
            rest.pop("caption_ext", None)
        if "resolution" in rest:
            sizes = rest.pop("resolution")
            found["encode"]["sizes_px"] = sizes if isinstance(sizes, list) else [sizes]
        if "flip_x" in rest:
            found["encode"]["flip"] = rest.pop("flip_x")
        found["train"]["caption_dropout"] = float(rest.pop("caption_dropout_rate", 0.0))
        remarks += [f"{where}.{key}: {value!r}" for key, value in rest.items() if value]


def _read_samples(
    sample: Mapping[str, Any], found: Mapping[str, Values], remarks: list[str]
) -> None:
    train, sampling = found["train"], found["sampling"]
    if "sample_every" in sample:
        train["sample_every"] = sample["sample_every"]
    if "seed" in sample:
        train["sample_seed"] = sample["seed"]
    if "sample_steps" in sample:
        sampling["steps"] = sample["sample_steps"]
    if "guidance_scale" in sample:
        sampling["guidance"] = float(sample["guidance_scale"])
    if "width" in sample and sample.get("width") == sample.get("height"):
        sampling["size_px"] = sample["width"]
    elif "width" in sample:
        remarks.append("sample.width and height: pictures are square here")
    if sample.get("prompts"):
        found["encode"]["sample_prompts"] = list(sample["prompts"])
