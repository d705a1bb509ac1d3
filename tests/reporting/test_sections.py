"""Gallery, ranking, slimming, training, dataset and provenance hold what their stages wrote."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.reporting import gallery as gallery_module
from stages.reporting.dataset import show_dataset
from stages.reporting.evidence import Evidence, Folders, read_evidence
from stages.reporting.gallery import HeatmapLook, hang_gallery
from stages.reporting.provenance import trace_provenance
from stages.reporting.ranking import rank_blocks
from stages.reporting.slimming import tell_slimming
from stages.reporting.training import tell_training
from stages.reporting.words import interval
from tests.reporting.example import EVIL_CAPTION, example_folders, example_params

NBSP = "\N{NO-BREAK SPACE}"
PROMPTS = example_params().prompts.held_out


def flat_map(picture: Path, reference: Path) -> np.ndarray:
    """Return a map without any difference, and check that both files exist."""
    assert picture.is_file()
    assert reference.name in {"none.png", "full.png"}
    return np.zeros((32, 32), dtype=np.uint8)


LOOK = HeatmapLook(flat_map, np.zeros((3, 3), dtype=np.uint8), top=50.0, opacity=0.6, shared=True)


def test_gallery_has_each_block_in_each_mode_for_each_pair(evidence: Evidence) -> None:
    """Nothing is shown for one block and hidden for another."""
    gallery = hang_gallery(evidence, LOOK, 64, 0.9)
    assert [card.rank for card in gallery.cards] == [1, 2, 3, 4, 5, 6]
    assert gallery.modes == ["only", "without"]
    keys = {f"develop-{prompt}-{seed}" for prompt in range(2) for seed in range(2)}
    for card in gallery.cards:
        assert {(s.pair, s.mode) for s in card.shots} == {
            (k, m) for k in keys for m in ("only", "without")
        }
    row = evidence.measured.set_index(["prompt", "seed", "variant"])
    name = str(gallery.cards[0].result.block)
    shot = next(s for s in gallery.cards[0].shots if (s.pair, s.mode) == ("develop-1-0", "without"))
    assert shot.mse == row.loc[("develop-1", 0, f"without:{name}"), "mse_to_full"]
    assert name in shot.alt
    assert "full" in shot.heatmap_alt


def test_gallery_shows_as_many_pairs_as_fit(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty prompts must not make a page that no browser opens; one pair is always there."""
    monkeypatch.setattr(gallery_module, "BUDGET_CHARACTERS", 1)
    gallery = hang_gallery(evidence, LOOK, 64, 0.9)
    assert (len(gallery.pairs), gallery.pairs_total) == (1, 4)
    assert {shot.pair for card in gallery.cards for shot in card.shots} == {"develop-0-0"}


def test_gain_stretches_a_map_to_its_own_peak(evidence: Evidence) -> None:
    """A map whose peak is the scale's top is not stretched; weaker ones are."""
    peaks = evidence.measured[evidence.measured["variant"].str.contains(":")]["difference_peak"]
    look = replace(LOOK, top=float(peaks.max()))
    gains = [
        shot.gain for card in hang_gallery(evidence, look, 64, 0.9).cards for shot in card.shots
    ]
    assert min(gains) == pytest.approx(1.0, abs=0.001)
    assert max(gains) > 2.0


def test_ranking_adds_up(evidence: Evidence) -> None:
    """The running sum ends at 100 %, bars lie inside their column, absent blocks are listed."""
    ranking = rank_blocks(evidence)
    assert ranking.rows[-1].cumulative == pytest.approx(1.0)
    assert ranking.absent == ["single.1", "base"]
    for row in ranking.rows:
        assert 0.0 <= row.low <= row.high <= 100.0
        assert row.low <= row.end
    assert ranking.scatter is not None
    assert ranking.tau == evidence.metrics["evaluate"]["rank_tau"]
    assert interval(0.03, 0.052) == f"3.0 to 5.2{NBSP}%"
    assert interval(None, 0.1) == ""


def test_scatter_needs_pictures_of_single_blocks(evidence: Evidence) -> None:
    """With render.modes [without] there is nothing to plot, and no empty axes."""
    without = [
        replace(r, numbers={k: v for k, v in r.numbers.items() if not k.startswith("only")})
        for r in evidence.blocks
    ]
    assert rank_blocks(replace(evidence, blocks=tuple(without))).scatter is None


def test_slimming_tells_the_set_and_shows_it(evidence: Evidence) -> None:
    """Kept blocks in model order, and every held-out pair with three pictures."""
    params = example_params().slim
    slimming = tell_slimming(evidence, params, PROMPTS, 64)
    assert len(slimming.kept) == 2
    assert slimming.passed
    assert not slimming.whole
    assert [pair.key for pair in slimming.held_out] == [
        f"held-out-{prompt}-{seed}" for prompt in range(2) for seed in (100, 101)
    ]
    assert PROMPTS[1] in slimming.held_out[-1].words
    assert set(slimming.held_out[0].pictures) == {"none", "full", "slim"}
    assert "chosen: 2 blocks" in slimming.curve


def test_a_slim_set_that_fails_held_out_is_said_to_fail(evidence: Evidence) -> None:
    """The stage reports a miss instead of replacing it; so does the page."""
    missed = {**evidence.metrics["slim"], "recovery": 0.5}
    evidence = replace(evidence, metrics={**evidence.metrics, "slim": missed})
    assert not tell_slimming(evidence, example_params().slim, PROMPTS, 64).passed


