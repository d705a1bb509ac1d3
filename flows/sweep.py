"""Every combination of some params' values, each a DVC experiment of its own; then table and plot.

    python -m flows.sweep train.rank=4,8,16 train.learning_rate=0.001,0.0004
                          [--follow train.alpha=train.rank] [--target slim] [--page FILE]

One after the other here; with a server in PREFECT_API_URL, workers for experiments take them.

Experiments that are there already at this commit are not run again: a stopped sweep, and one with
more values, run what is missing. One that fails is named at the end and tried again by the next
call; the others are run all the same. `dvc exp show` has them all, `dvc exp apply NAME` brings one
into the working tree.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect import flow, get_run_logger
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows import processes
from flows.artifacts import publish_place
from flows.command_line import run_to_exit
from flows.experiments.combination_runs import run_missing, share_experiments
from flows.experiments.dvc_experiments import PARAMS, Recorded, read_experiments, require_committed
from flows.experiments.product import Combination, combinations
from flows.experiments.sweep_page import EXPERIMENT, draw_plot, sweep_rows, write_page
from flows.graph import read_plan
from flows.repository import run_git
from flows.repro import exclusive_run
from stages.contracts.errors import BlocklensError
from stages.contracts.params import SHARED_SECTIONS, load_params

TARGET: Final = "slim"
PAGES: Final = Path(".blocklens/sweeps")
_SHORT: Final = 8


@flow(name="sweep", persist_result=False)
def sweep(
    grid: dict[str, list[Any]],
    follow: dict[str, str] | None = None,
    target: str = TARGET,
    share: bool = False,
    page: str | None = None,
    workers: bool = True,
) -> State[Any]:
    """Run the pipeline up to `target` for every combination of the values in `grid`.

    `grid` maps names such as `train.rank` to lists of values; `follow` maps further names to one
    of those, whose value they take. `share` sends the experiments to the repository that this one
    is a clone of. The plot is written to `page` (.blocklens/sweeps/ if not given). With `workers`,
    those of the pool `blocklens-experiments` run the combinations, where any are online.
    """
    root = Path.cwd()
    processes.allow_starts()
    try:
        stages = [stage.name for stage in read_plan(root, [target])]
        sections = {*SHARED_SECTIONS, *stages} - {"review"}
        cells = combinations(grid, follow or {}, root / PARAMS, sections, target)
        with exclusive_run(root):
            require_committed(root, load_params(root / PARAMS))
            failed = run_missing(root, cells, target, workers)
            recorded = read_experiments(root)
            if share:
                share_experiments(root, cells, recorded)
            _publish(root, cells, recorded, stages, Path(page) if page else None)
    except BlocklensError as error:
        return Failed(message=str(error))
    except BaseException:
        processes.stop_all()
        raise
    if failed:
        reasons = "".join(f"\n{message}" for message in failed)
        return Failed(message=f"{len(failed)} of {len(cells)} experiments failed:{reasons}")
    return Completed(message=f"{len(cells)} experiments")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweep from the command line; exit code 1 with its message if it fails."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", nargs="+", metavar="PARAM=VALUE,VALUE", type=_values)
    parser.add_argument("--follow", action="append", default=[], metavar="PARAM=PARAM")
    parser.add_argument("--target", default=TARGET, help=f"last stage; default: {TARGET}")
    parser.add_argument("--page", help=f"default: a file in {PAGES}")
    options = parser.parse_args(arguments)
    followers = dict(each.split("=", 1) for each in options.follow if "=" in each)
    if len(followers) < len(options.follow):
        parser.error("--follow: write PARAM=PARAM, each follower once")
    grid, page = dict(options.grid), options.page
    served = bool(PREFECT_API_URL.value())  # else there will be a server for this run alone
    run_to_exit(
        lambda: sweep(grid, followers, options.target, page=page, workers=served, return_state=True)
    )


def _publish(
    root: Path,
    cells: Sequence[Combination],
    recorded: dict[str, Recorded],
    stages: Sequence[str],
    page: Path | None,
) -> None:
    rows = sweep_rows(cells, recorded, stages)
    if not rows:
        return
    params = [*cells[0].changes]
    text = json.dumps([cell.name for cell in cells])
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:_SHORT]}.html"
    path = root / (page or PAGES / name)
    write_page(path, rows, params, run_git(root, "rev-parse", "--short", "HEAD"))
    table = [{EXPERIMENT: key, **row} for key, row in rows.items()]
    create_table_artifact(table=table, key="sweep", description="Experiments")
    picture = base64.b64encode(draw_plot(rows, params).encode()).decode()
    create_image_artifact(
        image_url=f"data:image/svg+xml;base64,{picture}", key="sweep-plot", description="Plot"
    )
    publish_place(path.resolve(), key="sweep-page", description="Table and plot")
    get_run_logger().info("table and plot: %s", path)


def _values(text: str) -> tuple[str, list[Any]]:
    """Return the param and the values of an argument such as train.rank=4,8."""
    name, equals, values = text.partition("=")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text}: not readable: {error}") from error
    if not equals or not found:
        raise argparse.ArgumentTypeError(f"{text}: write PARAM=VALUE,VALUE")
    return name, found


if __name__ == "__main__":
    main()
