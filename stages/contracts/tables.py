"""Every CSV table of the pipeline: its columns, its ranges, and the one way to write it.

Schemas are strict (no extra columns) and never coerce. Tables are written sorted by their keys
with a fixed float format, so that equal content is equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
import pandera.errors
import pandera.pandas as pa
from pandera.dtypes import is_string

from stages.contracts.blocks import BLOCK_PATTERN
from stages.contracts.captions import is_trigger_first, says_something, unreadable_characters
from stages.contracts.errors import Problem, TableError

FLOAT_FORMAT: Final = "%.9g"
_HASH: Final = r"[0-9a-f]{64}"
_NAME: Final = r"[\w-]+"
_VARIANT: Final = (
    rf"none|full|repeat|(?:only|without|random):{BLOCK_PATTERN}|strength:\d(?:\.\d+)?"
    rf"|(?:only-group|without-group|subset):{_NAME}"
)
"""Names of variants, see stages/sampling/variants.py."""
ACCEPTED: Final = "accepted"
SKIPPED: Final = "skipped"
MASKS: Final = "masks"
"""Folder below the prepared pictures that holds the masks of those that were transparent."""


@dataclass(frozen=True)
class Table:
    """A table's name, its schema and the columns that sort it and make its rows unique."""

    name: str
    schema: pa.DataFrameSchema
    keys: tuple[str, ...]


def _text(pattern: str | None = None) -> pa.Column:
    checks = [] if pattern is None else [pa.Check.str_matches(rf"^(?:{pattern})$")]
    return pa.Column(str, checks)


def _count(minimum: int = 0) -> pa.Column:
    return pa.Column(int, pa.Check.ge(minimum))


def _real(
    low: float | None = None, high: float | None = None, *, nullable: bool = False
) -> pa.Column:
    checks = []
    if low is not None:
        checks.append(pa.Check.ge(low))
    if high is not None:
        checks.append(pa.Check.le(high))
    return pa.Column(float, checks, nullable=nullable)


def _table(
    name: str,
    keys: tuple[str, ...],
    columns: dict[str, pa.Column],
    checks: tuple[pa.Check, ...] = (),
) -> Table:
    schema = pa.DataFrameSchema(
        columns, list(checks), strict=True, ordered=True, unique=list(keys), name=name
    )
    return Table(name, schema, keys)


def _accepted_rows_are_whole(manifest: pd.DataFrame) -> pd.Series[bool]:
    rows = manifest[manifest["status"] == ACCEPTED]
    texts = ("file", "source_sha256", "sha256", "perceptual_hash")
    sizes = ("original_width_px", "original_height_px", "width_px", "height_px")
    whole = rows["reason"].eq("") & ~rows["image"].duplicated(keep=False)
    for name in texts:
        whole &= rows[name] != ""
    for name in (*sizes, "exif_orientation"):
        whole &= rows[name] > 0
    return whole.reindex(manifest.index, fill_value=True)


def _skipped_rows_say_why(manifest: pd.DataFrame) -> pd.Series[bool]:
    rows = manifest[manifest["status"] == SKIPPED]
    said = (rows["file"] == "") & (rows["reason"] != "")
    return said.reindex(manifest.index, fill_value=True)


MANIFEST: Final = _table(
    "prepare/manifest.csv",
    ("image", "split", "source"),
    {
        # One row per file of the two folders. `image` is the name that every later stage uses;
        # `file` lies in images/ of the same folder. A skipped row has no file, no hashes, sizes
        # and orientation 0, and says why in `reason`.
        "image": _text(r"[^/\\]+"),
        "file": _text(r"(?:[^/\\]+\.png)?"),
        "concept": _text(r"[^/\\]*"),
        "repeats": _count(1),
        "regularisation": pa.Column(bool),
        "split": _text("train|validation"),
        "status": _text(f"{ACCEPTED}|{SKIPPED}"),
        "reason": _text(),
        "source": _text(r".+"),
        "source_sha256": _text(rf"(?:{_HASH})?"),
        "sha256": _text(rf"(?:{_HASH})?"),
        "original_width_px": _count(),
        "original_height_px": _count(),
        "width_px": _count(),
        "height_px": _count(),
        "exif_orientation": pa.Column(int, pa.Check.in_range(0, 8)),
        # Prepared over original side: above 1 the picture was enlarged.
        "upscale": _real(0.0),
        # Of images/masks/<image>.png, where the original is transparent somewhere.
        "mask_sha256": _text(rf"(?:{_HASH})?"),
        # Variance of the Laplacian of the prepared picture in grey 0-255; low is blurred.
        "blur": _real(0.0),
        "perceptual_hash": _text(r"(?:[0-9a-f]{16})?"),
        "near_duplicate_of": _text(),
        # Where a caption of the user's lies beside the raw picture.
        "caption_source": _text(r"|txt|metadata\.jsonl|captions\.csv"),
    },
    (
        pa.Check(_accepted_rows_are_whole, name="accepted rows are whole and have a name each"),
        pa.Check(_skipped_rows_say_why, name="skipped rows have no file and say why"),
    ),
)

