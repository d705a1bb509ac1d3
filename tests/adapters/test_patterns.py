"""What PEFT is told."""

from __future__ import annotations

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from stages.adapters.module import LoraPair
from stages.adapters.patterns import AMBIGUOUS_MODULE, exact_config
from stages.families.architecture import Architecture, block_of, lora_modules

FLUX_1 = Architecture(19, 38, 3072, 16, guidance=True)


def pair(rank: int, alpha: float) -> LoraPair:
    """Return a pair of some rank and alpha."""
    return LoraPair(torch.ones(rank, 1), torch.ones(1, rank), alpha)


def test_exactly_the_named_modules_are_matched() -> None:
    """PEFT's own matcher, asked about all 494 layers, finds the three that are meant."""
    names = ["proj_out", "transformer_blocks.7.attn.to_q", "single_transformer_blocks.3.proj_out"]
    config = LoraConfig(**exact_config(dict.fromkeys(names, pair(2, 1.0))))
    known = (*lora_modules(FLUX_1, "all"), "proj_out", "x_embedder")
    found = [name for name in known if check_target_module_exists(config, name)]
    assert sorted(found) == sorted(names)


def test_ranks_and_alphas_reach_their_own_module_only() -> None:
    """PEFT's own look-up gives every module its rank and alpha back, whatever the order."""
    names = [*lora_modules(FLUX_1, "all"), "proj_out"]
    pairs = {name: pair(1 + number % 3, float(number % 4)) for number, name in enumerate(names)}
    pairs["proj_out"] = pair(9, 9.0)
    for config in (exact_config(pairs), exact_config(dict(reversed(pairs.items())))):
        for name in [*names[:60], *names[-60:]]:
            rank_key = get_pattern_key(config["rank_pattern"], name)
            alpha_key = get_pattern_key(config["alpha_pattern"], name)
            assert config["rank_pattern"].get(rank_key, config["r"]) == pairs[name].rank
            assert config["alpha_pattern"].get(alpha_key, config["lora_alpha"]) == pairs[name].alpha
    assert exact_config(pairs) == exact_config(dict(reversed(pairs.items())))


def test_one_name_alone_is_the_end_of_others() -> None:
    """The list of ambiguous names is complete for FLUX."""
    blocks = lora_modules(FLUX_1, "all")
    base = ["x_embedder", "context_embedder", "norm_out.linear", "proj_out"]
    base += [
        f"time_text_embed.{kind}_embedder.linear_{number}"
        for kind in ("timestep", "text", "guidance")
        for number in (1, 2)
    ]
    assert len({str(block_of(name)) for name in base}) == 1
    names = [*blocks, *base]
    ends = {one for one in names if any(two.endswith(f".{one}") for two in names)}
    assert ends == {AMBIGUOUS_MODULE}
