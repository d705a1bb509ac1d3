"""What can be wrong with what a person gave us, and how it is said.

    BlocklensError
      ParamsError    (ValueError)    params.yaml
      DatasetError   (ValueError)    pictures and captions
      WeightsError   (RuntimeError)  base weights: missing, changed, not to be had
      AdapterError   (ValueError)    LoRA files
      TableError     (ValueError)    a table of ours that breaks its contract
      TrainingError  (RuntimeError)  a run that cannot go on
      HardwareError  (RuntimeError)  a machine that lacks what the params ask for
      ClusterError   (RuntimeError)  several machines that cannot work together

Every error lists all problems it knows of, each with the place, what was found, what was
expected and what to do next. A stage turns them into one message and exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHOWN_PROBLEMS: Final = 10
"""A message lists this many problems and then says how many there are in all."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: where (file, key or row), what, and what to do next."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """Return the problem in one line."""
        return f"{self.where}: {self.what}. {self.remedy}"


class BlocklensError(Exception):
    """Base of all errors that are the input's fault, not the program's."""

    def __init__(self, summary: str, problems: Sequence[Problem] = ()) -> None:
        """Keep the summary and the sorted problems; `str()` gives the whole message."""
        self.summary = summary
        self.problems = tuple(sorted(problems))
        super().__init__(_message(summary, self.problems))


class ParamsError(BlocklensError, ValueError):
    """params.yaml has unknown keys, missing keys or values out of range."""


class DatasetError(BlocklensError, ValueError):
    """Pictures or captions that a LoRA cannot be trained on."""


class WeightsError(BlocklensError, RuntimeError):
    """Base weights that are missing, changed or not to be had."""


class AdapterError(BlocklensError, ValueError):
    """A LoRA file that cannot be read, or does not fit the base model."""


class TableError(BlocklensError, ValueError):
    """A table that breaks its contract."""


class TrainingError(BlocklensError, RuntimeError):
    """A training run that cannot go on."""


class HardwareError(BlocklensError, RuntimeError):
    """A machine that lacks a device or a package that the params ask for."""


class ClusterError(BlocklensError, RuntimeError):
    """Workers that cannot be reached, are gone, or differ from the process that asks them."""


def _message(summary: str, problems: Sequence[Problem]) -> str:
    if not problems:
        return summary
    lines = [f"{summary} ({len(problems)} {'problem' if len(problems) == 1 else 'problems'}):"]
    lines += [f"  - {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  … and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n".join(lines)
