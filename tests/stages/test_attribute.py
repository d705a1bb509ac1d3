"""Shares of the blocks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from diffusers import FluxTransformer2DModel

from stages.adapters.compatibility import linear_shapes
from stages.adapters.files import write_adapter
from stages.attribute import attribute
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError
from stages.contracts.params import AttributeParams, ModelParams, PromptsParams, SamplingParams
from stages.contracts.tables import LEVELS, PROBES, SHARES, read_table
from tests.sampling.planting import (
    plant_adapter,
    same_strength,
    tiny_architecture,
    write_tiny_folder,
)

MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=16)
SAMPLING = SamplingParams(size_px=64, steps=2, guidance=2.5, batch=3)
PROMPTS = PromptsParams(
    develop=["tok, a large robot in the centre", "tok, a small robot on the left"],
    held_out=["tok, a robot"],
    without_trigger=[],
    seeds=[0, 1],
    held_out_seeds=[2],
)
PARAMS = AttributeParams(
    nodes=4,
    prompts=["tok, a robot at the top"],
    seeds=[0, 1],
    sigmas=[0.4, 0.8],
    resamples=200,
    confidence=0.9,
    seed=0,
    gradient_checkpointing=False,
)
BLOCKS = tiny_architecture().blocks
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, tiny_flux: FluxTransformer2DModel, nano_flux: Path) -> Run:
    """A function that attributes an adapter of given strengths and returns the output folder."""
    weights = write_tiny_folder(tmp_path, tiny_flux, nano_flux)
    shapes = linear_shapes(tiny_flux)

    def run_attribute(strengths: dict[BlockId, float], name: str = "out", **change: object) -> Path:
        adapter = tmp_path / "adapter.safetensors"
        write_adapter(adapter, plant_adapter(tiny_architecture(), shapes, strengths))
        prompts = PROMPTS.model_copy(update={"without_trigger": change.pop("plain", [])})
        params = PARAMS.model_copy(update=change)
        paths = {"weights": weights, "adapter": adapter, "out": tmp_path / name}
        attribute(params, MODEL, SAMPLING, prompts, **paths)
        return tmp_path / name

    return run_attribute


def shares(out: Path) -> pd.DataFrame:
    """The table of shares."""
    return read_table(SHARES, out / "shares.csv").set_index("block")


def metrics(out: Path) -> dict[str, float]:
    """The metrics."""
    return json.loads((out / "metrics.json").read_text())


def test_shares_add_up(run: Run) -> None:
    """Acceptance 7: shares sum to 1 within the error that stands beside them."""
    out = run(same_strength(BLOCKS, 0.05))
    table, error = shares(out), metrics(out)["completeness_error"]
    assert list(table.index) == sorted(str(block) for block in BLOCKS)
    assert abs(table["share"].sum() - 1.0) <= error + 1e-8
    assert error < 0.01
    assert (table["low"] <= table["share"]).all()
    assert (table["share"] <= table["high"]).all()
    assert table["prior"].sum() == pytest.approx(1.0)
    assert metrics(out)["top_block_share"] == pytest.approx(table["share"].max(), rel=1e-5)
    assert 1 <= metrics(out)["blocks_for_half"] <= len(BLOCKS)


def test_more_nodes_mean_a_smaller_error(run: Run) -> None:
    """The stated error is the quadrature's: one node is worse than four."""
    strong = same_strength(BLOCKS, 0.2)
    one = metrics(run(strong, "one", nodes=1))["completeness_error"]
    four = metrics(run(strong, "four", nodes=4))["completeness_error"]
    assert four < one / 5