def test_training_shows_samples_by_prompt_and_step(evidence: Evidence) -> None:
    """Step 0 is the base model; steps are in order."""
    training = tell_training(evidence, ["first", "second"], 64)
    assert [sample.prompt for sample in training.samples] == ["first", "second"]
    assert [step for step, _ in training.samples[0].pictures] == [0, 100, 200, 300, 400]
    assert training.steps == 400
    assert training.reason.startswith("step 400 of 400")
    assert [finding.name for finding in training.findings] == ["bleeding"]
    assert [row.name for row in training.checkpoints] == [
        "base model",
        "step 200",
        "step 400",
        "step 400, moving average",
    ]
    assert training.selected == "step 400"
    assert [row.chosen for row in training.checkpoints] == [False, False, True, False]
    assert training.checkpoints[0].numbers[3] == "–", "the base model cannot bleed"
    assert training.sheet.startswith("data:image/")
    assert training.chart is not None
    assert "base model" in training.chart


def test_bands_of_sigma_are_told_against_the_base_model(evidence: Evidence) -> None:
    """Which noise levels were learnt, from where each began; what was not measured is left out."""
    training = tell_training(evidence, ["first", "second"], 64)
    assert [band.name for band in training.bands] == ["low", "middle", "high"]
    history = evidence.making.history
    for band in training.bands:
        values = history[f"validation_loss_{band.name}"].dropna()
        assert (band.base, band.last) == (values.iloc[0], values.iloc[-1])
        assert band.change == pytest.approx(values.iloc[-1] / values.iloc[0] - 1.0)
    assert training.bands_step == 400
    assert "band-middle" in training.bands_chart
    unmeasured = history.assign(validation_loss_low=np.nan)
    making = replace(evidence.making, history=unmeasured)
    training = tell_training(replace(evidence, making=making), ["first", "second"], 64)
    assert [band.name for band in training.bands] == ["middle", "high"]


def test_dataset_counts_tokens_and_says_what_prepare_warned_of(evidence: Evidence) -> None:
    """A caption that is cut and a blurred picture are seen where the pictures are."""
    captions = evidence.making.captions.copy()
    captions.loc[captions["image"] == "04", "t5_cut"] = 0.2
    warned = {**evidence.metrics["prepare"], "images_blurred": 2, "low_variety": 1}
    changed = replace(
        evidence,
        making=replace(evidence.making, captions=captions),
        metrics={**evidence.metrics, "prepare": warned},
    )
    dataset = show_dataset(changed, 64)
    assert (dataset.clip_tokens, dataset.t5_tokens) == ("12", "14 to 18")
    assert [item.name for item in dataset.training if item.cut] == ["04"]
    assert dataset.warnings == ["2 pictures blurred", "most pictures look alike"]
    assert show_dataset(evidence, 64).warnings == []


def test_dataset_keeps_captions_and_warnings(evidence: Evidence) -> None:
    """What a person would want to know before blaming the trainer."""
    dataset = show_dataset(evidence, 64)
    assert (len(dataset.training), len(dataset.validation)) == (24, 6)
    assert dataset.generated == 6
    assert dataset.near_duplicates == 1
    items = {item.name: item for item in dataset.training}
    assert items["02"].caption == EVIL_CAPTION
    assert items["07"].near_duplicate_of == "04"
    assert items["03"].turned
    assert items["05"].change == "trigger added"
    assert dataset.constant_words == ["a", "robot"]


def test_provenance_is_what_the_files_are(evidence: Evidence) -> None:
    """Hashes are those of the files; paths are relative; every param is there with a sentence."""
    provenance = trace_provenance(evidence, example_params())
    lora = provenance.files[0]
    assert lora.sha256 == hashlib.sha256(evidence.folders.adapter.read_bytes()).hexdigest()
    assert lora.path == "data/train/adapter.safetensors"
    assert len(provenance.files) == 5
    assert dict(provenance.versions)["safetensors"]
    settings = {(s, item.key): item for s, items in provenance.settings.items() for item in items}
    assert settings["train", "rank"].value == "8"
    assert settings["caption", "trigger"].value == "tok"
    assert all(item.meaning for item in settings.values())
    assert len(settings) > 50
    assert ("blocklens.trigger", "tok") in provenance.metadata
    assert provenance.base == "data/nano-flux"


def test_provenance_tells_files_outside_the_project_apart(
    example_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shortened path leads to no file; an absolute one into the project is shown from there."""
    project = example_data.parent
    monkeypatch.chdir(project)
    outside = shutil.copy(example_data / "train/adapter.safetensors", tmp_path / "a.safetensors")
    folders = example_folders(Path("data")) | {"prepared": project / "data/prepare"}
    for adapter in (outside, Path(os.path.relpath(outside))):
        evidence = read_evidence(Folders(**folders | {"adapter": adapter}))
        files = {file.name: file for file in trace_provenance(evidence, example_params()).files}
        assert len(files) == 5
        assert [name for name, file in files.items() if not file.is_inside] == ["The LoRA"]
        assert files["The LoRA"].path.endswith(f"/{tmp_path.name}/a.safetensors")
        assert files["The slim LoRA"].path == "data/slim/adapter-slim.safetensors"
        assert files["Manifest of the pictures"].path == "data/prepare/manifest.csv"
