"""Tables are checked on both sides of the disk and written as the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stages.contracts.errors import TableError
from stages.contracts.tables import (
    CAPTIONS,
    DISTANCES,
    HISTORY,
    MANIFEST,
    SHARES,
    accepted,
    read_table,
    write_table,
)


def shares() -> pd.DataFrame:
    """Return a small valid table."""
    return pd.DataFrame(
        {
            "block": ["single.1", "double.0"],
            "share": [0.25, 0.75],
            "low": [0.2, 0.7],
            "high": [0.3, 0.8],
            "prior": [0.5, 0.5],
            "plain_share": [0.25, 0.75],
        }
    )


def test_order_of_rows_does_not_change_the_bytes(tmp_path: Path) -> None:
    """Equal content is equal bytes, so that DVC reruns nothing."""
    write_table(SHARES, shares(), tmp_path / "a.csv")
    write_table(SHARES, shares().iloc[::-1], tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert list(read_table(SHARES, tmp_path / "a.csv")["block"]) == ["double.0", "single.1"]


def test_reading_what_was_written_gives_the_same_table(tmp_path: Path) -> None:
    """Empty numbers stay empty."""
    frame = pd.DataFrame(
        {
            "step": [0, 1],
            "loss": [float("nan"), 0.5],
            "gradient_norm": [float("nan"), 1.0],
            "learning_rate": [0.0, 0.001],
            "validation_loss": [0.75, float("nan")],
            "validation_loss_low": [0.9, float("nan")],
            "validation_loss_middle": [0.6, float("nan")],
            "validation_loss_high": [0.5, float("nan")],
            "probe_loss": [0.74, float("nan")],
            "validation_loss_ema": [float("nan"), float("nan")],
            "probe_loss_ema": [float("nan"), float("nan")],
            "regularisation_loss": [float("nan"), 0.4],
            "preservation_loss": [float("nan"), 0.01],
        }
    )
    write_table(HISTORY, frame, tmp_path / "history.csv")
    pd.testing.assert_frame_equal(read_table(HISTORY, tmp_path / "history.csv"), frame)


def test_all_faults_of_a_table_are_named(tmp_path: Path) -> None:
    """Column, rule and value, for every fault."""
    frame = shares()
    frame.loc[0, "block"] = "single.x"
    frame["prior"] = [-1.0, 0.5]
    with pytest.raises(TableError) as caught:
        write_table(SHARES, frame, tmp_path / "shares.csv")
    assert "column block" in str(caught.value)
    assert "column prior" in str(caught.value)
    assert not (tmp_path / "shares.csv").exists()


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A table that is not there or not ours is said so."""
    with pytest.raises(TableError, match="is missing"):
        read_table(SHARES, tmp_path / "shares.csv")
    (tmp_path / "shares.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(TableError, match="breaks the contract"):
        read_table(SHARES, tmp_path / "shares.csv")
    (tmp_path / "shares.csv").write_bytes(b"")
    with pytest.raises(TableError, match="is not the table"):
        read_table(SHARES, tmp_path / "shares.csv")


def manifest() -> pd.DataFrame:
    """Return one accepted and one skipped picture."""
    whole = {
        "image": "a", "file": "a.png", "concept": "", "repeats": 1, "regularisation": False,
        "split": "train", "status": "accepted", "reason": "", "source": "a.jpg",
        "source_sha256": "0" * 64, "sha256": "1" * 64, "original_width_px": 20,
        "original_height_px": 10, "width_px": 8, "height_px": 8, "exif_orientation": 1,
        "upscale": 0.8, "mask_sha256": "", "blur": 12.5,
        "perceptual_hash": "0" * 16, "near_duplicate_of": "", "caption_source": "txt",
    }  # fmt: skip
    nothing = {key: 0 if isinstance(value, int) else "" for key, value in whole.items()}
    skipped = nothing | {
        "image": "b", "repeats": 1, "regularisation": False, "split": "train", "blur": 0.0,
        "upscale": 0.0,
        "status": "skipped", "reason": "zero bytes", "source": "b.png",
    }  # fmt: skip
    return pd.DataFrame([whole, skipped])


def test_skipped_pictures_stay_in_the_manifest_and_out_of_the_work(tmp_path: Path) -> None:
    """Nothing is lost: the row says why; but no later stage sees it."""
    write_table(MANIFEST, manifest(), tmp_path / "manifest.csv")
    table = read_table(MANIFEST, tmp_path / "manifest.csv")
    pd.testing.assert_frame_equal(table, manifest())
    assert accepted(table)["image"].tolist() == ["a"]


def test_names_and_hashes_of_digits_stay_text(tmp_path: Path) -> None:
    """A picture called 01.png is not the number 1, and a hash with one e in it no exponent."""
    frame = manifest().iloc[:1].assign(image="01", perceptual_hash="12345678901234e5")
    write_table(MANIFEST, frame, tmp_path / "manifest.csv")
    pd.testing.assert_frame_equal(read_table(MANIFEST, tmp_path / "manifest.csv"), frame)


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (0, "file", ""),
        (0, "width_px", 0),
        (0, "reason", "dark"),
        (1, "reason", ""),
        (1, "image", ""),
    ],
)
def test_half_rows_are_no_manifest(tmp_path: Path, row: int, column: str, value: object) -> None:
    """An accepted picture has everything, a skipped one a reason, both a name."""
    frame = manifest()
    frame.loc[row, column] = value
    with pytest.raises(TableError, match="breaks the contract"):
        write_table(MANIFEST, frame, tmp_path / "manifest.csv")


