"""Which Linear layers a run trains, and what each of them has: rank, alpha, matrix A.

Names are whole ones, built from the base model's own block counts: nothing is matched by suffix,
so `proj_out` is never taken for the one of every single block.
"""

from __future__ import annotations

from stages.adapters.attach import LoraShape
from stages.contracts.blocks import BlockId
from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params import TrainParams
from stages.families.architecture import Architecture, block_of, lora_modules, shared_down
from stages.families.chosen_blocks import choose_blocks, names_block


def plan_lora(architecture: Architecture, params: TrainParams) -> dict[str, LoraShape]:
    """Return the LoRA of every module that `params` ask for, in model order.

    Raises:
        ParamsError: train.blocks or train.block_settings name blocks that the base model lacks,
            or a setting names blocks that are not trained; all of them at once.
    """
    trained = _trained_blocks(architecture, params)
    modules = [
        module
        for module in lora_modules(architecture, params.targets)
        if block_of(module) in trained
    ]
    downs = shared_down(modules) if params.targets == "kohya" else {each: each for each in modules}
    plan = {}
    for module in modules:
        rank, alpha = _rank_and_alpha(block_of(module), params)
        plan[module] = LoraShape(rank, alpha, downs[module])
    return plan


def _trained_blocks(architecture: Architecture, params: TrainParams) -> frozenset[BlockId]:
    present = architecture.blocks
    chosen, problems = choose_blocks(params.blocks, present, "train.blocks")
    trained = frozenset(chosen if params.blocks else present)
    for number, setting in enumerate(params.block_settings):
        where = f"train.block_settings[{number}].blocks"
        own, beyond = choose_blocks(setting.blocks, present, where)
        problems += beyond
        if idle := [str(block) for block in own if block not in trained]:
            what = f"names blocks that train.blocks leaves out: {', '.join(idle)}"
            problems.append(Problem(where, what, "Add them to train.blocks, or take them out."))
    if problems:
        raise ParamsError("The blocks to train do not fit the base model", problems)
    return trained


def _rank_and_alpha(block: BlockId, params: TrainParams) -> tuple[int, float]:
    for setting in params.block_settings:
        if names_block(setting.blocks, block):
            return setting.rank, setting.alpha
    return params.rank, params.alpha
