"""A tagger's chances become tags: the surest first, those below their threshold not at all.

The model is a real ONNX file whose answer is known by hand: tag k's chance is the mean of channel
k of what the model is shown, over 255.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stages.captioning.captioner import load_captioner
from stages.captioning.interface import Captioner, Picture
from stages.contracts.errors import WeightsError
from tests.captioning.settings import caption_params

SIDE_PX = 8
TAGS = """tag_id,name,category,count
1,general,9,1
2,blue_sky,0,9
3,^_^,0,9
4,null,0,9
5,some_robot_(series),4,9
"""
CHANNELS = (2, 0, 1, 1, 2)
"""Channel (BGR) whose mean is the chance of each tag of TAGS."""


def write_tagger(folder: Path, shape: tuple[int | str, ...] = ("N", SIDE_PX, SIDE_PX, 3)) -> Path:
    """Write a model that averages over the picture and hands out the channels as chances."""
    folder.mkdir(exist_ok=True)
    hand_out = np.zeros((3, len(CHANNELS)), dtype=np.float32)
    for tag, channel in enumerate(CHANNELS):
        hand_out[channel, tag] = 1 / 255
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "hand_out"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ("N", len(CHANNELS)))],
        [
            numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
            numpy_helper.from_array(hand_out, "hand_out"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    (folder / "selected_tags.csv").write_text(TAGS, encoding="utf-8")
    return folder


def load(folder: Path, **changes: float) -> Captioner:
    """Return the tagger in a folder."""
    params = caption_params(captioner="wd14", **changes)
    return load_captioner(params, folder, torch.device("cpu"))


def tags(folder: Path, colour: tuple[int, int, int], **changes: float) -> str:
    """Return the tags of a square of one RGB colour."""
    (caption,) = load(folder, **changes)([Picture(Image.new("RGB", (20, 20), colour), "")])
    return caption


def test_tags_above_their_threshold_the_surest_first(tmp_path: Path) -> None:
    """Each kind of tag has its threshold; ratings are never said."""
    folder = write_tagger(tmp_path)
    assert tags(folder, (255, 0, 0)) == "some robot (series)"
    assert tags(folder, (200, 0, 255)) == "blue sky"
    assert tags(folder, (230, 128, 255)) == "blue sky, some robot (series), ^_^, null"
    assert tags(folder, (230, 128, 255), tag_threshold=0.6) == "blue sky, some robot (series)"
    assert tags(folder, (230, 128, 255), character_threshold=0.95) == "blue sky, ^_^, null"
    assert tags(folder, (0, 0, 0)) == ""


def test_picture_is_centred_on_white(tmp_path: Path) -> None:
    """A wide black picture has as much white around it as the square needs."""
    write = load(write_tagger(tmp_path), tag_threshold=0.49, character_threshold=0.51)
    wide, tall = Image.new("RGB", (16, 8)), Image.new("RGB", (8, 16))
    # Half of the square is white: chance 0.5 in every channel.
    assert list(write([Picture(wide, ""), Picture(tall, "")])) == ["blue sky, ^_^, null"] * 2


def test_none_depends_on_others(tmp_path: Path) -> None:
    """The same picture has the same tags in any company."""
    write = load(write_tagger(tmp_path))
    pictures = [
        Picture(Image.new("RGB", (9 + i, 12), (250, 40 * i, 255 - 40 * i)), "") for i in range(6)
    ]
    together = list(write(pictures))
    assert len(set(together)) > 1
    assert together == [caption for picture in pictures for caption in write([picture])]


def test_missing_and_unfitting_parts_are_named(tmp_path: Path) -> None:
    """Each way in which a folder is no tagger is one message that says which file to replace."""
    with pytest.raises(WeightsError, match=r"nowhere: does not exist.*caption\.folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="2 problems") as caught:
        load(tmp_path / "empty")
    assert "holds no model.onnx" in str(caught.value)
    assert "holds no selected_tags.csv" in str(caught.value)

    folder = write_tagger(tmp_path / "first", ("N", SIDE_PX, 4, 3))
    with pytest.raises(WeightsError, match=r"not one picture \[batch, side, side, 3\]"):
        load(folder)
    folder = write_tagger(tmp_path / "short")
    (folder / "selected_tags.csv").write_text(TAGS.rsplit("5,", 1)[0], encoding="utf-8")
    with pytest.raises(WeightsError, match=r"names 4 tags.*one revision"):
        load(folder)
    for content in ("", "tag,kind\nrobot,0\n", "name,category\nrobot,first\n"):
        (folder / "selected_tags.csv").write_text(content, encoding="utf-8")
        with pytest.raises(WeightsError, match="no table of tags with the columns"):
            load(folder)


def test_broken_model_is_one_message(tmp_path: Path) -> None:
    """Neither half a file nor a text gets as far as a traceback."""
    folder = write_tagger(tmp_path)
    data = (folder / "model.onnx").read_bytes()
    for broken in (b"", data[: len(data) // 2], b"not a model at all"):
        (folder / "model.onnx").write_bytes(broken)
        with pytest.raises(WeightsError, match=r"model\.onnx: "):
            load(folder)
