"""The GPUs of this machine, without the seconds that torch takes to be imported."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Sequence
from typing import Final

_TIMEOUT_S: Final = 30.0


def driver_gpus() -> list[str]:
    """Return the UUIDs of NVIDIA's GPUs by the driver's own tool; none without it.

    A GPU that is cut into instances (MIG) is left out: no process could use it by that name.
    """
    return [row[0] for row in ask_driver(["uuid", "mig.mode.current"]) if row[1] != "Enabled"]


def ask_driver(fields: Sequence[str]) -> list[list[str]]:
    """Return these fields of each GPU (no units), as nvidia-smi has them; none without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return list(csv.reader(said.stdout.splitlines(), skipinitialspace=True))
