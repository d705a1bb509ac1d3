"""Is this file a LoRA? Its header is read and compared with its size; no tensor is loaded.

Layout: huggingface/safetensors, README.md (8 bytes length, a JSON header, the data). The library
refuses headers whose offsets leave holes, overlap or pass the end. Nothing is unpickled.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from flows.mcp_server.limits import HEADER_BYTES
from stages.contracts.errors import Problem

_LENGTH_BYTES: Final = 8
_PART: Final = re.compile(
    r"\.(?:lora[._](?:A|B|down|up)\b.*|lora_down.*|lora_up.*|hada_w\w+|lokr_w\w+"
    r"|(?:qkv|proj)_lora[12]?\.(?:down|up)\.weight)$"
)
"""The last words of a LoRA's tensors in the dialects that stage `split` reads."""

_ALPHA: Final = ".alpha"
_NUMBERS: Final = frozenset({"F32", "F16", "BF16"})
"""What stage `split` takes for all but an alpha, which is one number of any kind."""

_PICKLES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_REMEDY: Final = "Pickles can run code and are never opened: send the .safetensors file."


def adapter_problem(path: Path, where: str) -> Problem | None:
    """Return why a file is no LoRA that the stages could read, or None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    header = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if size <= _LENGTH_BYTES or header > size - _LENGTH_BYTES:
        return _foreign_problem(start, where, size)
    if header > HEADER_BYTES:
        what = f"has a header of {header} bytes, more than the {HEADER_BYTES} allowed"
        return Problem(where, what, "Send the LoRA without pictures or notes in its metadata.")
    try:
        with safe_open(path, framework="np") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        return _foreign_problem(start, where, size, str(error))
    return _content_problem(dtypes, where)


def _foreign_problem(start: bytes, where: str, size: int, reason: str = "") -> Problem:
    if start.startswith(_PICKLES):
        return Problem(where, "is a pickle, not safetensors", _PICKLE_REMEDY)
    if start.lstrip()[:1] == b"<":
        return Problem(where, "is a web page, not weights", "Send the file itself.")
    why = f"; {reason}" if reason else ""
    what = f"is truncated or no safetensors file ({size} bytes{why})"
    return Problem(where, what, "Send the .safetensors file, whole.")


def _content_problem(dtypes: dict[str, str], where: str) -> Problem | None:
    if not any(_PART.search(name) for name in dtypes):
        what = f"has {len(dtypes)} tensors, and none is of a LoRA"
        return Problem(where, what, "Send an adapter (LoRA, DoRA, LoHa, LoKr), not a whole model.")
    kinds = {dtype for name, dtype in dtypes.items() if not name.endswith(_ALPHA)}
    if wrong := sorted(kinds - _NUMBERS):
        remedy = "Save it in float32, float16 or bfloat16."
        return Problem(where, f"has tensors of {', '.join(wrong)}", remedy)
    return None