_CHANGE: Final = "prefix added|suffix added|trigger added|trigger moved first"


def _is_plain_caption(text: str) -> bool:
    return says_something(text) and not unreadable_characters(text)


def _captions_begin_with_their_trigger(captions: pd.DataFrame) -> pd.Series[bool]:
    held = [
        trigger == "" or is_trigger_first(caption, trigger)
        for caption, trigger in zip(captions["caption"], captions["trigger"], strict=True)
    ]
    return pd.Series(held, index=captions.index, dtype=bool)


CAPTIONS: Final = _table(
    "caption/captions.csv",
    ("image",),
    {
        "image": _text(r"[^/\\]+"),
        "split": _text("train|validation"),
        "caption": pa.Column(
            str,
            pa.Check(_is_plain_caption, element_wise=True, name="one line of readable text"),
        ),
        # What the caption begins with; empty for regularisation pictures.
        "trigger": _text(r"\S*"),
        "origin": _text("user|generated"),
        # The file of the person's caption, or the kind of captioner.
        "written_by": _text(r".+"),
        "change": _text(rf"none|(?:{_CHANGE})(?:; (?:{_CHANGE}))*"),
        "clip_tokens": _count(1),
        "t5_tokens": _count(1),
        # Share of the tokens that the encoder does not read.
        "clip_cut": _real(0.0, 1.0),
        "t5_cut": _real(0.0, 1.0),
    },
    (pa.Check(_captions_begin_with_their_trigger, name="trigger first and exactly once"),),
)

WORDS: Final = _table(
    "caption/words.csv",
    ("word",),
    {
        # Words of the training captions, the trigger apart; share: of the captions that hold it.
        "word": _text(r"\S+"),
        "captions": _count(1),
        "share": _real(0.0, 1.0),
        "occurrences": _count(1),
    },
)

ENCODED: Final = _table(
    "encode/index.csv",
    ("kind", "name", "place"),
    {
        # kind: image = a picture at one size (file: latents; text: its caption's embedding);
        # sample = a sample prompt; plain = a prompt without the trigger; empty = the empty caption
        # of caption dropout.
        "kind": _text("image|sample|plain|empty"),
        "name": _text(),
        # A picture's sizes in the order of encode.sizes_px, from 0 on; 0 elsewhere.
        "place": _count(),
        "size_px": _count(),
        "split": _text("train|validation|"),
        # How often an epoch uses a training picture; 1 elsewhere.
        "repeats": _count(1),
        # A picture of what the LoRA must leave alone: the person's, or the base model's own.
        "regularisation": pa.Column(bool),
        "caption": _text(),
        # The word that stage caption put first; empty for regularisation pictures and prompts.
        "trigger": _text(r"\S*"),
        "latents_file": _text(),
        # The mirrored picture's latents, where there are any.
        "mirrored_file": _text(r"(?:.+\.safetensors)?"),
        "text_file": _text(r".+\.safetensors"),
        # The caption's embedding without the trigger, where training asks for it.
        "plain_caption": _text(),
        "plain_text_file": _text(r"(?:.+\.safetensors)?"),
    },
)

