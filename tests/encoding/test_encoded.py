"""The files between encode and train."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from stages.contracts.errors import DatasetError
from stages.contracts.tables import ENCODED, read_table, write_table
from stages.encoding.encoded import (
    INDEX,
    Latents,
    View,
    file_name,
    prompt_name,
    read_encoded,
    write_latents,
    write_text,
)
from stages.families.weights import Manifest, WeightFile
from tests.training.conftest import make_picture, make_text

MANIFEST = Manifest(
    None,
    "a/b",
    "0" * 40,
    (WeightFile("vae/x", 1, "1" * 64), WeightFile("transformer/x", 1, "2" * 64)),
)


def row(
    kind: str, name: str, split: str = "", latents: str = "", text: str = "", **other: str | int
) -> dict[str, str | int]:
    """Return a row of the index; the caption is made from the name."""
    caption = "" if kind == "empty" else f"caption of {name}"
    return {
        "kind": kind,
        "name": name,
        "place": 0,
        "size_px": 32 if kind == "image" else 0,
        "split": split,
        "repeats": 3 if name == "b" else 1,
        "regularisation": False,
        "caption": caption,
        "trigger": "tok" if kind == "image" else "",
        "latents_file": latents,
        "mirrored_file": "",
        "text_file": text or f"text-{name}.safetensors",
        "plain_caption": "",
        "plain_text_file": "",
        **other,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training pictures, a held-out one, eleven prompts of each kind and the empty caption."""
    rows = [row("empty", "empty")]
    for name, split in (("b", "train"), ("a", "train"), ("c", "validation")):
        rows.append(row("image", name, split, f"latents-{name}.safetensors"))
        write_latents(tmp_path / f"latents-{name}.safetensors", make_picture(name).latents)
    for kind in ("sample", "plain"):
        names = [prompt_name(kind, number) for number in range(11)]
        rows += [row(kind, name, text="text-a.safetensors") for name in names]
    for name in ("a", "b", "c", "empty"):
        write_text(tmp_path / f"text-{name}.safetensors", make_text(name))
    write_table(ENCODED, pd.DataFrame(rows), tmp_path / INDEX)
    return tmp_path


def test_reads_what_was_written(folder: Path) -> None:
    """Each picture comes back with its own latents, caption and embedding."""
    encoded = read_encoded(folder)
    assert [picture.name for picture in encoded.training] == ["a", "b"]
    assert [picture.name for picture in encoded.validation] == ["c"]
    for picture in encoded.training + encoded.validation:
        assert picture.caption == f"caption of {picture.name}"
        assert torch.equal(picture.latents.mean, make_picture(picture.name).latents.mean)
        assert torch.equal(picture.latents.std, make_picture(picture.name).latents.std)
        assert torch.equal(picture.text.tokens, make_text(picture.name).tokens)
    assert torch.equal(encoded.empty.pooled, make_text("empty").pooled)
    assert encoded.size_px == 32
    assert [picture.repeats for picture in encoded.training] == [1, 3]


def test_sample_prompts_keep_their_order(folder: Path) -> None:
    """The tenth prompt is not the second, as it would be in a sort by text."""
    prompts = [sample.prompt for sample in read_encoded(folder).samples]
    assert prompts == [f"caption of sample-{index}" for index in range(11)]


def test_every_broken_file_is_named(folder: Path) -> None:
    """Missing, cut, foreign and odd-sized files are reported together, with what to do."""
    (folder / "latents-a.safetensors").unlink()
    path = folder / "text-b.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    write_text(folder / "latents-b.safetensors", make_text("b"))
    ones = torch.ones(8, 2, 2)
    write_latents(folder / "latents-c.safetensors", Latents(ones, ones))
    with pytest.raises(DatasetError) as caught:
        read_encoded(folder)
    message = str(caught.value)
    assert "latents-a.safetensors: cannot be read" in message
    assert "text-b.safetensors: cannot be read" in message
    assert "latents-b.safetensors: holds ['pooled', 'tokens'], expected ['mean', 'std']" in message
    assert message.count("Run `dvc repro --force encode`.") == 3


def test_unequal_pictures_are_named(folder: Path) -> None:
    """Buckets share an area and whole tokens, if not a shape."""
    wide = torch.ones(8, 2, 8)
    write_latents(folder / "latents-c.safetensors", Latents(wide, wide))
    assert read_encoded(folder).validation[0].latents.mean.shape == (8, 2, 8)
    ones = torch.ones(8, 2, 2)
    write_latents(folder / "latents-c.safetensors", Latents(ones, ones))
    with pytest.raises(DatasetError, match=r"latents-c.*\(8, 2, 2\), others \(8, 4, 4\)"):
        read_encoded(folder)


