"""The review of a change, on two real commits of a pipeline that DVC ran."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from playwright.sync_api import expect

from flows.review.__main__ import FAILED, WORSE, main, review
from flows.review.comment import Review, write_comment
from flows.review.judgement import Judged, judge_metrics
from flows.review.page import in_a_sentence
from flows.review.revisions import Change, RevisionError
from stages.contracts.errors import ParamsError
from stages.contracts.metrics import BETTER
from stages.contracts.params import load_params
from tests.browser import Scheme, barriers, require_chromium, silent_page
from tests.flows.conftest import run_dvc
from tests.repositories import git

ROOT = Path(__file__).parents[2]
PIPELINE = """\
stages:
  train:
    cmd: python make.py train
    params: [train]
    deps: [make.py]
    metrics: [{data/train/metrics.json: {cache: false}}]
  render:
    cmd: python make.py render
    params: [train]
    deps: [make.py]
    outs: [data/render/images, data/render/index.csv]
  attribute:
    cmd: python make.py attribute
    params: [train]
    deps: [make.py]
    plots: [{data/attribute/shares.csv: {cache: false}}]
  slim:
    cmd: python make.py slim
    params: [train]
    deps: [make.py]
    outs: [data/slim/images]
    metrics: [{data/slim/metrics.json: {cache: false}}]
"""
MAKE = '''\
"""A small pipeline whose results follow train.rank: a higher one trains better and is larger."""

import json
import sys
from pathlib import Path

import yaml
from PIL import Image

rank = yaml.safe_load(Path("params.yaml").read_text())["train"]["rank"]
stage = sys.argv[1]
out = Path("data") / stage
out.mkdir(parents=True, exist_ok=True)


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (level, level, level)).save(path)


if stage == "train":
    metrics = {"improvement": 0.4 + rank / 100, "selected_step": 300, "note": f"rank|{rank}"}
    (out / "metrics.json").write_text(json.dumps(metrics))
if stage == "render":
    rows = ["prompt,text,seed,variant,file"]
    for prompt, text in (("develop-0", "tok, a robot"), ("without-trigger-0", "a circle")):
        for variant, level in (("none", 10), ("full", 10 * rank)):
            file = f"images/{prompt}-0/{variant}.png"
            picture(out / file, level)
            rows.append(f'{prompt},"{text}",0,{variant},{file}')
    (out / "index.csv").write_text("\\n".join(rows) + "\\n")
if stage == "attribute":
    shares = {"double.0": 0.5, "single.0": 0.3, "single.1": 0.2}
    if rank > 8:
        shares = {"double.0": 0.2, "single.0": 0.3, "single.1": 0.5}
    rows = ["block,share,low,high,prior", *(f"{b},{s},0,1,1" for b, s in shares.items())]
    (out / "shares.csv").write_text("\\n".join(rows) + "\\n")
if stage == "slim":
    (out / "metrics.json").write_text(json.dumps({"bytes_ratio": 0.6 + rank / 100}))
    for stem in ("none", "full", "slim"):
        picture(out / "images" / "held-out-0-100" / f"{stem}.png", 200)
'''
COMMENT = """\
## Blocklens: before (HASH0) → after (HASH1)

❌ **1 of the limits in `params.yaml` broken:**
- `slim.bytes_ratio` worse by 0.08; 0.05 is allowed

### Parameters
| | before (HASH0) | after (HASH1) |
|---|---|---|
| `train.alpha` | `8.0` | `16.0` |
| `train.rank` | `8` | `16` |

### Metrics
| | before (HASH0) | after (HASH1) | change | |
|---|---|---|---|---|
| `slim.bytes_ratio` | 0.68 | 0.76 | +0.08 (+11.8 %) | 🔴 worse, **over its limit** |
| `train.improvement` | 0.48 | 0.56 | +0.08 (+16.7 %) | 🟢 better |
| `train.note` | rank\\|8 | rank\\|16 |  | changed |

1 more are the same.

### Blocks by share of the effect
| | before (HASH0) | after (HASH1) | rank |
|---|---|---|---|
| `single.1` | 20.00 % | 50.00 % | 1 (▲ 2) |
| `single.0` | 30.00 % | 30.00 % | 2 |
| `double.0` | 50.00 % | 20.00 % | 3 (▼ 2) |

Kendall τ-b of the two rankings over 3 blocks: -1.00.

### Pictures

