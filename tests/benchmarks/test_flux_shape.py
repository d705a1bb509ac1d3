"""The table at FLUX.1's shape: right FLOP, right weights, and a row for whatever fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.flux import TRANSFORMER
from benchmarks.flux_floor import shallow_work, step_work
from benchmarks.flux_shape import Child, cases, reason, rows_so_far, table
from benchmarks.flux_step import random_transformer, shape_of
from benchmarks.memory import Step
from stages.contracts.params import ModelParams
from stages.families.loading import load_transformer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ROW = {"size_px": 512, "quantisation": "none", "checkpointing": True, "compiled": False}


@pytest.mark.parametrize("checkpointing", [True, False])
def test_work_of_shallow_models_gives_that_of_the_whole(checkpointing: bool) -> None:
    """Three double and four single blocks of nano: counted, and added up from one and two."""
    config = {**shape_of(tiny=True), "num_layers": 3, "num_single_layers": 4}
    step = Step(64, 1, 8, 4, "all", "bfloat16", checkpointing)
    assert step_work(config, step) == shallow_work(config, step, 3, 4)


def test_work_of_flux() -> None:
    """At 512 px by hand: two FLOP a weight and token, and as many in the backward pass.

    A token meets 12 width^2 weights in every block, a double one having as many for text as for
    pictures. The backward pass gives gradients of inputs alone, since the base is frozen.
    """
    work = step_work(TRANSFORMER, Step(512, 1, 512, 16, "all", "bfloat16", checkpointing=False))
    again = step_work(TRANSFORMER, Step(512, 1, 512, 16, "all", "bfloat16", checkpointing=True))
    pictures, text, width = 1024, 512, 3072
    weights = (19 * 12 + 38 * 12) * width**2
    by_hand = 2 * 2 * weights * (pictures + text)
    assert by_hand < work.flop < 1.2 * by_hand  # attention and the adapter are the rest
    assert 1.45 < again.flop / work.flop < 1.5
    products = {shape[1:] for shape in work.shapes}
    assert products == {(width, width), (width, 12288), (12288, width), (15360, width)}
    assert work.shapes.total() == 494 - 2 * 19 - 38
    in_products = sum(
        2 * rows * inner * columns * count for (rows, inner, columns), count in work.shapes.items()
    )
    assert in_products == by_hand / 2


@pytest.mark.parametrize("quantisation", ["none", "int8", "fp8"])
def test_random_weights_are_stored_as_loaded_ones(nano_flux: Path, quantisation: str) -> None:
    """Every tensor has the kind, shape and type that stage train's loader gives it."""
    model = ModelParams(
        precision="bfloat16", quantisation=quantisation, offload="none", text_tokens=8
    )
    loaded = load_transformer(nano_flux, model, CPU).state_dict()
    made = random_transformer(shape_of(tiny=True), model, CPU)

    def kind(tensor: torch.Tensor) -> tuple[Any, ...]:
        stored = getattr(tensor, "qdata", tensor)
        return (type(tensor).__name__, tensor.shape, tensor.dtype, stored.dtype)

    assert {name: kind(tensor) for name, tensor in made.state_dict().items()} == {
        name: kind(tensor) for name, tensor in loaded.items()
    }
    assert not any(matrix.is_meta or matrix.requires_grad for matrix in made.parameters())


@pytest.mark.parametrize(
    ("code", "limit_s", "outcome"),
    [
        ("import time; time.sleep(60)", 0.5, "not done in 0.5 s"),
        ("import torch; torch.empty(1 << 50)", 60, "out of memory"),
        ("import os; os.kill(os.getpid(), 9)", 60, "killed by signal 9"),
        ("raise ValueError('no such block')", 60, "failed: ValueError: no such block"),
        ("print('{\"step_s\": 2.0}')", 60, "measured"),
    ],
)
def test_every_end_of_a_process_is_a_row(code: str, limit_s: float, outcome: str) -> None:
    """Real processes that hang, run out of memory, are killed, fail and answer."""
    answer = Child([sys.executable, "-c", code], dict(os.environ)).ask({}, limit_s)
    assert answer["outcome"] == outcome


def test_a_gpu_without_memory_is_recognised() -> None:
    """What torch and cuBLAS say."""
    said = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert reason(1, said) == "out of memory"
    assert reason(1, "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED") == "out of memory"


def test_all_combinations_are_measured() -> None:
    """Two sizes, four formats, recomputed or not, compiled or not; quick ones first."""
    every = cases((512, 1024), ("none", "fp8", "int8", "nf4"), compiled=True)
    assert len(set(every)) == len(every) == 32
    assert [case.compiled for case in every] == [False] * 16 + [True] * 16


@pytest.fixture
def results() -> dict[str, Any]:
    """A measured row and one without memory."""
    measured = {"first_s": 9.0, "step_s": 0.5, "peak_bytes": 3 << 30, "reserved_bytes": 4 << 30}
    floor = {"size_px": 512, "checkpointing": True, "flop": 50e12, "flop_per_s": 200e12}
    return {
        "machine": {"device": "a card", "torch": "2"},
        "rank": 16,
        "steps": 5,
        "floors": [{**floor, "floor_s": 0.25}],
        "rows": [
            {**ROW, "compiled": True, "outcome": "out of memory"},
            {**ROW, **measured, "outcome": "measured"},
        ],
    }


def test_table_has_floors_and_rows(results: dict[str, Any]) -> None:
    """Seconds over the floor's, GiB, and the reason in place of numbers."""
    lines = table(results).splitlines()
    assert lines[2] == "| 512 | yes | 50 | 200 | 0.25 |"
    assert lines[6:8] == [
        "| 512 | bf16 | yes | no | 0.500 | 2.00 | 3.0 | 9.0 |",
        "| 512 | bf16 | yes | yes | out of memory | | | |",
    ]


def test_only_rows_of_the_same_machine_are_kept(results: dict[str, Any], tmp_path: Path) -> None:
    """A file of another card does not lend its seconds."""
    path = tmp_path / "results.json"
    assert rows_so_far(path, results) == []
    path.write_text(json.dumps(results), encoding="utf-8")
    assert rows_so_far(path, results) == results["rows"]
    assert rows_so_far(path, {**results, "machine": {"device": "another"}}) == []


@pytest.mark.slow
def test_whole_path_at_nanos_shape(tmp_path: Path) -> None:
    """`--tiny` measures plain, quantised and compiled steps, and says what nf4 lacks."""
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.flux_shape", "--tiny", "--steps", "1"]
    command += ["--limit", "600"]
    done = subprocess.run(
        [*command, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    results = json.loads(path.read_text(encoding="utf-8"))
    *measured, failed = sorted(results["rows"], key=lambda row: row["outcome"] != "measured")
    assert [row["outcome"] for row in measured] == ["measured"] * 3
    assert all(row["step_s"] > 0 and row["peak_bytes"] > 0 for row in measured)
    assert failed["quantisation"] == "nf4"
    assert "model.quantisation: nf4" in failed["outcome"]
    assert done.stdout == table(results)
