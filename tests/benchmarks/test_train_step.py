"""The comparison of steps compares the same thing: both learn, and the table says by how much."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.train_step import our_step, plain_step, seconds, table
from stages.contracts.params import Params, load_params

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params() -> Params:
    """The demo's recipe on pictures of 32 pixels, two a step."""
    whole = load_params(ROOT / "presets" / "nano-flux.yaml")
    return whole.model_copy(
        update={
            "train": whole.train.model_copy(update={"batch": 2, "warmup_steps": 0}),
            "encode": whole.encode.model_copy(update={"sizes_px": [64]}),
        }
    )


def test_every_step_is_one_of_training(params: Params) -> None:
    """Losses of a trained model on noise: finite, of one size, and changed by the updates."""
    for take in (our_step(params), plain_step(params, cached=False)):
        losses = [take(step) for step in (1, 2)]
        assert all(0.1 < loss < 10 for loss in losses)
        assert losses[0] != losses[1]


def test_table_gives_ratios_to_ours(params: Params) -> None:
    """All take turns, and the first row is the measure."""
    calls: list[str] = []

    def taker(name: str) -> float:
        calls.append(name)
        return 0.0

    measured = seconds(1, {"a": lambda _: taker("a"), "b": lambda _: taker("b")})
    assert calls == ["a", "b"] * 3
    assert list(measured) == ["a", "b"]
    assert table({"ours": 0.5, "plain": 1.0}).splitlines()[2:] == [
        "| ours | 0.500 | 1.00 |",
        "| plain | 1.000 | 2.00 |",
    ]
