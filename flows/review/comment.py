"""The review as a comment in GitHub's Markdown: verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pandas as pd
from scipy import stats

from flows.review.judgement import Judged, Trend
from flows.review.revisions import Change, Value

TOP_BLOCKS: Final = 10
"""So many blocks of each revision are listed, largest share first."""
_SIGNS: Final[dict[Trend, str]] = {
    "better": "🟢 better",
    "worse": "🔴 worse",
    "same": "same",
    "neutral": "changed",
    "new": "new",
    "gone": "⚠️ gone",
}


@dataclass(frozen=True)
class Review:
    """All that a comment says about two revisions, `base` and `head` being their names."""

    base: str
    head: str
    params: Sequence[Change]
    metrics: Sequence[Judged]
    base_shares: pd.Series[float] | None
    head_shares: pd.Series[float] | None
    pictures_url: str | None = None
    missing_pictures: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> list[Judged]:
        """The metrics that got worse than their limits allow."""
        return [judged for judged in self.metrics if judged.broken]


def write_comment(review: Review) -> str:
    """Return the comment. It holds no time, host or path: equal results make equal comments."""
    parts = [f"## Blocklens: {review.base} → {review.head}", _verdict(review)]
    parts += [_params(review), _metrics(review), _blocks(review), _pictures(review)]
    if review.links:
        parts.append(" · ".join(f"[{name}]({url})" for name, url in review.links.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(review: Review) -> str:
    if broken := review.broken:
        lines = [f"❌ **{len(broken)} of the limits in `params.yaml` broken:**"]
        lines += [f"- `{judged.change.name}` {judged.broken}" for judged in broken]
        return "\n".join(lines)
    trends = [judged.trend for judged in review.metrics]
    better, worse = trends.count("better"), trends.count("worse")
    if not better and not worse:
        return "✅ No metric moved for better or worse."
    return f"✅ Within all limits: {better} better, {worse} worse."


def _params(review: Review) -> str:
    if not review.params:
        return "**Parameters**: none changed."
    rows = [f"| `{c.name}` | {_code(c.before)} | {_code(c.after)} |" for c in review.params]
    return "\n".join(
        ["### Parameters", f"| | {review.base} | {review.head} |", "|---|---|---|", *rows]
    )


def _metrics(review: Review) -> str:
    moved = [judged for judged in review.metrics if judged.trend != "same"]
    same = len(review.metrics) - len(moved)
    if not moved:
        return f"**Metrics**: all {same} are the same."
    lines = [
        "### Metrics",
        f"| | {review.base} | {review.head} | change | |",
        "|---|---|---|---|---|",
    ]
    for judged in moved:
        change = judged.change
        sign = _SIGNS[judged.trend] + (", **over its limit**" if judged.broken else "")
        lines.append(
            f"| `{change.name}` | {_shown(change.before)} | {_shown(change.after)} | "
            f"{_difference(change)} | {sign} |"
        )
    lines.append(f"\n{same} more are the same.")
    if any(each.change.name == "train.validation_loss_base" for each in moved):
        lines.append(
            "\nThe base model's validation loss differs, so the held-out pictures, their captions "
            "or the measuring points do: compare `train.improvement`, not `train.validation_loss`."
        )
    return "\n".join(lines)


def _blocks(review: Review) -> str:
    before, after = review.base_shares, review.head_shares
    if before is None or after is None:
        without = [n for n, s in ((review.base, before), (review.head, after)) if s is None]
        return f"**Blocks**: no shares in {' and '.join(without)}."
    if before.equals(after):
        return "**Blocks**: the shares are the same."
    ranks = {
        name: series.rank(ascending=False, method="min")
        for name, series in (("before", before), ("after", after))
    }
    listed = list(dict.fromkeys([*after.index[:TOP_BLOCKS], *before.index[:TOP_BLOCKS]]))
    lines = [
        "### Blocks by share of the effect",
        f"| | {review.base} | {review.head} | rank |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{block}` | {_percent(before.get(block))} | {_percent(after.get(block))} | "
        f"{_moved(ranks['before'].get(block), ranks['after'].get(block))} |"
        for block in listed
    ]
    both = before.index.intersection(after.index)
    if len(both) > 1:
        tau = stats.kendalltau(before[both], after[both]).statistic
        lines.append(f"\nKendall τ-b of the two rankings over {len(both)} blocks: {tau:.2f}.")
    return "\n".join(lines)


def _pictures(review: Review) -> str:
    lines = []
    if review.pictures_url:
        lines += ["### Pictures", f"![{review.base} above {review.head}]({review.pictures_url})"]
    lines += [
        f"No pictures of {name}: they are in no cache or remote in reach (`dvc push` there, "
        "`dvc pull` here)."
        for name in review.missing_pictures
    ]
    return "\n\n".join(lines)


def _difference(change: Change) -> str:
    before, after = change.before, change.after
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return ""
    difference = after - before
    relative = f" ({100 * difference / abs(before):+.1f} %)" if before else ""
    return f"{difference:+.6g}{relative}"


def _moved(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "only here" if before is None else "not here"
    step = int(before - after)
    arrow = f" ({'▲' if step > 0 else '▼'} {abs(step)})" if step else ""
    return f"{int(after)}{arrow}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _shown(value: Value) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else _escaped(str(value))


def _code(value: Value) -> str:
    return "–" if value is None else f"`{_escaped(str(value))}`" if value != "" else "(empty)"


def _escaped(text: str) -> str:
    """Return text that neither ends a table cell nor calls anybody."""
    return text.replace("|", "\\|").replace("\n", " ").replace("`", "'").replace("@", "@\u200b")