HISTORY: Final = _table(
    "train/history.csv",
    ("step",),
    {
        "step": _count(0),
        "loss": _real(0.0, nullable=True),
        "gradient_norm": _real(0.0, nullable=True),
        "learning_rate": _real(0.0),
        # At fixed points, see stages/training/validation.py: held-out pictures, all noise levels,
        # then by band; and training pictures. Row 0 is the base model: the line to beat.
        "validation_loss": _real(0.0, nullable=True),
        "validation_loss_low": _real(0.0, nullable=True),
        "validation_loss_middle": _real(0.0, nullable=True),
        "validation_loss_high": _real(0.0, nullable=True),
        "probe_loss": _real(0.0, nullable=True),
        # Of the weights' moving average, where train.ema_decay keeps one.
        "validation_loss_ema": _real(0.0, nullable=True),
        "probe_loss_ema": _real(0.0, nullable=True),
        # Of the step's regularisation samples, and of output preservation, without their weights.
        "regularisation_loss": _real(0.0, nullable=True),
        "preservation_loss": _real(0.0, nullable=True),
    },
)

SCORES: Final = _table(
    "train/scores.csv",
    ("step", "weights"),
    {
        # One row per kept checkpoint and one of the base model, step 0. Empty: not measured.
        # Losses as in HISTORY; the rest is explained in stages/judging/scoring.py. `ema` is the
        # moving average of the weights, which is kept beside them where train.ema_decay is not 0.
        "step": _count(0),
        "weights": _text(r"raw|ema"),
        "validation_loss": _real(0.0, nullable=True),
        "probe_loss": _real(0.0, nullable=True),
        "effect_mse": _real(0.0, 65025.0, nullable=True),
        "plain_mse": _real(0.0, 65025.0, nullable=True),
        "bleed": _real(0.0, nullable=True),
        "diversity": _real(0.0, nullable=True),
        "detail": _real(0.0, 255.0, nullable=True),
        "nearest_training": _real(0.0, nullable=True),
        "collapsed": pa.Column(bool),
        "chosen": pa.Column(bool),
    },
)

DIAGNOSIS: Final = _table(
    "train/diagnosis.csv",
    ("finding",),
    {
        # What the run shows, what to change, and the numbers behind it as a JSON object.
        "finding": _text(r"[a-z][a-z -]*"),
        "words": _text(r".+"),
        "advice": _text(r".+"),
        "numbers": _text(r"\{.*\}"),
    },
)

APART: Final = _table(
    "split/apart/index.csv",
    ("tensor",),
    # The tensors of text encoders, which belong to no block; no row where there are none.
    {"tensor": _text(r".+")},
)

SPLIT_INDEX: Final = _table(
    "split/index.csv",
    ("block",),
    {
        "block": _text(BLOCK_PATTERN),
        "modules": _count(1),
        "rank": _count(1),
        "parameters": _count(1),
        "bytes": _count(1),
        "norm": _real(0.0),
        "relative_norm": _real(0.0),
    },
)

RENDERED: Final = _table(
    "render/index.csv",
    ("prompt", "seed", "variant"),
    {
        # prompt: a short name such as develop-0 or without-trigger-1.
        "prompt": _text(r"(?:develop|held-out|without-trigger)-\d+"),
        "text": _text(r".+"),
        "seed": _count(0),
        "variant": _text(_VARIANT),
        "file": _text(r".+\.png"),
    },
)

SHARES: Final = _table(
    "attribute/shares.csv",
    ("block",),
    {
        "block": _text(BLOCK_PATTERN),
        "share": _real(),
        "low": _real(),
        "high": _real(),
        "prior": _real(0.0),
        # Of the effect on prompts without the trigger; empty where there is none.
        "plain_share": _real(nullable=True),
    },
)

LEVELS: Final = _table(
    "attribute/levels.csv",
    ("block", "sigma"),
    {
        # Signed shares of the effect at one noise level, mean over prompts and seeds: a negative
        # one works against the LoRA. `share` is the sum of what is done to the picture's tokens,
        # to the prompt's, and to both at once (modulation of a single block). `least` and `most`
        # are those of one prompt and seed.
        "block": _text(BLOCK_PATTERN),
        "sigma": _real(0.0, 1.0),
        "share": _real(),
        "picture": _real(),
        "text": _real(),
        "both": _real(),
        "least": _real(),
        "most": _real(),
    },
)

PROBES: Final = _table(
    "attribute/probes.csv",
    ("prompt", "seed", "sigma"),
    {
        # One row per noised picture. effect: |v(full) - v(none)| / |v(none)|; completeness_error:
        # how far the shares there are from adding up to 1.
        "prompt": _text(r"(?:develop|attribute)-\d+"),
        "seed": _count(0),
        "sigma": _real(0.0, 1.0),
        "effect": _real(0.0),
        "completeness_error": _real(0.0),
    },
)

