"""BLIP-2, Florence-2 and Qwen-VL write through one code path, without torchvision or remote code.

Each model is small and random, but of the class, with the picture processor and tokenizer, that its
full-sized sisters have.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.captioning.captioner import load_captioner
from stages.captioning.interface import Captioner, Picture
from stages.contracts.errors import WeightsError
from tests.captioning.settings import caption_params
from tests.captioning.tiny import write_tiny_blip
from tests.captioning.vision_language import NOTHING, WORDS, WRITERS
from tests.imaging.drawings import scenery

INSTRUCTIONS = {
    "blip2": "",
    "florence2": "<MORE_DETAILED_CAPTION>",
    "qwen3": "Describe robot",
    "qwen2.5": "Describe robot",
}
KINDS = {"blip2": "blip2", "florence2": "florence2", "qwen3": "qwen-vl", "qwen2.5": "qwen-vl"}
MODELS = list(WRITERS)


def noise(seed: int) -> Picture:
    """Return a picture that looks like no other to a random network."""
    values = np.random.default_rng(seed).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    return Picture(Image.fromarray(values), "")


PICTURES = [Picture(scenery(48, 32, seed), "") for seed in range(2)] + [noise(s) for s in range(6)]


def load(model: str, folder: Path, max_new_tokens: int = 4, instruction: str = "") -> Captioner:
    """Return the captioner in a folder, on the CPU."""
    params = caption_params(
        captioner=KINDS[model],
        instruction=instruction or INSTRUCTIONS[model],
        max_new_tokens=max_new_tokens,
    )
    return load_captioner(params, folder, torch.device("cpu"))


@pytest.mark.parametrize("model", MODELS)
def test_captions_depend_on_their_picture_alone(tmp_path: Path, model: str) -> None:
    """Each picture has its own caption, the same in any company and after any restart."""
    write = load(model, WRITERS[model](tmp_path))
    together = list(write(PICTURES))
    assert len(together) == len(PICTURES)
    assert len(set(together)) > 1, "the picture has no influence"
    assert all(set(caption.split()) <= set(WORDS[4:]) for caption in together)
    assert together == [caption for picture in PICTURES for caption in write([picture])]
    assert together == list(load(model, tmp_path)(PICTURES))


@pytest.mark.parametrize("model", MODELS)
def test_answer_is_the_models_own_words_alone(tmp_path: Path, model: str) -> None:
    """Neither the question nor a marker gets into the caption, and its length is kept."""
    write = load(model, WRITERS[model](tmp_path, "robot"), max_new_tokens=3)
    assert list(write(PICTURES[:2])) == ["robot robot robot"] * 2


@pytest.mark.parametrize("model", MODELS)
def test_answer_may_be_empty(tmp_path: Path, model: str) -> None:
    """The captioner says nothing rather than something made up."""
    assert list(load(model, WRITERS[model](tmp_path, NOTHING))(PICTURES[:1])) == [""]


@pytest.mark.parametrize("model", MODELS)
def test_caption_ends_where_the_decoder_ends(tmp_path: Path, model: str) -> None:
    """A captioner that never stops is cut off at its own length, not by an index error."""
    (caption,) = load(model, WRITERS[model](tmp_path, "robot"), 500)(PICTURES[:1])
    assert set(caption.split()) == {"robot"}
    assert 40 < len(caption.split()) < 256


@pytest.mark.parametrize("model", ["blip2", "qwen3", "qwen2.5"])
def test_instruction_has_an_influence(tmp_path: Path, model: str) -> None:
    """What is asked reaches the model."""
    WRITERS[model](tmp_path)
    asked = [
        list(load(model, tmp_path, 8, instruction)(PICTURES))
        for instruction in ("Describe a robot field", "photo of", "photo of")
    ]
    assert asked[0] != asked[1]
    assert asked[1] == asked[2]


def test_florence_tasks_are_different_questions(tmp_path: Path) -> None:
    """The task is turned into the sentence that the model was trained with."""
    WRITERS["florence2"](tmp_path)
    captions = {
        task: list(load("florence2", tmp_path, 8, task)(PICTURES))
        for task in ("<CAPTION>", "<MORE_DETAILED_CAPTION>")
    }
    assert captions["<CAPTION>"] != captions["<MORE_DETAILED_CAPTION>"]


@pytest.mark.parametrize("model", MODELS)
def test_half_precision_writes_too(tmp_path: Path, model: str) -> None:
    """bfloat16 is how the large ones fit."""
    params = caption_params(
        captioner=KINDS[model], instruction=INSTRUCTIONS[model], precision="bfloat16"
    )
    write = load_captioner(params, WRITERS[model](tmp_path, "robot"), torch.device("cpu"))
    assert list(write(PICTURES[:1])) == ["robot robot robot robot"]


@pytest.mark.parametrize("model", MODELS)
def test_pickles_gaps_and_missing_parts_are_refused(tmp_path: Path, model: str) -> None:
    """What is not there is named; nothing is made up in its place."""
    path = WRITERS[model](tmp_path / "gaps") / "model.safetensors"
    tensors = load_file(path)
    gone = min(name for name in tensors if "vision" in name or "visual" in name)
    del tensors[gone]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="do not fit its config") as caught:
        load(model, tmp_path / "gaps")
    assert " is missing" in str(caught.value)
    path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(WeightsError, match="pickled weights are not read"):
        load(model, tmp_path / "gaps")
    with pytest.raises(WeightsError, match=r"nowhere: does not exist.*caption\.folder"):
        load(model, tmp_path / "nowhere")


@pytest.mark.parametrize("model", MODELS)
def test_folder_of_another_kind_is_refused(tmp_path: Path, model: str) -> None:
    """The message says what lies there and which parameter to change."""
    folder = write_tiny_blip(tmp_path, None)
    with pytest.raises(WeightsError, match=r"model_type is 'blip', expected .*caption\.captioner"):
        load(model, folder)


@pytest.mark.parametrize("model", MODELS)
def test_remote_code_is_not_run(tmp_path: Path, model: str) -> None:
    """Code that a repository brings along stays where it is."""
    folder = WRITERS[model](tmp_path, "robot")
    (folder / "modeling_evil.py").write_text("raise SystemExit('remote code was run')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(
        ("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_evil.Evil"
    )
    (folder / "config.json").write_text(json.dumps(config))
    assert list(load(model, folder)(PICTURES[:1])) == ["robot robot robot robot"]


@pytest.mark.parametrize("model", ["qwen3", "qwen2.5"])
def test_chat_template_of_older_repositories_and_none(tmp_path: Path, model: str) -> None:
    """It may lie in chat_template.json; without one the question cannot be put."""
    folder = WRITERS[model](tmp_path, "robot")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(WeightsError, match="holds no chat template"):
        load(model, folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert list(load(model, folder)(PICTURES[:1])) == ["robot robot robot robot"]
    for broken, what in (
        ({"chat_template": "{{ messages"}, "cannot be used"),
        ({"template": template}, "cannot be used"),
        ({"chat_template": "no place for a picture"}, "has no place <image>"),
    ):
        (folder / "chat_template.json").write_text(json.dumps(broken))
        with pytest.raises(WeightsError, match=what):
            load(model, folder)


def test_blip2_without_picture_token_is_refused(tmp_path: Path) -> None:
    """Early revisions of BLIP-2 lack the mark at which the picture enters."""
    folder = WRITERS["blip2"](tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="states no image_token_index"):
        load("blip2", folder)


def test_florence_in_another_layout_is_refused(tmp_path: Path) -> None:
    """Microsoft's own repositories lack what transformers' class needs."""
    folder = WRITERS["florence2"](tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["image_seq_length"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match=r"lack image_seq_length\).*florence-community"):
        load("florence2", folder)
