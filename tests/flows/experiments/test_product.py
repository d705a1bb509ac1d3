"""The combinations of a sweep: all of them, told apart by name, and every mistake at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.experiments.product import Combination, SweepError, combinations
from stages.contracts.params import load_params

PARAMS = Path(__file__).parents[3] / "params.yaml"
SECTIONS = ("model", "sampling", "prompts", "encode", "train", "split")


def combined(
    grid: dict[str, Any], follow: dict[str, str] | None = None, target: str = "train"
) -> list[Combination]:
    """Return the combinations over the project's params."""
    return combinations(grid, follow or {}, PARAMS, SECTIONS, target)


def test_every_combination_with_its_followers() -> None:
    """Two by two, a list among the values, all other params as they were."""
    grid = {"train.rank": [4, 16], "train.blocks": [["double"], []]}
    cells = combined(grid, {"train.alpha": "train.rank"})
    changes = [cell.changes for cell in cells]
    assert changes == [
        {"train.rank": rank, "train.blocks": blocks, "train.alpha": rank}
        for rank in (4, 16)
        for blocks in (["double"], [])
    ]
    default = load_params(PARAMS).model_dump(mode="json")
    for cell in cells:
        changed = {name.partition(".")[2]: value for name, value in cell.changes.items()}
        assert cell.params == {**default, "train": {**default["train"], **changed}}


def test_names_tell_params_and_last_stage_apart() -> None:
    """An experiment that went to stage train is none that went to stage slim."""
    names = [cell.name for cell in combined({"train.learning_rate": [0.001, 0.0004]})]
    assert [name.rpartition("-")[0] for name in names] == [
        "learning-rate-0.001",
        "learning-rate-0.0004",
    ]
    others = [
        cell.name for cell in combined({"train.learning_rate": [0.001, 0.0004]}, target="slim")
    ]
    assert len({name.rpartition("-")[2] for name in (*names, *others)}) == 4


def test_values_that_only_fit_together_are_taken() -> None:
    """The whole combination is checked, not each value beside the others of params.yaml."""
    grid = {"train.validation_every": [75], "train.checkpoint_every": [150]}
    assert len(combined(grid)) == 1
    with pytest.raises(SweepError, match=r"validation_every = 75: .*checkpoint_every \(100\) must"):
        combined({"train.validation_every": [75]})


@pytest.mark.parametrize(
    ("grid", "follow", "messages"),
    [
        ({}, {}, ["grid: no params. Name one with its values"]),
        (
            {"train.rnk": [4], "slim.recovery": [0.5], "train.rank": [4, 4], "train.seed": 1},
            {"train.alpha": "train.batch"},
            [
                "grid: train.rnk: no such param. Did you mean 'train.rank'?",
                "grid: slim.recovery: decides nothing of stage train. Sections that do: ['encode'",
                "grid: train.rank: a value stands twice in [4, 4]",
                "grid: train.seed: got 1. Give it a list of numbers",
                "grid: follow.train.alpha: train.batch is no factor. One of ['train.rnk'",
            ],
        ),
        ({"train.seed": [[[1]]]}, {}, ["grid: train.seed: got [[[1]]]"]),
        (
            {"train.seed": list(range(40)), "train.rank": list(range(1, 40))},
            {},
            ["grid: 1560 combinations, at most 1000 are run. Fewer values, of train.seed (40)"],
        ),
        (
            {"train.rank": [0], "train.seed": [1, 2]},
            {},
            ["grid: train.rank = 0, train.seed = 1: Input should be greater than or equal to 1"],
        ),
        (
            {"split.adapter": ["$(rm b).safetensors"]},
            {},
            ["split.adapter = '$(rm b).safetensors': goes into a command and cannot have one of"],
        ),
        ({"train.learning_rate": [1e-05]}, {}, ["DVC would write 1e-05 into params.yaml"]),
    ],
)
def test_everything_wrong_is_said_at_once(
    grid: dict[str, Any], follow: dict[str, str], messages: list[str]
) -> None:
    """Before anything runs, each problem once."""
    with pytest.raises(SweepError) as caught:
        combined(grid, follow)
    text = str(caught.value)
    for message in messages:
        assert text.count(message) == 1, text
    assert len(caught.value.problems) == len(messages)
