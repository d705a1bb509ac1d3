"""The strengths of every size, and those that judge a prompt."""

import numpy as np

from stages.lens.interaction import refit_strengths
from stages.slimming.refitting import crossed_strengths, size_strengths

PARTS = np.random.default_rng(0).normal(size=(3, 4, 6))
BY_PROMPT = PARTS @ PARTS.transpose(0, 2, 1)
ORDER = (2, 0, 3, 1)


def test_every_size_has_its_strengths() -> None:
    """None and all are 0 and 1; between, the kept blocks' are the refitted ones."""
    mean = BY_PROMPT.mean(axis=0)
    strengths = size_strengths(ORDER, mean, 0.5)
    assert strengths.shape == (5, 4)
    assert strengths[[0, 4]].tolist() == [[0.0] * 4, [1.0] * 4]
    kept = np.array([True, False, True, False])
    np.testing.assert_array_equal(strengths[2], refit_strengths(mean, kept, 0.5))


def test_without_a_ridge_blocks_are_on_or_off() -> None:
    """The sets themselves."""
    assert size_strengths(ORDER, BY_PROMPT[0], None)[2].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_no_prompt_is_judged_by_its_own_fit() -> None:
    """A prompt's strengths change with the others' products and not with its own."""
    before = crossed_strengths(ORDER, BY_PROMPT, 0.5)
    assert before.shape == (5, 3, 4)
    changed = BY_PROMPT.copy()
    changed[1] = 3.0 * BY_PROMPT[2]
    after = crossed_strengths(ORDER, changed, 0.5)
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    assert (before[2, [0, 2]] != after[2, [0, 2]]).any(axis=1).all()


def test_one_prompt_has_no_others() -> None:
    """It is judged by its own fit, for want of another."""
    crossed = crossed_strengths(ORDER, BY_PROMPT[:1], 0.5)
    np.testing.assert_array_equal(crossed[:, 0], size_strengths(ORDER, BY_PROMPT[0], 0.5))
