"""A folder of BLIP weights becomes a captioner that repeats itself, or one clear refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.captioning.captioner import load_captioner
from stages.captioning.interface import Captioner, Picture
from stages.contracts.errors import WeightsError
from tests.captioning.settings import caption_params
from tests.captioning.tiny import NOTHING, write_tiny_blip
from tests.imaging.drawings import scenery

PICTURES = [Picture(scenery(48, 32, seed), "") for seed in range(4)]


def load(folder: Path, max_new_tokens: int = 4) -> Captioner:
    """Return the captioner in a folder, on the CPU."""
    params = caption_params(max_new_tokens=max_new_tokens)
    return load_captioner(params, folder, torch.device("cpu"))


def test_one_caption_per_picture_none_depends_on_others(tmp_path: Path) -> None:
    """Adding a picture to the folder must not change another's caption."""
    write = load(write_tiny_blip(tmp_path, None))
    together = list(write(PICTURES))
    assert len(together) == 4
    assert together == [caption for picture in PICTURES for caption in write([picture])]
    assert together == list(load(tmp_path)(PICTURES))


def test_words_are_the_tokenizers_and_as_many_as_allowed(tmp_path: Path) -> None:
    """The captioner's own words come back without its markers."""
    (caption,) = load(write_tiny_blip(tmp_path, "robot"), 3)(PICTURES[:1])
    assert caption == "robot robot robot"


def test_caption_ends_where_the_decoder_ends(tmp_path: Path) -> None:
    """A captioner that never stops is cut off at its own length, not by an index error."""
    (caption,) = load(write_tiny_blip(tmp_path, "robot"), 500)(PICTURES[:1])
    assert caption.split() == ["robot"] * 15


def test_answer_may_be_empty(tmp_path: Path) -> None:
    """The captioner says nothing rather than something made up."""
    assert list(load(write_tiny_blip(tmp_path, NOTHING))(PICTURES[:1])) == [""]


def test_embedded_captioner_is_loaded(nano_flux: Path) -> None:
    """The captioner that ships with the embedded model goes through this very code."""
    (caption,) = load(nano_flux / "captioner", 24)(PICTURES[:1])
    assert caption == caption.strip()


def test_missing_folder_and_parts_are_named(tmp_path: Path) -> None:
    """The message says what is missing and which parameter names the folder."""
    with pytest.raises(WeightsError, match=r"nowhere: does not exist.*caption\.folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"holds no config\.json"):
        load(tmp_path / "empty")
    folder = write_tiny_blip(tmp_path / "tiny", None)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"holds no .*tokenizer\.json or .* or vocab\.txt"):
        load(folder)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    """A pickle can run any program; it is not even opened."""
    folder = write_tiny_blip(tmp_path, None)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickled weights are not read"):
        load(folder)


def test_weights_with_gaps_are_refused(tmp_path: Path) -> None:
    """Transformers would fill a missing tensor with random numbers and only warn."""
    path = write_tiny_blip(tmp_path, None) / "model.safetensors"
    tensors = load_file(path)
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"vision_model\.post_layernorm\.weight is missing"):
        load(tmp_path)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    """Half a file is one message, not a traceback."""
    path = write_tiny_blip(tmp_path, None) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="cannot be loaded as BLIP"):
        load(tmp_path)


def test_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    """A page of an error message saved as config.json is one message too."""
    folder = write_tiny_blip(tmp_path, None)
    (folder / "config.json").write_text("<html>Access denied</html>")
    with pytest.raises(WeightsError, match=r"config\.json is not JSON"):
        load(folder)
