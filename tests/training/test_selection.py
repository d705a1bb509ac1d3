"""The choice of a checkpoint."""

from __future__ import annotations

import pytest

from stages.training.selection import choose_checkpoint
from stages.training.state import Journal, Row


def journal(losses: dict[int, float]) -> Journal:
    """Return a journal with these validation losses by step."""
    return Journal(6, [Row(step, 1.0, 1.0, 0.1, losses.get(step)) for step in range(7)], {})


LOSSES = {0: 2.0, 2: 1.0, 3: 0.5, 4: 1.0, 6: 1.5}


def test_best_is_the_earliest_of_lowest_loss() -> None:
    """Step 3 is lower, but was not kept; of two equal ones the earlier is less overfitted."""
    choice = choose_checkpoint(journal(LOSSES), {2, 4, 6}, "best")
    assert (choice.step, choice.validation_loss, choice.improvement) == (2, 1.0, 0.5)


def test_last() -> None:
    """Who asks for the last gets it, with its own loss."""
    choice = choose_checkpoint(journal(LOSSES), {2, 4, 6}, "last")
    assert (choice.step, choice.improvement) == (6, 0.25)


@pytest.mark.parametrize(("losses", "kept"), [(LOSSES, set()), ({2: 1.0}, {2})])
def test_nothing_to_choose_from(losses: dict[int, float], kept: set[int]) -> None:
    """Without a measured checkpoint, or a base model to compare with, there is no choice."""
    with pytest.raises(ValueError, match="nothing to choose from"):
        choose_checkpoint(journal(losses), kept, "best")