def test_the_same_run_gives_the_same_bytes(run: Run) -> None:
    """Same inputs, same params, same bytes."""
    folders = [run(same_strength(BLOCKS, 0.05), name) for name in ("first", "second")]
    for name in ("shares.csv", "levels.csv", "probes.csv", "metrics.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.slow
def test_a_cluster_attributes_alike(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of both kinds of prompts, asked of two processes: the same bytes as of one."""
    here = run(same_strength(BLOCKS, 0.05), "here", plain=["a circle"])
    monkeypatch.setenv("BLOCKLENS_DASK", "local:2")
    there = run(same_strength(BLOCKS, 0.05), "there", plain=["a circle"])
    files = sorted(path.name for path in here.iterdir())
    assert {"shares.csv", "levels.csv", "probes.csv", "metrics.json"} <= set(files)
    for name in files:
        assert (there / name).read_bytes() == (here / name).read_bytes(), name


def test_checkpointing_changes_no_share(run: Run) -> None:
    """Gradient checkpointing saves memory, and the gates still get their gradients."""
    plain = run(same_strength(BLOCKS, 0.05), "plain")
    saving = run(same_strength(BLOCKS, 0.05), "saving", gradient_checkpointing=True)
    pd.testing.assert_frame_equal(shares(plain), shares(saving), rtol=1e-4)


def test_levels_and_streams_add_up_to_the_shares(run: Run) -> None:
    """A block's share is the mean over noise levels of what it does to picture, prompt and both."""
    out = run(same_strength(BLOCKS, 0.05))
    levels = read_table(LEVELS, out / "levels.csv")
    streams = levels[["picture", "text", "both"]].sum(axis=1)
    np.testing.assert_allclose(streams, levels["share"], atol=1e-8)
    means = levels.groupby("block")["share"].mean()
    np.testing.assert_allclose(means[shares(out).index], shares(out)["share"], atol=1e-8)
    assert (levels["least"] <= levels["share"]).all()
    assert (levels["share"] <= levels["most"]).all()
    doubles = levels["block"].str.startswith("double")
    assert (levels.loc[doubles, "both"] == 0.0).all()
    assert (levels.loc[~doubles, ["picture", "text", "both"]] != 0.0).all(axis=None)


def test_every_probe_has_its_error(run: Run) -> None:
    """The worst of the probes' completeness errors is the metric; each probe has an effect."""
    out = run(same_strength(BLOCKS, 0.05))
    probes = read_table(PROBES, out / "probes.csv")
    assert len(probes) == 3 * 2 * 2
    assert set(probes["prompt"]) == {"develop-0", "develop-1", "attribute-0"}
    assert metrics(out)["completeness_error"] == pytest.approx(
        probes["completeness_error"].max(), rel=0.01
    )
    assert (probes["effect"] > 0.0).all()
    assert -1.0 <= metrics(out)["split_half_tau"] <= 1.0
    assert metrics(out)["blocks_against"] == (shares(out)["share"] < 0.0).sum()


def test_prompts_without_the_trigger_have_shares_of_their_own(run: Run) -> None:
    """They add up to 1 like the others, and are other numbers; no such prompts, no numbers."""
    bare = shares(run(same_strength(BLOCKS, 0.05)))
    assert bare["plain_share"].isna().all()
    table = shares(run(same_strength(BLOCKS, 0.05), "plain", plain=["a robot"]))
    assert table["plain_share"].sum() == pytest.approx(1.0, abs=0.01)
    assert (table["plain_share"] - table["share"]).abs().max() > 1e-4
    pd.testing.assert_frame_equal(
        table.drop(columns="plain_share"), bare.drop(columns="plain_share")
    )


def test_absent_and_silent_blocks_differ(run: Run) -> None:
    """A block without weights has no row; a block of zeros has a share of exactly 0."""
    table = shares(run({BLOCKS[0]: 0.05, BLOCKS[3]: 0.0}))
    assert set(table.index) == {str(BLOCKS[0]), str(BLOCKS[3])}
    assert table.loc[str(BLOCKS[3]), ["share", "low", "high", "prior"]].tolist() == [0.0] * 4


def test_an_adapter_without_effect_is_refused(run: Run, tmp_path: Path) -> None:
    """Zeros everywhere: a message that names the file, and no output."""
    with pytest.raises(AdapterError, match="Delta W is zero everywhere"):
        run(same_strength(BLOCKS, 0.0))
    assert not (tmp_path / "out").exists()
