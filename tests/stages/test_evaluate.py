"""evaluate turns pictures into numbers that a person can compare, and refuses half a set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.contracts.errors import TableError
from stages.contracts.params import DistanceParams, EvaluateParams
from stages.contracts.tables import (
    BLOCKS,
    DISTANCES,
    PICTURES,
    RENDERED,
    STRENGTHS,
    VARIANTS,
    read_table,
    write_table,
)
from stages.evaluate import evaluate
from stages.imaging.heatmap import SMALLEST_DRAWN_PX
from stages.imaging.metrics import mse, recovery
from stages.lens.statistics import bootstrap_interval
from tests.lens.test_perceptual import write_dinov2
from tests.reporting.example import Example, example_params, write_lens

PARAMS = example_params().evaluate
TINY = Example(double_blocks=2, single_blocks=3, absent=("single.1",), side_px=32)
BLOCKS_OF_TINY = ["double.0", "double.1", "single.0", "single.2"]


def run(data: Path, params: EvaluateParams = PARAMS, out: str = "evaluate") -> Path:
    """Run the stage on an example folder and return its output folder."""
    tables = (data / "attribute" / "shares.csv", data / "split" / "index.csv")
    evaluate(params, data / "render", *tables, data / out)
    return data / out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An example that has been evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_lens(folder, TINY)
    run(folder)
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """An example that a test may change."""
    write_lens(tmp_path, TINY)
    return tmp_path


def load(path: Path) -> np.ndarray:
    """Return a picture file as uint8 RGB."""
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.uint8)


def rewrite_index(data: Path, rows: pd.DataFrame) -> None:
    """Replace render's index."""
    write_table(RENDERED, rows, data / "render" / "index.csv")


def test_table_holds_what_the_pictures_say(data: Path) -> None:
    """Every number of a block is the mean over prompts and seeds of what two pictures differ in."""
    table = read_table(BLOCKS, data / "evaluate" / "blocks.csv").set_index("block")
    assert list(table.index) == BLOCKS_OF_TINY
    values = np.empty((2, 2))
    errors = np.empty((2, 2))
    for prompt in range(2):
        for seed in range(2):
            folder = data / "render" / "images" / f"develop-{prompt}-{seed}"
            none, full, only = (
                load(folder / f"{n}.png") for n in ("none", "full", "only-single.2")
            )
            values[prompt, seed] = recovery(only, none, full)
            errors[prompt, seed] = mse(only, none)
    row = table.loc["single.2"]
    assert row["only_recovery"] == pytest.approx(values.mean())
    assert row["only_mse_to_none"] == pytest.approx(errors.mean())
    low, high = bootstrap_interval(values, PARAMS.resamples, PARAMS.confidence, PARAMS.seed)
    assert (row["only_recovery_low"], row["only_recovery_high"]) == pytest.approx((low, high))
    assert row["bytes"] == 16_400


def test_every_picture_has_its_row(data: Path) -> None:
    """The report shows the numbers of single pictures, prompts without the trigger included."""
    index = read_table(RENDERED, data / "render" / "index.csv")
    pictures = read_table(PICTURES, data / "evaluate" / "pictures.csv")
    keys = ["prompt", "seed", "variant"]
    assert sorted(map(tuple, pictures[keys].values)) == sorted(map(tuple, index[keys].values))
    full = pictures[pictures["variant"] == "full"]
    assert (full["recovery"] == 1.0).all()
    assert (full["mse_to_full"] == 0.0).all()


def test_metrics_are_flat_numbers(data: Path) -> None:
    """`dvc metrics diff` shows them in a pull request."""
    metrics = json.loads((data / "evaluate" / "metrics.json").read_text())
    wanted = {"effect_mse", "noise_floor_mse", "bleed", "rank_tau", "heatmap_top"}
    trust = {"split_half_tau", "bootstrap_tau", "friedman_p", "blocks_in_noise", "anecdotal"}
    assert set(metrics) == wanted | trust | {"prompts", "seeds"}
    assert metrics["anecdotal"] == 0
    assert 0.0 <= metrics["friedman_p"] <= 1.0
    assert -1.0 <= metrics["split_half_tau"] <= metrics["bootstrap_tau"] <= 1.0
    assert (metrics["prompts"], metrics["seeds"]) == (2, 2)
    assert metrics["effect_mse"] > 100 > metrics["noise_floor_mse"] >= 0.0
    assert 0.0 < metrics["bleed"] < 0.1
    assert -1.0 <= metrics["rank_tau"] <= 1.0