![before (HASH0) above after (HASH1)](https://example.org/pictures.jpg)

[report](https://example.org/report)
"""


def commit(project: Path, tag: str, rank: int) -> None:
    """Train with a rank, and commit what came out under a tag."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"] |= {"rank": rank, "alpha": float(rank)}
    params["review"]["limits"] = {"train.improvement": 0.02, "slim.bytes_ratio": 0.05}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    run_dvc(project, "repro", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", tag)
    git(project, "tag", tag)


@pytest.fixture(scope="session")
def reviewed_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the commits `before` (rank 8) and `after` (rank 16)."""
    folder = tmp_path_factory.mktemp("reviewed")
    git(folder, "init", "--quiet", ".")
    run_dvc(folder, "init", "--quiet")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "make.py").write_text(MAKE)
    (folder / ".gitignore").write_text("/data/*/images\n/data/render/index.csv\n/out\n")
    commit(folder, "before", 8)
    commit(folder, "after", 16)
    return folder


@pytest.fixture
def reviewed(reviewed_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project, as the working directory."""
    folder = shutil.copytree(reviewed_template, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def test_the_comment_says_what_changed(reviewed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Params, metrics with their direction, ranks, pictures, the broken limit, and exit code 1."""
    urls = ["--pictures-url", "https://example.org/pictures.jpg"]
    urls += ["--link", "report=https://example.org/report"]
    with pytest.raises(SystemExit) as left:
        main(["before", "after", "--out", "out", *urls])
    assert left.value.code == WORSE
    said = capsys.readouterr().out
    for number, tag in enumerate(("before", "after")):
        said = said.replace(git(reviewed, "rev-parse", "--short", tag).strip(), f"HASH{number}")
    assert said == COMMENT
    assert "HASH" not in (reviewed / "out/comment.md").read_text(encoding="utf-8")


def test_pictures_of_both_commits_stand_one_above_the_other(reviewed: Path) -> None:
    """First row before, second after; references of rank 8 and 16 differ, slim pictures do not."""
    review(reviewed, "before", "after", reviewed / "out", "pictures.jpg", {})
    with Image.open(reviewed / "out/pictures.jpg") as sheet:
        width, height = sheet.size
        centres = [262 * column + 6 + 128 for column in range(5)]
        rows = [height // 4 + 20, 3 * height // 4 + 20]
        levels = [[sheet.convert("L").getpixel((x, y)) for x in centres] for y in rows]
    assert width == 5 * 262 + 6
    assert levels == [
        [pytest.approx(level, abs=2) for level in (10, 80, 200, 200, 200)],
        [pytest.approx(level, abs=2) for level in (10, 160, 200, 200, 200)],
    ]


def compared(project: Path, out: Path) -> Path:
    """Return the web page of `before` against `after`, written into `out`."""
    review(project, "before", "after", out, "pictures.jpg", {}, out / "compare.html")
    return out / "compare.html"


@pytest.fixture(scope="session")
def compared_page(reviewed_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The web page of the two commits."""
    return compared(reviewed_template, tmp_path_factory.mktemp("compared"))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_the_page_shows_both_runs_and_what_became_of_them(
    compared_page: Path, tmp_path: Path, width: int, scheme: Scheme
) -> None:
    """In a browser: a sentence, tables, both maps and their difference, pictures to slide over."""
    require_chromium()
    with silent_page(compared_page, tmp_path, width, scheme) as page:
        expect(page.locator("h1")).to_have_text(
            "train.alpha 8 → 16, train.rank 8 → 16: 1 metric better, 1 worse."
        )
        expect(page.locator("#overview .lede")).to_contain_text("slim.bytes_ratio worse by 0.08")
        rows = page.locator("#params tbody tr")
        assert rows.all_inner_texts() == ["train.alpha\t8\t16", "train.rank\t8\t16"]
        trends = page.locator("#metrics .table-frame").first.locator(".trend").all_inner_texts()
        assert [text.partition(",")[0] for text in trends] == ["worse", "better", "changed"]
        maps = page.locator(".block-map:visible")
        assert maps.count() == 3
        gained = maps.nth(2).locator("[data-block='single.1'] title").text_content()
        assert gained is not None
        assert gained.replace("\N{NO-BREAK SPACE}", " ") == (
            "single.1: +30.0 points, from 20.0 % to 50.0 %, their intervals overlap"
        )
        assert maps.nth(2).locator("[data-block='double.0'].n3").count() == 1
        moves = page.locator("#ranks tbody tr td:nth-child(4)").all_inner_texts()
        assert moves == ["3 → 1 (▲ 2)", "2 → 2", "1 → 3 (▼ 2)"]
        names = page.locator("#pictures figcaption").all_inner_texts()
        held_out = [f"held-out-0-100 {stem}: the same pixels" for stem in ("none", "full", "slim")]
        assert names == ["none: the same pixels", "full", *held_out]
        slider = page.locator("#pictures .compare input").nth(1)
        slider.focus()
        page.keyboard.press("Home")
        expect(slider).to_have_value("0")
        box = slider.bounding_box()
        assert box is not None
        slider.click(position={"x": box["width"] * 0.75, "y": box["height"] / 2})
        assert 65 < int(slider.input_value()) < 85
        page.locator("summary").click()
        assert barriers(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_page_needs_nothing_else_and_is_stable(reviewed: Path, compared_page: Path) -> None:
    """Equal results make an equal page, wherever they lie; without pictures it has the rest."""
    page = compared_page.read_bytes()
    assert compared(reviewed, reviewed / "out").read_bytes() == page
    assert b"/tmp/" not in page
    shutil.rmtree(reviewed / ".dvc/cache")
    without = compared(reviewed, reviewed / "out").read_text(encoding="utf-8")
    assert "they are in no cache" in without
    assert "train.rank" in without


def test_the_sentence_prefers_what_changed_to_what_is_new() -> None:
    """Twenty new parameters must not hide the one that was turned."""
    new = [Change(f"caption.new_{index}", None, 1) for index in range(3)]
    turned = Change("train.rank", 8, 16)
    moved = judge_metrics([Change("slim.recovery", 0.9, 0.95)], {})

    def told(params: list[Change], metrics: list[Judged]) -> str:
        return in_a_sentence(Review("a", "b", params, metrics, None, None))

    assert told([*new, turned], moved) == (
        "train.rank 8 → 16 and 3 other parameters: 1 metric better, 0 worse."
    )
    assert told(new, []) == "3 parameters new or gone: no metric moved for better or worse."
    assert told([], moved) == "No parameter changed: 1 metric better, 0 worse."


def test_the_working_tree_is_compared_where_no_head_is_named(reviewed: Path) -> None:
    """What lies here uncommitted is what a person wants to hear about before the commit."""
    metrics = {"bytes_ratio": 0.5}
    (reviewed / "data/slim/metrics.json").write_text(json.dumps(metrics))
    main(["after", "--out", "out"])
    said = (reviewed / "out/comment.md").read_text(encoding="utf-8")
    assert "→ working tree" in said
    assert "| `slim.bytes_ratio` | 0.76 | 0.5 | -0.26 (-34.2 %) | 🟢 better |" in said
    assert "Within all limits: 1 better, 0 worse." in said


def test_pictures_out_of_reach_are_named_and_the_rest_is_said(reviewed: Path) -> None:
    """A clone without DVC's cache still gets every number, as CI without a remote does."""
    shutil.rmtree(reviewed / ".dvc/cache")
    made = review(reviewed, "before", "after", reviewed / "out", "pictures.jpg", {})
    assert len(made.missing_pictures) == 2
    assert not (reviewed / "out/pictures.jpg").exists()
    said = (reviewed / "out/comment.md").read_text(encoding="utf-8")
    assert said.count("No pictures of") == 2
    assert "| `train.rank` | `8` | `16` |" in said


def test_a_revision_that_git_does_not_know(
    reviewed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, apart from 1, so that a shallow clone is not taken for a bad change."""
    with pytest.raises(RevisionError, match="fetch-depth 0"):
        review(reviewed, "nowhere", None, reviewed / "out", "pictures.jpg", {})
    with pytest.raises(SystemExit) as left:
        main(["nowhere"])
    assert left.value.code == FAILED
    assert "git knows no commit 'nowhere'" in capsys.readouterr().err


def test_limits_of_unknown_metrics_are_refused(tmp_path: Path) -> None:
    """A misspelt limit would hold nothing."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["review"]["limits"] = {"slim.recoverey": 0.1, "split.modules": 1.0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError, match=r"slim\.recoverey.*split\.modules"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("before", "after", "trend", "broken"),
    [
        (0.9, 0.95, "better", ""),
        (0.9, 0.89, "worse", ""),
        (0.9, 0.85, "worse", "worse by 0.05; 0.02 is allowed"),
        (0.9, 0.9, "same", ""),
        (None, 0.9, "new", ""),
        (0.9, None, "gone", "was measured before, and is not any more"),
    ],
)
def test_trends_and_limits(
    before: float | None, after: float | None, trend: str, broken: str
) -> None:
    """Recovery is better when higher; a limit is the most that it may fall."""
    change = Change("slim.recovery", before, after)
    (judged,) = judge_metrics([change], {"slim.recovery": 0.02})
    assert (judged.trend, judged.broken) == (trend, broken)


def test_metrics_without_a_direction_are_neither_better_nor_worse() -> None:
    """More pictures or another step say nothing about quality."""
    changes = [Change("train.selected_step", 100, 300), Change("train.findings", "", "bleeding")]
    assert [judged.trend for judged in judge_metrics(changes, {})] == ["neutral", "neutral"]


def test_every_direction_belongs_to_a_metric_of_ours() -> None:
    """A renamed metric must not lose its direction; some exist only under other params."""
    measured = {
        f"{path.parent.name}.{key}"
        for path in (ROOT / "data").glob("*/metrics.json")
        for key in json.loads(path.read_text())
    }
    conditional = {"train.regularisation_loss", "train.preservation_loss"}
    assert BETTER.keys() - conditional <= measured


def test_a_value_cannot_break_out_of_its_cell() -> None:
    """A comment with a person's prompt in it calls nobody and keeps its table."""
    change = Change("caption.trigger", "a|b", "@everyone `x`\n")
    review_of = Review("a", "b", [change], [], None, None)
    row = next(line for line in write_comment(review_of).splitlines() if "trigger" in line)
    assert row == "| `caption.trigger` | `a\\|b` | `@\u200beveryone 'x' ` |"
