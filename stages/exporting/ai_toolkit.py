"""This run as ai-toolkit's YAML, and ai-toolkit's YAML as params; see trainer_words.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from stages.contracts.params import Params
from stages.exporting.trainer_words import (
    AI_TOOLKIT_OPTIMISERS,
    COUNTS,
    LAYERS,
    REGULARISATION,
    TRAINING,
    block_indices,
    index_ranges,
    left_behind,
)

_TIMESTEPS: Final = {"sigmoid": "sigmoid", "uniform": "linear"}
_SIZES: Final = {"bfloat16": "bf16", "float32": "fp32"}
_BLOCK: Final = re.compile(r"transformer\.(single_)?transformer_blocks\.(\d+)\.")
_READ: Final = {
    "network": {"type", "linear", "linear_alpha", "rank", "alpha", "network_kwargs"},
    "train": {
        "batch_size",
        "steps",
        "gradient_accumulation",
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

Values = dict[str, Any]


def write_ai_toolkit(params: Params, dataset: str) -> tuple[str, list[str]]:
    """Return the YAML and what it could not take along.

    Args:
        params: all of params.yaml.
        dataset: the folder of pictures and captions that stage caption writes for trainers.
    """
    train = params.train
    remarks = left_behind(params, ("caption_dropout", "ema_decay"))
    optimiser = AI_TOOLKIT_OPTIMISERS.get(train.optimiser, "adamw")
    if train.optimiser not in AI_TOOLKIT_OPTIMISERS:
        remarks.append(f"train.optimiser: {train.optimiser} (adamw is written)")
    if train.timesteps not in _TIMESTEPS:
        remarks.append(f"train.timesteps: {train.timesteps} (sigmoid is written)")
    if train.alpha != train.rank:
        remarks.append("train.alpha: ai-toolkit trains FLUX with alpha = rank")
    if train.warmup_steps:
        remarks.append(f"train.warmup_steps: {train.warmup_steps}")
    if train.scheduler != "constant":
        remarks.append(f"train.scheduler: {train.scheduler} (constant is written)")
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
        "timestep_type": _TIMESTEPS.get(train.timesteps, "sigmoid"),
        "optimizer": optimiser,
        "optimizer_params": {"weight_decay": train.weight_decay},
        "lr": train.learning_rate,
        "lr_scheduler": "constant",
        "max_grad_norm": train.gradient_clip,
        "ema_config": {"use_ema": train.ema_decay > 0, "ema_decay": train.ema_decay},
        "dtype": _SIZES[params.model.precision],
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
        "model": {
            "name_or_path": params.fetch.repository or params.fetch.folder,
            "is_flux": True,
            "quantize": params.model.quantisation != "none",
        },
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
        if key not in known
    ]
    known_parts = {*_READ, "type", "training_folder", "device", "training_seed", "trigger_word"}
    remarks += [str(key) for key in process if key not in known_parts | {"datasets"}]
    _read_network(parts["network"], found["train"], remarks)
    _read_schedule(parts["train"], found, remarks)
    _read_data(process.get("datasets") or [], found, remarks)
    _read_samples(parts["sample"], found, remarks)
    model, train = parts["model"], found["train"]
    if model.get("quantize"):
        found["model"]["quantisation"] = "int8" if "int8" in str(model.get("qtype")) else "fp8"
    if "name_or_path" in model:
        remarks.append(f"model.name_or_path: {model['name_or_path']} (see fetch.repository)")
    if "save_every" in parts["save"]:
        train["checkpoint_every"] = train["validation_every"] = parts["save"]["save_every"]
    if "training_seed" in process:
        train["seed"] = process["training_seed"]
    if trigger := process.get("trigger_word"):
        found["caption"]["trigger"] = trigger
    return {section: values for section, values in found.items() if values}, remarks


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
    kinds = {theirs: ours for ours, theirs in _TIMESTEPS.items()}
    kind = given.get("timestep_type", "sigmoid")
    if kind in kinds:
        train["timesteps"] = kinds[kind]
    else:
        remarks.append(f"train.timestep_type: {kind}")
    if (course := given.get("lr_scheduler", "constant")) != "constant":
        remarks.append(f"train.lr_scheduler: {course}")
    if given.get("train_text_encoder"):
        remarks.append("train.train_text_encoder: the transformer alone is trained here")
    sizes = {theirs: ours for ours, theirs in _SIZES.items()}
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
