"""Seconds that DVC and Prefect add to the stages: of a whole run, of an idle one, to start.

    python -m benchmarks.overhead [--params presets/nano-flux.yaml]

Runs the pipeline of this commit three times, each in a clone with an empty cache: its commands one
after the other, `dvc repro`, and the flow with a running Prefect server. Every command of a stage
goes through a shell that notes when it begins and ends, so that what is added is the time outside
of them, whatever else the machine does. Then `dvc repro` and the flow run once more, with nothing
to do, the flow with and without a server.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows.environment import child_environment
from flows.graph import DVC, run_dvc
from flows.local_server import prefect_api
from flows.repository import run_git

# isort: split
from prefect.settings import PREFECT_API_URL

ROOT: Final = Path(__file__).parents[1]
SHELL: Final = """\
#!/bin/sh
echo "begin $(date +%s.%N)" >> "$BLOCKLENS_TIMES"
/bin/sh "$@"
code=$?
echo "end $(date +%s.%N)" >> "$BLOCKLENS_TIMES"
exit $code
"""
"""DVC runs a stage's command as `$SHELL -c COMMAND`."""
FLOW: Final = (sys.executable, "-m", "flows.pipeline")


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: in all, until the first stage's command, and inside the commands."""

    total_s: float
    first_s: float
    inside_s: float

    @property
    def added_s(self) -> float:
        """Return the seconds outside of the stages' commands."""
        return self.total_s - self.inside_s


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="params file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shell = folder / "timing-sh"
        shell.write_text(SHELL)
        shell.chmod(0o755)
        bare, repro, flow = (
            fresh_clone(folder / kind, options.params) for kind in ("bare", "repro", "flow")
        )
        with server(folder / "prefect") as url:
            served = {"PREFECT_API_URL": url}
            run_flow = [*FLOW]
            runs = {
                "the commands alone": timed(bare, loop(bare), shell, {}),
                "`dvc repro`": timed(repro, [*DVC, "repro"], shell, {}),
                "the flow, server running": timed(flow, run_flow, shell, served),
            }
            idle = {
                "`dvc repro`": timed(repro, [*DVC, "repro"], shell, {}),
                "the flow, server running": timed(flow, run_flow, shell, served),
            }
        alone = {"PREFECT_API_URL": "", "PREFECT_HOME": str(folder / "prefect")}
        idle["the flow, its own server"] = timed(flow, run_flow, shell, alone)
    sys.stdout.write(tables(runs, idle))


def fresh_clone(folder: Path, params: Path) -> Path:
    """Return a clone of the commit with these params, in which no stage has run."""
    run_git(ROOT, "clone", "--quiet", str(ROOT), str(folder))
    shutil.copyfile(params, folder / "params.yaml")
    (folder / "dvc.lock").unlink(missing_ok=True)
    return folder


def loop(project: Path) -> list[str]:
    """Return a shell command that runs the stages' commands one after the other, as DVC would."""
    lines = run_dvc(project, "repro", "--dry", "--force").splitlines()
    commands = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
    assert commands, "a plan without commands"
    quoted = ['"$SHELL" -c \'' + command.replace("'", "'\\''") + "'" for command in commands]
    return ["/bin/sh", "-c", " && ".join(quoted)]


def timed(
    project: Path, command: Sequence[str], shell: Path, settings: Mapping[str, str]
) -> Timing:
    """Return the seconds of a command in a project; its failure is ours, with its output."""
    times = project / "times"
    times.unlink(missing_ok=True)
    environment = child_environment() | dict(settings)
    environment |= {"SHELL": str(shell), "BLOCKLENS_TIMES": str(times)}
    environment["PYTHONPATH"] = str(project)
    began = time.time()
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    total_s = time.time() - began
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    noted = times.read_text().split() if times.is_file() else []
    stamps = [(noted[i], float(noted[i + 1])) for i in range(0, len(noted), 2)]
    begins = [stamp for word, stamp in stamps if word == "begin"]
    ends = [stamp for word, stamp in stamps if word == "end"]
    inside_s = sum(end - begin for begin, end in zip(begins, ends, strict=True))
    return Timing(total_s, begins[0] - began if begins else total_s, inside_s)


@contextmanager
def server(home: Path) -> Iterator[str]:
    """Start a Prefect server, and give its address."""
    os.environ["PREFECT_HOME"] = str(home)
    with prefect_api():
        yield str(PREFECT_API_URL.value())


def tables(runs: Mapping[str, Timing], idle: Mapping[str, Timing]) -> str:
    """Return both tables in Markdown; the share is of the time inside the stages' commands."""
    lines = ["| a whole run | s | inside the stages | added | share | first stage after |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {t.total_s:.1f} | {t.inside_s:.1f} | {t.added_s:.1f} "
        f"| {t.added_s / t.inside_s:.1%} | {t.first_s:.1f} |"
        for name, t in runs.items()
    ]
    lines += ["", "| nothing to do | s |", "|---|---:|"]
    lines += [f"| {name} | {t.total_s:.1f} |" for name, t in idle.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
