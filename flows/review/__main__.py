"""What a change did, as a comment for its pull request: did it get better or worse?

    python -m flows.review [BASE] [HEAD] [--out FOLDER] [--page FILE] [--pictures-url URL]
                           [--link NAME=URL ...]

Compares the branch, tag or commit BASE (main) with HEAD, or with the working tree as it is.
Writes comment.md and pictures.jpg into FOLDER, the comment to stdout, and, with --page, all of it
as a web page that needs no network: both block maps, their difference, both pictures under a
slider. Exit code 1 if a metric got worse than `review.limits` in params.yaml allows, 2 if the two
cannot be compared. Needs no GPU; pictures are shown where DVC's cache or remote has them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import flows.environment  # noqa: F401  telemetry is off in what this starts
from flows.review.comment import Review, write_comment
from flows.review.judgement import judge_metrics
from flows.review.page import read_blocks, write_page
from flows.review.pictures import collect_pictures, draw_pictures
from flows.review.revisions import (
    metric_changes,
    param_changes,
    read_shares,
    require_revision,
)
from stages.contracts.errors import BlocklensError
from stages.contracts.params import load_params

OUT: Final = Path(".blocklens/review")
PICTURES: Final = "pictures.jpg"
COMMENT: Final = "comment.md"
WORSE: Final = 1
FAILED: Final = 2


def review(
    root: Path,
    base: str,
    head: str | None,
    out: Path,
    pictures_url: str,
    links: dict[str, str],
    page: Path | None = None,
) -> Review:
    """Return the review of `head` (None: the working tree) against `base`, written into `out`.

    With `page` it is written there as a web page, too.

    Raises:
        RevisionError: git does not know one of the two.
        ParamsError: params.yaml here, which holds the limits, is not valid.
        GraphError: DVC cannot read one of the two.
    """
    limits = load_params(root / "params.yaml").review.limits
    base_name = _name(root, base)
    head_name = "working tree" if head is None else _name(root, head)
    out.mkdir(parents=True, exist_ok=True)
    shown = {
        name: collect_pictures(root, revision, name)
        for revision, name in ((base, base_name), (head, head_name))
    }
    found = [each for each in shown.values() if each is not None]
    (out / PICTURES).unlink(missing_ok=True)
    if found:
        (out / PICTURES).write_bytes(draw_pictures(found))
    made = Review(
        base_name,
        head_name,
        param_changes(root, base, head),
        judge_metrics(metric_changes(root, base, head), limits),
        read_shares(root, base),
        read_shares(root, head),
        pictures_url if found else None,
        [name for name, each in shown.items() if each is None],
        links,
    )
    (out / COMMENT).write_text(write_comment(made), encoding="utf-8")
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        blocks = (read_blocks(root, base), read_blocks(root, head))
        page.write_text(
            write_page(made, blocks, [shown[base_name], shown[head_name]]), encoding="utf-8"
        )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the review from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.review",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", nargs="?", default="main")
    parser.add_argument("head", nargs="?", help="default: the working tree")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, help="write the review as a web page, too")
    parser.add_argument("--pictures-url", default=PICTURES, help="where the comment finds them")
    parser.add_argument("--link", action="append", default=[], metavar="NAME=URL", type=_link)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        made = review(
            Path.cwd(),
            options.base,
            options.head,
            options.out,
            options.pictures_url,
            dict(options.link),
            options.page,
        )
    except BlocklensError as error:
        sys.stderr.write(f"review: {error}\n")
        sys.exit(FAILED)
    sys.stdout.write((options.out / COMMENT).read_text(encoding="utf-8"))
    if made.broken:
        sys.exit(WORSE)


def _name(root: Path, revision: str) -> str:
    short = require_revision(root, revision)
    return short if revision.startswith(short) else f"{revision} ({short})"


def _link(text: str) -> tuple[str, str]:
    name, separator, url = text.partition("=")
    if not (name and separator and url):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=URL")
    return name, url


if __name__ == "__main__":
    main()
