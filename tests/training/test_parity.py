"""Our training step against diffusers' own, written again in benchmarks/reference.py."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.parity import (
    BOUND,
    STEPS,
    Comparison,
    compare,
    demo_data,
    demo_params,
    page,
    parse_table,
)
from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded
from stages.training.objective import flow_losses

ROOT = Path(__file__).parents[2]
MODULES, NUMBERS = 494, 894_976


def require_parity(comparisons: list[Comparison]) -> None:
    """Every step's loss, gradients and weights agree, and the run was one that moves."""
    assert [each.step for each in comparisons] == list(range(1, STEPS + 1))
    for each in comparisons:
        assert abs(each.our_loss - each.their_loss) < BOUND * max(1.0, each.their_loss)
        assert each.gradient_difference < BOUND < each.gradient
        assert each.weight_difference < BOUND
    assert len({each.our_loss for each in comparisons}) == STEPS


def twins(tiny: FluxTransformer2DModel, guidance: bool) -> tuple[FluxTransformer2DModel, ...]:
    """Return two equal models in which every layer has an effect."""
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        model = FluxTransformer2DModel.from_config({**tiny.config, "guidance_embeds": guidance})
        models.append(model.eval().requires_grad_(False))
    return tuple(models)


@pytest.mark.parametrize(
    ("guidance", "change"),
    [
        (True, {}),
        (True, {"guidance": 3.5, "alpha": 1.0}),
        (True, {"timesteps": "uniform", "targets": "attention"}),
        (True, {"timesteps": "shifted", "loss_weighting": "cosmap"}),
        (True, {"timesteps": "uniform", "loss_weighting": "sigma-sqrt"}),
        (False, {"targets": "attention+mlp"}),
    ],
    ids=["default", "guidance 3.5, alpha 1", "uniform", "cosmap", "sigma-sqrt", "schnell"],
)
def test_ten_steps_equal_diffusers(
    tiny_flux: FluxTransformer2DModel,
    encoded: Encoded,
    params: TrainParams,
    guidance: bool,
    change: dict[str, Any],
) -> None:
    """Loss, gradients and weights agree to 1e-5 over ten optimiser steps."""
    like_theirs = {"steps": STEPS, "warmup_steps": 0, "caption_dropout": 0.0, "batch": 3}
    rate = {"learning_rate": 1e-4, "weight_decay": 1e-4}
    chosen = params.model_copy(update=like_theirs | rate | change)
    theirs, ours = twins(tiny_flux, guidance)
    torch.manual_seed(0)
    require_parity(compare((theirs, ours), encoded, chosen))


def test_another_objective_is_noticed(
    tiny_flux: FluxTransformer2DModel,
    encoded: Encoded,
    params: TrainParams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The comparison can fail: with another guidance on our side nothing agrees."""
    change = {"steps": 3, "warmup_steps": 0, "caption_dropout": 0.0, "guidance": 3.5}
    monkeypatch.setattr(
        "stages.training.step.flow_losses",
        lambda model, batch, _guidance: flow_losses(model, batch, 1.0),
    )
    theirs, ours = twins(tiny_flux, True)
    comparisons = compare((theirs, ours), encoded, params.model_copy(update=change))
    assert len(comparisons) == 3
    assert all(abs(each.our_loss - each.their_loss) > BOUND for each in comparisons)


def test_the_reference_is_independent() -> None:
    """It imports diffusers, peft and torch, and nothing of ours."""
    tree = ast.parse((ROOT / "benchmarks" / "reference.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    names = {alias.name for node in imports for alias in node.names}
    roots = {str(name).split(".")[0] for name in modules | names}
    assert {"diffusers", "peft", "torch"} <= roots
    assert not roots & {"stages", "flows", "tests", "benchmarks"}


def test_the_committed_table_is_within_bounds() -> None:
    """docs/parity.md has ten steps, and its text is what the command would write of them."""
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    comparisons = parse_table(text)
    require_parity(comparisons)
    assert page(comparisons, demo_params(), MODULES, NUMBERS) == text


def test_the_command_finds_parity_on_nano(nano_flux: Path) -> None:
    """A fresh run on real pictures: what docs/parity.md says, to its bounds."""
    theirs, ours = (
        FluxTransformer2DModel.from_pretrained(nano_flux / "transformer").eval() for _ in range(2)
    )
    ours.requires_grad_(False)
    torch.manual_seed(0)
    comparisons = compare((theirs, ours), demo_data(nano_flux), demo_params())
    require_parity(comparisons)
    committed = parse_table((ROOT / "docs" / "parity.md").read_text(encoding="utf-8"))
    for fresh, stated in zip(comparisons, committed, strict=True):
        assert fresh.our_loss == pytest.approx(stated.our_loss, abs=1e-3)
