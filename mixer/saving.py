"""What becomes of a mix: a LoRA file, or a named subset in params.yaml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from flows.overrides import PARAMS, apply_overrides
from mixer.choices import Strengths, as_patterns
from stages.adapters.files import write_adapter
from stages.adapters.module import Adapter
from stages.adapters.stacking import Part, stack
from stages.adapters.strengths import with_strengths
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, ParamsError, Problem
from stages.contracts.params import load_params
from stages.runtime.files import sha256_file

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_NAME_RULE: Final = "Use small letters, digits, - and _, at most 40."


def save_lora(
    parts: Sequence[Part], files: Sequence[Path], strengths: Strengths, folder: Path, name: str
) -> Path:
    """Write the mix as a LoRA file `folder`/`name`.safetensors and return its path.

    Blocks at 0 are left out, as are LoRAs at strength 0; the other strengths are in B. The metadata
    says of what files, which blocks and how strongly.

    Args:
        parts: the stack.
        files: where each of `parts` was read from.
        strengths: of each block of the stack.
        folder: made if missing.
        name: of the new file, see `_NAME_RULE`.

    Raises:
        AdapterError: the name is none, there is such a file, nothing is on, or DoRA has a strength
            other than 0 and 1.
    """
    _require_name(name, AdapterError("The mix cannot be saved", [_bad_name(name)]))
    path = folder / f"{name}.safetensors"
    if path.exists():
        problem = Problem(str(path), "there is such a file", "Take another name, or move it away.")
        raise AdapterError("The mix cannot be saved", [problem])
    used = [(part, file) for part, file in zip(parts, files, strict=True) if part.strength != 0.0]
    whole = stack([part for part, _ in used]) if used else Adapter({}, {})
    kept = {block: strengths[block] for block in whole.blocks if strengths[block] != 0.0}
    if not kept:
        problem = Problem(name, "no block is on", "Switch at least one on.")
        raise AdapterError("The mix cannot be saved", [problem])
    mixed = with_strengths(whole, kept)
    origin = {
        "blocklens.source_sha256": ",".join(sha256_file(file) for _, file in used),
        "blocklens.source_strengths": ",".join(f"{part.strength:g}" for part, _ in used),
        "blocklens.blocks": ",".join(str(block) for block in mixed.blocks),
        "blocklens.strengths": ",".join(f"{kept[block]:g}" for block in mixed.blocks),
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_adapter(partial, replace(mixed, metadata={**mixed.metadata, **origin}))
    partial.rename(path)
    return path


def add_subset(root: Path, name: str, strengths: Strengths, blocks: Sequence[BlockId]) -> str:
    """Add the mix to params.yaml under render.subsets, and return it as it stands there.

    Raises:
        ParamsError: the name is none, there is such a subset, nothing is on, the file would not
            be valid, or may not be written; it is as it was then.
    """
    _require_name(name, ParamsError("The mix cannot be added to params.yaml", [_bad_name(name)]))
    subsets = load_params(root / PARAMS).render.subsets
    patterns = as_patterns(strengths, blocks)
    where = f"render.subsets.{name}"
    problems = []
    if name in subsets:
        problems.append(Problem(where, "there is such a subset", "Take another name."))
    if not patterns:
        problems.append(Problem(where, "no block is on", "Switch at least one on."))
    if problems:
        raise ParamsError("The mix cannot be added to params.yaml", problems)
    line = f"{name}: {{{', '.join(f'{key}: {value:g}' for key, value in patterns.items())}}}"
    try:
        apply_overrides(root, {"render.subsets": {**subsets, name: patterns}})
    except OSError as error:
        problem = Problem(where, f"params.yaml cannot be written: {error}", f"Add by hand: {line}")
        raise ParamsError("The mix cannot be added to params.yaml", [problem]) from error
    return line


def _bad_name(name: str) -> Problem:
    return Problem(repr(name), "is no name for a mix", _NAME_RULE)


def _require_name(name: str, error: AdapterError | ParamsError) -> None:
    if not _NAME.fullmatch(name):
        raise error
