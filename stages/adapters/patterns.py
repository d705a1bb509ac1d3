"""PEFT's configuration of a LoRA in which every name means one layer.

PEFT matches names by suffix: its target `proj_out` means the transformer's final layer and that
of every single block (peft, src/peft/tuners/tuners_utils.py, check_target_module_exists; ranks
and alphas: src/peft/utils/other.py, get_pattern_key). Only a pattern for the whole name is exact.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from stages.adapters.module import Change

AMBIGUOUS_MODULE: Final = "proj_out"
"""The one Linear layer of a FLUX transformer whose name is the end of others' names."""


def exact_config(pairs: Mapping[str, Change]) -> dict[str, Any]:
    """Return the arguments of PEFT's LoraConfig for exactly the modules of `pairs`.

    The commonest rank and alpha are the defaults, the others stand in anchored patterns.
    """
    ranks = {module: pairs[module].rank for module in sorted(pairs)}
    alphas = {module: pairs[module].alpha for module in sorted(pairs)}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": "|".join(re.escape(module) for module in ranks),
        "rank_pattern": {_anchored(name): each for name, each in ranks.items() if each != rank},
        "alpha_pattern": {_anchored(name): each for name, each in alphas.items() if each != alpha},
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _anchored(module: str) -> str:
    return f"^{re.escape(module)}"
