"""docs/training.md says of targets, noise levels and weights what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from stages.contracts.params import TrainParams, load_params
from stages.families.architecture import Architecture, Targets, lora_modules
from stages.training.noise_levels import loss_weights, resolution_shift

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def cells(name: str) -> list[str]:
    """Return the cells of the table row that begins with `name`."""
    rows = re.findall(rf"^\| `{re.escape(name)}` \|(.*)\|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == 1, name
    return [cell.strip() for cell in rows[0].split("|")]


@pytest.mark.parametrize("targets", get_args(Targets))
def test_counts_of_layers(targets: Targets) -> None:
    """Every preset has its row, with the numbers of FLUX.1 and Flex.1-alpha."""
    for column, doubles in ((1, 19), (2, 8)):
        modules = lora_modules(Architecture(doubles, 38, 3072, 16, guidance=True), targets)
        assert cells(targets)[column] == str(len(modules))


@pytest.mark.parametrize("field", ["timesteps", "loss_weighting"])
def test_every_choice_has_a_row(field: str) -> None:
    """What params.yaml accepts is explained."""
    choices = get_args(TrainParams.model_fields[field].annotation)
    assert len(choices) == 4
    assert all(len(cells(choice)) >= 2 for choice in choices)


def test_mean_weights() -> None:
    """The third column, drawn anew."""
    params = load_params(ROOT / "params.yaml").train
    normal = torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = torch.sigmoid(normal)
    for weighting in get_args(TrainParams.model_fields["loss_weighting"].annotation):
        chosen = params.model_copy(update={"loss_weighting": weighting})
        mean = loss_weights(sigmas, chosen).mean().item()
        assert float(cells(weighting)[1]) == pytest.approx(mean, rel=0.03)


def test_medians_of_shifted() -> None:
    """0.65 at 512 pixels, 0.70 at 768, 0.76 at 1024."""
    for size_px, stated in ((512, "0.65"), (768, "0.70"), (1024, "0.76")):
        shift = torch.tensor(resolution_shift((size_px // 16) ** 2))
        assert f"{torch.sigmoid(shift).item():.2f}" == stated
        assert stated in PAGE
