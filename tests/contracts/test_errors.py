"""Messages name everything that is wrong, in order, and stay readable."""

from __future__ import annotations

import pytest

from stages.contracts import errors
from stages.contracts.errors import BlocklensError, DatasetError, Problem


def test_all_problems_stand_in_one_sorted_message() -> None:
    """A person learns everything that is wrong in one go."""
    error = DatasetError(
        "Pictures are unusable",
        [Problem("b.png", "empty", "Replace it."), Problem("a.png", "cut", "Copy it again.")],
    )
    assert str(error).splitlines() == [
        "Pictures are unusable (2 problems):",
        "  - a.png: cut. Copy it again.",
        "  - b.png: empty. Replace it.",
    ]


def test_long_lists_are_cut_at_ten_with_the_total() -> None:
    """A thousand bad pictures do not scroll the first ones away."""
    problems = [Problem(f"{number:04}.png", "empty", "Replace it.") for number in range(1000)]
    lines = str(DatasetError("Bad", problems)).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  … and 990 more"


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ParamsError", ValueError),
        ("DatasetError", ValueError),
        ("WeightsError", RuntimeError),
        ("AdapterError", ValueError),
        ("TableError", ValueError),
        ("TrainingError", RuntimeError),
    ],
)
def test_each_error_is_also_a_builtin_one(name: str, builtin: type[Exception]) -> None:
    """Callers that know nothing of ours can still catch by kind."""
    kind = getattr(errors, name)
    assert issubclass(kind, BlocklensError)
    assert issubclass(kind, builtin)