BLOCKS: Final = _table(
    "evaluate/blocks.csv",
    ("block",),
    {
        "block": _text(BLOCK_PATTERN),
        "rank": _count(1),
        "share": _real(),
        "share_low": _real(),
        "share_high": _real(),
        "prior": _real(0.0),
        "plain_share": _real(nullable=True),
        "only_mse_to_none": _real(0.0, 65025.0, nullable=True),
        "only_recovery": _real(None, 1.0, nullable=True),
        "only_recovery_low": _real(None, 1.0, nullable=True),
        "only_recovery_high": _real(None, 1.0, nullable=True),
        # See stages/imaging/similarity.py.
        "only_direction": _real(nullable=True),
        "only_ssim_to_none": _real(-1.0, 1.0, nullable=True),
        # By only_recovery, 1 is first; blocks within the repeat floor share one, behind the others.
        "only_rank": _real(1.0, nullable=True),
        "only_rank_low": _real(1.0, nullable=True),
        "only_rank_high": _real(1.0, nullable=True),
        # The probability of being among the first evaluate.top.
        "only_in_top": _real(0.0, 1.0, nullable=True),
        # 1: may change no more than a repeated run does; 0: changes more.
        "only_in_noise": _real(0.0, 1.0, nullable=True),
        "without_mse_to_full": _real(0.0, 65025.0, nullable=True),
        "without_recovery": _real(None, 1.0, nullable=True),
        "without_direction": _real(nullable=True),
        "without_ssim_to_full": _real(-1.0, 1.0, nullable=True),
        # The block with noise of its norm in place of its weights.
        "random_mse_to_none": _real(0.0, 65025.0, nullable=True),
        "random_recovery": _real(None, 1.0, nullable=True),
        # The part of the effect on prompts without the trigger that is gone without the block.
        "bleed_stopped": _real(None, 1.0, nullable=True),
        "bleed_stopped_low": _real(None, 1.0, nullable=True),
        "bleed_stopped_high": _real(None, 1.0, nullable=True),
        "norm": _real(0.0),
        "relative_norm": _real(0.0),
        "bytes": _count(1),
    },
)

PICTURES: Final = _table(
    "evaluate/pictures.csv",
    ("prompt", "seed", "variant"),
    {
        # One row per picture of render; recovery is empty where the LoRA changes nothing.
        # difference_peak: 99.5th percentile, in grey levels, of the absolute difference to the
        # picture's reference (`full` for without:* and repeat, else `none`).
        "prompt": _text(r"(?:develop|held-out|without-trigger)-\d+"),
        "seed": _count(0),
        "variant": _text(_VARIANT),
        "mse_to_none": _real(0.0, 65025.0),
        "mse_to_full": _real(0.0, 65025.0),
        "recovery": _real(None, 1.0, nullable=True),
        "direction": _real(nullable=True),
        "ssim_to_none": _real(-1.0, 1.0),
        "ssim_to_full": _real(-1.0, 1.0),
        "difference_peak": _real(0.0, 255.0),
    },
)

VARIANTS: Final = _table(
    "evaluate/variants.csv",
    ("variant",),
    {
        # Everything that is no single block, on development prompts: means over their pictures.
        "variant": _text(_VARIANT),
        "pictures": _count(1),
        "mse_to_none": _real(0.0, 65025.0),
        "mse_to_full": _real(0.0, 65025.0),
        "recovery": _real(None, 1.0, nullable=True),
        "recovery_low": _real(None, 1.0, nullable=True),
        "recovery_high": _real(None, 1.0, nullable=True),
        "direction": _real(nullable=True),
        "ssim_to_full": _real(-1.0, 1.0),
    },
)

STRENGTHS: Final = _table(
    "evaluate/strengths.csv",
    ("strength",),
    {
        # The whole adapter at each strength; 0 is the base model, 1 the adapter as trained.
        "strength": _real(0.0, 1.5),
        "mse_to_none": _real(0.0, 65025.0),
        "recovery": _real(None, 1.0, nullable=True),
        "recovery_low": _real(None, 1.0, nullable=True),
        "recovery_high": _real(None, 1.0, nullable=True),
        "direction": _real(nullable=True),
    },
)

