"""Environment of a flow and of all its children. Importing this sets what is not set.

Prefect reads its settings when it is imported, so import this module before prefect.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

DEFAULTS: Final = {
    # Telemetry is off unless the person who runs this turns it on.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Seen with 3.8.8: the newer page asks amplitude.com for its settings all the same.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Git-ignored and inside the checkout, so that runs of two checkouts share nothing.
    "PREFECT_HOME": str(Path.cwd() / ".blocklens" / "prefect"),
    # Prefect's own limit is 20 s. The first start migrates a database: 9 s on an idle machine,
    # minutes beside a training. A server that dies is noticed at once, so patience costs nothing.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
}


def set_defaults() -> None:
    """Set each variable of `DEFAULTS` that is not set, and make Prefect's folder."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).expanduser().mkdir(parents=True, exist_ok=True)


def child_environment() -> dict[str, str]:
    """Return the environment of a DVC process.

    The folder of this interpreter comes first on PATH, so that `python` in a stage's command is
    this one without an activated virtual environment. Output is unbuffered and without bars,
    which never end a line and so never reach a log.
    """
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {
        **os.environ,
        "PATH": os.pathsep.join(folders),
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
    }


set_defaults()
