"""A whole run, then its chosen blocks trained again at a higher rank for the same bytes.

    python -m flows.focus [--page .blocklens/focus/focus.md]

Runs the pipeline, takes the blocks that slim kept, trains those alone at the rank that gives as
many bytes as all blocks had, as a DVC experiment, and writes a page that compares the two: with
its metrics (.json) and its pictures (.jpg) beside it. A second training that is there already is
not repeated.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect import flow
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import processes
from flows.command_line import run_to_exit
from flows.experiments.combination_runs import run_missing, share_experiments
from flows.experiments.dvc_experiments import PARAMS, read_experiments, require_committed
from flows.experiments.product import combinations
from flows.focus_page import compare, write_focus
from flows.focus_plan import plan_focus
from flows.pipeline import pipeline
from flows.repro import exclusive_run
from stages.contracts.errors import BlocklensError
from stages.contracts.params import load_params

PAGE: Final = ".blocklens/focus/focus.md"
TARGET: Final = "slim"


@flow(name="focus", persist_result=False)
def focus(page: str = PAGE, share: bool = False) -> State[Any]:
    """Run the pipeline, train the chosen blocks again, and write the comparison to `page`.

    `share` sends the second training, an experiment, to the repository that this one is a clone of.
    """
    root = Path.cwd()
    processes.allow_starts()
    try:
        params = load_params(root / PARAMS)
        require_committed(root, params)
        state = pipeline(return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
        with exclusive_run(root):
            plan = plan_focus(root, params)
            cells = combinations(plan.grid, {}, root / PARAMS, ["train"], TARGET)
            if failed := run_missing(root, cells, TARGET):
                return Failed(message=failed[0])
            recorded, name = read_experiments(root), cells[0].name
            made = compare(root, name, recorded[name][1], plan, params.train.rank)
            if share:
                share_experiments(root, cells, recorded)
        text = write_focus(root / page, made, plan, name, _command(page))
        _publish(text, made.picture)
    except BlocklensError as error:
        return Failed(message=str(error))
    except BaseException:
        processes.stop_all()
        raise
    return Completed(message=f"{plan.kept} of {plan.whole} blocks at rank {plan.rank}: {page}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the flow from the command line; exit code 1 with its message if it fails."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.focus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--page", default=PAGE, help=f"default: {PAGE}")
    options = parser.parse_args(arguments)
    run_to_exit(lambda: focus(options.page, return_state=True))


def _publish(text: str, picture: bytes) -> None:
    create_markdown_artifact(markdown=text, key="focus", description="Few blocks, higher rank")
    encoded = base64.b64encode(picture).decode()
    create_image_artifact(
        image_url=f"data:image/jpeg;base64,{encoded}", key="focus-pictures", description="Pictures"
    )


def _command(page: str) -> str:
    return "python -m flows.focus" + (f" --page {page}" if page != PAGE else "")


if __name__ == "__main__":
    main()
