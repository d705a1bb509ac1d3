"""What a request may name and carry: one grammar for names, base64 with a limit, hashes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final
from uuid import UUID

from stages.contracts.errors import BlocklensError, Problem

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_REMEDY: Final = (
    "Use 1 to 100 of A-Z a-z 0-9 . _ -, beginning with a letter or digit, without two dots in a "
    "row and without one at the end."
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
SHOWN_SIGNS: Final = 60


class RequestError(BlocklensError, ValueError):
    """Another program asks for something that it may not have, or that makes no sense."""


def name_problem(kind: str, name: str) -> Problem | None:
    """Return what is wrong with the name of a dataset, file, config or LoRA.

    The grammar has no separator, so a name never leaves the folder that it is put into.
    """
    if _NAME.fullmatch(name) and ".." not in name and not name.endswith("."):
        return None
    return Problem(kind, f"the name {shown(name)} cannot be used", _NAME_REMEDY)


def require_name(kind: str, name: str) -> str:
    """Return `name`.

    Raises:
        RequestError: it breaks the grammar.
    """
    if problem := name_problem(kind, name):
        raise RequestError("This name is refused", [problem])
    return name


def require_job(job: str) -> UUID:
    """Return the id of a job: a flow run of Prefect.

    Raises:
        RequestError: it is no UUID.
    """
    try:
        return UUID(job)
    except ValueError as error:
        raise RequestError(
            "This job is refused",
            [Problem("job", f"{shown(job)} is no id of a job", "list-training-jobs has them.")],
        ) from error


def decoded(where: str, data: str, limit_bytes: int) -> bytes | Problem:
    """Return the bytes of a base64 text, or what is wrong with it."""
    if len(data) * 3 // 4 > limit_bytes + 2:
        what = f"has about {len(data) * 3 // 4} bytes, more than the {limit_bytes} allowed"
        return Problem(where, what, "Send less at once, or a smaller file.")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: signs outside ASCII
        return Problem(where, f"is no base64 ({error})", "Send standard base64, without line ends.")
    if not content:
        return Problem(where, "is empty", "Send its bytes.")
    if len(content) > limit_bytes:
        what = f"has {len(content)} bytes, more than the {limit_bytes} allowed"
        return Problem(where, what, "Send less at once, or a smaller file.")
    return content


def sha256_problem(where: str, stated: str | None) -> Problem | None:
    """Return what is wrong with the form of a stated hash."""
    if stated is None or _SHA256.fullmatch(stated):
        return None
    return Problem(where, f"{shown(stated)} is no SHA-256", "Give 64 hexadecimal digits, or none.")


def content_problem(where: str, content: bytes, stated: str | None) -> Problem | None:
    """Return a problem where bytes are not those that were sent off."""
    if problem := sha256_problem(where, stated):
        return problem
    found = hashlib.sha256(content).hexdigest()
    if stated is None or found == stated:
        return None
    return Problem(where, f"arrived with SHA-256 {found}, not {stated}", "Send it again.")


def shown(text: str) -> str:
    """Return a text of the other side as messages quote it: escaped, and cut."""
    return ascii(text if len(text) <= SHOWN_SIGNS else f"{text[:SHOWN_SIGNS]}…")
