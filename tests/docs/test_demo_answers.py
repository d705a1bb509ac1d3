"""What docs/reading-the-report.md reads off the demo's page is what the committed run has."""

from __future__ import annotations

import json
import re
from pathlib import Path

from stages.contracts.tables import BLOCKS, read_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reading-the-report.md").read_text(encoding="utf-8")


def answer(question: str) -> str:
    """Return the cell beside a question."""
    (found,) = re.findall(rf"^\| {re.escape(question)} \| (.+) \|$", PAGE, flags=re.MULTILINE)
    return found


def test_the_five_blocks_are_those_of_the_run() -> None:
    """A new run that ranks others changes the page, or fails here."""
    table = read_table(BLOCKS, ROOT / "data" / "evaluate" / "blocks.csv")
    first = table.sort_values("share", ascending=False).head(5)
    rows = zip(first["block"], first["share"], strict=True)
    told = [f"`{block}` {100 * share:.1f} %" for block, share in rows]
    together = f"together {100 * first['share'].sum():.1f} %"
    assert answer("Which five blocks matter most?") == f"{', '.join(told)}; {together}"


def test_size_and_loss_are_those_of_the_run() -> None:
    """The two numbers that people quote of a slim file."""
    slim = json.loads((ROOT / "data" / "slim" / "metrics.json").read_text(encoding="utf-8"))
    size, lost = answer("How big is the slim file?"), answer("What did it lose?")
    assert size.startswith(
        f"{slim['bytes'] / 1e6:.2f} MB, {slim['bytes_ratio']:.0%}".replace("%", " %")
    )
    assert f"{slim['blocks_kept']} of 57 blocks" in size
    assert lost.startswith(f"{100 * (1 - slim['recovery']):.0f} % of the effect")
    assert f"{100 * (1 - slim['recovery_low']):.0f} % at the far end" in lost
