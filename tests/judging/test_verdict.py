"""A finished run, judged; and judged again after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.adapters.attach import lora_parameters
from stages.encoding.encoded import Encoded, Prompt
from stages.judging.candidates import BASE_MODEL, Candidate
from stages.judging.scoring import Image, Painter
from stages.judging.verdict import judge
from stages.training.loop import Run, train_adapter
from tests.training.conftest import LATENT_SHAPE, make_text

MakeRun = Callable[..., Run]


class Easel:
    """Draws a picture of the weights that are on the model, and counts; can die at a picture."""

    def __init__(self, run: Run, dies_at: int = 0) -> None:
        """Draw with the model of `run`."""
        self.drawn = 0
        self._dies_at = dies_at
        self._weights = list(lora_parameters(run.transformer).values())

    def picture(self, kind: int) -> Image:
        """Return 8 x 8 pixels that depend on every matrix and on the kind of prompt."""
        self.drawn += 1
        if self.drawn == self._dies_at:
            raise RuntimeError("killed")
        mean = sum(float(weight.detach().double().abs().mean()) for weight in self._weights)
        seed = int.from_bytes(np.float64(mean).tobytes(), "little") + kind
        return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)

    def painter(self) -> Painter:
        """Return what `judge` draws with."""
        return Painter(
            lambda: [self.picture(0)],
            lambda: [self.picture(1), self.picture(2)],
            lambda picture: torch.full(LATENT_SHAPE, float(picture.mean())),
        )


@pytest.fixture
def data(encoded: Encoded) -> Encoded:
    """One prompt with the trigger, two without."""
    return replace(encoded, plain=(*encoded.plain, Prompt("a square", make_text("a square"))))


def test_judging_goes_on_where_it_was_killed(
    make_run: MakeRun, data: Encoded, tmp_path: Path
) -> None:
    """Of base, step 4 with its average and step 6 with its: no picture is drawn a second time."""
    change = {"ema_decay": 0.5}
    run = make_run(change=change, data=data)
    journal = train_adapter(run, tmp_path / "whole")
    easel = Easel(run)
    expected = judge(run, easel.painter(), journal, tmp_path / "whole")
    candidates = [score.candidate for score in expected.scores]
    assert candidates == [BASE_MODEL, *(Candidate(s, w) for s in (4, 6) for w in ("raw", "ema"))]
    # The run drew the samples of the base and of step 6; step 4's are due at the end.
    assert easel.drawn == 5 * 2 + 3

    other = make_run(change=change, data=data)
    train_adapter(other, tmp_path / "killed")
    killed = Easel(other, dies_at=8)
    with pytest.raises(RuntimeError, match="killed"):
        judge(other, killed.painter(), journal, tmp_path / "killed")
    again = Easel(other)
    verdict = judge(other, again.painter(), journal, tmp_path / "killed")
    assert verdict.scores == expected.scores
    assert verdict.choice == expected.choice
    assert verdict.findings == expected.findings
    assert 0 < again.drawn <= easel.drawn - 6
    rested = Easel(other)
    judge(other, rested.painter(), journal, tmp_path / "killed")
    assert rested.drawn == 0


def test_a_damaged_picture_is_drawn_again(make_run: MakeRun, data: Encoded, tmp_path: Path) -> None:
    """It is not what was drawn, whatever its name says."""
    run = make_run(data=data)
    journal = train_adapter(run, tmp_path)
    expected = judge(run, Easel(run).painter(), journal, tmp_path)
    kept = sorted((tmp_path / "judged").glob("*.png"))
    assert len(kept) == 3 * 2 + 1
    kept[0].write_bytes(kept[0].read_bytes()[:-20])
    easel = Easel(run)
    assert judge(run, easel.painter(), journal, tmp_path).scores == expected.scores
    assert easel.drawn == 2, "the two of that checkpoint and kind"
