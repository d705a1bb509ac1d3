"""WD14 taggers (SmilingWolf's wd-*-tagger-v3 and their elders) as captioners, through ONNX.

A folder holds model.onnx and selected_tags.csv (tag_id, name, category, count). The model reads a
square of BGR values 0-255, [1, side, side, 3], white around the picture, and answers with one
probability per tag; so does the taggers' own demo. Ratings are left out, the surest tags come
first, and underscores become spaces except in kaomoji.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import pandas as pd
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors
from PIL import Image

from stages.captioning.interface import Captioner, one_by_one
from stages.captioning.pretrained import SUMMARY, refused
from stages.contracts.errors import Problem, WeightsError
from stages.contracts.params import CaptionParams

_MODEL: Final = "model.onnx"
_TAGS: Final = "selected_tags.csv"
_REMEDY: Final = f"Set caption.folder to a folder with {_MODEL} and {_TAGS}."
_GENERAL, _CHARACTER = 0, 4
_WHITE: Final = (255, 255, 255)
_SHORTEST_WITH_LETTERS: Final = 4
"""Shorter tags such as 0_0 or x_x are faces drawn with letters."""


@dataclass(frozen=True)
class _Tagger:
    session: onnxruntime.InferenceSession
    input_name: str
    side_px: int
    names: tuple[str, ...]
    thresholds: np.ndarray[Any, np.dtype[np.float64]]  # [tags], above 1 for what is never said


def load_wd14(params: CaptionParams, folder: Path, device: torch.device) -> Captioner:
    """Return a function from pictures to tags with commas; see `interface.Captioner`.

    The tagger runs on the CPU, whatever `device` is: one picture is one pass of a small model.

    Raises:
        WeightsError: the folder lacks a part, or its parts do not belong together.
    """
    del device
    _check_folder(folder)
    names, categories = _tags(folder)
    session = _session(folder)
    side_px = _side_px(folder, session, len(names))
    thresholds = np.full(len(names), np.inf)
    thresholds[categories == _GENERAL] = params.tag_threshold
    thresholds[categories == _CHARACTER] = params.character_threshold
    tagger = _Tagger(session, session.get_inputs()[0].name, side_px, names, thresholds)
    return one_by_one(partial(_write_caption, tagger))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise refused(folder, "does not exist", _REMEDY)
    lacking = [name for name in (_MODEL, _TAGS) if not (folder / name).is_file()]
    if lacking:
        problems = [Problem(str(folder), f"holds no {name}", _REMEDY) for name in lacking]
        raise WeightsError(SUMMARY, problems)


def _tags(folder: Path) -> tuple[tuple[str, ...], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the tags' names, ready to be read, and their categories, in the model's order."""
    path = folder / _TAGS
    try:
        # `null` and `none` are tags, not gaps in the table.
        table = pd.read_csv(path, keep_default_na=False, encoding="utf-8")
        names = tuple(_words(str(name)) for name in table["name"])
        return names, table["category"].to_numpy(dtype=np.int64)
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        what = f"no table of tags with the columns name and category ({error})"
        raise refused(path, what, _REMEDY) from error


def _session(folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(
            folder / _MODEL, options, providers=["CPUExecutionProvider"]
        )
    except (
        onnx_errors.Fail,
        onnx_errors.InvalidArgument,
        onnx_errors.InvalidGraph,
        onnx_errors.InvalidProtobuf,
        onnx_errors.NotImplemented,
        onnx_errors.RuntimeException,
    ) as error:
        reason = " ".join(str(error).split())
        raise refused(folder / _MODEL, f"cannot be loaded as WD14 ({reason})", _REMEDY) from error


def _side_px(folder: Path, session: onnxruntime.InferenceSession, tags: int) -> int:
    """Return the side of the square that the model reads, or refuse a model of another kind."""
    inputs = [list(entry.shape) for entry in session.get_inputs()]
    outputs = [list(entry.shape) for entry in session.get_outputs()]
    where, shape = folder / _MODEL, inputs[0]
    is_square = len(shape) == 4 and isinstance(shape[1], int) and shape[1:] == [shape[1]] * 2 + [3]
    if len(inputs) != 1 or not is_square:
        what = f"reads {inputs}, not one picture [batch, side, side, 3]"
        raise refused(where, what, _REMEDY)
    if len(outputs) != 1 or outputs[0][-1] != tags:
        what = f"answers with {outputs}, but {_TAGS} names {tags} tags"
        raise refused(where, what, "Take both files from one revision of the repository.")
    return int(shape[1])


def _words(tag: str) -> str:
    return tag if len(tag) < _SHORTEST_WITH_LETTERS else tag.replace("_", " ")


def _write_caption(tagger: _Tagger, image: Image.Image) -> str:
    (answer,) = tagger.session.run(None, {tagger.input_name: _pixels(image, tagger.side_px)})
    chances = np.asarray(answer, dtype=np.float64)[0]
    order = np.argsort(-chances, kind="stable")
    said = [int(index) for index in order if chances[index] > tagger.thresholds[index]]
    return ", ".join(tagger.names[index] for index in said)


def _pixels(image: Image.Image, side_px: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the picture, centred on a white square, as [1, side, side, 3] BGR values 0-255."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), _WHITE)
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side_px:
        square = square.resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[None, :, :, ::-1])