def test_every_block_has_its_heat_map_and_the_sheet_all(data: Path) -> None:
    """No block is left out, and small pictures are drawn large enough to be read."""
    names = {path.name for path in (data / "evaluate" / "heatmaps" / "develop-1-1").iterdir()}
    modes = {f"{mode}-{block}.png" for mode in ("only", "without") for block in BLOCKS_OF_TINY}
    assert names == modes | {"full.png"}
    assert len(list((data / "evaluate" / "heatmaps").iterdir())) == 5
    for name in names:
        picture = load(data / "evaluate" / "heatmaps" / "develop-1-1" / name)
        assert picture.shape[1] == SMALLEST_DRAWN_PX
    assert load(data / "evaluate" / "sheet.png").shape[1] > 1000
    sheets = sorted(path.name for path in (data / "evaluate" / "sheets").iterdir())
    assert sheets == ["only-1.png", "without-1.png"]
    first = (data / "evaluate" / "sheets" / "only-1.png").read_bytes()
    assert first == (data / "evaluate" / "sheet.png").read_bytes()


def test_running_again_gives_the_same_bytes(data: Path) -> None:
    """Threads must not decide an order."""
    again = run(data, out="again")
    files = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert len(files) > 40
    for file in files:
        assert (again / file).read_bytes() == (data / "evaluate" / file).read_bytes(), file


def test_scale_and_colours_change_pictures_and_no_number(data: Path, tmp_path: Path) -> None:
    """A colour map is a matter of taste; blocks.csv decides what ships."""
    look = PARAMS.model_copy(update={"colour_map": "viridis", "heatmap_scale": "picture"})
    other = run(data, look, out="other")
    for name in ("blocks.csv", "pictures.csv", "metrics.json"):
        assert (other / name).read_bytes() == (data / "evaluate" / name).read_bytes()
    assert (other / "sheet.png").read_bytes() != (data / "evaluate" / "sheet.png").read_bytes()
    name = "heatmaps/develop-0-0/only-single.2.png"
    assert (other / name).read_bytes() != (data / "evaluate" / name).read_bytes()


def add_variants(data: Path, made_from: dict[str, str], kind: str) -> None:
    """Add variants to the pictures of one kind of prompt, as copies of others."""
    index = read_table(RENDERED, data / "render" / "index.csv")
    rows = []
    for name, source in made_from.items():
        for row in index[index["variant"] == source].to_dict("records"):
            if str(row["prompt"]).startswith(kind):
                file = Path(row["file"]).with_name(f"{name.replace(':', '-')}.png").as_posix()
                shutil.copyfile(data / "render" / row["file"], data / "render" / file)
                rows.append({**row, "variant": name, "file": file})
    rewrite_index(data, pd.concat([index, pd.DataFrame(rows)]))


def test_controls_and_choices_of_blocks_are_measured(fresh: Path) -> None:
    """Noise per block, bleeding per block, strengths and bands each have their numbers."""
    noise = {f"random:{block}": "none" for block in BLOCKS_OF_TINY}
    choices = {"strength:0.5": "only:single.2", "only-group:early": "full"}
    add_variants(fresh, {**noise, **choices}, "develop")
    plain = {f"without:{block}": "full" for block in BLOCKS_OF_TINY}
    add_variants(fresh, {**plain, "without:single.0": "none"}, "without-trigger")
    out = run(fresh)
    table = read_table(BLOCKS, out / "blocks.csv").set_index("block")
    assert (table["random_mse_to_none"] == 0.0).all()
    assert (table["random_recovery"] == 0.0).all()
    assert table["bleed_stopped"].to_dict() == {
        **dict.fromkeys(BLOCKS_OF_TINY, 0.0),
        "single.0": 1.0,
    }
    variants = read_table(VARIANTS, out / "variants.csv").set_index("variant")
    assert set(variants.index) == {"none", "full", "repeat", *choices}
    assert variants.loc["only-group:early", "recovery"] == 1.0
    alone = table.loc["single.2", "only_recovery"]
    assert variants.loc["strength:0.5", "recovery"] == pytest.approx(alone)
    strengths = read_table(STRENGTHS, out / "strengths.csv")
    assert strengths["strength"].tolist() == [0.0, 0.5, 1.0]
    assert (out / "heatmaps" / "develop-0-0" / "only-group-early.png").is_file()
    assert (out / "sheets" / "random-1.png").is_file()


