"""What is encoded of each picture and caption: the files and their table, before any is made."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from stages.contracts.params import EncodeParams, ModelParams
from stages.encoding.captions import sided_words, without_trigger
from stages.encoding.encoded import file_name, prompt_name
from stages.families.weights import Manifest

_PICTURE_PARTS: Final = ("vae",)
_TEXT_PARTS: Final = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_ENLARGED: Final = 1.1
"""A picture is not used at a size that it was enlarged to by more than this."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One prepared picture with its caption.

    `own_px` is the side of a square of its area before it was enlarged, if it was.
    """

    name: str
    path: Path
    sha256: str
    mask: Path | None
    mask_sha256: str
    split: str
    repeats: int
    regularisation: bool
    own_px: float
    caption: str
    trigger: str

    @property
    def held_out(self) -> bool:
        """Whether it is never trained on, only measured."""
        return self.split == "validation"


@dataclass(frozen=True)
class SourceView:
    """One picture at one size, mirrored or not, and the file that it is encoded into."""

    source: Source
    size_px: int
    mirrored: bool
    file: str


def views_of(source: Source, params: EncodeParams, manifest: Manifest) -> Iterator[SourceView]:
    """Yield what is encoded of a picture, in the order of the sizes, a mirrored one after its own.

    A held-out picture is measured at the first size alone, and never mirrored.
    """
    sizes = params.sizes_px[:1] if source.held_out else _sizes(source, params.sizes_px)
    wanted = params.flip and not source.held_out
    words = sided_words(source.caption) if wanted else []
    if words:
        _log.info("%s: not mirrored, its caption says %s", source.name, ", ".join(words))
    mirrored = wanted and not words
    mask: dict[str, str | int] = {"mask": source.mask_sha256} if source.mask else {}
    for size in sizes:
        for flip in (False, True) if mirrored else (False,):
            flipped = {"mirrored": 1} if flip else {}
            inputs = {"picture": source.sha256, **mask, **flipped}
            file = file_name("latents", manifest, _PICTURE_PARTS, size_px=size, **inputs)
            yield SourceView(source, size, flip, file)


def _sizes(source: Source, sizes_px: Sequence[int]) -> list[int]:
    """Return the sizes that a picture is used at: of several, those it was not enlarged to."""
    fitting = [size for size in sizes_px if size <= source.own_px * _ENLARGED]
    sizes = fitting or [min(sizes_px)]
    if len(sizes) < len(sizes_px):
        without = ", ".join(str(size) for size in sizes_px if size not in sizes)
        _log.warning("%s: too small for %s pixels, not used there", source.name, without)
    return sizes


def index_table(
    sources: Sequence[Source],
    views: Sequence[SourceView],
    prompts: Mapping[str, Sequence[str]],
    params: EncodeParams,
    model: ModelParams,
    manifest: Manifest,
) -> pd.DataFrame:
    """Return the table ENCODED: a row per picture and size, per sample prompt, and the empty one.

    Args:
        sources: all pictures.
        views: everything that `views_of` said of them.
        prompts: by kind (sample, plain).
        params: which captions there are.
        model: how texts are encoded.
        manifest: of the base model.
    """

    def text_file(caption: str) -> str:
        return file_name(
            "text",
            manifest,
            _TEXT_PARTS,
            caption=caption,
            text_tokens=model.text_tokens,
            precision=model.precision,
        )

    def text_row(kind: str, name: str, caption: str) -> dict[str, str | int | bool]:
        return {
            "kind": kind,
            "name": name,
            "place": 0,
            "size_px": 0,
            "split": "",
            "repeats": 1,
            "regularisation": False,
            "caption": caption,
            "trigger": "",
            "latents_file": "",
            "mirrored_file": "",
            "text_file": text_file(caption),
            "plain_caption": "",
            "plain_text_file": "",
        }

    def picture_rows(source: Source) -> Iterator[dict[str, str | int | bool]]:
        own = [view for view in views if view.source is source]
        plain: dict[str, str] = {}
        # What is measured without the trigger is a picture that is learnt with it.
        if params.without_trigger and source.trigger and not source.held_out:
            text = without_trigger(source.caption, source.trigger, params.trigger_class)
            plain = {"plain_caption": text, "plain_text_file": text_file(text)}
        for place, view in enumerate(view for view in own if not view.mirrored):
            mirrored = [v.file for v in own if v.mirrored and v.size_px == view.size_px]
            yield {
                **text_row("image", source.name, source.caption),
                **plain,
                "place": place,
                "size_px": view.size_px,
                "split": source.split,
                "repeats": source.repeats,
                "regularisation": source.regularisation,
                "trigger": source.trigger,
                "latents_file": view.file,
                "mirrored_file": "".join(mirrored),
            }

    drawn = [
        text_row(kind, prompt_name(kind, number), prompt)
        for kind, texts in prompts.items()
        for number, prompt in enumerate(texts)
    ]
    pictures = [row for source in sources for row in picture_rows(source)]
    return pd.DataFrame([*pictures, *drawn, text_row("empty", "empty", "")])