DISTANCES: Final = _table(
    "evaluate/distances.csv",
    ("metric", "prompt", "seed", "variant"),
    {
        # What evaluate.distances asks for; 0 is the same picture. Without rows when it is empty.
        "metric": _text("clip|dinov2|lpips"),
        "prompt": _text(r"(?:develop|held-out|without-trigger)-\d+"),
        "seed": _count(0),
        "variant": _text(_VARIANT),
        "to_none": _real(0.0),
        "to_full": _real(0.0),
    },
)

CURVE: Final = _table(
    "slim/curve.csv",
    ("blocks",),
    {
        # One row per size tried: the set is the first `blocks` entries of the chooser's order.
        "blocks": _count(0),
        "added": _text(rf"(?:{BLOCK_PATTERN})?"),
        "bytes": _count(0),
        "predicted": _real(),
        "recovery": _real(None, 1.0, nullable=True),
        "recovery_low": _real(None, 1.0, nullable=True),
    },
)

SLIM_STRENGTHS: Final = _table(
    "slim/strengths.csv",
    ("block",),
    {
        # What the slim file makes of each block of the full one: 0 is left out, 1 as trained. The
        # full file at these strengths is the slim file.
        "block": _text(BLOCK_PATTERN),
        "strength": _real(),
    },
)

SLIM_RANKS: Final = _table(
    "slim/ranks.csv",
    ("blocks", "rank"),
    {
        # The slim file, and the whole adapter, at each of slim.ranks. Recoveries are of held-out
        # pictures. Without rows where none is asked for.
        "blocks": _count(1),
        "rank": _count(1),
        "bytes": _count(0),
        "weight_error": _real(0.0, 1.0),
        "recovery": _real(None, 1.0),
        "recovery_low": _real(None, 1.0),
    },
)


def accepted(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a MANIFEST that later stages work with: those that were not skipped."""
    return manifest[manifest["status"] == ACCEPTED].reset_index(drop=True)


def write_table(table: Table, frame: pd.DataFrame, path: Path) -> None:
    """Check `frame` and write it as UTF-8 CSV: sorted by the table's keys, floats as %.9g.

    Blocks sort in the order the model runs them only where the table's maker says so: the sort
    is on text, hence stable and independent of any model.

    Raises:
        TableError: the frame breaks the table's contract.
    """
    _check(table, frame, path)
    ordered = frame.sort_values(list(table.keys), kind="stable")
    path.write_text(
        ordered.to_csv(index=False, float_format=FLOAT_FORMAT, lineterminator="\n"),
        encoding="utf-8",
    )


def read_table(table: Table, path: Path) -> pd.DataFrame:
    """Return the checked table; empty text cells are empty strings, empty numbers are NaN.

    Raises:
        TableError: the file is missing, not CSV, or breaks the table's contract.
    """
    columns = table.schema.columns
    # A picture named 001.png stays 001: text is never read as a number.
    texts = [name for name, column in columns.items() if is_string(column.dtype)]
    reals = {name: float for name, column in columns.items() if str(column.dtype) == "float64"}
    try:
        frame = pd.read_csv(
            path,
            dtype={**dict.fromkeys(texts, str), **reals},
            keep_default_na=False,
            na_values={key: [""] for key in reals},
            encoding="utf-8",
        )
    except FileNotFoundError as error:
        raise TableError(f"{path} is missing; run `dvc repro` to make it again") from error
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
        ValueError,
    ) as error:
        raise TableError(f"{path} is not the table {table.name}: {error}") from error
    if frame.empty:  # pandas has read no number from which to tell the type of a column
        there = {name: column.dtype.type for name, column in columns.items() if name in frame}
        frame = frame.astype(there)
    _check(table, frame, path)
    return frame


def _check(table: Table, frame: pd.DataFrame, path: Path) -> None:
    try:
        table.schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        problems = {
            Problem(
                f"{path} column {case['column'] or case['failure_case']}",
                f"{case['check']} fails with {case['failure_case']!r}",
                "Run the stage that writes it again.",
            )
            for case in cases.to_dict("records")
        }
        raise TableError(f"{path} breaks the contract of {table.name}", list(problems)) from error