def test_one_prompt_with_one_seed_is_called_an_anecdote(fresh: Path) -> None:
    """Numbers of a single pair say nothing of other prompts, and are labelled so."""
    index = read_table(RENDERED, fresh / "render" / "index.csv")
    alone = (index["prompt"] == "develop-0") & (index["seed"] == 0)
    several = run(fresh, out="several")
    rewrite_index(fresh, index[alone | index["prompt"].str.startswith("without")])
    out = run(fresh)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["anecdotal"] == 1
    assert "split_half_tau" not in metrics
    assert not np.array_equal(load(out / "sheet.png"), load(several / "sheet.png"))


def test_distances_by_models_that_are_at_hand(fresh: Path, tmp_path: Path) -> None:
    """Every picture has its distances to both references, and 0 to itself."""
    folder, sha256 = write_dinov2(tmp_path / "dinov2")
    model = DistanceParams(metric="dinov2", folder=str(folder), sha256=sha256)
    out = run(fresh, PARAMS.model_copy(update={"distances": [model]}))
    table = read_table(DISTANCES, out / "distances.csv")
    assert len(table) == len(read_table(RENDERED, fresh / "render" / "index.csv"))
    full = table[table["variant"] == "full"]
    assert (full["to_full"] < 1e-6).all()
    assert (full.loc[full["prompt"].str.startswith("develop"), "to_none"] > 1e-4).all()
    assert read_table(DISTANCES, run(fresh) / "distances.csv").empty


def test_modes_that_were_not_rendered_stay_empty(fresh: Path) -> None:
    """render.modes may name one mode only; the other's columns are empty, not zero."""
    index = read_table(RENDERED, fresh / "render" / "index.csv")
    rewrite_index(fresh, index[~index["variant"].str.startswith("only:")])
    table = read_table(BLOCKS, run(fresh) / "blocks.csv")
    assert table["only_recovery"].isna().all()
    assert table["without_recovery"].notna().all()
    assert "rank_tau" not in json.loads((fresh / "evaluate" / "metrics.json").read_text())


def test_an_adapter_without_effect_has_no_recovery(fresh: Path) -> None:
    """0 / 0 is neither 0 nor 1: the column stays empty, and the stage does not fail."""
    for folder in (fresh / "render" / "images").iterdir():
        for file in folder.iterdir():
            if file.name != "none.png":
                shutil.copyfile(folder / "none.png", file)
    table = read_table(BLOCKS, run(fresh) / "blocks.csv")
    assert table["only_recovery"].isna().all()
    metrics = json.loads((fresh / "evaluate" / "metrics.json").read_text())
    assert metrics["effect_mse"] == 0.0
    assert "bleed" not in metrics


def test_all_missing_pictures_are_named_at_once(fresh: Path) -> None:
    """One message, and the earlier output stays as it was."""
    earlier = run(fresh)
    before = (earlier / "blocks.csv").read_bytes()
    gone = [f"images/develop-0-{seed}/only-double.1.png" for seed in range(2)]
    for file in gone:
        (fresh / "render" / file).unlink()
    with pytest.raises(TableError) as caught:
        run(fresh)
    assert all(file in str(caught.value) for file in gone)
    assert "render" in str(caught.value)
    assert (earlier / "blocks.csv").read_bytes() == before


def test_a_half_crossed_set_is_refused(fresh: Path) -> None:
    """A block with fewer pictures than others would get another block's interval."""
    index = read_table(RENDERED, fresh / "render" / "index.csv")
    lacking = (index["variant"] == "only:single.0") & (index["seed"] == 1)
    no_full = (index["prompt"] == "without-trigger-0") & (index["variant"] == "full")
    rewrite_index(fresh, index[~lacking & ~no_full])
    with pytest.raises(TableError) as caught:
        run(fresh)
    message = str(caught.value)
    assert "only:single.0" in message
    assert "expected 4" in message
    assert "without-trigger-0 seed 0" in message
    assert "full" in message


def test_tables_of_two_adapters_are_refused(fresh: Path) -> None:
    """Shares of one LoRA next to pictures of another would look like a result."""
    path = fresh / "split" / "index.csv"
    kept = [line for line in path.read_text().splitlines() if not line.startswith("single.2")]
    path.write_text("\n".join(kept) + "\n")
    with pytest.raises(TableError, match=r"single\.2"):
        run(fresh)


def test_prompts_to_develop_with_are_needed(fresh: Path) -> None:
    """Without them there is nothing to measure."""
    index = read_table(RENDERED, fresh / "render" / "index.csv")
    rewrite_index(fresh, index[index["prompt"].str.startswith("without")])
    with pytest.raises(TableError, match="no development prompt"):
        run(fresh)
