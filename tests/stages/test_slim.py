"""The slim adapter."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from stages.adapters.compatibility import linear_shapes
from stages.adapters.files import read_adapter, write_adapter
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, TableError
from stages.contracts.params import ModelParams, PromptsParams, SamplingParams, SlimParams
from stages.contracts.tables import BLOCKS as BLOCK_TABLE
from stages.contracts.tables import CURVE, SLIM_RANKS, SLIM_STRENGTHS, read_table, write_table
from stages.families.architecture import block_of
from stages.imaging.metrics import recovery
from stages.sampling.adapted_generator import adapted, load_generator
from stages.sampling.generation import Job, generate
from stages.sampling.prompts import name_prompts
from stages.slim import slim
from tests.sampling.planting import plant_adapter, tiny_architecture, write_tiny_folder

MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=16)
SAMPLING = SamplingParams(size_px=64, steps=2, guidance=2.5, batch=4)
PROMPTS = PromptsParams(
    develop=["tok, a large robot in the centre", "tok, a small robot on the left"],
    held_out=["tok, a robot"],
    without_trigger=[],
    seeds=[0],
    held_out_seeds=[2, 3],
)
PARAMS = SlimParams(
    recovery=0.9,
    chooser="interaction",
    per_byte=True,
    refit_ridge=None,
    ranks=[],
    candidates=4,
    nodes=2,
    sigmas=[0.5, 0.8],
    confidence=0.9,
    resamples=100,
    seed=0,
)
BLOCKS = tiny_architecture().blocks
STRONG = {block: 0.1 if block in BLOCKS[1:3] else 0.0003 for block in BLOCKS}
"""Two blocks that do the work, three that hardly do anything."""
Run = Callable[..., Path]


def block_table(scores: Mapping[BlockId, float], isolate: bool = True) -> pd.DataFrame:
    """A block table with the given shares and only-recoveries; the rest is filler."""
    columns = {name: [0.0] * len(scores) for name in BLOCK_TABLE.schema.columns}
    columns |= {"block": [str(block) for block in scores], "rank": [2] * len(scores)}
    columns |= {"share": list(scores.values()), "bytes": [100] * len(scores)}
    columns |= {f"only_rank{end}": [1.0] * len(scores) for end in ("", "_low", "_high")}
    for name in ("only_recovery", "only_mse_to_none", "without_mse_to_full", "relative_norm"):
        columns[name] = list(scores.values())
    if not isolate:
        columns["only_recovery"] = [np.nan] * len(scores)
    return pd.DataFrame(columns)


@pytest.fixture
def run(tmp_path: Path, tiny_flux: FluxTransformer2DModel, nano_flux: Path) -> Run:
    """A function that slims an adapter of given strengths and returns the output folder."""
    weights = write_tiny_folder(tmp_path, tiny_flux, nano_flux)
    shapes = linear_shapes(tiny_flux)
    adapter, table = tmp_path / "adapter.safetensors", tmp_path / "blocks.csv"

    def run_slim(strengths: dict[BlockId, float], scores: pd.DataFrame, **change: object) -> Path:
        planted = plant_adapter(tiny_architecture(), shapes, strengths)
        write_adapter(adapter, type(planted)(planted.modules, {"trained_by": "a test"}))
        write_table(BLOCK_TABLE, scores, table)
        out = tmp_path / str(change.pop("name", "slim"))
        params = PARAMS.model_copy(update=change)
        paths = {"weights": weights, "adapter": adapter, "blocks": table, "out": out}
        slim(params, MODEL, SAMPLING, PROMPTS, **paths)
        return out

    return run_slim


def metrics(out: Path) -> dict[str, float]:
    """The metrics."""
    return json.loads((out / "metrics.json").read_text())


CHOOSERS = get_args(SlimParams.model_fields["chooser"].annotation)


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_the_blocks_that_work_are_kept(run: Run, tmp_path: Path, chooser: str) -> None:
    """The two strong blocks are enough, whoever chooses, and their matrices are untouched."""
    out = run(STRONG, block_table(STRONG), chooser=chooser)
    slimmed = read_adapter(out / "adapter-slim.safetensors")
    source = read_adapter(tmp_path / "adapter.safetensors")
    assert slimmed.blocks == BLOCKS[1:3]
    for module, pair in slimmed.modules.items():
        assert torch.equal(pair.down, source.modules[module].down)
        assert torch.equal(pair.up, source.modules[module].up)
    assert slimmed.metadata["trained_by"] == "a test"
    assert slimmed.metadata["blocklens.blocks"] == "double.1,single.0"
    assert metrics(out)["blocks_kept"] == 2
    assert metrics(out)["bytes"] == (out / "adapter-slim.safetensors").stat().st_size
    assert 0.0 < metrics(out)["bytes_ratio"] < 0.7


def test_metrics_are_those_of_the_held_out_pictures(run: Run) -> None:
    """The stated recovery can be measured again on the pictures that are written."""
    out = run(STRONG, block_table(STRONG))
    folders = sorted((out / "images").iterdir())
    assert [folder.name for folder in folders] == ["held-out-0-2", "held-out-0-3"]
    measured = []
    for folder in folders:
        small, none, full = (
            np.asarray(Image.open(folder / f"{name}.png")) for name in ("slim", "none", "full")
        )
        measured.append(recovery(small, none, full))
    assert metrics(out)["recovery"] == pytest.approx(np.mean(measured), rel=1e-5)
    assert metrics(out)["recovery_low"] <= metrics(out)["recovery"]


def test_the_curve_tells_every_size(run: Run) -> None:
    """From none to all blocks: bytes grow, P goes from 0 to 1, pictures where they were needed."""
    out = run(STRONG, block_table(STRONG))
    curve = read_table(CURVE, out / "curve.csv")
    assert curve["blocks"].tolist() == [0, 1, 2, 3, 4, 5]
    assert curve["added"].tolist()[0] == ""
    assert set(curve["added"][1:3]) == {"double.1", "single.0"}
    assert curve["bytes"].is_monotonic_increasing
    assert (curve["predicted"].iloc[0], curve["predicted"].iloc[-1]) == pytest.approx((0.0, 1.0))
    assert curve.loc[2, "recovery_low"] >= PARAMS.recovery > curve.loc[1, "recovery_low"]


def test_a_bad_start_is_mended_by_greedy(run: Run) -> None:
    """From the worst first order greedy still finds the strong blocks; shares alone cannot."""
    worst = dict(zip(BLOCKS, (0.5, 0.1, 0.2, 0.4, 0.3), strict=True))
    greedy = run(STRONG, block_table(worst), chooser="greedy", candidates=5, name="greedy")
    shares = run(STRONG, block_table(worst), chooser="shares", name="shares")
    assert metrics(greedy)["blocks_kept"] == 2
    assert metrics(shares)["blocks_kept"] == 5


def test_refitted_strengths_recover_more(run: Run, tmp_path: Path) -> None:
    """Kept blocks that make up for the dropped ones: less is lost at every size that drops some.

    The strengths are in the table, in the file's B and in its metadata, and in ComfyUI's vector.
    """
    even = dict.fromkeys(BLOCKS, 0.02)
    plain = run(even, block_table(even), name="plain", recovery=0.5)
    refitted = run(even, block_table(even), name="refitted", refit_ridge=0.1, recovery=0.5)
    curves = [read_table(CURVE, out / "curve.csv")["predicted"] for out in (plain, refitted)]
    assert (curves[1][2:5] > curves[0][2:5]).all()
    table = read_table(SLIM_STRENGTHS, refitted / "strengths.csv").set_index("block")["strength"]
    assert (table == 0.0).sum() == len(BLOCKS) - metrics(refitted)["blocks_kept"]
    assert table.isin((0.0, 1.0)).sum() < len(BLOCKS)
    slimmed = read_adapter(refitted / "adapter-slim.safetensors")
    source = read_adapter(tmp_path / "adapter.safetensors")
    for module, pair in slimmed.modules.items():
        assert torch.equal(pair.up, source.modules[module].up * table[str(block_of(module))])
    stated = [f"{table[str(block)]:g}" for block in slimmed.blocks]
    assert slimmed.metadata["blocklens.strengths"] == ",".join(stated)
    vector = (refitted / "retrain" / "inspire.txt").read_text().strip().split(",")
    assert [float(value) for value in vector] == [1.0, *(table[str(block)] for block in BLOCKS)]


def test_the_slim_file_makes_the_pictures_that_were_judged(run: Run, tmp_path: Path) -> None:
    """Loaded by itself, the slim file draws what was judged, to a grey level.

    So the recovery in the metrics is that of the file.
    """
    even = dict.fromkeys(BLOCKS, 0.02)
    out = run(even, block_table(even), refit_ridge=0.1, recovery=0.5)
    slimmed = read_adapter(out / "adapter-slim.safetensors")
    prompts = name_prompts(PROMPTS).held_out
    folder = tmp_path / "base"
    bare = load_generator(folder, prompts, MODEL, SAMPLING)
    with adapted(bare, slimmed, SAMPLING, compiled=False) as generator:
        job = Job("held-out-0", 2, (1.0,) * len(slimmed.blocks))
        ((_, drawn),) = generate(generator, [job], SAMPLING)
    kept = np.asarray(Image.open(out / "images" / "held-out-0-2" / "slim.png")).astype(int)
    assert np.abs(drawn.astype(int) - kept).max() <= 1


def test_smaller_ranks_are_a_lever_of_their_own(run: Run, tmp_path: Path) -> None:
    """Each rank has a file of the chosen blocks, and a row for them and for the whole adapter."""
    out = run(STRONG, block_table(STRONG), ranks=[1])
    table = read_table(SLIM_RANKS, out / "ranks.csv")
    assert table[["blocks", "rank"]].values.tolist() == [[2, 1], [5, 1]]
    small = read_adapter(out / "ranks" / "adapter-slim-rank-1.safetensors")
    slimmed = read_adapter(out / "adapter-slim.safetensors")
    assert small.blocks == slimmed.blocks
    assert {pair.rank for pair in small.modules.values()} == {1}
    assert table["bytes"][0] == 4 * sum(pair.parameters for pair in small.modules.values())
    missing, whole = (
        sum(float(change.square().sum()) for change in changes)
        for changes in (
            [slimmed.modules[name].delta() - small.modules[name].delta() for name in small.modules],
            [pair.delta() for pair in slimmed.modules.values()],
        )
    )
    assert table["weight_error"][0] == pytest.approx((missing / whole) ** 0.5, rel=1e-4)
    assert table["recovery"].between(0.1, metrics(out)["recovery"]).all()
    plain = run(STRONG, block_table(STRONG), name="plain")
    assert read_table(SLIM_RANKS, plain / "ranks.csv").empty
    with pytest.raises(AdapterError, match="no less than the adapter's own rank 2"):
        run(STRONG, block_table(STRONG), name="large", ranks=[2])


def test_the_whole_adapter_is_a_possible_answer(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """If nothing smaller passes, the full set is written and the log says so."""
    same = dict.fromkeys(BLOCKS, 0.1)
    out = run(same, block_table(same), recovery=0.9999999)
    assert metrics(out)["blocks_kept"] == len(BLOCKS)
    assert metrics(out)["recovery"] == 1.0
    assert "it is not slimmed" in caplog.text


def test_the_same_run_gives_the_same_bytes(run: Run) -> None:
    """Same inputs, same params, same bytes."""
    folders = [run(STRONG, block_table(STRONG), name=name) for name in ("first", "second")]
    for name in ("adapter-slim.safetensors", "curve.csv", "strengths.csv", "metrics.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.slow
def test_a_cluster_slims_alike(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, velocities, pairs of blocks and smaller ranks by two processes: the same bytes."""
    here = run(STRONG, block_table(STRONG), name="here", ranks=[1], refit_ridge=0.1)
    monkeypatch.setenv("BLOCKLENS_DASK", "local:2")
    there = run(STRONG, block_table(STRONG), name="there", ranks=[1], refit_ridge=0.1)
    files = [path.relative_to(here) for path in sorted(here.rglob("*")) if path.is_file()]
    assert len(files) > 10
    for file in files:
        assert (there / file).read_bytes() == (here / file).read_bytes(), file


def test_another_adapters_table_is_refused(run: Run) -> None:
    """A block table of other blocks, and one without the chooser's column, are refused."""
    with pytest.raises(TableError, match=r"blocks differ from the adapter's: \['single.2'\]"):
        run(STRONG, block_table(dict.fromkeys(BLOCKS[:-1], 1.0)))
    with pytest.raises(TableError, match="only_recovery: has no values"):
        run(STRONG, block_table(STRONG, isolate=False), chooser="isolate")


def test_nothing_to_recover_is_refused(run: Run, tmp_path: Path) -> None:
    """An adapter without effect: all pictures that do not change are named, nothing is written."""
    silent = dict.fromkeys(BLOCKS, 0.0)
    with pytest.raises(AdapterError, match="prompt develop-0, seed 0: the picture is the same"):
        run(silent, block_table(silent))
    assert not (tmp_path / "slim").exists()
