"""What sections of params.yaml are made of: their base class and the types of single values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Sigma = Annotated[float, Field(gt=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]
CommitHash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Channel = Annotated[int, Field(ge=0, le=255)]
Rank = Annotated[int, Field(ge=1, le=512)]
Alpha = Annotated[float, Field(gt=0.0)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]


class Section(BaseModel):
    """A part of params.yaml: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def check_pinned(repository: str | None, revision: str | None) -> None:
    """Raise ValueError where one of the two is given without the other."""
    if (repository is None) != (revision is None):
        raise ValueError("repository and revision go together: set both, or both to null")