def test_lacking_kinds_are_named(tmp_path: Path) -> None:
    """Without held-out pictures there is no validation; the message says where to put them."""
    write_latents(tmp_path / "latents-a.safetensors", make_picture("a").latents)
    write_text(tmp_path / "text-a.safetensors", make_text("a"))
    rows = [row("image", "a", "train", "latents-a.safetensors")]
    write_table(ENCODED, pd.DataFrame(rows), tmp_path / INDEX)
    with pytest.raises(DatasetError) as caught:
        read_encoded(tmp_path)
    assert "Put held-out pictures into prepare.validation_images." in str(caught.value)
    assert "no row of kind 'empty'" in str(caught.value)


def test_file_name_depends_on_all_that_decides_the_content() -> None:
    """Picture, size and VAE count; the transformer does not."""
    names = {
        file_name("latents", MANIFEST, ("vae",), picture="a", size_px=8),
        file_name("latents", MANIFEST, ("vae",), picture="b", size_px=8),
        file_name("latents", MANIFEST, ("vae",), picture="a", size_px=16),
        file_name("latents", MANIFEST, ("transformer",), picture="a", size_px=8),
        file_name("text", MANIFEST, ("vae",), picture="a", size_px=8),
    }
    assert len(names) == 5
    other = Manifest(None, "c/d", "1" * 40, MANIFEST.files[:1])
    assert file_name("latents", other, ("vae",), picture="a", size_px=8) in names


def test_sizes_mirrored_and_plain_texts_belong_to_their_picture(folder: Path) -> None:
    """All views of a picture in the order of the sizes, and its caption without the trigger."""
    index = read_table(ENCODED, folder / INDEX).to_dict("records")
    others = {"place": 1, "size_px": 64, "mirrored_file": "mirrored.safetensors"}
    index += [row("image", "a", "train", "large.safetensors", "text-a.safetensors", **others)]
    plain = {"plain_caption": "plain", "plain_text_file": "text-b.safetensors"}
    index = [entry | (plain if entry["name"] == "a" else {}) for entry in index]
    for name, value in (("large", 1.0), ("mirrored", 2.0)):
        ones = torch.full((8, 8, 8), value)
        write_latents(folder / f"{name}.safetensors", Latents(ones, ones, torch.ones(4, 4)))
    write_table(ENCODED, pd.DataFrame(index), folder / INDEX)
    first, second = read_encoded(folder).training
    assert [view.latents.mean.shape[-1] for view in first.views] == [4, 8]
    assert first.mirrored is None
    large = first.further[0]
    assert large.mirrored is not None
    assert large.mirrored.mean.max() == 2
    assert large.latents.mask is not None
    assert large.latents.mask.shape == (4, 4)
    assert first.plain_text is not None
    assert torch.equal(first.plain_text.tokens, make_text("b").tokens)
    assert second.views == (View(second.latents, None),)
    assert second.plain_text is None
    (folder / "mirrored.safetensors").unlink()
    with pytest.raises(DatasetError, match=r"mirrored\.safetensors: cannot be read"):
        read_encoded(folder)


def test_regularisation_pictures_stand_apart(folder: Path) -> None:
    """They are neither learnt nor measured; without others there is nothing to learn."""
    index = pd.DataFrame(read_table(ENCODED, folder / INDEX))
    index.loc[index["name"] == "a", "regularisation"] = True
    write_table(ENCODED, index, folder / INDEX)
    encoded = read_encoded(folder)
    assert [picture.name for picture in encoded.training] == ["b"]
    assert [picture.name for picture in encoded.regularisation] == ["a"]
    index.loc[index["kind"] == "image", "regularisation"] = True
    write_table(ENCODED, index, folder / INDEX)
    with pytest.raises(DatasetError, match=r"2 problems[\s\S]*split 'train'"):
        read_encoded(folder)


def test_the_trigger_is_the_stated_one(folder: Path) -> None:
    """It comes from the table of captions, however many pictures there are; one run has one."""
    assert read_encoded(folder).trigger == "tok"
    index = read_table(ENCODED, folder / INDEX)
    write_table(ENCODED, index.assign(trigger=""), folder / INDEX)
    assert read_encoded(folder).trigger == ""
    index.loc[index["name"] == "a", "trigger"] = "kot"
    write_table(ENCODED, index, folder / INDEX)
    with pytest.raises(DatasetError, match="begin with different triggers: kot, tok"):
        read_encoded(folder)
