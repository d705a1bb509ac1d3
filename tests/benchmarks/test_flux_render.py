"""The GPU benchmark of render runs whole at nano's shape, and its arithmetic is right."""

import subprocess
import sys

import pytest

from benchmarks.flux import TRANSFORMER
from benchmarks.flux_render import ROOT, Setting, forward_flop, report, settings

SETTING = Setting(768, 512, batch=4, steps=20, repeats=1, guidance=3.5)


def test_flop_of_flux_are_those_of_its_weights() -> None:
    """Two operations for each of the blocks' weights and tokens, and attention's on top."""
    flop = forward_flop(TRANSFORMER, SETTING)
    tokens, width = 48 * 48 + 512, 3072
    attention = 57 * 2 * 2 * tokens**2 * width
    # Per token: 12 width^2 weights in each block; modulation is per picture.
    linear = 57 * 2 * 12 * width**2 * tokens
    assert flop == pytest.approx(attention + linear, rel=0.02)


def test_the_set_is_sixty_times_a_picture() -> None:
    """Steps and decoding add up to a picture, and those to minutes."""
    words = report({"loop": 0.5, "compiled": 0.2}, 1.0, 10**14, SETTING, "a card")
    assert "| loop: PEFT's scales, batch 1 | 0.5000 | 200.0 | 11.00 | 11.0 |" in words
    assert "| render's compiled gates, batch 4 | 0.2000 | 500.0 | 5.00 | 5.0 |" in words
    assert "100.0 TFLOP a forward pass, 120.0 PFLOP the set" in words


@pytest.mark.slow
def test_the_whole_path_runs_at_nanos_shape() -> None:
    """What needs a card at FLUX.1's shape is the same code on a CPU."""
    command = [sys.executable, "-m", "benchmarks.flux_render", "--tiny", "--steps", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("batch 2 |") == 2
    assert settings(tiny=True, batch=4, steps=2).tokens == 16
