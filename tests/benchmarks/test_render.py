"""The benchmark of render compares the same pictures, made two ways."""

from pathlib import Path

from diffusers import FluxTransformer2DModel

from benchmarks.render import Round, Task, lens_variants, report, take_turns
from stages.adapters.compatibility import linear_shapes
from stages.adapters.files import write_adapter
from stages.contracts.params import ModelParams, SamplingParams
from stages.sampling.prompts import NamedPrompt
from tests.sampling.planting import (
    plant_adapter,
    same_strength,
    tiny_architecture,
    write_tiny_folder,
)

BLOCKS = tiny_architecture().blocks


def test_both_draw_the_same_pictures(
    tmp_path: Path, tiny_flux: FluxTransformer2DModel, nano_flux: Path
) -> None:
    """Every variant's pictures agree to one grey level, so that the seconds are for equal work."""
    adapter = tmp_path / "adapter.safetensors"
    strengths = same_strength(BLOCKS, 0.1)
    write_adapter(adapter, plant_adapter(tiny_architecture(), linear_shapes(tiny_flux), strengths))
    write_tiny_folder(tmp_path, tiny_flux, nano_flux)
    task = Task(
        tmp_path / "base",
        adapter,
        (NamedPrompt("develop-0", "tok, a robot"), NamedPrompt("develop-1", "tok")),
        ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=16),
        SamplingParams(size_px=64, steps=2, guidance=2.5, batch=4),
    )
    variants = lens_variants(BLOCKS)
    assert len(variants) == 2 + 5
    rounds = take_turns(task, variants, None)
    assert [one.pictures for one in rounds] == [16, 12]
    assert [one.pictures for one in take_turns(task, variants, 1)] == [16]
    assert max(one.largest_difference for one in rounds) <= 1
    assert all(one.ours_s > 0 and one.loop_s > 0 for one in rounds)


def test_the_report_says_totals_ratio_and_difference() -> None:
    """Totals are sums, the ratio is the median of the rounds' own."""
    rounds = [
        Round(16, 2.0, 8.0, 1, 0.001),
        Round(16, 4.0, 12.0, 0, 0.0),
        Round(8, 1.0, 3.0, 1, 0.0),
    ]
    words = report(rounds, {"ours": 900, "loop": 950}, threads=2)
    assert "| stage render | 40 | 7 | 0.17 | 900 MB |" in words
    assert "| loop over pipeline calls | 40 | 23 | 0.57 | 950 MB |" in words
    assert "3.00 times as long (median of 3 rounds, 3.00 to 4.00) on 2 threads" in words
    assert "at most 1 grey levels, in 0.100 % of values" in words