def test_two_accepted_pictures_do_not_share_a_name(tmp_path: Path) -> None:
    """Every later table goes by the name alone."""
    frame = pd.concat([manifest(), manifest().iloc[:1].assign(source="a.png")], ignore_index=True)
    with pytest.raises(TableError, match="breaks the contract"):
        write_table(MANIFEST, frame, tmp_path / "manifest.csv")


def test_names_made_of_digits_stay_names(tmp_path: Path) -> None:
    """Cameras and people number their pictures; 001 is neither 1 nor a number."""
    frame = manifest().iloc[:1].assign(image="001", file="001.png", near_duplicate_of="000")
    write_table(MANIFEST, frame, tmp_path / "manifest.csv")
    table = read_table(MANIFEST, tmp_path / "manifest.csv")
    assert table.loc[0, ["image", "near_duplicate_of", "source_sha256"]].tolist() == [
        "001",
        "000",
        "0" * 64,
    ]


def captions() -> pd.DataFrame:
    """Return a picture with the trigger and a regularisation picture without."""
    row = {
        "image": "a", "split": "train", "caption": "tok, a robot", "trigger": "tok",
        "origin": "user", "written_by": "a.txt", "change": "none",
        "clip_tokens": 5, "t5_tokens": 6, "clip_cut": 0.0, "t5_cut": 0.25,
    }  # fmt: skip
    other = {"image": "b", "caption": "a person", "trigger": "", "change": "prefix added"}
    return pd.DataFrame([row, row | other])


def test_captions_survive_the_disk(tmp_path: Path) -> None:
    """Empty triggers and words such as null come back as they were."""
    frame = captions()
    frame.loc[1, "caption"] = "null"
    write_table(CAPTIONS, frame, tmp_path / "captions.csv")
    pd.testing.assert_frame_equal(read_table(CAPTIONS, tmp_path / "captions.csv"), frame)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("caption", "a robot, tok"),
        ("caption", "tok, a robot, TOK"),
        ("caption", "token of a robot"),
        ("caption", ""),
        ("caption", " ,."),
        ("caption", "tok, a\nrobot"),
        ("caption", "tok, a\trobot"),
        ("caption", "tok, \ufffd"),
        ("change", "trigger"),
        ("change", "trigger added; "),
        ("written_by", ""),
        ("clip_cut", 1.5),
        ("clip_tokens", 0),
    ],
)
def test_captions_that_break_a_rule_are_refused(tmp_path: Path, column: str, value: object) -> None:
    """Trigger first and exactly once, one line of readable text: whoever writes the table."""
    frame = captions()
    frame.loc[0, column] = value
    with pytest.raises(TableError, match="breaks the contract"):
        write_table(CAPTIONS, frame, tmp_path / "captions.csv")


def test_a_table_without_rows_is_read_back(tmp_path: Path) -> None:
    """Nothing was measured is an answer, too; a missing column in it is still an error."""
    columns = DISTANCES.schema.columns
    types = {name: column.dtype.type for name, column in columns.items()}
    write_table(DISTANCES, pd.DataFrame(columns=list(columns)).astype(types), tmp_path / "a.csv")
    assert read_table(DISTANCES, tmp_path / "a.csv").empty
    (tmp_path / "a.csv").write_text("metric,prompt\n")
    with pytest.raises(TableError, match="seed"):
        read_table(DISTANCES, tmp_path / "a.csv")
