"""The alpha of every module, from the places where a LoRA file may state it.

There are three: a scalar `.alpha` per module (kohya's habit), the header's JSON
`lora_adapter_metadata` (diffusers, src/diffusers/loaders/lora_base.py: the LoraConfig under the
prefix `transformer.`), or nothing, which means alpha = rank. Readers disagree where two of them
differ or only some modules have an `.alpha`, so such files are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import torch

from stages.adapters.listing import list_names
from stages.contracts.errors import Problem

CONFIG_FIELD: Final = "lora_adapter_metadata"
"""Header field with diffusers' LoraConfig."""

_PREFIX: Final = "transformer."
_STALE: Final = f"Correct or delete the header field {CONFIG_FIELD}; without it alpha is the rank."


def read_alphas(
    stated: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    ranks: Mapping[str, int],
    decomposed: Collection[str] = (),
) -> tuple[dict[str, float], list[Problem]]:
    """Return each module's alpha, and what is wrong with how the file states them.

    Args:
        stated: the `.alpha` tensors by module; may be empty.
        metadata: the header's text fields.
        ranks: the rank of every module that has both matrices.
        decomposed: the modules that have a DoRA magnitude, too.
    """
    problems = number_problems(stated) + _absence_problems(stated, ranks)
    configured: dict[str, float] = {}
    if CONFIG_FIELD in metadata:
        configured, config_problems = _configured_alphas(metadata[CONFIG_FIELD], ranks, decomposed)
        problems += config_problems
    if problems:
        return {}, problems
    numbers = {module: float(alpha.item()) for module, alpha in stated.items()}
    if numbers and configured:
        unequal = [module for module in ranks if numbers[module] != configured[module]]
        if unequal:
            what = f"`.alpha` and {CONFIG_FIELD} disagree: {list_names(unequal)}"
            return {}, [Problem("alpha", what, f"Delete the wrong one. {_STALE}")]
    return numbers or configured or {name: float(rank) for name, rank in ranks.items()}, []


def config_text(config: Mapping[str, Any]) -> str:
    """Return the header field that states `config`, arguments of PEFT's LoraConfig."""
    return json.dumps({_PREFIX + name: value for name, value in config.items()}, sort_keys=True)


def number_problems(stated: Mapping[str, torch.Tensor]) -> list[Problem]:
    """Return what is wrong with alphas that are tensors, by the layers they belong to."""
    bad = [
        layer
        for layer, alpha in stated.items()
        if alpha.numel() != 1 or not math.isfinite(float(alpha.float().sum()))
    ]
    remedy = "An alpha is a tensor with one finite number."
    return [Problem("alpha", f"not a number: {list_names(bad)}", remedy)] if bad else []


def _absence_problems(
    stated: Mapping[str, torch.Tensor], ranks: Mapping[str, int]
) -> list[Problem]:
    lacking = sorted(ranks.keys() - stated.keys()) if stated else []
    what = f"missing in these modules while others have one: {list_names(lacking)}"
    remedy = "Add it (alpha = rank means scale 1); readers guess differently."
    return [Problem("alpha", what, remedy)] if lacking else []


def _configured_alphas(
    text: str, ranks: Mapping[str, int], decomposed: Collection[str]
) -> tuple[dict[str, float], list[Problem]]:
    try:
        config = {name.removeprefix(_PREFIX): value for name, value in json.loads(text).items()}
        default_rank, default_alpha = int(config["r"]), float(config["lora_alpha"])
        rank_pattern = dict(config.get("rank_pattern") or {})
        alpha_pattern = dict(config.get("alpha_pattern") or {})
        alphas: dict[str, float] = {}
        stale: list[str] = []
        for module, rank in ranks.items():
            if int(_look_up(rank_pattern, module, default_rank)) != rank:
                stale.append(module)
            alphas[module] = float(_look_up(alpha_pattern, module, default_alpha))
    except (ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        return {}, [Problem(CONFIG_FIELD, f"not a LoraConfig in JSON ({error!r})", _STALE)]
    if config.get("use_rslora"):
        # rsLoRA (arXiv 2312.03732): the scale is alpha / sqrt(rank).
        alphas = {module: alpha * math.sqrt(ranks[module]) for module, alpha in alphas.items()}
    return alphas, _config_problems(config, alphas, stale, decomposed)


def _config_problems(
    config: Mapping[str, Any],
    alphas: Mapping[str, float],
    stale: list[str],
    decomposed: Collection[str],
) -> list[Problem]:
    problems = []
    if stale:
        what = f"states another rank than the tensors have: {list_names(stale)}"
        problems.append(Problem(CONFIG_FIELD, what, _STALE))
    if any(not math.isfinite(alpha) for alpha in alphas.values()):
        problems.append(Problem(CONFIG_FIELD, "an alpha is not finite", _STALE))
    plain = alphas.keys() - set(decomposed)
    if config.get("use_dora") and plain:
        what = f"asks for use_dora, but these have no magnitude: {list_names(plain)}"
        problems.append(Problem(CONFIG_FIELD, what, "The file is incomplete: get it again."))
    if config.get("lora_bias"):
        remedy = "Biases are no change of a Linear layer's weight: use a LoRA without them."
        problems.append(Problem(CONFIG_FIELD, "asks for lora_bias", remedy))
    return problems


def _look_up(pattern: Mapping[str, Any], module: str, default: float) -> Any:
    """Return PEFT's choice: the first key that matches the end of the module's name.

    Source: peft, src/peft/utils/other.py, get_pattern_key.
    """
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
