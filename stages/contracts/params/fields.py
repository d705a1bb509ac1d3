"""What sections of params.yaml are made of: their base class and the types of single values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Sigma = Annotated[float, Field(gt=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]
QUOTABLE: Final = re.compile(r'(?!-)[^"$`\\\x00-\x1f]+')
"""A path that dvc.yaml can write between double quotes into a command."""


def _check_command_path(text: str) -> str:
    if text and not QUOTABLE.fullmatch(text):
        raise ValueError(
            'goes into a command and cannot have one of " $ ` \\ or a line end in it, or begin '
            "with -"
        )
    return text


CommandPath = Annotated[str, Field(min_length=1), AfterValidator(_check_command_path)]
CommitHash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Channel = Annotated[int, Field(ge=0, le=255)]
Rank = Annotated[int, Field(ge=1, le=512)]
Alpha = Annotated[float, Field(gt=0.0)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]


_RULE: Final = "_is_rule"
_Rule = TypeVar("_Rule", bound=Callable[..., None])


@dataclass(frozen=True)
class Breach:
    """One rule that values break: the key within its section ("" for several), what, remedy."""

    key: str
    what: str
    remedy: str = ""


class BrokenRulesError(ValueError):
    """All the rules between the values of a section that are broken."""

    def __init__(self, breaches: Sequence[Breach]) -> None:
        """Keep the breaches."""
        self.breaches = tuple(breaches)
        super().__init__("; ".join(breach.what for breach in breaches))


def rule(method: _Rule) -> _Rule:
    """Mark a method that raises ValueError where a section's values do not go together."""
    setattr(method, _RULE, True)
    return method


class Section(BaseModel):
    """A part of params.yaml: frozen, no unknown keys, no silent conversion of types.

    Every number is finite. Methods marked with `rule` are all asked, and what they refuse is
    raised together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        if breaches := list(self._breaches()):
            raise BrokenRulesError(breaches)
        return self

    def _breaches(self) -> Iterator[Breach]:
        for method in vars(type(self)).values():
            if not getattr(method, _RULE, False):
                continue
            try:
                method(self)
            except BrokenRulesError as error:
                yield from error.breaches
            except ValueError as error:
                yield Breach("", str(error))


def check_pinned(repository: str | None, revision: str | None) -> None:
    """Raise ValueError where one of the two is given without the other."""
    if (repository is None) != (revision is None):
        raise ValueError("repository and revision go together: set both, or both to null")
